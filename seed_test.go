package raftkv

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"example.com/raftkv/internal/command"
)

// TestSeedSequence does, with three nodes in one process and real gRPC on
// loopback, what the example that raftkv re-imagines does, and then goes on:
// writes through every member, the leader leaves, one member stays.
func TestSeedSequence(t *testing.T) {
	c := loopback(t)
	first := c.start(1)
	if err := first.Init(c.ctx()); err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); id <= 3; id++ {
		c.start(id)
		m, err := first.AddLearner(c.ctx(), id, c.addrs[id])
		if err != nil || len(m.Members) != int(id) || m.Members[id-1].Role != Learner {
			t.Fatalf("add learner %d: %+v, %v", id, m, err)
		}
	}
	if m, err := first.ChangeMembership(c.ctx(), []uint64{1, 2, 3}); err != nil || m.Joint || len(m.Members) != 3 {
		t.Fatalf("change membership: %+v, %v", m, err)
	}
	for _, by := range c.ids() {
		key := fmt.Sprintf("key %d", by)
		c.put(c.nodes[by], key, "value")
		for _, id := range c.ids() {
			c.wantValue(c.nodes[id], key, "value")
		}
	}
	c.wantSameState()

	m, err := first.ChangeMembership(c.ctx(), []uint64{3}) // from node 1, which leads and leaves
	if err != nil || len(m.Members) != 1 || m.Members[0].ID != 3 {
		t.Fatalf("reduce to one: %+v, %v", m, err)
	}
	last := c.nodes[3]
	for _, id := range []uint64{1, 2} {
		select {
		case <-c.nodes[id].Done():
			if err := c.nodes[id].Err(); !errors.Is(err, ErrRemoved) {
				t.Errorf("member %d stopped with %v, want ErrRemoved", id, err)
			}
		case <-c.within(10 * time.Second).Done():
			t.Errorf("member %d goes on", id)
		}
	}
	c.put(last, "alone", "yes")
	c.wantValue(last, "key 1", "value")
	if s := last.Status(); s.Role != Leader || len(s.Membership.Members) != 1 {
		t.Errorf("status of the last member: %+v", s)
	}
}

// The seed's defects (features.md, a.4), each as a test that would have found it.

// Its receiver decodes at most 1 KiB, so that a larger value never replicates.
func TestLargestEntriesOfTheProtocolReplicate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3, func(cfg *Config) {
			cfg.Limits = Limits{MaxKeyBytes: command.KeyBytesMax, MaxValueBytes: command.ValueBytesMax}
		})
		key := string(bytes.Repeat([]byte("k"), command.KeyBytesMax))
		value := string(bytes.Repeat([]byte("v"), command.ValueBytesMax))
		for _, n := range c.nodes { // as leader, and forwarded
			c.put(n, key, value)
		}
		for range 3 { // and several in one message
			c.put(c.leader(), key, value)
		}
		c.wantSameState()
		for _, n := range c.nodes {
			c.wantValue(n, key, value)
		}
	})
}

// Its sender of snapshots waits for the answer before it sends anything, so that
// a learner which needs one never catches up; and a snapshot chunk is larger
// than what its receiver takes.
func TestLearnerBehindTheLogGetsSnapshotOfManyChunks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 })
		if err := n.Init(c.ctx()); err != nil {
			t.Fatal(err)
		}
		value := string(bytes.Repeat([]byte("v"), 1<<20)) // larger than a chunk
		for i := range 5 {
			c.put(n, fmt.Sprint(i), value)
		}
		if index, _ := n.loop.log.FirstIndex(); index < 3 {
			t.Fatalf("the log still begins at %d", index)
		}
		learner := c.start(2)
		if _, err := n.AddLearner(c.within(5*time.Second), 2, c.addrs[2]); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			c.wantValue(learner, fmt.Sprint(i), value)
		}
		c.wantSameState()
	})
}
