package raftkv

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestRollingRestartLosesNothing: all members, one after the other, each as
// soon as the one before is ready, while writes go on.
func TestRollingRestartLosesNothing(t *testing.T) {
	for _, size := range []int{3, 5} {
		t.Run(named("of", size), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(size)
				c.delay(size, 5*time.Millisecond)
				y := newTally(c)
				y.pause = 10 * time.Millisecond
				for _, n := range c.nodes {
					y.writeUntilStopped(n, 2)
				}
				before := c.leader().Status()
				for _, id := range upTo(size) {
					c.pause(500 * time.Millisecond)
					n := c.replaced(c.nodes[id], size)
					begin := time.Now()
					if err := n.Ready(c.ctx()); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(begin); took > 5*time.Second {
						t.Errorf("member %d: ready after %v", id, took)
					}
					y.writeUntilStopped(n, 2)
				}
				c.wantHealed(5*time.Second, upTo(size)...)
				after := c.leader().Status()
				if after.ClusterID != before.ClusterID || after.Term > before.Term+uint64(2*size) {
					t.Errorf("before %+v, after %+v", before, after)
				}
				y.check()
				if slowest := time.Duration(y.slowest.Load()); slowest > 4*time.Second {
					t.Errorf("a write took %v, longer than any election", slowest)
				}
			})
		})
	}
}

// TestMemberThatRestartsAgainAndAgainHeals: ten times, most of them before the
// cluster can have done anything about the last.
func TestMemberThatRestartsAgainAndAgainHeals(t *testing.T) {
	for seed := range uint64(raceless(10, 3)) {
		t.Run(named("seed", seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				rng := rand.New(rand.NewPCG(seed, 1))
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				n := c.nodes[rng.Uint64N(3)+1]
				y := newTally(c)
				y.pause = 20 * time.Millisecond
				for _, other := range c.but(n) {
					y.writeUntilStopped(other, 1)
				}
				c.pause(time.Second)
				for range 10 {
					n = c.replaced(n, 3)
					c.pause(upToDuration(rng, 500*time.Millisecond))
				}
				c.wantHealed(10*time.Second, 1, 2, 3)
				y.check()
			})
		})
	}
}

// TestRestartAtAnyStepOfAReplacement: of the process that is just being taken
// in, or of the leader that takes it in.
func TestRestartAtAnyStepOfAReplacement(t *testing.T) {
	for _, who := range []string{"newcomer", "leader"} {
		t.Run(who, func(t *testing.T) {
			size, step := 3, 30*time.Millisecond
			if who == "leader" {
				size, step = 5, 50*time.Millisecond // of three, two would have lost their memory
			}
			sweep(t, 1700*time.Millisecond, step, func(t *testing.T, c *cluster, at time.Duration) {
				c.found(size)
				c.delay(size, 10*time.Millisecond)
				leader, n := c.leader(), c.follower()
				c.put(leader, "k", "v")
				n = c.replaced(n, size)
				c.pause(at)
				if who == "leader" {
					n = leader
				}
				n = c.replaced(n, size)
				c.wantHealed(10*time.Second, upTo(size)...)
				c.wantValue(n, "k", "v")
				c.put(n, "k", "w")
			})
		})
	}
}

// TestRestartAtAnyStepOfAMembershipChange: the change takes effect all the same,
// and means the newest incarnation of whom it names.
func TestRestartAtAnyStepOfAMembershipChange(t *testing.T) {
	for _, test := range []struct {
		name string
		who  uint64
	}{
		{"of the leader, which is dropped", 1},
		{"of a voter that stays", 3},
		{"of a learner that becomes a voter", 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			sweep(t, 200*time.Millisecond, 7*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
				c.found(3)
				c.learner(4)
				c.delay(4, 10*time.Millisecond)
				if err := c.nodes[2].TransferLeadership(c.ctx(), 1); err != nil {
					t.Fatal(err)
				}
				c.put(c.nodes[2], "k", "v")
				errc := make(chan error, 1)
				on := c.nodes[2]
				go func() {
					_, err := on.ChangeMembership(c.ctx(), []uint64{2, 3, 4})
					errc <- err
				}()
				c.pause(at)
				c.kill(c.nodes[test.who])
				n := c.restart(test.who)
				if err := <-errc; err != nil {
					t.Errorf("ChangeMembership: %v", err)
				}
				dropped := c.nodes[1]
				delete(c.nodes, 1)
				c.wantHealed(10*time.Second, 2, 3, 4)
				c.wantValue(on, "k", "v")
				c.wantNotMember(dropped)
				if test.who != 1 {
					c.put(n, "k", "w")
				}
			})
		})
	}
}

// wantNotMember checks that a process has stopped because it was removed, or is
// blank as one that was started afterwards.
func (c *cluster) wantNotMember(n *Node) {
	c.t.Helper()
	if n.Status().Role != Blank {
		c.wantRemoved(n)
	}
}

// TestRestartAtAnyStepOfAddLearner: the call returns when the process that runs
// there in the end has caught up, or says that it met none.
func TestRestartAtAnyStepOfAddLearner(t *testing.T) {
	for _, who := range []string{"learner", "leader"} {
		t.Run(who, func(t *testing.T) {
			sweep(t, 250*time.Millisecond, 8*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
				c.found(3)
				c.delay(4, 10*time.Millisecond)
				leader, on := c.leader(), c.follower()
				c.put(on, "k", "v")
				c.start(4)
				errc := make(chan error, 1)
				go func() {
					_, err := on.AddLearner(c.ctx(), 4, "n4:1")
					errc <- err
				}()
				c.pause(at)
				n := c.nodes[4]
				if who == "leader" {
					n = leader
				}
				c.kill(n)
				c.restart(n.cfg.ID)
				if err := <-errc; err != nil {
					wantErr(t, "AddLearner", err, ErrMembershipRefused)
					if _, err := on.AddLearner(c.ctx(), 4, "n4:1"); err != nil {
						t.Errorf("AddLearner again: %v", err)
					}
				}
				c.wantHealed(10*time.Second, 1, 2, 3)
				if m := c.nodes[4].Status(); m.Role != Learner {
					t.Errorf("status %+v", m)
				}
				c.wantValue(c.nodes[4], "k", "v")
			})
		})
	}
}

// TestRestartedLeaderIsReplaced: whether its followers have noticed by then or
// not.
func TestRestartedLeaderIsReplaced(t *testing.T) {
	for _, down := range []time.Duration{0, 300 * time.Millisecond, 900 * time.Millisecond, 5 * time.Second, time.Minute} {
		t.Run(down.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				leader := c.leader()
				c.put(leader, "k", "v")
				c.kill(leader)
				c.pause(down)
				n := c.revive(leader.cfg.ID, 3)
				c.wantHealed(6*time.Second, 1, 2, 3)
				c.wantValue(n, "k", "v")
			})
		})
	}
}

// TestMemberThatMovesIsTakenUpByAddLearner: at another address it is met by
// nobody, so a person has to say where it is.
func TestMemberThatMovesIsTakenUpByAddLearner(t *testing.T) {
	for _, role := range []string{"leader", "follower", "learner"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				old := c.roles()[role]
				id := old.cfg.ID
				c.put(old, "k", "v")
				c.kill(old)
				n := c.startAt(id, "elsewhere:1")
				c.initLater(n, 3+int(id)/4) // its list names itself, where it was
				c.pause(5 * time.Second)
				if s := n.Status(); s.Role != Blank {
					t.Fatalf("taken up without a word: %+v", s)
				}
				m, err := c.but()[0].AddLearner(c.ctx(), id, "elsewhere:1")
				if err != nil {
					t.Fatal(err)
				}
				c.nodes[id] = n
				c.wantHealed(5*time.Second, 1, 2, 3)
				if row := m.Members[id-1]; row.ID != id || row.Addr != "elsewhere:1" || len(m.Members) != 4 {
					t.Errorf("membership %+v", m)
				}
				c.wantValue(n, "k", "v")
			})
		})
	}
}

// TestCloneNeverBecomesAMember: a second process with an ID, at another address,
// while the first one answers.
func TestCloneNeverBecomesAMember(t *testing.T) {
	for _, role := range []string{"leader", "follower", "learner"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				original := c.roles()[role]
				id := original.cfg.ID
				c.delay(4, 5*time.Millisecond)
				y := newTally(c)
				y.pause = 50 * time.Millisecond
				y.writeUntilStopped(original, 2)
				before := original.Status()
				clone := c.startAt(id, "clone:1")
				err := clone.Init(c.within(20*time.Second), append(otherThan(c.list(4), id), Member{ID: id, Addr: "clone:1"})...)
				wantErr(t, "Init of the clone", err, ErrNotInitialized, context.DeadlineExceeded)
				for _, on := range []*Node{original, c.but(original)[0]} {
					_, err = on.AddLearner(c.ctx(), id, "clone:1")
					wantErr(t, "AddLearner of the clone", err, ErrMemberAlive)
				}
				after := original.Status()
				if s := clone.Status(); s.Role != Blank || after.Role != before.Role || after.Term != before.Term || after.Membership.Index != before.Membership.Index {
					t.Errorf("clone %+v, original before %+v, after %+v", s, before, after)
				}
				y.check()
				if slowest := time.Duration(y.slowest.Load()); slowest > 500*time.Millisecond {
					t.Errorf("a write on the original took %v", slowest)
				}
			})
		})
	}
}

// otherThan returns the members without one.
func otherThan(members []Member, id uint64) []Member {
	return slices.DeleteFunc(members, func(m Member) bool { return m.ID == id })
}

// TestMemberRemovedWhileItWasDownIsAStranger: a process that starts under its
// name gets no further by itself, and is taken in like any other.
func TestMemberRemovedWhileItWasDownIsAStranger(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		old := c.follower()
		id, leader := old.cfg.ID, c.leader()
		c.put(leader, "k", "v")
		c.kill(old)
		rest := without(upTo(3), id)
		m, err := leader.ChangeMembership(c.ctx(), rest)
		c.wantVoters(m, err, rest...)
		n := c.restart(id)
		wantErr(t, "Init", n.Init(c.ctx(), c.list(3)...), ErrNotMember)
		wantErr(t, "Ready", n.Ready(c.within(time.Minute)), ErrNotInitialized, context.DeadlineExceeded)
		if now := leader.Status().Membership; now.Index != m.Index {
			t.Errorf("membership %+v", now)
		}
		if _, err := leader.AddLearner(c.ctx(), id, n.cfg.Addr); err != nil {
			t.Fatal(err)
		}
		c.wantValue(n, "k", "v")
		m, err = leader.ChangeMembership(c.ctx(), upTo(3))
		c.wantVoters(m, err, 1, 2, 3)
		c.wantHealed(5*time.Second, 1, 2, 3)
	})
}

// halfReplaced founds three members with a learner 4, restarts a follower and
// returns it, the leader, and its ID while it is a learner beside what it was.
// What the leader sends it is held up.
func (c *cluster) halfReplaced() (leader, n *Node, id uint64) {
	c.t.Helper()
	c.found(3)
	c.learner(4)
	c.delay(4, 10*time.Millisecond)
	leader = c.leader()
	old := c.but(leader, c.nodes[4])[0]
	id = old.cfg.ID
	n = c.replaced(old, 3)
	c.until("two incarnations", func() bool { return isReplacing(leader) })
	c.net.Cut(leader.cfg.Addr, n.cfg.Addr)
	c.pause(time.Second)
	if !isReplacing(leader) {
		c.t.Fatal("the replacement is over already")
	}
	return leader, n, id
}

// TestChangeOfAMemberInReplacementMeansTheNewcomer: it waits until that has
// caught up.
func TestChangeOfAMemberInReplacementMeansTheNewcomer(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		leader, n, id := c.halfReplaced()
		errc := make(chan error, 1)
		go func() {
			_, err := c.nodes[4].ChangeMembership(c.ctx(), upTo(4))
			errc <- err
		}()
		c.pause(3 * time.Second)
		if len(errc) > 0 {
			t.Fatalf("the change did not wait: %v", <-errc)
		}
		c.net.Heal(leader.cfg.Addr, n.cfg.Addr)
		if err := <-errc; err != nil {
			t.Fatal(err)
		}
		c.wantHealed(5*time.Second, 1, 2, 3, 4)
		now := leader.view.Load().roster
		if m, _ := now.Newest(id); m.Nonce != n.loop.nonce || !now.IsVoter(m.RaftID) {
			t.Errorf("member %d in %+v is not the newcomer", id, now)
		}
	})
}

// TestMemberDroppedWhileItIsReplacedTakesTheNewcomerAlong: which stops.
func TestMemberDroppedWhileItIsReplacedTakesTheNewcomerAlong(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		leader, n, id := c.halfReplaced()
		rest := without(upTo(3), id)
		m, err := leader.ChangeMembership(c.ctx(), rest)
		c.wantVoters(m, err, rest...)
		if now := leader.view.Load().roster; len(now.Members) != 3 || len(m.Members) != 3 {
			t.Errorf("roster %+v, membership %+v", now, m)
		}
		c.net.Heal(leader.cfg.Addr, n.cfg.Addr)
		c.wantNotMember(n)
		delete(c.nodes, id)
		c.pause(3 * time.Second)
		if now := leader.Status().Membership; now.Index != m.Index {
			t.Errorf("it was put back: %+v", now)
		}
		c.wantHealed(5*time.Second, rest...)
	})
}

// TestAllRestartedAtOnceFoundAnewAndEmpty: nothing survives the loss of all, and
// the cluster that comes of it says that it is another one.
func TestAllRestartedAtOnceFoundAnewAndEmpty(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.leader(), "k", "v")
		before := c.leader().Status()
		for _, n := range c.but() {
			c.kill(n)
		}
		for _, id := range upTo(3) {
			c.revive(id, 3)
			c.pause(700 * time.Millisecond)
		}
		c.wantHealed(5*time.Second, 1, 2, 3)
		after := c.leader().Status()
		if after.ClusterID == before.ClusterID || after.Revision != 0 {
			t.Errorf("before %+v, after %+v", before, after)
		}
		_, err := c.nodes[1].Get(c.ctx(), "k")
		wantErr(t, "Get of what all have lost", err, ErrNotFound)
	})
}
