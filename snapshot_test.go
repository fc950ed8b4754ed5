package raftkv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestLargeStateReachesNewLearnerWhileWritesGoOn ships 300 MiB of values from 1
// byte to 1 MiB, far more than the log keeps.
func TestLargeStateReachesNewLearnerWhileWritesGoOn(t *testing.T) {
	if testing.Short() {
		t.Skip("300 MiB")
	}
	c := loopback(t)
	first := c.start(1)
	if err := first.Init(c.ctx()); err != nil {
		t.Fatal(err)
	}
	total := int64(300 << 20)
	if raceEnabled {
		total = 80 << 20 // the log keeps 64 MiB
	}
	fill(t, c, first, total)
	stop := writeOn(t, first)
	learner := c.start(2)
	if _, err := first.AddLearner(c.ctx(), 2, c.addrs[2]); err != nil {
		t.Fatal(err)
	}
	if n := stop(); n == 0 {
		t.Error("no write was acknowledged while the snapshot was on its way")
	}
	if err := learner.Ready(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.wantSameState()
}

// fill writes keys with values of sizes spread evenly over the orders of
// magnitude until their sum is reached.
func fill(t *testing.T, c *cluster, n *Node, total int64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	value := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	work := make(chan int)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			i := 0
			for size := range work {
				if _, err := n.Put(c.ctx(), fmt.Sprintf("key %d/%d", w, i), value[:size]); err != nil {
					t.Errorf("put: %v", err)
				}
				i++
			}
		})
	}
	for total > 0 {
		size := 1 << rng.IntN(21)
		work <- size
		total -= int64(size)
	}
	close(work)
	wg.Wait()
}

// writeOn writes small values until the function it returns is called, which
// tells how many were acknowledged.
func writeOn(t *testing.T, n *Node) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() {
		acknowledged := 0
		for ctx.Err() == nil {
			if _, err := n.Put(ctx, fmt.Sprintf("meanwhile %d", acknowledged), []byte("x")); err == nil {
				acknowledged++
			} else if ctx.Err() == nil {
				t.Errorf("put: %v", err)
			}
		}
		done <- acknowledged
	}()
	return func() int {
		cancel()
		return <-done
	}
}
