package raftkv

import (
	"slices"
	"testing"
	"time"
)

// TestRestartedMemberIsReplaced: a process that comes back blank under its old
// ID is put in the place of the one that was lost, with the same role, without
// anybody doing anything, while writes go on.
func TestRestartedMemberIsReplaced(t *testing.T) {
	for _, who := range []string{"leader", "follower", "learner"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				old := c.roles()[who]
				id, role := old.cfg.ID, Follower
				if who == "learner" {
					role = Learner
				}
				y := newTally(c)
				for _, n := range c.but(old) {
					y.writeUntilStopped(n, 2)
				}
				c.pause(time.Second)
				c.kill(old)
				n := c.restart(id)
				begin := time.Now()
				if err := n.Ready(c.ctx()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("ready after %v", took)
				}
				s := n.Status()
				if s.Role != role && s.Role != Leader || !slices.Equal(voters(s.Membership), []uint64{1, 2, 3}) || !slices.Equal(learners(s.Membership), []uint64{4}) {
					t.Errorf("status %+v", s)
				}
				y.check()
			})
		})
	}
}

// A follower asks a process for a change that it takes for the leader, but that
// has restarted: it must wait for the next leader, not report the refusal.
func TestChangeWaitsForTheNextLeaderWhenTheOldOneHasRestarted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		others := c.but(leader)
		id := leader.cfg.ID
		c.kill(leader)
		c.restart(id)
		c.pause(50 * time.Millisecond) // the followers' links find it, blank
		m, err := others[0].ChangeMembership(c.ctx(), []uint64{others[0].cfg.ID, others[1].cfg.ID})
		if err != nil || len(m.Members) != 2 {
			t.Errorf("ChangeMembership = %+v, %v", m, err)
		}
	})
}

// Voters that all came back blank must not found another cluster while a member
// lives that knows what they have forgotten; once nobody does, they may.
func TestNobodyFoundsAnewWhileSomebodyRemembers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		learner := c.learner(4)
		c.put(learner, "k", "v")
		for _, n := range c.but(learner) {
			c.kill(n)
		}
		for id := range uint64(3) {
			c.restart(id + 1)
		}
		c.pause(2 * time.Second) // the learner has tried its links again
		errc := make(chan error, 3)
		for _, n := range c.but(learner) {
			go func() { errc <- n.Init(c.within(2*time.Minute), c.list(3)...) }()
		}
		c.pause(30 * time.Second)
		for _, n := range c.but(learner) {
			if s := n.Status(); s.Role != Blank {
				t.Errorf("member %d: %+v", s.ID, s)
			}
		}
		if s := learner.Status(); !s.QuorumLost {
			t.Errorf("the learner: %+v", s)
		}
		c.kill(learner)
		for range 3 {
			if err := <-errc; err != nil {
				t.Error(err)
			}
		}
		c.ready()
		if s := c.leader().Status(); s.Revision != 0 {
			t.Errorf("the new cluster: %+v", s)
		}
	})
}
