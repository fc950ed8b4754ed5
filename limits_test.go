package raftkv

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/raftkv/internal/command"
)

// TestPendingWritesAreBounded: those past the limit are refused at once, and
// none before them is lost.
func TestPendingWritesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3, func(cfg *Config) {
			cfg.Limits = Limits{MaxKeyBytes: 64, MaxValueBytes: 1000, MaxPendingBytes: 10_000}
		})
		for _, n := range []*Node{c.leader(), c.follower()} {
			c.net.Isolate(n.cfg.Addr)
			var done atomic.Int64
			var wg sync.WaitGroup
			for i := range 9 {
				wg.Go(func() {
					if _, err := n.Put(c.ctx(), fmt.Sprintf("%d/%d", n.cfg.ID, i), make([]byte, 1000)); err != nil {
						t.Errorf("put: %v", err)
					}
					done.Add(1)
				})
			}
			c.pause(time.Second)
			begin := time.Now()
			for range 5 {
				_, err := n.Put(c.ctx(), "one more", make([]byte, 1000))
				wantErr(t, fmt.Sprintf("Put past the limit on %d", n.cfg.ID), err, ErrOverloaded)
			}
			if took := time.Since(begin); took != 0 {
				t.Errorf("it took %v to refuse them", took)
			}
			if b := n.out.PendingBytes(); b > 10_000 {
				t.Errorf("%d bytes are pending", b)
			}
			if done.Load() != 0 {
				t.Errorf("%d writes returned without a quorum", done.Load())
			}
			c.net.Rejoin(n.cfg.Addr)
			wg.Wait()
			c.put(n, "after", "v")
		}
	})
}

// TestStateIsBoundedAndDeleteGoesOn: a full state refuses Put, and Delete
// makes room again.
func TestStateIsBoundedAndDeleteGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		const limit = 100_000
		c.found(3, func(cfg *Config) {
			cfg.Limits = Limits{MaxKeyBytes: 64, MaxValueBytes: 1000, MaxStateBytes: limit}
		})
		for _, n := range []*Node{c.follower(), c.leader()} {
			written := 0
			for ; ; written++ {
				_, err := n.Put(c.ctx(), fmt.Sprintf("key %d", written), make([]byte, 1000))
				if err != nil {
					wantErr(t, "Put past the limit", err, ErrOverloaded)
					break
				}
				if written > limit/1000 {
					t.Fatal("the state is not bounded")
				}
			}
			if written < limit/1000/2 {
				t.Errorf("only %d values of 1000 bytes fit into %d", written, limit)
			}
			if b := n.fsm.stateBytes.Load(); b > limit {
				t.Errorf("the state has %d bytes, the limit is %d", b, limit)
			}
			for i := range written {
				if _, err := n.Delete(c.ctx(), fmt.Sprintf("key %d", i)); err != nil {
					t.Fatalf("Delete in a full state: %v", err)
				}
			}
			c.put(n, "key", "v")
		}
		c.wantSameState()
	})
}

// TestBatchThatNoFrameCouldCarryIsRefused: each of its commands is legal;
// together they are too large.
func TestBatchThatNoFrameCouldCarryIsRefused(t *testing.T) {
	c := command.Command{Op: command.Put, Key: make([]byte, command.KeyBytesMax), Value: make([]byte, command.ValueBytesMax), Conditional: true}
	data := c.Append(command.Header{Origin: 7, First: 1}.Append(nil))
	if _, err := checkBatch(data, 7); err != nil {
		t.Errorf("the largest command of the protocol is refused: %v", err)
	}
	for range 20 { // each of a legal size
		small := command.Command{Op: command.Put, Key: []byte("k"), Value: make([]byte, 1<<20)}
		data = small.Append(data)
	}
	if _, err := checkBatch(data, 7); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a batch of %d bytes: %v, want ErrTooLarge", len(data), err)
	}
}
