package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestMembersComeAndGoUnderLoad (M1): for a minute a process joins, takes the
// place of the oldest voter, and that one goes and comes back blank. All know
// the same configuration in the end.
func TestMembersComeAndGoUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(5, 3*time.Millisecond)
		y := newTally(c)
		y.pause = 20 * time.Millisecond
		y.writeUntilStopped(c.nodes[1], 4) // it stays
		inside, outside := []uint64{2, 3}, []uint64{4, 5}
		for i := range raceless(15, 5) {
			began := time.Now()
			in, out := outside[0], inside[0]
			c.start(in)
			on := c.but(c.nodes[in])
			if _, err := on[i%len(on)].AddLearner(c.ctx(), in, c.addrs[in]); err != nil {
				t.Fatal(err)
			}
			want := []uint64{1, inside[1], in}
			slices.Sort(want)
			on = c.but()
			m, err := on[i%len(on)].ChangeMembership(c.ctx(), want)
			c.wantVoters(m, err, want...)
			c.wantRemoved(c.nodes[out])
			inside, outside = append(inside[1:], in), append(outside[1:], out)
			if i%5 == 4 {
				c.kill(c.nodes[inside[0]])
				n := c.restart(inside[0])
				if err := n.Ready(c.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			if rest := 2*time.Second - time.Since(began); rest > 0 {
				c.pause(rest)
			}
		}
		c.wantHealed(5*time.Second, c.ids()...)
		y.check()
	})
}

// TestIslandChangesNothing (M2): an isolated leader is asked to remove all
// others, and cannot.
func TestIslandChangesNothing(t *testing.T) {
	for name, change := range map[string]func(n *Node, ctx context.Context) error{
		"all others": func(n *Node, ctx context.Context) error {
			_, err := n.ChangeMembership(ctx, []uint64{n.cfg.ID})
			return err
		},
		"all others, retained": func(n *Node, ctx context.Context) error {
			_, err := n.ChangeMembership(ctx, []uint64{n.cfg.ID}, Retain())
			return err
		},
		"the learner": func(n *Node, ctx context.Context) error { _, err := n.RemoveLearner(ctx, 4); return err },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				old := c.roles()["leader"]
				c.delay(4, 5*time.Millisecond)
				before := old.Status().Membership
				others := c.but(old)
				c.net.Isolate(old.cfg.Addr)
				for range 3 { // while it believes to lead, and later
					wantErrOneOf(t, change(old, c.within(1500*time.Millisecond)), ErrOutcomeUnknown, ErrNoLeader)
				}
				c.put(c.agreed(others...), "k", "v")
				if m := old.Status().Membership; m.Index != before.Index {
					t.Errorf("it changed the membership to %+v", m)
				}
				c.net.Rejoin(old.cfg.Addr)
				c.wantHealed(5*time.Second, 1, 2, 3)
				c.wantValue(old, "k", "v")
				if m := old.Status().Membership; m.Index != before.Index || len(m.Members) != 4 {
					t.Errorf("membership %+v, want %+v", m, before)
				}
			})
		})
	}
}

// wantErrOneOf checks that an error is one of several.
func wantErrOneOf(t testing.TB, err error, kinds ...error) {
	t.Helper()
	if !slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) }) {
		t.Errorf("got %v, want one of %q", err, kinds)
	}
}

// TestLearnerIsPromotedOnlyWhenItHasCaughtUp (M3): one that is thousands of
// entries behind and hears nothing, and one that nobody has ever reached.
func TestLearnerIsPromotedOnlyWhenItHasCaughtUp(t *testing.T) {
	for _, what := range []string{"far behind", "empty"} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				g := newDialGate("n4:1", 1) // for the question who is there
				if what == "far behind" {
					close(g.openc)
				}
				c.found(3, g.guard)
				leader := c.leader()
				n := c.start(4)
				if what == "empty" {
					_, err := leader.AddLearner(c.within(time.Second), 4, "n4:1")
					wantErr(t, "AddLearner", err, ErrOutcomeUnknown, context.DeadlineExceeded)
				} else {
					if _, err := leader.AddLearner(c.ctx(), 4, "n4:1"); err != nil {
						t.Fatal(err)
					}
					for _, other := range c.but(n) {
						c.net.Cut(other.cfg.Addr, n.cfg.Addr)
					}
				}
				for i := range 2000 {
					c.put(leader, fmt.Sprint(i%100), "v")
				}
				_, err := leader.ChangeMembership(c.within(5*time.Second), upTo(4))
				wantErr(t, "ChangeMembership", err, ErrOutcomeUnknown, context.DeadlineExceeded)
				if m := leader.Status().Membership; !slices.Equal(voters(m), upTo(3)) || !slices.Equal(learners(m), []uint64{4}) {
					t.Errorf("membership %+v", m)
				}
				if what == "empty" {
					close(g.openc)
				}
				c.calm()
				m, err := leader.ChangeMembership(c.ctx(), upTo(4))
				c.wantVoters(m, err, 1, 2, 3, 4)
				c.wantSameState()
			})
		})
	}
}

// TestTwoVotersTolerateNoLoss (M4): neither can be dropped when it is down, and
// when it comes back blank the quorum is lost.
func TestTwoVotersTolerateNoLoss(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(2)
		n := c.leader()
		c.put(n, "k", "v")
		other := c.but(n)[0]
		if s := n.Status(); s.SpareVoters != 0 {
			t.Errorf("status %+v", s)
		}
		c.kill(other)
		_, err := n.ChangeMembership(c.within(5*time.Second), []uint64{n.cfg.ID})
		wantErr(t, "ChangeMembership to the one that is left", err, ErrOutcomeUnknown, context.DeadlineExceeded)
		c.restart(other.cfg.ID)
		c.pause(5 * time.Second)
		_, err = n.Put(c.ctx(), "k", nil)
		wantErr(t, "Put", err, ErrQuorumLost)
		m, err := n.Recover(c.ctx())
		if err != nil || len(m.Members) != 1 {
			t.Errorf("Recover = %+v, %v", m, err)
		}
		c.wantValue(n, "k", "v")
	})
}

// TestRemovedIDMayBeUsedAgain (M4): by another process, at another address.
func TestRemovedIDMayBeUsedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader, old := c.leader(), c.follower()
		id := old.cfg.ID
		if _, err := leader.ChangeMembership(c.ctx(), without(upTo(3), id)); err != nil {
			t.Fatal(err)
		}
		n := c.startAt(id, "elsewhere:1") // while the old one is about to stop
		if _, err := leader.AddLearner(c.ctx(), id, "elsewhere:1"); err != nil {
			t.Fatal(err)
		}
		c.wantRemoved(old)
		c.nodes[id] = n
		m, err := leader.ChangeMembership(c.ctx(), upTo(3))
		c.wantVoters(m, err, 1, 2, 3)
		c.put(n, "k", "v")
		c.wantHealed(5*time.Second, 1, 2, 3)
	})
}

// TestRemovedMemberThatDoesNotKnowDisturbsNobody (M5): for ten minutes it hears
// nothing and can be heard, asks for votes and calls, and then is told.
func TestRemovedMemberThatDoesNotKnowDisturbsNobody(t *testing.T) {
	for _, deaf := range []bool{true, false} {
		t.Run(fmt.Sprint("deaf ", deaf), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				n, leader := c.follower(), c.leader()
				others := c.but(n)
				for _, o := range others {
					c.net.Cut(o.cfg.Addr, n.cfg.Addr)
					if !deaf {
						c.net.Cut(n.cfg.Addr, o.cfg.Addr)
					}
				}
				m, err := leader.ChangeMembership(c.ctx(), without(upTo(3), n.cfg.ID))
				c.wantVoters(m, err, without(upTo(3), n.cfg.ID)...)
				before := leader.Status()
				for i := range 60 {
					_, err := n.Put(c.within(10*time.Second), "k", nil)
					wantErrOneOf(t, err, ErrNoLeader, ErrOutcomeUnknown)
					c.put(leader, fmt.Sprint(i), "v")
				}
				if s := n.Status(); s.Term > before.Term+1 {
					t.Errorf("it has come to term %d from %d", s.Term, before.Term)
				}
				c.calm()
				began := time.Now()
				c.wantRemoved(n)
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("it was told after %v", took)
				}
				if after := leader.Status(); after.Term != before.Term || after.Leader != before.Leader {
					t.Errorf("before %+v, after %+v", before, after)
				}
			})
		})
	}
}

// TestClustersThatMeetLeaveEachOtherAlone (M6): another cluster with the same
// member IDs and no name finds a member of this one at an address of its own.
func TestClustersThatMeetLeaveEachOtherAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.leader(), "k", "ours")
		var theirs []*Node
		var list []Member
		for id := range uint64(3) {
			addr := fmt.Sprintf("m%d:1", id+1)
			theirs = append(theirs, c.startAt(id+1, addr))
			list = append(list, Member{ID: id + 1, Addr: addr})
		}
		for _, n := range theirs {
			if err := n.Init(c.ctx(), list...); err != nil {
				t.Fatal(err)
			}
		}
		theirs[2].Close()
		c.kill(c.nodes[3])
		c.pause(3 * time.Second) // until it counts as dead
		n := c.startAt(3, "m3:1")
		if _, err := c.leader().AddLearner(c.ctx(), 3, "m3:1"); err != nil {
			t.Fatal(err)
		}
		c.nodes[3] = n
		c.wantHealed(5*time.Second, 1, 2, 3)
		ours, before := c.leader().Status(), theirs[0].Status()
		for i := range 30 {
			c.put(n, fmt.Sprint("ours ", i), "v")
			c.put(theirs[i%2], fmt.Sprint("theirs ", i), "v")
			c.pause(2 * time.Second)
		}
		if s := n.Status(); s.RefusedMessages == 0 || s.ClusterID != ours.ClusterID {
			t.Errorf("status %+v: the test tests nothing", s)
		}
		for _, s := range []Status{c.nodes[1].Status(), c.nodes[2].Status(), n.Status()} {
			if s.Term != ours.Term || s.ClusterID != ours.ClusterID {
				t.Errorf("member %d: %+v, before %+v", s.ID, s, ours)
			}
		}
		if s := theirs[0].Status(); s.ClusterID != before.ClusterID || s.QuorumLost || len(voters(s.Membership)) != 3 || isReplacing(theirs[0]) {
			t.Errorf("the other cluster: %+v, before %+v", s, before)
		}
		c.wantSameState()
		l, err := n.List(c.ctx(), "theirs")
		if err != nil || len(keysOf(l)) > 0 {
			t.Errorf("List = %v, %v", l, err)
		}
	})
}

// TestMinorityCannotChangeTheMembership (M7): it is asked for one configuration,
// the majority makes another; there never are two.
func TestMinorityCannotChangeTheMembership(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		c.delay(5, 5*time.Millisecond)
		old := c.leader()
		mate := c.but(old)[0]
		majority := c.but(old, mate)
		var want []uint64
		for _, n := range majority {
			want = append(want, n.cfg.ID)
			for _, o := range []*Node{old, mate} {
				c.net.Cut(n.cfg.Addr, o.cfg.Addr)
				c.net.Cut(o.cfg.Addr, n.cfg.Addr)
			}
		}
		island := []uint64{old.cfg.ID, mate.cfg.ID}
		errc := make(chan error, 2)
		for _, n := range []*Node{old, mate} {
			go func() {
				_, err := n.ChangeMembership(c.within(time.Minute), island)
				errc <- err
			}()
		}
		c.agreed(majority...)
		m, err := majority[0].ChangeMembership(c.ctx(), want)
		c.wantVoters(m, err, want...)
		c.put(majority[0], "k", "v")
		if now := old.Status().Membership; len(voters(now)) != 5 || len(errc) > 0 {
			t.Errorf("the island has %+v", now)
		}
		c.calm()
		for range 2 {
			wantErrOneOf(t, <-errc, ErrRemoved, ErrLearnerNotFound, ErrOutcomeUnknown, ErrMembershipRefused)
		}
		c.wantRemoved(old)
		c.wantRemoved(mate)
		c.wantHealed(5*time.Second, want...)
		c.wantValue(majority[1], "k", "v")
	})
}
