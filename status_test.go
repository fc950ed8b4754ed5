package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestStatusTellsHowAMemberSeesTheCluster: its role on each, and on the leader
// how far the others are, one of them dead.
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

// TestReadyMeansThatCallsAreAnswered: it waits from before Init on, and again
// when the member is cut off.
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
