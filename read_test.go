package raftkv

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/reads"
)

// TestListIsOrderedAndComesInPages: by bytes, on every kind of member.
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
				values[kv.Key], _ = strconv.Atoi(string(kv.Value)) // only numbers are written
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

// TestIsolatedMemberReadsStaleOnly: what it last knew; other reads fail when
// their time is over.
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

// TestMinRevisionWaitsUntilItIsApplied: needs no leader; what is there already
// is read at once.
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

// TestIsolatedLeaderNeverReadsStale reads on a leader that is cut off, from
// before it is until it follows another, while the others write.
func TestIsolatedLeaderNeverReadsStale(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 3*time.Millisecond)
		old := c.leader()
		others := c.but(old)
		c.put(old, "k", "0")
		var acknowledged, stop atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := int64(1); stop.Load() == 0; i++ {
				c.put(others[i%2], "k", strconv.FormatInt(i, 10))
				acknowledged.Store(i)
			}
		})
		var answered, refused atomic.Int64
		for range 4 {
			wg.Go(func() {
				for stop.Load() == 0 {
					before := acknowledged.Load()
					kv, err := old.Get(c.within(70*time.Millisecond), "k")
					if err != nil {
						wantErr(t, "Get on the old leader", err, ErrNoLeader, context.DeadlineExceeded)
						refused.Add(1)
						continue
					}
					answered.Add(1)
					if got, _ := strconv.ParseInt(string(kv.Value), 10, 64); got < before { // only numbers are written
						t.Errorf("the old leader read %d; %d was acknowledged before", got, before)
					}
				}
			})
		}
		c.pause(300 * time.Millisecond)
		for range 3 {
			c.net.Isolate(old.cfg.Addr)
			c.pause(5 * time.Second)
			c.net.Rejoin(old.cfg.Addr)
			c.pause(5 * time.Second)
			if err := others[0].TransferLeadership(c.ctx(), old.cfg.ID); err != nil {
				t.Error(err)
			}
		}
		stop.Store(1)
		wg.Wait()
		if answered.Load() == 0 || refused.Load() == 0 || acknowledged.Load() < 100 {
			t.Errorf("%d reads answered, %d refused, %d writes: the test tests nothing", answered.Load(), refused.Load(), acknowledged.Load())
		}
	})
}

// TestReadsRightAfterAnElection: a new leader must not answer before it knows
// all that was committed.
func TestReadsRightAfterAnElection(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		c.delay(6, time.Millisecond)
		c.learner(6)
		for i := range 3 {
			want := fmt.Sprint(i)
			leader := c.leader()
			c.put(leader, "k", want)
			if i < 2 {
				c.kill(leader)
			} else if err := leader.TransferLeadership(c.ctx(), c.but(leader, c.nodes[6])[0].cfg.ID); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for _, n := range c.nodes {
				wg.Go(func() { c.wantValue(n, "k", want) })
			}
			wg.Wait()
		}
	})
}

// TestSingleVoterReads: raft answers a single voter without asking anybody, and
// so might answer before it knows what is committed.
func TestSingleVoterReads(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		c.put(c.nodes[1], "k", "1")
		learner := c.learner(2)
		c.wantValue(learner, "k", "1")
		if _, err := learner.ChangeMembership(c.ctx(), []uint64{2}, Retain()); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			c.put(c.nodes[1], "k", fmt.Sprint(i))
			c.wantValue(c.nodes[2], "k", fmt.Sprint(i))
			c.put(c.nodes[2], "k", fmt.Sprint(i, "again"))
			c.wantValue(c.nodes[1], "k", fmt.Sprint(i, "again"))
		}
		c.wantSameState()
	})
}

// TestSlowNetworkKeepsItsLeader (W4): with the default timing.
func TestSlowNetworkKeepsItsLeader(t *testing.T) {
	for _, oneWay := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(oneWay.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, oneWay)
				before := c.leader().Status()
				for i := range 20 {
					for _, n := range c.but() {
						began := time.Now()
						c.put(n, fmt.Sprint(i), "v")
						if took := time.Since(began); took > 4*oneWay+100*time.Millisecond {
							t.Errorf("a write on member %d took %v", n.cfg.ID, took)
						}
						c.wantValue(n, fmt.Sprint(i), "v")
						if took := time.Since(began); took > 8*oneWay+200*time.Millisecond {
							t.Errorf("a write and a read on member %d took %v", n.cfg.ID, took)
						}
					}
				}
				if after := c.leader().Status(); after.Term != before.Term {
					t.Errorf("%d elections", after.Term-before.Term)
				}
			})
		})
	}
}

// TestReadersOfARoundReadInGroups: the order in which Go wakes them is the one that
// reads.Seat counts on. If this fails with another version of Go, readers are slower
// than they could be, and Seat must be adapted.
func TestReadersOfARoundReadInGroups(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector shuffles goroutines")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := reads.New(10)
	r.Become(1)
	const readers = 40
	var order [readers]int
	for range 3 { // the order is always the same
		var woken atomic.Int64
		var joined, done sync.WaitGroup
		for i := range readers {
			joined.Add(1)
			done.Go(func() {
				seat, _ := r.Join(uint64(i))
				joined.Done()
				select {
				case <-seat.Done():
				case <-t.Context().Done():
				}
				order[woken.Add(1)-1] = i
			})
			joined.Wait()
		}
		r.Confirm(r.Issue(1), 0)
		done.Wait()
	}
	for at, i := range order {
		first := min(i|(reads.GroupMax-1), readers-1)
		if i != 0 && !slices.Contains(order[:at+1], first) {
			t.Fatalf("seat %d was woken before %d, in the order %v", i, first, order)
		}
	}
}

// TestReadersOfARoundPrepareTheirLookupsTogether: each leaves the hash of its key at
// its seat, and who reads first has all of them brought into the cache. That shows in
// nothing but speed; so the keyspace is taken away, and who misses it says where.
func TestReadersOfARoundPrepareTheirLookupsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := Config{ID: 1, Addr: "n1:1"}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		n := newNode(cfg) // without a goroutine; the test is its loop
		n.loop.raftID = 1
		n.loop.publish()
		n.reads.Become(1)
		confirm := func() { n.reads.Confirm(n.reads.Issue(0), 0) }
		const readers = 6
		for range readers { // a round without notes; the next has room for those of as many
			n.reads.Join(0)
		}
		confirm()

		hashes := make([]uint64, readers)
		for i := range readers - 1 {
			key := fmt.Sprint(i)
			hashes[i] = keyspace.Hash([]byte(key))
			go func() { _, _ = n.Get(t.Context(), key) }() // which is not there
			synctest.Wait()                                // they take their seats in order
		}
		seat, _ := n.reads.Join(0)
		confirm()
		synctest.Wait()
		var notes [reads.GroupMax]uint64
		got := notes[:seat.Group(&notes)]
		if slices.Reverse(got); !slices.Equal(got, hashes) || !seat.IsFirst() {
			t.Errorf("the notes of the round are %x, want the hashes of the keys and 0, %x", got, hashes)
		}

		n.fsm.keys = nil
		var stacks [readers]string
		for i := range readers {
			go func() {
				defer func() {
					recover()
					stacks[i] = string(debug.Stack())
				}()
				_, _ = n.Get(t.Context(), "key") // panics
			}()
			synctest.Wait()
		}
		confirm()
		synctest.Wait()
		for i, stack := range stacks {
			if warms := strings.Contains(stack, "(*fsm).warm("); warms != (i == readers-1) || !strings.Contains(stack, "(*fsm).get(") {
				t.Errorf("reader %d of %d prepares lookups: %v\n%s", i+1, readers, warms, stack)
			}
		}
	})
}
