package raftkv

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/raftkv/internal/reads"
)

func TestFoundedClusterServesOnEveryMember(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		for _, n := range c.nodes {
			key := fmt.Sprintf("from %d", n.cfg.ID)
			c.put(n, key, "v")
			for _, o := range c.nodes {
				c.wantValue(o, key, "v")
			}
		}
		c.wantSameState()
	})
}

func TestWritesGoOnAfterTheLeaderDies(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.leader(), "before", "1")
		c.kill(c.leader())
		for _, n := range c.nodes {
			c.put(n, fmt.Sprintf("after %d", n.cfg.ID), "2")
		}
		for _, n := range c.nodes {
			c.wantValue(n, "before", "1")
		}
		c.wantSameState()
	})
}

// TestCallsDoNotWaitForTicks runs calls in virtual time, which stands still as
// long as anybody has something to do: what takes time has waited for a timer.
func TestCallsDoNotWaitForTicks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		c.start(4)
		began := time.Now()
		if _, err := leader.AddLearner(c.ctx(), 4, c.addrs[4]); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > leader.cfg.Timing.Tick {
			t.Errorf("adding a learner took %v", took)
		}
		for _, id := range c.ids() {
			n := c.nodes[id]
			began := time.Now()
			var wg sync.WaitGroup
			for caller := range 64 {
				wg.Go(func() {
					for range 20 {
						key := fmt.Sprint(caller)
						c.put(n, key, key)
						c.wantValue(n, key, key)
					}
				})
			}
			wg.Wait()
			if took := time.Since(began); took > 2*n.cfg.Timing.Tick { // a tick may come by itself
				t.Errorf("calls on member %d took %v", id, took)
			}
		}
	})
}

// TestReaderBehindFullRoundsDoesNotWaitForTick fills all rounds, so that one more
// reader has to wait until they are confirmed: all in one round of the loop,
// after the place where it asks for more.
func TestReaderBehindFullRoundsDoesNotWaitForTick(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.leader(), "k", "v")
		leader, n := c.leader(), c.follower()
		c.wantSameState()
		const latency = time.Millisecond
		c.net.Delay(leader.cfg.Addr, n.cfg.Addr, latency)
		for range 50 {
			began := time.Now()
			var wg sync.WaitGroup
			for range reads.RoundsMax + 1 {
				wg.Go(func() { c.wantValue(n, "k", "v") })
				synctest.Wait() // it has joined a round, or waits for one
			}
			n.post(func(*loop) { c.pause(2 * latency) }) // all answers are there when the loop goes on
			wg.Wait()
			if took := time.Since(began); took > 10*latency {
				t.Fatalf("the last reader waited for %v, where an answer takes %v", took, latency)
			}
		}
	})
}
