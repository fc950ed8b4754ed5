package raftkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// roles founds three voters, adds a learner and returns one member of each kind.
func (c *cluster) roles() map[string]*Node {
	c.t.Helper()
	c.found(3)
	c.learner(4)
	return map[string]*Node{"leader": c.leader(), "follower": c.follower(), "learner": c.nodes[4]}
}

// commit returns the commit index after everything under way has come to rest.
func (c *cluster) commit() uint64 {
	c.t.Helper()
	c.pause(3 * time.Second)
	return c.leader().Status().Commit
}

// canceled returns a context that is done.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func keysOf(l *Listing) []string {
	var keys []string
	for kv := range l.All() {
		keys = append(keys, kv.Key)
	}
	return keys
}

func TestEveryMemberTakesEveryCall(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for role, n := range c.roles() {
			key := "from " + role
			put := c.put(n, key, role)
			for _, o := range c.nodes {
				kv, err := o.Get(c.ctx(), key)
				if err != nil || kv.Key != key || string(kv.Value) != role || kv.Revision != put {
					t.Errorf("put on the %s, Get on %d = %+v, %v, want revision %d", role, o.cfg.ID, kv, err, put)
				}
			}
			l, err := n.List(c.ctx(), key)
			if err != nil || !slices.Equal(keysOf(l), []string{key}) || l.Revision != put {
				t.Errorf("List on the %s = %+v, %v", role, l, err)
			}
			deleted, err := n.Delete(c.ctx(), key)
			if err != nil || deleted != put+1 {
				t.Errorf("Delete on the %s = %d, %v, want %d", role, deleted, err, put+1)
			}
			for _, o := range c.nodes {
				_, err := o.Get(c.ctx(), key)
				wantErr(t, "Get of what was deleted on the "+role, err, ErrNotFound)
			}
		}
		c.wantSameState()
	})
}

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

func TestRefusedCallsProposeNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		before := c.commit()
		long, large := strings.Repeat("k", 4<<10+1), make([]byte, 1<<20+1)
		overdue, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		for role, n := range at {
			for name, call := range map[string]func(key string, value []byte, ctx context.Context) error{
				"Put": func(key string, value []byte, ctx context.Context) error {
					_, err := n.Put(ctx, key, value)
					return err
				},
				"Delete": func(key string, value []byte, ctx context.Context) error {
					_, err := n.Delete(ctx, key)
					return err
				},
			} {
				name += " on the " + role
				wantErr(t, name+", empty key", call("", nil, c.ctx()), ErrInvalid)
				wantErr(t, name+", key too long", call(long, nil, c.ctx()), ErrTooLarge)
				wantErr(t, name+", canceled", call("k", nil, canceled()), context.Canceled)
				wantErr(t, name+", overdue", call("k", nil, overdue), context.DeadlineExceeded)
			}
			_, err := n.Put(c.ctx(), "k", large)
			wantErr(t, "Put on the "+role+", value too large", err, ErrTooLarge)
			_, err = n.Get(canceled(), "k")
			wantErr(t, "Get on the "+role+", canceled", err, context.Canceled)
			_, err = n.Get(c.ctx(), "")
			wantErr(t, "Get on the "+role+", empty key", err, ErrInvalid)
			_, err = n.List(canceled(), "")
			wantErr(t, "List on the "+role+", canceled", err, context.Canceled)
			_, err = n.List(c.ctx(), "", Limit(-1))
			wantErr(t, "List on the "+role+", negative limit", err, ErrInvalid)
			_, err = n.ChangeMembership(canceled(), []uint64{1})
			wantErr(t, "ChangeMembership on the "+role+", canceled", err, context.Canceled)
			_, err = n.ChangeMembership(c.ctx(), nil)
			wantErr(t, "ChangeMembership on the "+role+" to nobody", err, ErrInvalid)
			_, err = n.AddLearner(c.ctx(), 9, "no address")
			wantErr(t, "AddLearner on the "+role+" at no address", err, ErrInvalid)
		}
		if after := c.commit(); after != before {
			t.Errorf("commit index %d became %d", before, after)
		}
		if r := c.leader().Status().Revision; r != 0 {
			t.Errorf("revision %d, want 0", r)
		}
	})
}

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
			_ = append(kv.Value[:0:5], "ZZZZZ"...)
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

func TestListIsOrderedAndComesInPages(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		for _, key := range []string{"b/2", "a", "b/10", "b/1", "c", "b", "b\xff", "b/"} {
			c.put(at["leader"], key, "value of "+key)
		}
		for _, test := range []struct {
			prefix string
			opts   []ReadOption
			want   string
		}{
			{"", nil, "a b b/ b/1 b/10 b/2 b\xff c"},
			{"b", nil, "b b/ b/1 b/10 b/2 b\xff"},
			{"b/", nil, "b/ b/1 b/10 b/2"},
			{"d", nil, ""},
			{"", []ReadOption{Limit(3)}, "a b b/"},
			{"", []ReadOption{Limit(0)}, "a b b/ b/1 b/10 b/2 b\xff c"},
			{"", []ReadOption{Limit(100)}, "a b b/ b/1 b/10 b/2 b\xff c"},
			{"b/", []ReadOption{After("b/1")}, "b/10 b/2"},
			{"b/", []ReadOption{After("b/11"), Limit(1)}, "b/2"}, // no key itself
			{"b/", []ReadOption{After("a")}, "b/ b/1 b/10 b/2"},
			{"b/", []ReadOption{After("c")}, ""},
			{"", []ReadOption{After("b/10"), Limit(2)}, "b/2 b\xff"},
		} {
			for role, n := range at {
				l, err := n.List(c.ctx(), test.prefix, test.opts...)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(keysOf(l), " "); got != test.want {
					t.Errorf("List(%q, ...) on the %s = %q, want %q", test.prefix, role, got, test.want)
				}
				for kv := range l.All() {
					if string(kv.Value) != "value of "+kv.Key || kv.Revision == 0 {
						t.Errorf("List on the %s shows %+v", role, kv)
					}
				}
				if l.Revision != 8 {
					t.Errorf("List on the %s: revision %d, want 8", role, l.Revision)
				}
			}
		}
	})
}

// TestListingIsOfOneRevision lists more keys than are gathered at once, and
// fewer, while every write changes all it can see.
func TestListingIsOfOneRevision(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, time.Millisecond)
		n := c.follower()
		var wg sync.WaitGroup
		for i := range collectMax + 500 {
			wg.Go(func() { c.put(n, fmt.Sprintf("key %04d", i), "0") })
		}
		wg.Wait()
		stop := make(chan struct{})
		wg.Go(func() { // writes key 0, then key 1, so that 0 is never behind 1, nor more than one ahead
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				c.put(n, "key 0000", strconv.Itoa(i))
				c.put(n, "key 0001", strconv.Itoa(i))
			}
		})
		var kept []*Listing
		for i := range 40 {
			opts := []ReadOption{Limit(i % 2 * 100)}
			l, err := n.List(c.ctx(), "key", opts...)
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, l)
			c.pause(3 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		last := uint64(0)
		for _, l := range kept {
			values := make(map[string]int)
			for kv := range l.All() {
				values[kv.Key], _ = strconv.Atoi(string(kv.Value))
				if kv.Revision > l.Revision {
					t.Fatalf("listing of revision %d has a key of %d", l.Revision, kv.Revision)
				}
			}
			if d := values["key 0000"] - values["key 0001"]; d != 0 && d != 1 {
				t.Errorf("listing of revision %d has %d before %d", l.Revision, values["key 0000"], values["key 0001"])
			}
			written := uint64(values["key 0000"] + values["key 0001"])
			if l.Revision != collectMax+500+written {
				t.Errorf("listing of revision %d shows %d writes", l.Revision, collectMax+500+written)
			}
			if l.Revision < last {
				t.Errorf("revision %d after %d", l.Revision, last)
			}
			last = l.Revision
		}
		if last == kept[0].Revision {
			t.Error("nothing was written between the listings")
		}
	})
}

func TestIsolatedMemberReadsStaleOnly(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.learner(4)
		for _, n := range []*Node{c.follower(), c.nodes[4], c.leader()} {
			c.put(n, "k", "old")
			c.net.Isolate(n.cfg.Addr)
			others := c.but(n)
			c.put(c.agreed(others...), "k", "new")

			kv, err := n.Get(c.ctx(), "k", Stale())
			if err != nil || string(kv.Value) != "old" {
				t.Errorf("member %d: stale Get = %q, %v, want old", n.cfg.ID, kv.Value, err)
			}
			l, err := n.List(c.ctx(), "", Stale())
			if err != nil || l.Revision != kv.Revision {
				t.Errorf("member %d: stale List at %+v, %v, want revision %d", n.cfg.ID, l, err, kv.Revision)
			}
			for name, call := range map[string]func(ctx context.Context) error{
				"Get":   func(ctx context.Context) error { _, err := n.Get(ctx, "k"); return err },
				"List":  func(ctx context.Context) error { _, err := n.List(ctx, ""); return err },
				"Ready": n.Ready,
			} {
				begin := time.Now()
				err := call(c.within(5 * time.Second))
				wantErr(t, fmt.Sprintf("%s on isolated member %d", name, n.cfg.ID), err, ErrNoLeader, context.DeadlineExceeded)
				if took := time.Since(begin); took != 5*time.Second {
					t.Errorf("%s took %v of the 5 s it was given", name, took)
				}
			}
			c.net.Rejoin(n.cfg.Addr)
			c.wantValue(n, "k", "new")
		}
	})
}

func TestMinRevisionWaitsUntilItIsApplied(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.follower()
		c.put(n, "k", "old")
		c.net.Isolate(n.cfg.Addr)
		r := c.put(c.agreed(c.but(n)...), "k", "new")
		_, err := n.Get(c.within(time.Second), "k", MinRevision(r))
		wantErr(t, "Get of what cannot have arrived", err, context.DeadlineExceeded, ErrNoLeader)
		if kv, err := n.Get(c.ctx(), "k", MinRevision(r-1)); err != nil || string(kv.Value) != "old" {
			t.Errorf("Get of a revision that is there = %q, %v, want old at once", kv.Value, err)
		}
		got := make(chan string, 2)
		go func() {
			kv, err := n.Get(c.ctx(), "k", MinRevision(r))
			got <- fmt.Sprint(string(kv.Value), err)
		}()
		go func() {
			l, err := n.List(c.ctx(), "k", MinRevision(r))
			got <- fmt.Sprint("new", err, l != nil && l.Revision == r)
		}()
		c.pause(10 * time.Second)
		if len(got) > 0 {
			t.Fatalf("read too early: %s", <-got)
		}
		c.net.Rejoin(n.cfg.Addr)
		for range 2 {
			if g := <-got; g != "new<nil>" && g != "new<nil> true" {
				t.Errorf("read %q, want what was written", g)
			}
		}
	})
}

// everyCall makes each call of the API once.
func (c *cluster) everyCall(n *Node, ctx context.Context) map[string]error {
	errs := make(map[string]error)
	_, errs["Put"] = n.Put(ctx, "k", nil)
	_, errs["Get"] = n.Get(ctx, "k")
	_, errs["stale Get"] = n.Get(ctx, "k", Stale())
	_, errs["Get with MinRevision"] = n.Get(ctx, "k", MinRevision(1<<40))
	_, errs["Delete"] = n.Delete(ctx, "k")
	_, errs["List"] = n.List(ctx, "")
	_, errs["AddLearner"] = n.AddLearner(ctx, 9, "n9:1")
	_, errs["RemoveLearner"] = n.RemoveLearner(ctx, 9)
	_, errs["ChangeMembership"] = n.ChangeMembership(ctx, []uint64{n.cfg.ID})
	errs["TransferLeadership"] = n.TransferLeadership(ctx, n.cfg.ID)
	return errs
}

func TestCallsBeforeInit(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		begin := time.Now()
		for name, err := range c.everyCall(n, c.ctx()) {
			wantErr(t, name, err, ErrNotInitialized)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the calls took %v", took)
		}
		if s := n.Status(); s.Role != Blank || s.ID != 1 || s.ClusterID != "" || s.Leader != 0 || len(s.Membership.Members) != 0 {
			t.Errorf("status %+v", s)
		}
		wantErr(t, "Ready", n.Ready(c.within(time.Second)), ErrNotInitialized, context.DeadlineExceeded)
		select {
		case <-n.Done():
			t.Error("done")
		default:
		}
		if n.Err() != nil {
			t.Errorf("Err() = %v", n.Err())
		}
	})
}

func TestCallsAfterClose(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		c.put(n, "k", "v")
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		errs := c.everyCall(n, c.ctx())
		errs["Ready"], errs["Init"] = n.Ready(c.ctx()), n.Init(c.ctx())
		errs["Err"] = n.Err()
		for name, err := range errs {
			wantErr(t, name, err, ErrClosed)
		}
		select {
		case <-n.Done():
		default:
			t.Error("not done")
		}
		if err := n.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := n.Shutdown(c.ctx()); err != nil {
			t.Errorf("Shutdown after Close: %v", err)
		}
		if s := n.Status(); s.ID != 1 || s.Revision != 1 || len(s.Membership.Members) != 1 {
			t.Errorf("status after Close %+v, want what was last known", s)
		}
	})
}

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

// TestCauseOfTheContextIsKept: errors.Is holds for the context's error and for
// the cause that its owner gave.
func TestCauseOfTheContextIsKept(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.follower()
		c.net.Isolate(n.cfg.Addr)
		cause := errors.New("out of patience")
		ended, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		for name, err := range c.everyCall(n, ended) {
			if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
				t.Errorf("%s with a canceled context: %v", name, err)
			}
		}
		for name, call := range map[string]func(ctx context.Context) error{
			"Put":                func(ctx context.Context) error { _, err := n.Put(ctx, "k", nil); return err },
			"Get":                func(ctx context.Context) error { _, err := n.Get(ctx, "k"); return err },
			"MinRevision":        func(ctx context.Context) error { _, err := n.Get(ctx, "k", MinRevision(99)); return err },
			"Ready":              n.Ready,
			"ChangeMembership":   func(ctx context.Context) error { _, err := n.ChangeMembership(ctx, []uint64{1}); return err },
			"TransferLeadership": func(ctx context.Context) error { return n.TransferLeadership(ctx, 1) },
			"Init": func(ctx context.Context) error {
				return c.start(7).Init(ctx, Member{ID: 7, Addr: "n7:1"}, Member{ID: 8, Addr: "n8:1"})
			},
			"Ready, blank": func(ctx context.Context) error { return c.start(6).Ready(ctx) },
		} {
			ctx, cancel := context.WithTimeoutCause(context.Background(), 3*time.Second, cause)
			err := call(ctx)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cause) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestResultWinsOverAContextThatEnds(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		for i := range 200 { // both are ready when the caller looks: one is chosen at random
			ctx, cancel := context.WithCancel(context.Background())
			errc := make(chan error, 1)
			key := fmt.Sprint(i)
			go func() {
				_, err := n.Put(ctx, key, nil)
				errc <- err
			}()
			if i%2 == 0 {
				synctest.Wait()
			}
			cancel()
			err := <-errc
			_, getErr := n.Get(c.ctx(), key)
			switch {
			case err == nil && getErr == nil, errors.Is(err, ErrOutcomeUnknown):
			case err != nil && errors.Is(getErr, ErrNotFound):
			default:
				t.Fatalf("put %d: %v, then get: %v", i, err, getErr)
			}
		}
	})
}
