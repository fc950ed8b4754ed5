package raftkv

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
)

// TestAddLearner: on any member, any number of times; it returns when the
// learner has caught up, and says why if it refuses.
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

// TestAddLearnerThatWasGivenUpGoesOn: the learner is a member all the same,
// and the same call again waits for it.
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

// Adding a learner has a part that the roster does not show: that it catches up.
func TestAddLearnerIsNotDoneByTheRosterAlone(t *testing.T) {
	now := &roster.Roster{Changes: []string{"x"}, Conf: roster.Blank("").Conf}
	if isInForce(now, &membership.Request{ID: "x", Kind: membership.AddLearner}) {
		t.Error("AddLearner counts as done before the learner has caught up")
	}
	if !isInForce(now, &membership.Request{ID: "x", Kind: membership.RemoveLearner}) {
		t.Error("RemoveLearner does not count as done although it is in force")
	}
}

// TestRemoveLearner: on any member, the learner itself included, which then
// stops.
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

// TestRemovalInTheFirstTickEndsAsAnyOther: the node goes on for an election
// timeout, so that its own call returns success.
func TestRemovalInTheFirstTickEndsAsAnyOther(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3) // takes no virtual time
		n := c.nodes[1]
		began := time.Now()
		if _, err := n.ChangeMembership(c.ctx(), []uint64{2, 3}); err != nil {
			t.Error(err)
		}
		c.wantRemoved(n)
		if took := time.Since(began); took < n.cfg.Timing.Election {
			t.Errorf("stopped after %v, want an election timeout", took)
		}
	})
}
