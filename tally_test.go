package raftkv

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A tally is what callers were told of their writes. Every write is conditional
// on what it replaces, so that one which took effect twice would be told that
// its condition does not hold. Each that took effect counts in the store's
// revision, which must in the end lie between what was acknowledged and that
// plus what is unknown.
type tally struct {
	c                     *cluster
	pause                 time.Duration // between the writes of one caller
	patience              time.Duration // of a caller with one write
	slowest               atomic.Int64  // of the acknowledged writes, a time.Duration
	acknowledged, unknown atomic.Uint64
	added, addedPerhaps   atomic.Uint64 // increments of the counter
	stopped               atomic.Bool
	wg                    sync.WaitGroup
}

func newTally(c *cluster) *tally {
	y := &tally{c: c, pause: time.Millisecond, patience: 30 * time.Second}
	if raceEnabled {
		y.pause = 20 * time.Millisecond
	}
	c.t.Cleanup(func() { // should the test fail before check
		y.stopped.Store(true)
		y.wg.Wait()
	})
	return y
}

// writeUntilStopped has callers on a node write: each a new key of its own, and
// an increment of a counter that all callers on all nodes share. They end with
// the node if it is killed.
func (y *tally) writeUntilStopped(n *Node, callers int) {
	for i := range callers {
		y.wg.Go(func() {
			for j := 0; !y.stopped.Load(); j++ {
				key := fmt.Sprintf("key %d/%x/%d/%d", n.cfg.ID, n.loop.nonce[:4], i, j) // another one after a restart
				if !y.write(n, key, key, 0) || !y.increment(n) {
					return
				}
				y.c.pause(y.pause) // a single voter answers in no time
			}
		})
	}
}

// write writes a key on condition and reports whether its caller shall go on.
func (y *tally) write(n *Node, key, value string, revision uint64) bool {
	begin := time.Now()
	_, err := n.Put(y.c.within(y.patience), key, []byte(value), IfRevision(revision))
	switch {
	case err == nil:
		for took, old := int64(time.Since(begin)), y.slowest.Load(); took > old && !y.slowest.CompareAndSwap(old, took); {
			old = y.slowest.Load()
		}
		y.acknowledged.Add(1)
		return true
	case errors.Is(err, ErrClosed): // killed
		if errors.Is(err, ErrOutcomeUnknown) {
			y.unknown.Add(1)
		}
	case !y.stopped.Load():
		y.c.t.Errorf("member %d: %v", n.cfg.ID, err)
	}
	return false
}

// increment adds one to the counter.
func (y *tally) increment(n *Node) bool {
	for {
		kv, err := n.Get(y.c.within(y.patience), "counter")
		if errors.Is(err, ErrClosed) {
			return false
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			if !y.stopped.Load() {
				y.c.t.Errorf("member %d: %v", n.cfg.ID, err)
			}
			return false
		}
		old, _ := strconv.Atoi(string(kv.Value)) // 0 if there is none
		_, err = n.Put(y.c.within(y.patience), "counter", []byte(strconv.Itoa(old+1)), IfRevision(kv.Revision))
		switch {
		case err == nil:
			y.acknowledged.Add(1)
			y.added.Add(1)
			return true
		case errors.Is(err, ErrRevisionMismatch):
			continue
		case errors.Is(err, ErrClosed):
			if errors.Is(err, ErrOutcomeUnknown) {
				y.unknown.Add(1)
				y.addedPerhaps.Add(1)
			}
			return false
		}
		if !y.stopped.Load() {
			y.c.t.Errorf("member %d: %v", n.cfg.ID, err)
		}
		return false
	}
}

// check stops the callers and holds the store to what they were told.
func (y *tally) check() {
	t := y.c.t
	t.Helper()
	y.stopped.Store(true)
	y.wg.Wait()
	y.c.wantSameState()
	n := y.c.but()[0]
	kv, err := n.Get(y.c.ctx(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	counter, _ := strconv.ParseUint(string(kv.Value), 10, 64) // only increment writes it
	if low, high := y.added.Load(), y.added.Load()+y.addedPerhaps.Load(); counter < low || counter > high {
		t.Errorf("the counter is %d; %d increments were acknowledged, %d perhaps done", counter, low, high)
	}
	revision := n.Status().Revision
	if low, high := y.acknowledged.Load(), y.acknowledged.Load()+y.unknown.Load(); revision < low || revision > high {
		t.Errorf("revision %d; %d writes were acknowledged, %d perhaps done", revision, low, high)
	}
	l, err := n.List(y.c.ctx(), "key ")
	if err != nil {
		t.Fatal(err)
	}
	keys := uint64(len(keysOf(l)))
	if acknowledged := y.acknowledged.Load() - y.added.Load(); keys < acknowledged {
		t.Errorf("%d keys, %d were acknowledged", keys, acknowledged)
	}
	if counter < 10 {
		t.Errorf("only %d increments: the test tests nothing", counter)
	}
}
