package raftkv

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestSlowLinkHoldsUpNobodyElse: one follower hears the leader at 64 KiB/s while
// the others commit more than its queue holds. They go on at their speed, what
// waits for it stays bounded, and it catches up when the link is healed, by a
// snapshot.
func TestSlowLinkHoldsUpNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		c.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = 1 << 20 }, j.record)
		c.delay(3, 5*time.Millisecond)
		leader := c.leader()
		slow := c.but(leader)[0]
		link := func(bytesPerSecond int) { c.net.Slow(leader.cfg.Addr, slow.cfg.Addr, bytesPerSecond) }
		before := heapBytes()

		const some, many = 16 << 20, 160 << 20
		usual := overwrite(c, leader, some)
		link(64 << 10)
		if took := overwrite(c, leader, many); took > usual*(many/some)*3/2 {
			t.Errorf("%d MiB took %v; %d MiB took %v when no link was slow", many>>20, took, some>>20, usual)
		}
		// The queue to a member may hold 64 MiB. The rest is logs of a few MiB, a
		// state of half a MiB, and what gRPC holds.
		if grown := heapBytes() - before; grown > 96<<20 {
			t.Errorf("three members hold %d MiB more than before", grown>>20)
		}
		counts := c.net.Counts(leader.cfg.Addr, slow.cfg.Addr)
		if lag := leader.Status().Applied - slow.Status().Applied; lag < 300 || counts.Slowed == 0 {
			t.Errorf("the follower is %d entries behind, %+v: the test tests nothing", lag, counts)
		}
		if s := leader.Status(); s.Role != Leader {
			t.Errorf("the leader has become a %v", s.Role)
		}

		c.pause(time.Minute)
		link(0)
		healed := time.Now()
		c.wantSameState()
		if took := time.Since(healed); took > 10*time.Second {
			t.Errorf("the follower took %v to catch up", took)
		}
		if j.of("installing snapshot") == 0 {
			t.Error("the follower was sent all that it had missed, not a snapshot")
		}
		c.put(slow, "after", "v")
		c.wantValue(leader, "after", "v")
	})
}

// overwrite writes so many bytes to a few keys, so that the state stays small,
// and returns how long it took.
func overwrite(c *cluster, n *Node, total int) time.Duration {
	c.t.Helper()
	began := time.Now()
	value := bytes.Repeat([]byte("v"), 64<<10)
	const writers = 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range total / writers / len(value) {
				if _, err := n.Put(c.ctx(), fmt.Sprint(w), value); err != nil {
					c.t.Errorf("put: %v", err)
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// heapBytes returns how much memory is in use.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
