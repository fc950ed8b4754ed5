package raftkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// TestShutdownHandsLeadershipOver: the calls on it end with a known outcome,
// and those on others hardly notice.
func TestShutdownHandsLeadershipOver(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 5*time.Millisecond)
		leader := c.leader()
		others := c.but(leader)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := 0; ; j++ {
					_, err := leader.Put(c.ctx(), fmt.Sprintf("%d/%d", i, j), nil, IfRevision(0))
					if err != nil {
						wantErr(t, "Put while it shuts down", err, ErrClosed) // and not ErrOutcomeUnknown
						return
					}
				}
			})
		}
		wg.Go(func() { // those on others hardly notice
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				begin := time.Now()
				c.put(others[0], fmt.Sprintf("other/%d", j), "", IfRevision(0))
				if took := time.Since(begin); took > 500*time.Millisecond {
					t.Errorf("a put took %v", took)
				}
			}
		})
		c.pause(500 * time.Millisecond)
		begin := time.Now()
		if err := leader.Shutdown(c.ctx()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("Shutdown took %v", took)
		}
		if !errors.Is(leader.Err(), ErrClosed) {
			t.Errorf("Err() = %v", leader.Err())
		}
		delete(c.nodes, leader.cfg.ID)
		c.pause(300 * time.Millisecond)
		close(stop)
		wg.Wait()
		c.wantSameState()
	})
}

// TestShutdownEndsWithItsContext: a leader that is cut off has nobody to hand
// over to; a process alone has no need to.
func TestShutdownEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.leader()
		c.net.Isolate(n.cfg.Addr)
		errc := make(chan error, 1)
		go func() {
			_, err := n.Put(c.ctx(), "k", nil)
			errc <- err
		}()
		c.pause(10 * time.Millisecond)
		begin := time.Now()
		err := n.Shutdown(c.within(4 * time.Second))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown = %v", err)
		}
		if took := time.Since(begin); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("it took %v of 4s", took)
		}
		wantErr(t, "the call that was under way", <-errc, ErrClosed, ErrOutcomeUnknown)
		blank := c.start(9)
		if err := blank.Shutdown(c.ctx()); err != nil {
			t.Errorf("Shutdown of a blank process: %v", err)
		}
		one := c.start(8)
		if err := one.Init(c.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := one.Shutdown(c.ctx()); err != nil {
			t.Errorf("Shutdown of a cluster of one: %v", err)
		}
	})
}

// TestCloseEndsEveryCall closes a node while each kind of call waits on it.
func TestCloseEndsEveryCall(t *testing.T) {
	// A write or change that was sent may take effect; a read cannot.
	maySay := map[string]bool{
		"Put": true, "Delete": true, "AddLearner": true, "RemoveLearner": true, "ChangeMembership": true, "TransferLeadership": true,
	}
	for _, role := range []string{"leader", "follower", "no leader", "blank"} {
		for name, call := range everyCall() {
			if (role == "blank") != (name == "Init") && !(role == "blank" && name == "Ready") {
				continue
			}
			for _, end := range []string{"Close", "Close after 3s"} {
				t.Run(role+" "+name+" "+end, func(t *testing.T) {
					bubble(t, func(t *testing.T, c *cluster) {
						c.found(3)
						c.learner(4)
						c.net.Isolate("n9:1")
						n := c.leader()
						switch role {
						case "blank":
							n = c.start(8)
						case "follower":
							n = c.but(n)[0]
						case "no leader":
							c.net.Isolate(n.cfg.Addr)
							c.pause(5 * time.Second)
						}
						c.net.Isolate(n.cfg.Addr)
						errc := make(chan error, 1)
						go func() { errc <- call(n, c.within(time.Hour)) }()
						pause := 100 * time.Millisecond
						if end == "Close after 3s" {
							pause = 3 * time.Second
						}
						c.pause(pause)
						if len(errc) > 0 {
							return // it did not have to wait
						}
						begin := time.Now()
						n.Close()
						closed := time.Since(begin)
						err := <-errc
						if returned := time.Since(begin); closed > 100*time.Millisecond || returned > 100*time.Millisecond {
							t.Errorf("Close took %v, the call %v", closed, returned)
						}
						if errors.Is(err, ErrOutcomeUnknown) && maySay[name] {
							wantErr(t, name, err, ErrClosed, ErrOutcomeUnknown)
						} else {
							wantErr(t, name, err, ErrClosed)
						}
					})
				})
			}
		}
	}
}

// everyCall returns a call of each kind, by name.
func everyCall() map[string]func(n *Node, ctx context.Context) error {
	return map[string]func(n *Node, ctx context.Context) error{
		"Put":           func(n *Node, ctx context.Context) error { _, err := n.Put(ctx, "k", nil); return err },
		"Delete":        func(n *Node, ctx context.Context) error { _, err := n.Delete(ctx, "k"); return err },
		"Get":           func(n *Node, ctx context.Context) error { _, err := n.Get(ctx, "k"); return err },
		"List":          func(n *Node, ctx context.Context) error { _, err := n.List(ctx, ""); return err },
		"MinRevision":   func(n *Node, ctx context.Context) error { _, err := n.Get(ctx, "k", MinRevision(99)); return err },
		"Ready":         func(n *Node, ctx context.Context) error { return n.Ready(ctx) },
		"AddLearner":    func(n *Node, ctx context.Context) error { _, err := n.AddLearner(ctx, 9, "n9:1"); return err },
		"RemoveLearner": func(n *Node, ctx context.Context) error { _, err := n.RemoveLearner(ctx, 4); return err },
		"ChangeMembership": func(n *Node, ctx context.Context) error {
			_, err := n.ChangeMembership(ctx, []uint64{1, 2})
			return err
		},
		"TransferLeadership": func(n *Node, ctx context.Context) error { return n.TransferLeadership(ctx, n.cfg.ID%3+1) },
		"Init": func(n *Node, ctx context.Context) error {
			return n.Init(ctx, Member{ID: 8, Addr: "n8:1"}, Member{ID: 9, Addr: "n9:1"})
		},
	}
}

// TestCloseInTheMiddleLeavesNothingBehind closes all nodes at many moments of
// what takes long. The bubble fails if a goroutine is left. What the calls return
// is for TestCloseEndsEveryCall.
func TestCloseInTheMiddleLeavesNothingBehind(t *testing.T) {
	for name, prepare := range map[string]func(c *cluster) (begin func()){
		"Init": func(c *cluster) func() {
			for id := range uint64(3) {
				c.start(id + 1)
			}
			return func() {
				for _, n := range c.nodes {
					go n.Init(c.within(time.Hour), c.list(3)...)
				}
			}
		},
		"AddLearner": func(c *cluster) func() {
			c.found(3)
			c.start(4)
			return func() { go c.nodes[2].AddLearner(c.within(time.Hour), 4, "n4:1") }
		},
		"ChangeMembership": func(c *cluster) func() {
			c.found(3)
			c.learner(4)
			return func() { go c.nodes[2].ChangeMembership(c.within(time.Hour), []uint64{2, 4}) }
		},
		"a snapshot": func(c *cluster) func() {
			c.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 })
			for i := range 5 {
				c.put(c.nodes[1], fmt.Sprint(i), strings.Repeat("v", 1<<19))
			}
			c.start(4)
			return func() { go c.nodes[2].AddLearner(c.within(time.Hour), 4, "n4:1") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			for at := time.Duration(0); at < 400*time.Millisecond; at += 13 * time.Millisecond {
				bubble(t, func(t *testing.T, c *cluster) {
					begin := prepare(c)
					c.delay(4, 7*time.Millisecond)
					begin()
					c.pause(at)
					var wg sync.WaitGroup
					for _, n := range c.nodes {
						wg.Go(func() {
							begin := time.Now()
							n.Close()
							if took := time.Since(begin); took >= time.Second {
								t.Errorf("at %v: Close of %d took %v", at, n.cfg.ID, took)
							}
						})
					}
					wg.Wait()
				})
			}
		})
	}
}

// TestPanicInTheApplierStopsTheNodeAndNothingHangs: by a task that only a bug
// could make.
func TestPanicInTheApplierStopsTheNodeAndNothingHangs(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		n.tasks.push([]task{{index: 9, install: &stagedSnapshot{}}}) // without a state: a bug
		select {
		case <-n.Done():
		case <-c.within(time.Second).Done():
			t.Fatal("the node goes on, or hangs")
		}
		if n.Err() == nil {
			t.Error("Err() = nil after a panic")
		}
		if _, err := n.Put(c.ctx(), "k", nil); err == nil {
			t.Error("Put succeeds on a stopped node")
		}
		n.Close()
	})
}

// A member that stops because it was removed must not answer others in a way
// that makes them believe it of themselves.
func TestRemovedMemberDoesNotTellOthersThatTheyAre(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		n.stopFor(ErrRemoved)
		hello := &kvpb.HelloRequest{}
		checksum.Seal(hello)
		_, err := n.transport.Hello(c.ctx(), hello)
		if told, ours := wire.FromStatus(err); !ours || errors.Is(told, ErrRemoved) || !errors.Is(told, ErrClosed) {
			t.Errorf("hello to a member that stops = %v, want ErrClosed", err)
		}
	})
}

// A stoppingPeer answers as a node does that is just being closed.
type stoppingPeer struct {
	kvpb.UnimplementedPeerServiceServer
}

func (stoppingPeer) Hello(context.Context, *kvpb.HelloRequest) (*kvpb.HelloResponse, error) {
	return nil, wire.ToStatus(ErrClosed, 0, "")
}

// TestPeerThatStopsIsNotThisNode: ErrClosed from another must not reach a
// caller, who would take it for this node's.
func TestPeerThatStopsIsNotThisNode(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.start(2)
		l, addr := c.listen(3)
		s := grpc.NewServer()
		kvpb.RegisterPeerServiceServer(s, stoppingPeer{})
		go s.Serve(l) // until Stop, below; then its error says nothing
		_, err := c.nodes[1].AddLearner(c.ctx(), 3, addr)
		wantErr(t, "AddLearner of one that stops", err, ErrMembershipRefused)
		errc := make(chan error, 2)
		list := []Member{{ID: 2, Addr: "n2:1"}, {ID: 3, Addr: addr}}
		go func() { errc <- n.Init(c.ctx(), list...) }()
		c.pause(3 * time.Second)
		s.Stop()
		next := c.start(3)
		go func() { errc <- next.Init(c.ctx(), list...) }()
		for range 2 {
			if err := <-errc; err != nil {
				t.Errorf("Init across the restart of another member: %v", err)
			}
		}
	})
}

// TestCloseDoesNotWaitForConnectionsThatSayNothing: a gRPC server waits for the
// handshake of a connection that it has accepted.
func TestCloseDoesNotWaitForConnectionsThatSayNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		conn, err := c.net.Dial(c.ctx(), "stranger:1", n.cfg.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c.pause(time.Millisecond) // until it is accepted
		began := time.Now()
		n.Close()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("Close took %v", took)
		}
	})
}
