package raftkv

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// wantErr checks that an error satisfies errors.Is for all kinds given and for
// none of those that would say something else about the outcome, and that it
// reads well.
func wantErr(t testing.TB, call string, err error, kinds ...error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v", call, kinds)
		return
	}
	for _, kind := range kinds {
		if !errors.Is(err, kind) {
			t.Errorf("%s: %q is not %q", call, err, kind)
		}
	}
	for _, kind := range []error{ErrOutcomeUnknown, ErrNoLeader, ErrClosed} {
		if errors.Is(err, kind) && !slices.Contains(kinds, kind) {
			t.Errorf("%s: %q is also %q", call, err, kind)
		}
	}
	if text := err.Error(); strings.Contains(text, "\n") || strings.Count(text, "raftkv: ") > 1 {
		t.Errorf("%s: %q does not read well", call, text)
	}
}

// wantValue checks a linearizable read.
func (c *cluster) wantValue(n *Node, key, want string) {
	c.t.Helper()
	kv, err := n.Get(c.ctx(), key)
	if err != nil || string(kv.Value) != want {
		c.t.Errorf("member %d: Get(%q) = %q, %v, want %q", n.cfg.ID, key, kv.Value, err, want)
	}
}

// wantSameState waits until all nodes have applied the same index and checks
// that their states are the same.
func (c *cluster) wantSameState() {
	c.t.Helper()
	var last []Status
	for range 1000 {
		last = last[:0]
		for _, id := range c.ids() {
			last = append(last, c.nodes[id].Status())
		}
		same := true
		for _, s := range last {
			same = same && s.Applied == last[0].Applied
		}
		if same {
			for _, s := range last {
				if s.StateHash != last[0].StateHash || s.Revision != last[0].Revision {
					c.t.Errorf("member %d: state %x at revision %d, member %d: %x at %d",
						s.ID, s.StateHash, s.Revision, last[0].ID, last[0].StateHash, last[0].Revision)
				}
			}
			return
		}
		c.pause(20 * time.Millisecond)
	}
	c.t.Errorf("members do not reach the same index: %+v", last)
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

func keysOf(l *Listing) []string {
	var keys []string
	for kv := range l.All() {
		keys = append(keys, kv.Key)
	}
	return keys
}
