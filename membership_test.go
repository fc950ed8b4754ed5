package raftkv

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

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
	lead, on := withRole(from, to, role)
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
	c.pause(200 * time.Millisecond) // until the others hear of the end, too
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
	y.check()
}

// withRole returns which voter should lead and on which member to call when from
// becomes to: on is the one with the role, and zero if nobody has it.
func withRole(from, to []uint64, role string) (lead, on uint64) {
	lead = from[0]
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
	return lead, on
}

// TestChangeMembershipRefusals: each comes soon, says why and changes nothing.
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

// TestOneChangeAtATime: a change that waits for a learner keeps out other
// changes of voters, but not the learner's removal, which ends it.
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

// TestTransferLeadership: it returns when the other leads, and refuses who
// cannot without giving leadership up.
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
				err := on.TransferLeadership(c.ctx(), 2)
				if now && errors.Is(err, ErrOutcomeUnknown) { // it was asked to take over, and who knows
					wantErr(t, name+"a dying one", err, ErrMembershipRefused, ErrOutcomeUnknown)
				} else {
					wantErr(t, name+"a dead one", err, ErrMembershipRefused)
				}
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
