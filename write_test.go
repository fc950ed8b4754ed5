package raftkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestKeysAndValuesMayBeAnyBytes: up to the limits; an empty value comes back
// empty, not nil.
func TestKeysAndValuesMayBeAnyBytes(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		pairs := map[string][]byte{
			"\x00": nil, "\xff\xfe": {}, string(all): all, "a\x00b": {0}, "ü/\n": []byte("\xff"),
			strings.Repeat("k", 4<<10): bytes.Repeat([]byte{7}, 1<<20), // the limits
		}
		for key, value := range pairs {
			if _, err := at["follower"].Put(c.ctx(), key, value); err != nil {
				t.Fatal(err)
			}
		}
		for role, n := range at {
			for key, value := range pairs {
				kv, err := n.Get(c.ctx(), key)
				if err != nil || !bytes.Equal(kv.Value, value) || kv.Value == nil || kv.Key != key {
					t.Errorf("Get(%.20q) on the %s = %.20q of %d bytes, %v", key, role, kv.Value, len(kv.Value), err)
				}
			}
			l, err := n.List(c.ctx(), "")
			if want := slices.Sorted(maps.Keys(pairs)); err != nil || !slices.Equal(keysOf(l), want) {
				t.Errorf("List on the %s: %v, or not all keys in order", role, err)
			}
		}
		c.wantSameState()
	})
}

// TestIfRevisionDecidesOnEveryMember: by the revision of the key, not of the
// store; 0 means that there is no such key.
func TestIfRevisionDecidesOnEveryMember(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for role, n := range c.roles() {
			key := "key of " + role
			r := c.put(n, key, "1", IfRevision(0))
			store := c.put(n, "other", role) // the store's revision is another than the key's
			for _, wrong := range []uint64{0, r - 1, r + 1, store, 1 << 62} {
				if wrong == r {
					continue
				}
				got, err := n.Put(c.ctx(), key, []byte("no"), IfRevision(wrong))
				wantErr(t, fmt.Sprintf("Put on the %s if %d, is %d", role, wrong, r), err, ErrRevisionMismatch)
				if got != store {
					t.Errorf("revision %d with the error, want the store's, %d", got, store)
				}
				_, err = n.Delete(c.ctx(), key, IfRevision(wrong))
				wantErr(t, fmt.Sprintf("Delete on the %s if %d, is %d", role, wrong, r), err, ErrRevisionMismatch)
			}
			_, err := n.Put(c.ctx(), "no such", nil, IfRevision(r))
			wantErr(t, "Put of a new key if it had a revision", err, ErrRevisionMismatch)
			c.wantValue(n, key, "1")
			r = c.put(n, key, "2", IfRevision(r))
			if _, err := n.Delete(c.ctx(), key, IfRevision(r)); err != nil {
				t.Errorf("Delete on the %s if its revision is right: %v", role, err)
			}
			if _, err := n.Delete(c.ctx(), key, IfRevision(0)); err != nil {
				t.Errorf("Delete on the %s if there is none: %v", role, err)
			}
		}
	})
}

// TestRevisionsCountWritesThatChangeState: the same value again counts; a
// failed condition or a Delete of nothing does not.
func TestRevisionsCountWritesThatChangeState(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		want := uint64(0)
		for round := range 3 {
			for role, n := range at {
				want++
				if r := c.put(n, "k", "v"); r != want { // the same value is a write too
					t.Fatalf("round %d, %s: revision %d, want %d", round, role, r, want)
				}
				r, err := n.Put(c.ctx(), "k", nil, IfRevision(0))
				if r != want || !errors.Is(err, ErrRevisionMismatch) {
					t.Fatalf("failed condition: %d, %v, want %d", r, err, want)
				}
				if r, err := n.Delete(c.ctx(), "no such"); r != want || err != nil {
					t.Fatalf("Delete of a missing key: %d, %v, want %d", r, err, want)
				}
				want++
				if r, err := n.Delete(c.ctx(), "k"); r != want || err != nil {
					t.Fatalf("Delete: %d, %v, want %d", r, err, want)
				}
			}
		}
		c.wantSameState()
		for _, n := range c.nodes {
			if r := n.Status().Revision; r != want {
				t.Errorf("member %d: revision %d, want %d", n.cfg.ID, r, want)
			}
		}
	})
}

// TestManyCallersOnAllMembers: each write has a revision of its own, and its
// caller reads it.
func TestManyCallersOnAllMembers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.roles()
		c.delay(4, time.Millisecond)
		const callers, writes = 50, 20
		var mu sync.Mutex
		seen := make(map[uint64]string)
		var wg sync.WaitGroup
		for _, n := range c.nodes {
			for i := range callers {
				wg.Go(func() {
					last := uint64(0)
					for j := range writes {
						key := fmt.Sprintf("%d/%d/%d", n.cfg.ID, i, j)
						r := c.put(n, key, key)
						mu.Lock()
						if other := seen[r]; other != "" {
							t.Errorf("revision %d is of %s and of %s", r, key, other)
						}
						seen[r] = key
						mu.Unlock()
						if r <= last {
							t.Errorf("%s: revision %d after %d", key, r, last)
						}
						last = r
						c.wantValue(n, key, key)
					}
				})
			}
		}
		wg.Wait()
		c.wantSameState()
		want := uint64(len(c.nodes) * callers * writes)
		if r := c.leader().Status().Revision; r != want || uint64(len(seen)) != want {
			t.Errorf("revision %d and %d acknowledged writes, want %d", r, len(seen), want)
		}
		l, err := c.nodes[4].List(c.ctx(), "")
		if err != nil {
			t.Fatal(err)
		}
		for kv := range l.All() {
			if seen[kv.Revision] != kv.Key {
				t.Errorf("%q has revision %d, which was told to the writer of %q", kv.Key, kv.Revision, seen[kv.Revision])
			}
		}
	})
}

// TestValuesAreTheCallersOwn: what is done to a slice that was put or read
// changes neither the state nor what others read.
func TestValuesAreTheCallersOwn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for role, n := range c.roles() {
			value := []byte("value")
			if _, err := n.Put(c.ctx(), "k", value); err != nil {
				t.Fatal(err)
			}
			copy(value, "XXXXX")
			kv, err := n.Get(c.ctx(), "k")
			if err != nil {
				t.Fatal(err)
			}
			copy(kv.Value, "YYYYY")
			_ = append(kv.Value[:0:5], "ZZZZZ"...) // only for what it overwrites
			l, err := n.List(c.ctx(), "")
			if err != nil {
				t.Fatal(err)
			}
			for kv := range l.All() {
				copy(kv.Value, "QQQQQ")
			}
			for kv := range l.All() {
				if string(kv.Value) != "value" {
					t.Errorf("on the %s: the listing shows %q after its reader wrote to it", role, kv.Value)
				}
			}
			for _, o := range c.nodes {
				c.wantValue(o, "k", "value")
			}
		}
		c.wantSameState()
	})
}

// TestSliceOfAbandonedPutMayBeReused: the write is still under way when its call
// has returned, and must not see what the caller does with its slice.
func TestSliceOfAbandonedPutMayBeReused(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		c.net.Isolate(leader.cfg.Addr)
		value := []byte("value")
		_, err := leader.Put(c.within(300*time.Millisecond), "k", value)
		wantErr(t, "Put on a leader that was just cut off", err, ErrOutcomeUnknown, context.DeadlineExceeded)
		copy(value, "XXXXX")
		c.net.Rejoin(leader.cfg.Addr) // before another is elected: the entry is committed
		c.pause(5 * time.Second)
		for _, n := range c.nodes {
			c.wantValue(n, "k", "value")
		}
	})
}
