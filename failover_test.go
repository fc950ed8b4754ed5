package raftkv

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// hinted is what a member logs when it follows a hint.
const hinted = "the leader's process has ended"

// crash ends a node as kill -9 does its process: its connections break at once,
// and nobody listens at its address any more.
func (c *cluster) crash(n *Node) {
	c.t.Helper()
	delete(c.nodes, n.cfg.ID)
	n.listener.closeAll()
	c.net.ResetAll(n.cfg.Addr)
	n.Close()
}

// A refusals refuses the dials that it is told to, as a firewall does, or the kernel for a
// process that has closed its listener.
type refusals struct {
	mu     sync.Mutex
	closed map[[2]string]bool
}

// guard has a member dial through it.
func (g *refusals) guard(cfg *Config) {
	from, dial := cfg.Addr, cfg.Dialer
	cfg.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
		g.mu.Lock()
		closed := g.closed[[2]string{from, addr}]
		g.mu.Unlock()
		if closed {
			return nil, &net.OpError{Op: "dial", Net: "simnet", Err: syscall.ECONNREFUSED}
		}
		return dial(ctx, addr)
	}
}

func (g *refusals) set(from, to *Node, closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(map[[2]string]bool)
	}
	g.closed[[2]string{from.cfg.Addr, to.cfg.Addr}] = closed
}

// TestDeadProcessIsReplacedAtOnce: nobody waits for the election timeout, whoever
// leads, and of five members also not when two die, one after another.
func TestDeadProcessIsReplacedAtOnce(t *testing.T) {
	for _, size := range []int{3, 5} {
		for leader := range size {
			t.Run(fmt.Sprintf("%d of %d", leader+1, size), func(t *testing.T) {
				bubble(t, func(t *testing.T, c *cluster) {
					c.found(size)
					c.delay(size, 400*time.Microsecond) // less than a rest
					if err := c.nodes[1].TransferLeadership(c.ctx(), uint64(leader+1)); err != nil {
						t.Fatal(err)
					}
					heartbeat := c.nodes[1].cfg.Timing.Heartbeat
					c.pause(1500 * time.Millisecond)
					c.wantQuickFailover(heartbeat / 2)
					for range size/2 - 1 { // whose first voter may be the one that has died before
						c.pause(1500 * time.Millisecond)
						c.wantQuickFailover(2 * heartbeat)
					}
				})
			})
		}
	}
}

// appliedLeast returns the index of the node that has applied the least.
func (c *cluster) appliedLeast() uint64 {
	least := uint64(math.MaxUint64)
	for _, n := range c.nodes {
		least = min(least, n.fsm.applied.Load())
	}
	return least
}

// wantQuickFailover crashes the leader the moment it has acknowledged a write, when
// not all others have it, and has every other member write.
func (c *cluster) wantQuickFailover(limit time.Duration) {
	c.t.Helper()
	old := c.leader()
	term := old.Status().Term
	last := fmt.Sprint("of term ", term)
	c.put(old, "last", last)
	if c.appliedLeast() >= old.fsm.applied.Load() {
		c.t.Error("all have the last write already; nothing is shown")
	}
	c.crash(old)
	began := time.Now()
	var wg sync.WaitGroup
	for _, n := range c.but() {
		wg.Go(func() { c.put(n, fmt.Sprint(n.cfg.ID), "v") })
	}
	wg.Wait()
	took := time.Since(began)
	c.t.Logf("writes on all others after %v", took)
	if took > limit {
		c.t.Errorf("the first write after the leader's death took %v, want at most %v", took, limit)
	}
	if now := c.leader().Status().Term; now != term+1 {
		c.t.Errorf("%d elections", now-term)
	}
	c.wantValue(c.leader(), "last", last)
}

// TestFlappingConnectionsOfALiveLeaderChangeNoTerm: for a minute, whatever one
// member takes for evidence, the others hear the leader, and so does that one soon
// again.
func TestFlappingConnectionsOfALiveLeaderChangeNoTerm(t *testing.T) {
	for name, flap := range map[string]struct {
		do    func(c *cluster, g *refusals, leader *Node, others []*Node, i int)
		hints bool
	}{
		"resets": {func(c *cluster, _ *refusals, leader *Node, others []*Node, i int) {
			c.net.Reset(leader.cfg.Addr, others[i%2].cfg.Addr)
		}, false},
		"resets of all": {func(c *cluster, _ *refusals, leader *Node, _ []*Node, _ int) { c.net.ResetAll(leader.cfg.Addr) }, false},
		"one is refused": {func(c *cluster, g *refusals, leader *Node, others []*Node, i int) {
			g.set(others[0], leader, i%8 < 6)
			c.net.Reset(leader.cfg.Addr, others[0].cfg.Addr)
		}, true},
		"all are refused, in turn": {func(c *cluster, g *refusals, leader *Node, others []*Node, i int) {
			g.set(others[0], leader, i%2 == 0)
			g.set(others[1], leader, i%2 == 1)
			c.net.Reset(leader.cfg.Addr, others[i%2].cfg.Addr)
		}, true},
		"it does not listen": {func(c *cluster, g *refusals, leader *Node, others []*Node, i int) {
			g.set(others[0], leader, true)
			g.set(others[1], leader, true)
		}, false},
		"it does not listen, and connections break": {func(c *cluster, g *refusals, leader *Node, others []*Node, i int) {
			g.set(others[0], leader, true)
			g.set(others[1], leader, true)
			c.net.Reset(leader.cfg.Addr, others[0].cfg.Addr) // with both it would hear nobody
		}, true},
		"cut one way": {func(c *cluster, g *refusals, leader *Node, others []*Node, i int) {
			g.set(others[0], leader, true)
			c.net.Reset(leader.cfg.Addr, others[0].cfg.Addr)
			if c.net.Heal(leader.cfg.Addr, others[0].cfg.Addr); i%2 == 0 {
				c.net.Cut(leader.cfg.Addr, others[0].cfg.Addr)
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				var j journal
				var g refusals
				c.found(3, j.record, g.guard)
				c.delay(3, 2*time.Millisecond)
				leader := c.leader()
				others := c.but(leader)
				c.pause(2 * time.Second)
				before := leader.Status()
				for i := range 200 {
					flap.do(c, &g, leader, others, i)
					c.pause(300 * time.Millisecond)
				}
				if after := leader.Status(); after.Term != before.Term || after.Leader != before.Leader {
					t.Errorf("before %+v, after %+v", before, after)
				}
				if n := j.of(hinted); n > 2 || (n > 0) != flap.hints {
					t.Errorf("%d hints were followed; want some: %v, and at most one by a member", n, flap.hints)
				}
				for _, n := range others {
					g.set(n, leader, false)
				}
				c.calm()
				c.wantHealed(5*time.Second, 1, 2, 3)
			})
		})
	}
}

// TestDialThatTimesOutIsNoEvidence: the leader's connections break and it cannot
// be reached. It may live. Dials end long before the election timeout.
func TestDialThatTimesOutIsNoEvidence(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		var timeouts atomic.Int64
		c.found(3, j.record, func(cfg *Config) {
			dial := cfg.Dialer
			cfg.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
				conn, err := dial(ctx, addr)
				if errors.Is(err, context.DeadlineExceeded) {
					timeouts.Add(1)
				}
				return conn, err
			}
		})
		c.delay(3, time.Millisecond)
		old := c.leader()
		c.pause(time.Second)
		c.net.Isolate(old.cfg.Addr)
		c.net.ResetAll(old.cfg.Addr)
		began := time.Now()
		c.agreed(c.but(old)...)
		if took := time.Since(began); took < old.cfg.Timing.Election-old.cfg.Timing.Heartbeat {
			t.Errorf("another leader after %v", took)
		}
		if n := j.of(hinted); n != 0 || timeouts.Load() < 4 {
			t.Errorf("%d hints, %d dials that timed out", n, timeouts.Load())
		}
	})
}

// TestLeaderThatComesBackAsAnotherProcessIsReplacedAtOnce: it listens again before
// anybody can have been refused, so what tells is its nonce.
func TestLeaderThatComesBackAsAnotherProcessIsReplacedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, time.Millisecond)
		c.pause(2 * time.Second)
		old := c.leader()
		c.crash(old)
		began := time.Now()
		c.revive(old.cfg.ID, 3)
		for _, n := range c.but() {
			if n.cfg.ID != old.cfg.ID {
				c.put(n, "k", "v")
			}
		}
		if took, limit := time.Since(began), 3*old.cfg.Timing.Heartbeat; took > limit {
			t.Errorf("the first write took %v, want at most %v", took, limit)
		}
		c.wantHealed(5*time.Second, 1, 2, 3)
	})
}

// TestShutdownOfTheLeaderUnderLoadFailsNoCallElsewhere: nor does one wait for
// longer than a heartbeat.
func TestShutdownOfTheLeaderUnderLoadFailsNoCallElsewhere(t *testing.T) {
	for _, size := range []int{3, 5} {
		for seed := range 4 {
			t.Run(fmt.Sprintf("of %d, %d", size, seed), func(t *testing.T) {
				bubble(t, func(t *testing.T, c *cluster) {
					c.found(size)
					c.delay(size, 400*time.Microsecond) // less than a rest
					c.pause(time.Second)
					leader := c.leader()
					var slowest, calls, stopped atomic.Int64
					var wg sync.WaitGroup
					call := func(n *Node, what string, f func(ctx context.Context) error) {
						wg.Go(func() {
							for stopped.Load() == 0 {
								began := time.Now()
								if err := f(c.within(10 * time.Second)); err != nil && !errors.Is(err, ErrNotFound) {
									t.Errorf("%s on member %d: %v", what, n.cfg.ID, err)
									return
								}
								calls.Add(1)
								if took := int64(time.Since(began)); took > slowest.Load() {
									slowest.Store(took) // goroutines of a bubble that race here may lose one
								}
								c.pause(time.Duration(100+37*seed) * time.Microsecond)
							}
						})
					}
					for _, n := range c.but(leader) {
						for i := range 8 {
							call(n, "put", func(ctx context.Context) error {
								_, err := n.Put(ctx, fmt.Sprint(n.cfg.ID, i), []byte("v"))
								return err
							})
							call(n, "get", func(ctx context.Context) error { _, err := n.Get(ctx, "k"); return err })
						}
					}
					c.pause(time.Duration(200+7*seed) * time.Millisecond)
					before := time.Duration(slowest.Swap(0))
					began := time.Now()
					if err := leader.Shutdown(c.ctx()); err != nil {
						t.Error(err)
					}
					took := time.Since(began)
					delete(c.nodes, leader.cfg.ID)
					c.pause(500 * time.Millisecond)
					stopped.Store(1)
					wg.Wait()
					pause := time.Duration(slowest.Load())
					t.Logf("Shutdown took %v; the slowest of %d calls elsewhere took %v, %v before", took, calls.Load(), pause, before)
					if limit := leader.cfg.Timing.Heartbeat; pause > limit || took > limit {
						t.Errorf("Shutdown took %v and a call elsewhere %v, want at most %v", took, pause, limit)
					}
					c.wantSameState()
				})
			})
		}
	}
}

// TestFirstVoterThatLacksSomethingLosesAHeartbeat, no more: a leader that did not
// count on it has told others what is committed.
func TestFirstVoterThatLacksSomethingLosesAHeartbeat(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		if c.leader().cfg.ID != 1 {
			if err := c.leader().TransferLeadership(c.ctx(), 1); err != nil {
				t.Fatal(err)
			}
		}
		c.net.Delay("n1:1", "n2:1", 5*time.Millisecond)
		c.net.Delay("n2:1", "n1:1", 5*time.Millisecond)
		for range overtakenMax {
			c.put(c.nodes[1], "a", "1")
			c.pause(20 * time.Millisecond)
		}
		c.wantQuickFailover(c.nodes[1].cfg.Timing.Heartbeat * 3 / 2)
		if got := c.leader().cfg.ID; got != 3 {
			t.Errorf("member %d leads, want 3, which alone has the last write", got)
		}
	})
}
