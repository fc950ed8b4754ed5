package raftkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

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

// TestRestartedProcessGivesNoQuorum: two of three voters come back blank and
// must acknowledge nothing.
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
