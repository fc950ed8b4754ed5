package raftkv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// list returns a founding list of members 1 to size.
func (c *cluster) list(size int) []Member {
	var members []Member
	for id := range size {
		members = append(members, Member{ID: uint64(id + 1), Addr: fmt.Sprintf("n%d:1", id+1)})
	}
	return members
}

// voters returns the IDs of those who vote, as a member sees it.
func voters(m Membership) []uint64 {
	var ids []uint64
	for _, row := range m.Members {
		if row.Role == Voter {
			ids = append(ids, row.ID)
		}
	}
	return ids
}

// learners returns the IDs of those who do not.
func learners(m Membership) []uint64 {
	var ids []uint64
	for _, row := range m.Members {
		if row.Role == Learner {
			ids = append(ids, row.ID)
		}
	}
	return ids
}

// wantVoters checks the membership that a call returned, and that all running
// members come to see it.
func (c *cluster) wantVoters(m Membership, err error, want ...uint64) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	if !slices.Equal(voters(m), want) || m.Joint || m.Index == 0 {
		c.t.Errorf("membership %+v, want voters %d", m, want)
	}
	for range 500 {
		same := true
		for _, id := range want {
			if n := c.nodes[id]; n != nil {
				now := n.Status().Membership
				same = same && slices.Equal(voters(now), want) && !now.Joint
			}
		}
		if same {
			return
		}
		c.pause(20 * time.Millisecond)
	}
	c.t.Errorf("not all voters come to see %d", want)
}

// wantRemoved checks that a node stops because it was removed.
func (c *cluster) wantRemoved(n *Node) {
	c.t.Helper()
	select {
	case <-n.Done():
	case <-c.ctx().Done():
		c.t.Fatalf("member %d does not stop", n.cfg.ID)
	}
	if !errors.Is(n.Err(), ErrRemoved) {
		c.t.Errorf("member %d: Err() = %v, want ErrRemoved", n.cfg.ID, n.Err())
	}
	_, err := n.Put(c.ctx(), "k", nil)
	wantErr(c.t, "Put on what was removed", err, ErrRemoved)
	delete(c.nodes, n.cfg.ID)
}

func TestInitAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		for range 2 {
			if err := n.Init(c.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Init(c.ctx(), Member{ID: 1, Addr: "n1:1"}); err != nil {
			t.Errorf("Init with the list that says the same: %v", err)
		}
		wantErr(t, "Init with another list", n.Init(c.ctx(), c.list(2)...), ErrAlreadyInitialized)
		c.put(n, "k", "v")
		c.learner(2)
		if err := n.Init(c.ctx()); err != nil {
			t.Errorf("Init as it was founded: %v", err)
		}
	})
}

func TestInitFoundsOneClusterWhoeverCallsIt(t *testing.T) {
	for _, callers := range [][]int{{1, 2, 3}, {1}, {2}, {3}, {2, 3}} {
		t.Run(fmt.Sprint(callers), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				for id := range 3 {
					c.start(uint64(id + 1))
				}
				list := c.list(3)
				slices.Reverse(list) // the order does not matter
				var wg sync.WaitGroup
				for _, id := range callers {
					for range 2 { // nor does calling it twice
						wg.Go(func() {
							if err := c.nodes[uint64(id)].Init(c.ctx(), list...); err != nil {
								t.Errorf("member %d: %v", id, err)
							}
						})
					}
				}
				wg.Wait()
				c.ready()
				first := c.nodes[1].Status()
				for _, n := range c.nodes {
					if err := n.Init(c.ctx(), list...); err != nil {
						t.Errorf("member %d: Init again: %v", n.cfg.ID, err)
					}
					wantErr(t, "Init with another list", n.Init(c.ctx(), append(c.list(3), Member{ID: 9, Addr: "n9:1"})...), ErrAlreadyInitialized)
					wantErr(t, "Init alone", n.Init(c.ctx()), ErrAlreadyInitialized)
					s := n.Status()
					if s.ClusterID != first.ClusterID || len(s.ClusterID) != 32 || !slices.Equal(voters(s.Membership), []uint64{1, 2, 3}) {
						t.Errorf("member %d: %+v", n.cfg.ID, s)
					}
					c.put(n, fmt.Sprint(n.cfg.ID), "v")
				}
				c.wantSameState()
			})
		})
	}
}

func TestInitWaitsForAMissingMember(t *testing.T) {
	for name, missing := range map[string]func(c *cluster){
		"that does not run":        func(c *cluster) {},
		"that cannot be reached":   func(c *cluster) { c.net.Isolate("n3:1") },
		"that cannot be heard":     func(c *cluster) { c.net.Cut("n3:1", "n1:1"); c.net.Cut("n3:1", "n2:1") },
		"that sees only one other": func(c *cluster) { c.net.Cut("n3:1", "n1:1") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				missing(c)
				for id := range uint64(2) {
					c.start(id + 1)
				}
				if name == "that sees only one other" {
					c.start(3)
				}
				for _, n := range c.nodes {
					begin := time.Now()
					err := n.Init(c.within(8*time.Second), c.list(3)...)
					wantErr(t, "Init with one missing", err, ErrNotInitialized, context.DeadlineExceeded)
					if took := time.Since(begin); took != 8*time.Second {
						t.Errorf("it took %v of 8s", took)
					}
					if text := fmt.Sprint(err); !strings.Contains(text, "member 3 at n3:1") && !strings.Contains(text, "member 1 at n1:1") {
						t.Errorf("%q does not name who is missing", text)
					}
				}
				errc := make(chan error, 3)
				for _, n := range c.nodes {
					go func() { errc <- n.Init(c.ctx(), c.list(3)...) }()
				}
				c.pause(10 * time.Second)
				for _, n := range c.nodes {
					if s := n.Status(); s.Role != Blank || len(errc) > 0 {
						t.Fatalf("founded without one of its members: %+v", s)
					}
				}
				c.net.Rejoin("n3:1")
				c.net.Heal("n3:1", "n1:1")
				c.net.Heal("n3:1", "n2:1")
				if c.nodes[3] == nil {
					n := c.start(3)
					go func() { errc <- n.Init(c.ctx(), c.list(3)...) }()
				}
				for range 3 {
					if err := <-errc; err != nil {
						t.Errorf("Init after it has come: %v", err)
					}
				}
				c.ready()
			})
		})
	}
}

func TestInitRefusesWrongLists(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		for name, list := range map[string][]Member{
			"without itself":     {{ID: 2, Addr: "n2:1"}},
			"a member twice":     {{ID: 1, Addr: "n1:1"}, {ID: 1, Addr: "n1:1"}},
			"a learner":          {{ID: 1, Addr: "n1:1"}, {ID: 2, Addr: "n2:1", Role: Learner}},
			"ID 0":               {{ID: 1, Addr: "n1:1"}, {ID: 0, Addr: "n2:1"}},
			"an ID that is huge": {{ID: 1, Addr: "n1:1"}, {ID: 1 << 31, Addr: "n2:1"}},
			"no address":         {{ID: 1, Addr: "n1:1"}, {ID: 2}},
			"no port":            {{ID: 1, Addr: "n1:1"}, {ID: 2, Addr: "n2"}},
			"too many":           c.list(16),
		} {
			wantErr(t, "Init with "+name, n.Init(c.ctx(), list...), ErrInvalid)
		}
		wantErr(t, "Init that is canceled", n.Init(canceled()), context.Canceled)
		if s := n.Status(); s.Role != Blank {
			t.Errorf("it is founded: %+v", s)
		}
	})
}

func TestInitRefusesWrongProcesses(t *testing.T) {
	for _, caller := range []uint64{1, 2} { // the coordinator and another
		t.Run(fmt.Sprint("on ", caller), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.start(1)
				c.start(2)
				c.start(3, func(cfg *Config) { cfg.Cluster = "another" })
				c.start(4)
				n := c.nodes[caller]
				err := n.Init(c.ctx(), append(c.list(2), Member{ID: 5, Addr: "n4:1"})...)
				wantErr(t, "Init with another ID at the address", err, ErrMembershipRefused)
				err = n.Init(c.ctx(), c.list(3)...)
				wantErr(t, "Init with a member of a differently named cluster", err, ErrMembershipRefused)

				other := c.nodes[4]
				if err := other.Init(c.ctx()); err != nil {
					t.Fatal(err)
				}
				err = n.Init(c.ctx(), append(c.list(2), Member{ID: 4, Addr: "n4:1"})...)
				wantErr(t, "Init with a member of another cluster", err, ErrNotMember)
				for id := range uint64(3) {
					if s := c.nodes[id+1].Status(); s.Role != Blank {
						t.Errorf("member %d is founded: %+v", id+1, s)
					}
				}
				if err := n.Init(c.ctx(), c.list(2)...); err != nil {
					t.Errorf("Init with the right list afterwards: %v", err)
				}
			})
		})
	}
}

// TestInitOfAnAddedMember: a program calls Init with the founding list on every
// start; on a process that was added meanwhile, that is fine.
func TestInitOfAnAddedMember(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.start(4)
		list := append(c.list(3), Member{ID: 4, Addr: "n4:1"})
		err := n.Init(c.ctx(), list...)
		wantErr(t, "Init with members of a cluster that does not know it", err, ErrNotMember)
		if _, err := c.nodes[2].AddLearner(c.ctx(), 4, "n4:1"); err != nil {
			t.Fatal(err)
		}
		if err := n.Init(c.ctx(), list...); err != nil {
			t.Errorf("Init of a member that was added: %v", err)
		}
	})
}

func TestAddLearner(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader, follower := c.leader(), c.follower()
		c.put(leader, "k", "v")
		n := c.start(4)
		var first Membership
		for i, on := range []*Node{follower, leader, follower, n} {
			m, err := on.AddLearner(c.ctx(), 4, "n4:1")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = m
			}
			if m.Index != first.Index || !slices.Equal(learners(m), []uint64{4}) {
				t.Errorf("call %d: %+v, want %+v", i, m, first)
			}
		}
		if s := n.Status(); s.Role != Learner || s.Revision != 1 {
			t.Errorf("AddLearner returned before it had caught up: %+v", s)
		}
		if m, err := leader.AddLearner(c.ctx(), 2, "n2:1"); err != nil || m.Index != first.Index {
			t.Errorf("AddLearner of a voter at its address: %+v, %v", m, err)
		}
		c.start(5)
		c.start(6, func(cfg *Config) { cfg.Cluster = "another" })
		if err := c.start(7).Init(c.ctx()); err != nil {
			t.Fatal(err)
		}
		for _, on := range []*Node{leader, follower, n} {
			for _, test := range []struct {
				name string
				id   uint64
				addr string
				want error
				says string
			}{
				{"that runs elsewhere", 4, "n5:1", ErrMemberAlive, "n4:1"},
				{"voter that runs elsewhere", 2, "n5:1", ErrMemberAlive, "n2:1"},
				{"that nobody is", 8, "n8:1", ErrMembershipRefused, "n8:1"},
				{"with another ID", 9, "n5:1", ErrMembershipRefused, "5"},
				{"of a differently named cluster", 6, "n6:1", ErrMembershipRefused, "another"},
				{"of another cluster", 7, "n7:1", ErrMembershipRefused, "another cluster"},
				{"ID 0", 0, "n5:1", ErrInvalid, ""},
				{"huge ID", 1 << 31, "n5:1", ErrInvalid, ""},
				{"without port", 5, "n5", ErrInvalid, ""},
			} {
				name := fmt.Sprintf("AddLearner on %d of one %s", on.cfg.ID, test.name)
				_, err := on.AddLearner(c.ctx(), test.id, test.addr)
				wantErr(t, name, err, test.want)
				if !strings.Contains(fmt.Sprint(err), test.says) {
					t.Errorf("%s: %q does not say %q", name, err, test.says)
				}
			}
		}
		if m := leader.Status().Membership; m.Index != first.Index {
			t.Errorf("a refused call changed the membership to %+v", m)
		}
	})
}

// TestLearnerCatchesUpWithALogThatGrowsFasterThanARoundTrip: it always lacks
// what was written within one.
func TestLearnerCatchesUpWithALogThatGrowsFasterThanARoundTrip(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		c.delay(3, 25*time.Millisecond)
		y := newTally(c)
		y.writeUntilStopped(n, 5)
		for id := uint64(2); id <= 3; id++ {
			c.start(id)
			begin := time.Now()
			if _, err := n.AddLearner(c.within(10*time.Second), id, c.addrs[id]); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("AddLearner took %v", took)
			}
		}
		m, err := n.ChangeMembership(c.within(10*time.Second), []uint64{1, 2, 3})
		c.wantVoters(m, err, 1, 2, 3)
		y.check()
	})
}

// A dialGate lets dials to an address through while it is open.
type dialGate struct {
	mu    sync.Mutex
	addr  string
	allow int // dials
	openc chan struct{}
}

func newDialGate(addr string, allow int) *dialGate {
	return &dialGate{addr: addr, allow: allow, openc: make(chan struct{})}
}

func (g *dialGate) guard(cfg *Config) {
	dial := cfg.Dialer
	cfg.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
		g.mu.Lock()
		wait := addr == g.addr && g.allow == 0
		if addr == g.addr && !wait {
			g.allow--
		}
		g.mu.Unlock()
		if wait {
			select {
			case <-g.openc:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return dial(ctx, addr)
	}
}

func TestAddLearnerThatWasGivenUpGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		g := newDialGate("n2:1", 1) // the leader sees who is there and cannot reach it again
		c.found(1, g.guard)
		n := c.nodes[1]
		c.start(2)
		_, err := n.AddLearner(c.within(3*time.Second), 2, "n2:1")
		wantErr(t, "AddLearner without time to catch up", err, ErrOutcomeUnknown, context.DeadlineExceeded)
		m := n.Status().Membership
		if !slices.Equal(learners(m), []uint64{2}) {
			t.Fatalf("membership %+v, want learner 2", m)
		}
		c.put(n, "k", "v")
		close(g.openc)
		again, err := n.AddLearner(c.ctx(), 2, "n2:1")
		if err != nil || again.Index != m.Index {
			t.Errorf("the same call again: %+v, %v, want %+v", again, err, m)
		}
		c.wantValue(c.nodes[2], "k", "v")
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
		go s.Serve(l)
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

func TestRemoveLearner(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		for id := uint64(4); id <= 6; id++ {
			c.learner(id)
		}
		leader, follower := c.leader(), c.follower()
		for _, on := range []*Node{leader, follower, c.nodes[4]} {
			_, err := on.RemoveLearner(c.ctx(), 9)
			wantErr(t, "RemoveLearner of nobody", err, ErrLearnerNotFound)
			_, err = on.RemoveLearner(c.ctx(), 2)
			wantErr(t, "RemoveLearner of a voter", err, ErrMembershipRefused)
		}
		for _, test := range []struct{ on, id uint64 }{{leader.cfg.ID, 4}, {follower.cfg.ID, 5}, {6, 6}} {
			n := c.nodes[test.id]
			m, err := c.nodes[test.on].RemoveLearner(c.ctx(), test.id)
			if err != nil || slices.Contains(learners(m), test.id) {
				t.Errorf("RemoveLearner(%d) on %d = %+v, %v", test.id, test.on, m, err)
			}
			c.wantRemoved(n)
		}
		_, err := leader.RemoveLearner(c.ctx(), 4)
		wantErr(t, "RemoveLearner of one that was removed", err, ErrLearnerNotFound)
	})
}

// TestMemberRemovedWhileItWasAwayStops: nobody sends to it any more.
func TestMemberRemovedWhileItWasAwayStops(t *testing.T) {
	for _, away := range []time.Duration{2 * time.Second, time.Minute} { // connections outlive the first
		t.Run(away.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) { c.testRemovedWhileAway(away) })
		})
	}
}

func (c *cluster) testRemovedWhileAway(away time.Duration) {
	t := c.t
	c.found(3)
	learner := c.learner(4)
	voter := c.but(c.leader(), learner)[0]
	c.net.Isolate(learner.cfg.Addr)
	c.net.Isolate(voter.cfg.Addr)
	leader := c.agreed(c.but(learner, voter)...)
	if _, err := leader.RemoveLearner(c.ctx(), 4); err != nil {
		t.Fatal(err)
	}
	var rest []uint64
	for _, n := range c.but(learner, voter) {
		rest = append(rest, n.cfg.ID)
	}
	if _, err := leader.ChangeMembership(c.ctx(), rest); err != nil {
		t.Fatal(err)
	}
	c.pause(away)
	c.net.Rejoin(learner.cfg.Addr)
	c.net.Rejoin(voter.cfg.Addr)
	begin := time.Now()
	c.wantRemoved(learner)
	c.wantRemoved(voter)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v until they stopped", took)
	}
	c.put(leader, "k", "v")
}

func TestChangeMembershipRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		c.learner(5)
		dead := c.nodes[5]
		c.kill(dead)
		c.pause(3 * time.Second) // until the leader notices
		c.start(9)               // runs, and nobody has added it
		leader := c.agreed(c.nodes[1], c.nodes[2], c.nodes[3])
		before := leader.Status().Membership
		for _, on := range []*Node{leader, c.nodes[4]} {
			for _, test := range []struct {
				name   string
				voters []uint64
				opts   []MembershipOption
				want   error
				says   string
			}{
				{"nobody", nil, nil, ErrInvalid, ""},
				{"one unknown", []uint64{1, 2, 9}, nil, ErrLearnerNotFound, "member 9"},
				{"two unknown", []uint64{8, 1, 9}, nil, ErrLearnerNotFound, "8, 9"},
				{"a dead one and one more", []uint64{4, 5}, nil, ErrQuorumAtRisk, "member 5"},
				{"the dead alone", []uint64{5}, nil, ErrQuorumAtRisk, "member 5"},
				{"an index that was", []uint64{1, 2}, []MembershipOption{IfIndex(before.Index - 1)}, ErrMembershipChanged, fmt.Sprint(before.Index)},
			} {
				name := fmt.Sprintf("ChangeMembership on %d to %s", on.cfg.ID, test.name)
				begin := time.Now()
				_, err := on.ChangeMembership(c.ctx(), test.voters, test.opts...)
				wantErr(t, name, err, test.want)
				if !strings.Contains(fmt.Sprint(err), test.says) {
					t.Errorf("%s: %q does not say %q", name, err, test.says)
				}
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("%s: it took %v", name, took)
				}
			}
		}
		c.wantVoters(leader.Status().Membership, nil, 1, 2, 3)
		if after := leader.Status().Membership; after.Index != before.Index {
			t.Errorf("a refused change changed %+v to %+v", before, after)
		}
		m, err := leader.ChangeMembership(c.ctx(), []uint64{3, 1, 2, 1}, IfIndex(before.Index))
		if err != nil || m.Index != before.Index {
			t.Errorf("a change to what is: %+v, %v, want %+v", m, err, before)
		}
		m, err = leader.ChangeMembership(c.ctx(), []uint64{1, 2, 3, 4}, IfIndex(before.Index))
		c.wantVoters(m, err, 1, 2, 3, 4)
	})
}

// TestMajorityOfDeadVotersCannotBeChosen kills voters, not learners.
func TestMajorityOfDeadVotersCannotBeChosen(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		leader := c.leader()
		alive := c.but(leader)[2:]
		var chosen []uint64
		for _, n := range c.but(leader)[:2] {
			chosen = append(chosen, n.cfg.ID)
			c.kill(n)
		}
		chosen = append(chosen, leader.cfg.ID)
		c.pause(2 * time.Second)
		_, err := leader.ChangeMembership(c.ctx(), chosen)
		wantErr(t, "ChangeMembership to two dead of three", err, ErrQuorumAtRisk)
		m, err := leader.ChangeMembership(c.ctx(), append(chosen, alive[0].cfg.ID, alive[1].cfg.ID)[1:])
		if err != nil || len(voters(m)) != 4 {
			t.Errorf("ChangeMembership without one of the dead: %+v, %v", m, err)
		}
	})
}

func TestOneChangeAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		c.learner(5)
		c.kill(c.nodes[4])
		c.pause(3 * time.Second) // until the leader notices
		errc := make(chan error, 1)
		go func() {
			_, err := c.nodes[1].ChangeMembership(c.within(20*time.Second), []uint64{1, 2, 4}) // waits for 4
			errc <- err
		}()
		c.pause(5 * time.Second)
		_, err := c.nodes[2].ChangeMembership(c.ctx(), []uint64{1, 2, 3, 5})
		wantErr(t, "ChangeMembership while another is under way", err, ErrMembershipRefused)
		if _, err := c.nodes[3].RemoveLearner(c.ctx(), 4); err != nil {
			t.Errorf("RemoveLearner while a change waits: %v", err)
		}
		wantErr(t, "ChangeMembership to a learner that was removed meanwhile", <-errc, ErrLearnerNotFound)
		m, err := c.nodes[2].ChangeMembership(c.ctx(), []uint64{1, 2, 3, 5})
		c.wantVoters(m, err, 1, 2, 3, 5)
	})
}

// TestChangeMembership goes from one set of voters to the next, from the leader,
// from others and from those that are removed, while a caller writes.
func TestChangeMembership(t *testing.T) {
	for _, test := range []struct {
		name     string
		from, to []uint64
		retain   bool
	}{
		{"one to three", []uint64{1}, []uint64{1, 2, 3}, false},
		{"three to five", []uint64{1, 2, 3}, []uint64{1, 2, 3, 4, 5}, false},
		{"five to three", []uint64{1, 2, 3, 4, 5}, []uint64{1, 2, 3}, false},
		{"five to one", []uint64{1, 2, 3, 4, 5}, []uint64{3}, false},
		{"three to one", []uint64{1, 2, 3}, []uint64{2}, false},
		{"two to the other", []uint64{1, 2}, []uint64{2}, false},
		{"one to another", []uint64{1}, []uint64{2}, false},
		{"all others", []uint64{1, 2, 3}, []uint64{4, 5, 6}, false},
		{"all others, retained", []uint64{1, 2, 3}, []uint64{4, 5, 6}, true},
		{"one out, one in", []uint64{1, 2, 3}, []uint64{2, 3, 4}, false},
		{"one out, retained", []uint64{1, 2, 3}, []uint64{2, 3}, true},
	} {
		for _, role := range []string{"leader", "dropped leader", "dropped follower", "newcomer"} {
			t.Run(test.name+" on "+role, func(t *testing.T) {
				bubble(t, func(t *testing.T, c *cluster) {
					c.testChange(test.from, test.to, test.retain, role)
				})
			})
		}
	}
}

// testChange makes a change on a member with a role in it, if there is one.
func (c *cluster) testChange(from, to []uint64, retain bool, role string) {
	t := c.t
	c.found(len(from))
	for _, id := range to {
		if c.nodes[id] == nil {
			c.learner(id)
		}
	}
	c.delay(6, 5*time.Millisecond)
	lead, on := from[0], uint64(0)
	for _, id := range from {
		stays := slices.Contains(to, id)
		switch role {
		case "leader":
			if stays {
				lead, on = id, id
			}
		case "dropped leader":
			if !stays {
				lead, on = id, id
			}
		case "dropped follower":
			if !stays && id != lead {
				on = id
			}
		}
	}
	for _, id := range to {
		if role == "newcomer" && !slices.Contains(from, id) {
			on = id
		}
	}
	if on == 0 {
		return // nobody has this role
	}
	if err := c.leader().TransferLeadership(c.ctx(), lead); err != nil {
		t.Fatal(err)
	}
	writer := c.nodes[to[0]]
	y := newTally(c)
	y.writeUntilStopped(writer, 3)
	c.pause(100 * time.Millisecond)
	var opts []MembershipOption
	if retain {
		opts = append(opts, Retain())
	}
	begin := time.Now()
	m, err := c.nodes[on].ChangeMembership(c.ctx(), to, opts...)
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	c.wantVoters(m, err, to...)
	for _, id := range from {
		switch n := c.nodes[id]; {
		case slices.Contains(to, id):
		case retain:
			if !slices.Contains(learners(m), id) {
				t.Errorf("member %d is not retained: %+v", id, m)
			}
			if s := n.Status(); n.Err() != nil || s.Role != Learner {
				t.Errorf("member %d: %+v, %v", id, s, n.Err())
			}
		default:
			c.wantRemoved(n)
		}
	}
	c.pause(200 * time.Millisecond)
	y.check()
}

// TestNewLeaderCompletesAChange kills the leader half-way.
func TestNewLeaderCompletesAChange(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		c.learner(5)
		c.delay(5, 20*time.Millisecond)
		leader := c.leader()
		others := c.but(leader, c.nodes[4], c.nodes[5])
		to := []uint64{others[0].cfg.ID, 4, 5}
		slices.Sort(to)
		type result struct {
			m   Membership
			err error
		}
		done := make(chan result, 2)
		for _, on := range []*Node{others[0], others[1]} { // the second is removed
			go func() {
				m, err := on.ChangeMembership(c.ctx(), to)
				if errors.Is(err, ErrMembershipRefused) {
					err = nil // one of them is second
				}
				done <- result{m, err}
			}()
		}
		for !leader.Status().Membership.Joint {
			c.pause(time.Millisecond)
		}
		begin := time.Now()
		c.kill(leader)
		for range 2 {
			if r := <-done; r.err != nil {
				t.Error(r.err)
			}
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the calls returned after %v", took)
		}
		c.wantRemoved(others[1])
		c.wantVoters(others[0].Status().Membership, nil, to...)
		c.put(c.nodes[4], "k", "v")
		c.wantSameState()
	})
}

// TestChangeGoesOnAtTheNextLeader: nothing answers any more on the connection
// on which the change was sent, and nothing breaks it.
func TestChangeGoesOnAtTheNextLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		c.delay(4, 5*time.Millisecond)
		leader := c.leader()
		on := c.but(leader)[0]
		c.net.Isolate(leader.cfg.Addr)
		begin := time.Now()
		m, err := on.ChangeMembership(c.ctx(), []uint64{1, 2, 3, 4})
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if err != nil || len(voters(m)) != 4 {
			t.Errorf("ChangeMembership = %+v, %v", m, err)
		}
		c.net.Rejoin(leader.cfg.Addr)
		c.wantVoters(m, nil, 1, 2, 3, 4)
	})
}

func TestTransferLeadership(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		for i, to := range []uint64{2, 3, 1, 1, 3} {
			on := c.nodes[uint64(i%4+1)]
			begin := time.Now()
			if err := on.TransferLeadership(c.ctx(), to); err != nil {
				t.Fatalf("on %d to %d: %v", on.cfg.ID, to, err)
			}
			if took := time.Since(begin); took > 500*time.Millisecond {
				t.Errorf("on %d to %d: it took %v", on.cfg.ID, to, took)
			}
			if s := c.nodes[to].Status(); s.Role != Leader {
				t.Errorf("it returned before %d leads: %+v", to, s)
			}
			c.put(on, "k", "v")
		}
		c.kill(c.nodes[2])
		for _, now := range []bool{true, false} { // the leader does not know yet, and does
			for _, on := range []*Node{c.nodes[3], c.nodes[1], c.nodes[4]} {
				name := fmt.Sprintf("transfer on %d to ", on.cfg.ID)
				if !now {
					c.pause(3 * time.Second)
				}
				wantErr(t, name+"nobody", on.TransferLeadership(c.ctx(), 9), ErrNotMember)
				wantErr(t, name+"a learner", on.TransferLeadership(c.ctx(), 4), ErrMembershipRefused)
				begin := time.Now()
				wantErr(t, name+"a dead one", on.TransferLeadership(c.ctx(), 2), ErrMembershipRefused)
				if took := time.Since(begin); !now && took > 100*time.Millisecond {
					t.Errorf("%sone that is known to be dead: it took %v", name, took)
				}
				c.put(on, "k", "v")
			}
		}
		if s := c.nodes[3].Status(); s.Role != Leader {
			t.Errorf("leadership went: %+v", s)
		}
	})
}

// TestRestartedProcessIsNobody: a process that comes back blank under its old ID
// neither votes nor acknowledges, is told why, and can be added by hand.
func TestRestartedProcessIsNobody(t *testing.T) {
	for _, who := range []string{"follower", "leader"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				var j journal
				c.found(3)
				old := c.follower()
				if who == "leader" {
					old = c.leader()
				}
				c.put(old, "k", "1")
				id, others := old.cfg.ID, c.but(old)
				c.kill(old)
				n := c.restart(id, j.record)
				c.put(others[0], "k", "2")
				c.pause(5 * time.Second)

				err := n.Init(c.ctx(), c.list(3)...)
				wantErr(t, "Init of the new process", err, ErrNotMember)
				if !strings.Contains(fmt.Sprint(err), "another process, lost by a restart") {
					t.Errorf("%q does not say what to do", err)
				}
				for name, err := range c.everyCall(n, c.ctx()) {
					wantErr(t, name+" on the new process", err, ErrNotInitialized)
				}
				if s := n.Status(); s.Role != Blank {
					t.Errorf("status %+v", s)
				}
				if j.of("the cluster knows another process under this member's ID; this one is new and was not added: remove that member and add it again") != 1 {
					t.Error("the log does not say once that it is not the one expected")
				}
				leader := c.agreed(others...)
				_, err = leader.AddLearner(c.ctx(), id, n.cfg.Addr)
				wantErr(t, "AddLearner while the old one is a voter", err, ErrMembershipRefused)
				rest := []uint64{others[0].cfg.ID, others[1].cfg.ID}
				m, err := others[1].ChangeMembership(c.ctx(), rest)
				c.wantVoters(m, err, rest...)
				if _, err := others[0].AddLearner(c.ctx(), id, n.cfg.Addr); err != nil {
					t.Fatal(err)
				}
				m, err = n.ChangeMembership(c.ctx(), []uint64{1, 2, 3})
				c.wantVoters(m, err, 1, 2, 3)
				c.kill(others[0])
				c.wantValue(n, "k", "2")
				c.put(n, "k", "3")
				c.wantSameState()
			})
		})
	}
}

func TestRestartedProcessGivesNoQuorum(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		var restarted []*Node
		for _, n := range c.but(leader) {
			c.kill(n)
			restarted = append(restarted, c.restart(n.cfg.ID))
		}
		begin := time.Now()
		_, err := leader.Put(c.within(500*time.Millisecond), "k", []byte("lost"))
		wantErr(t, "Put with a quorum of strangers", err, ErrOutcomeUnknown, context.DeadlineExceeded)
		_, err = leader.Put(c.within(time.Minute), "k", nil)
		if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("put: %v", err)
		}
		if s := leader.Status(); s.Role == Leader || s.Revision != 0 {
			t.Errorf("after %v: %+v", time.Since(begin), s)
		}
		for _, n := range restarted {
			if s := n.Status(); s.Role != Blank || s.Term != 0 {
				t.Errorf("a blank process took part: %+v", s)
			}
		}
	})
}

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
	calls := map[string]func(n *Node, ctx context.Context) error{
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
	// A write or change that was sent may take effect; a read cannot.
	maySay := map[string]bool{
		"Put": true, "Delete": true, "AddLearner": true, "RemoveLearner": true, "ChangeMembership": true, "TransferLeadership": true,
	}
	for _, role := range []string{"leader", "follower", "no leader", "blank"} {
		for name, call := range calls {
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

// TestCloseInTheMiddleLeavesNothingBehind closes all nodes at many moments of
// what takes long. The bubble fails if a goroutine is left.
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

func TestStatusTellsHowAMemberSeesTheCluster(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		leader := c.leader()
		for i := range 10 {
			c.put(leader, fmt.Sprint(i), "v")
		}
		c.wantSameState()
		lead := leader.Status()
		for _, n := range c.nodes {
			s := n.Status()
			want := Follower
			switch n {
			case leader:
				want = Leader
			case c.nodes[4]:
				want = Learner
			}
			if s.ID != n.cfg.ID || s.Addr != n.cfg.Addr || s.Role != want || s.Leader != leader.cfg.ID || s.Revision != 10 ||
				s.Term != lead.Term || s.Term == 0 || s.ClusterID != lead.ClusterID || s.StateHash != lead.StateHash ||
				s.Applied == 0 || s.Commit < s.Applied || s.RefusedMessages != 0 {
				t.Errorf("member %d: %+v", n.cfg.ID, s)
			}
			if m := s.Membership; m.Index != lead.Membership.Index || m.Joint || !slices.Equal(voters(m), []uint64{1, 2, 3}) ||
				!slices.Equal(learners(m), []uint64{4}) || m.Members[3].Addr != "n4:1" {
				t.Errorf("member %d: membership %+v", n.cfg.ID, m)
			}
			if (len(s.Peers) > 0) != (n == leader) {
				t.Errorf("member %d: peers %+v", n.cfg.ID, s.Peers)
			}
		}
		c.kill(c.nodes[4])
		for i := range 20 {
			c.put(leader, fmt.Sprint(i), "v")
		}
		c.pause(10 * time.Second)
		s := leader.Status()
		if len(s.Peers) != 3 || s.Peers[0].ID == leader.cfg.ID {
			t.Fatalf("peers %+v", s.Peers)
		}
		for _, p := range s.Peers {
			switch {
			case p.ID == 4 && (p.Lag < 20 || p.LastContact < 9*time.Second):
				t.Errorf("the dead learner: %+v", p)
			case p.ID != 4 && (p.Lag != 0 || p.Match != s.Commit || p.LastContact > time.Second || p.LastContact < 0 || p.State != "replicate"):
				t.Errorf("a follower: %+v of commit %d", p, s.Commit)
			}
		}
	})
}

func TestReadyMeansThatCallsAreAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		errc := make(chan error, 3)
		for id := range uint64(3) {
			n := c.start(id + 1)
			go func() { // at once, before it belongs to anything
				err := n.Ready(c.ctx())
				begin := time.Now()
				if _, err := n.Get(c.ctx(), "k"); !errors.Is(err, ErrNotFound) {
					t.Errorf("Get on a member that is ready: %v", err)
				}
				if took := time.Since(begin); took > 100*time.Millisecond {
					t.Errorf("Get on a member that is ready took %v", took)
				}
				errc <- err
			}()
		}
		c.pause(10 * time.Second)
		if len(errc) > 0 {
			t.Fatal("ready before it belongs to a cluster")
		}
		if err := c.nodes[2].Init(c.ctx(), c.list(3)...); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := <-errc; err != nil {
				t.Error(err)
			}
		}
		n := c.follower()
		c.net.Isolate(n.cfg.Addr)
		wantErr(t, "Ready of an isolated member", n.Ready(c.within(3*time.Second)), ErrNoLeader, context.DeadlineExceeded)
		c.net.Rejoin(n.cfg.Addr)
		if err := n.Ready(c.ctx()); err != nil {
			t.Error(err)
		}
		c.kill(n)
		wantErr(t, "Ready after Close", n.Ready(c.ctx()), ErrClosed)
	})
}
