package raftkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A journal is a slog.Handler that counts messages.
type journal struct {
	mu    sync.Mutex
	count map[string]int
}

// record has a node write to the journal too.
func (j *journal) record(cfg *Config) { cfg.Logger = slog.New(j) }

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.count == nil {
		j.count = make(map[string]int)
	}
	j.count[r.Message]++
	return nil
}

func (j *journal) of(message string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count[message]
}

// A tally is what callers were told of their writes. Every write is conditional
// on what it replaces, so that one which took effect twice would be told that
// its condition does not hold. Each that took effect counts in the store's
// revision, which must in the end lie between what was acknowledged and that
// plus what is unknown.
type tally struct {
	c                     *cluster
	pause                 time.Duration // between the writes of one caller
	slowest               atomic.Int64  // of the acknowledged writes, a time.Duration
	acknowledged, unknown atomic.Uint64
	added, addedPerhaps   atomic.Uint64 // increments of the counter
	stopped               atomic.Bool
	wg                    sync.WaitGroup
}

func newTally(c *cluster) *tally {
	y := &tally{c: c, pause: time.Millisecond}
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
				key := fmt.Sprintf("key %d/%d/%d", n.cfg.ID, i, j)
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
	_, err := n.Put(y.c.ctx(), key, []byte(value), IfRevision(revision))
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
		kv, err := n.Get(y.c.ctx(), "counter")
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
		_, err = n.Put(y.c.ctx(), "counter", []byte(strconv.Itoa(old+1)), IfRevision(kv.Revision))
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
	counter, _ := strconv.ParseUint(string(kv.Value), 10, 64)
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

func TestWritesTakeEffectOnceThoughLeadersDie(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		c.delay(5, 5*time.Millisecond)
		y := newTally(c)
		for _, n := range c.nodes {
			y.writeUntilStopped(n, 3)
		}
		for range 2 {
			c.pause(2 * time.Second)
			c.kill(c.leader())
		}
		c.pause(5 * time.Second)
		y.check()
	})
}

func TestWritesTakeEffectOnceThoughLeadershipMoves(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 5*time.Millisecond)
		y := newTally(c)
		for _, n := range c.nodes {
			y.writeUntilStopped(n, 3)
		}
		for i := range 20 {
			c.pause(300 * time.Millisecond)
			if i%4 == 3 { // cut off for so long that another is elected
				leader := c.leader()
				c.net.Isolate(leader.cfg.Addr)
				c.pause(4 * time.Second)
				c.net.Rejoin(leader.cfg.Addr)
				c.ready()
			} else if err := c.but()[i%3].TransferLeadership(c.ctx(), uint64(i%3+1)); err != nil {
				t.Errorf("transfer: %v", err)
			}
		}
		y.check()
	})
}

func TestForwardedWritesTakeEffectOnceThoughConnectionsBreak(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 3*time.Millisecond)
		y := newTally(c)
		leader := c.leader()
		followers := c.but(leader)
		for _, n := range followers {
			y.writeUntilStopped(n, 4)
		}
		for i := range 150 {
			c.pause(time.Duration(20+i) * time.Millisecond)
			c.net.Reset(leader.cfg.Addr, followers[i%2].cfg.Addr)
		}
		y.check()
		if slowest := time.Duration(y.slowest.Load()); slowest > 900*time.Millisecond {
			t.Errorf("a write took %v: it was not sent again when its connection broke", slowest)
		}
	})
}

// TestOneWayCutsDelayWritesAndNoMore cuts each direction between the leader and
// the others for longer than an election takes.
func TestOneWayCutsDelayWritesAndNoMore(t *testing.T) {
	for name, cut := range map[string]func(c *cluster, leader, follower, third string, act func(from, to string)){
		"to a follower":     func(c *cluster, l, f, o string, act func(from, to string)) { act(l, f) },
		"from a follower":   func(c *cluster, l, f, o string, act func(from, to string)) { act(f, l) },
		"to all followers":  func(c *cluster, l, f, o string, act func(from, to string)) { act(l, f); act(l, o) },
		"from all":          func(c *cluster, l, f, o string, act func(from, to string)) { act(f, l); act(o, l) },
		"between followers": func(c *cluster, l, f, o string, act func(from, to string)) { act(f, o) },
		"in a circle":       func(c *cluster, l, f, o string, act func(from, to string)) { act(l, f); act(f, o); act(o, l) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				y := newTally(c)
				leader := c.leader()
				others := c.but(leader)
				for _, n := range c.nodes {
					y.writeUntilStopped(n, 2)
				}
				c.pause(100 * time.Millisecond)
				cut(c, leader.cfg.Addr, others[0].cfg.Addr, others[1].cfg.Addr, c.net.Cut)
				c.pause(10 * time.Second)
				cut(c, leader.cfg.Addr, others[0].cfg.Addr, others[1].cfg.Addr, c.net.Heal)
				c.pause(5 * time.Second)
				y.check()
			})
		})
	}
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
					if got, _ := strconv.ParseInt(string(kv.Value), 10, 64); got < before {
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

func TestWritesOnAnIsolatedLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		old := c.leader()
		c.net.Isolate(old.cfg.Addr)
		type result struct {
			revision uint64
			err      error
		}
		patient, hasty := make(chan result, 1), make(chan result, 1)
		go func() {
			r, err := old.Put(c.ctx(), "patient", []byte("1"), IfRevision(0))
			patient <- result{r, err}
		}()
		begin := time.Now()
		go func() {
			r, err := old.Put(c.within(500*time.Millisecond), "hasty", nil)
			hasty <- result{r, err}
		}()
		r := <-hasty
		wantErr(t, "Put with little time", r.err, ErrOutcomeUnknown, context.DeadlineExceeded)
		if took := time.Since(begin); took != 500*time.Millisecond {
			t.Errorf("it took %v of 500ms", took)
		}
		leader := c.agreed(c.but(old)...)
		c.put(leader, "meanwhile", "1")
		c.pause(5 * time.Second)
		_, err := old.Put(c.within(time.Second), "late", nil) // it has stepped down by now
		wantErr(t, "Put without a leader", err, ErrNoLeader, context.DeadlineExceeded)
		if len(patient) > 0 {
			t.Fatalf("a write on the isolated leader returned %v", <-patient)
		}
		c.net.Rejoin(old.cfg.Addr)
		if r := <-patient; r.err != nil || r.revision < 2 {
			t.Errorf("after healing: %+v", r)
		}
		c.wantValue(leader, "patient", "1")
		_, err = leader.Get(c.ctx(), "late")
		wantErr(t, "Get of what was certainly not done", err, ErrNotFound)
		c.wantSameState()
	})
}

func TestMemberCutOffForLongCatchesUpByLog(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		c.found(3, j.record)
		n := c.follower()
		c.net.Isolate(n.cfg.Addr)
		leader := c.agreed(c.but(n)...)
		for i := range 500 {
			c.put(leader, fmt.Sprint(i), strings.Repeat("v", 1000))
		}
		c.pause(10 * time.Minute)
		c.net.Rejoin(n.cfg.Addr)
		begin := time.Now()
		c.wantValue(n, "499", strings.Repeat("v", 1000))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v to come back", took)
		}
		if sent := j.of("sending snapshot"); sent != 0 {
			t.Errorf("%d snapshots were sent; the log had it all", sent)
		}
		c.wantSameState()
	})
}

// TestPendingWriteIsAnsweredByASnapshot: a member's write takes effect, but the
// member gets a snapshot in place of the entry that says so.
func TestPendingWriteIsAnsweredByASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		c.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 }, j.record)
		leader := c.leader()
		n := c.but(leader)[0]
		others := c.but(n)
		c.put(n, "before", "1")
		for _, o := range others {
			c.net.Cut(o.cfg.Addr, n.cfg.Addr) // it can be heard, and hears nothing
		}
		type result struct {
			revision uint64
			err      error
		}
		done := make(chan result, 2)
		for _, condition := range []uint64{0, 77} {
			go func() {
				r, err := n.Put(c.ctx(), fmt.Sprint("pending ", condition), []byte("v"), IfRevision(condition))
				done <- result{r, err}
			}()
		}
		c.pause(100 * time.Millisecond)
		kv, err := leader.Get(c.ctx(), "pending 0")
		if err != nil {
			t.Fatalf("the pending write has not reached the others: %v", err)
		}
		for _, o := range others {
			c.net.Reset(o.cfg.Addr, n.cfg.Addr) // what is on its way would arrive after all
		}
		for i := range 200 {
			c.put(leader, fmt.Sprint(i), strings.Repeat("v", 1000))
		}
		c.pause(5 * time.Second)
		if len(done) > 0 {
			t.Fatalf("answered before its member could know: %+v", <-done)
		}
		for _, o := range others {
			c.net.Heal(o.cfg.Addr, n.cfg.Addr)
		}
		for range 2 {
			r := <-done
			if r.err != nil {
				wantErr(t, "the write whose condition failed", r.err, ErrRevisionMismatch)
			} else if r.revision != kv.Revision {
				t.Errorf("the pending write has revision %d, want %d", r.revision, kv.Revision)
			}
		}
		if j.of("installing snapshot") == 0 {
			t.Error("no snapshot was sent: the test tests nothing")
		}
		c.wantValue(n, "199", strings.Repeat("v", 1000))
		c.wantSameState()
		c.put(n, "after", "1")
	})
}

// TestSnapshotOfAllSizesReachesALearnerWhileWritesGoOn has a log far smaller
// than the largest value.
func TestSnapshotOfAllSizesReachesALearnerWhileWritesGoOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		small := func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 }
		c.found(3, small, j.record)
		want := make(map[string][]byte)
		for size := 1; size <= 1<<20; size *= 2 {
			value := bytes.Repeat([]byte{byte(size % 251)}, size)
			for _, key := range []string{fmt.Sprintf("%d bytes", size), strings.Repeat("k", min(size, 4<<10))} {
				want[key] = value
				if _, err := c.nodes[1].Put(c.ctx(), key, value); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.delay(4, time.Millisecond)
		y := newTally(c)
		y.writeUntilStopped(c.nodes[2], 30)
		c.pause(time.Second)
		learner := c.learner(4, small)
		c.pause(time.Second)
		y.stopped.Store(true)
		y.wg.Wait()
		for key, value := range want {
			kv, err := learner.Get(c.ctx(), key)
			if err != nil || !bytes.Equal(kv.Value, value) {
				t.Errorf("Get(%.20q) on the learner: %d bytes, %v, want %d", key, len(kv.Value), err, len(value))
			}
		}
		if j.of("sending snapshot") == 0 {
			t.Error("no snapshot was sent: the test tests nothing")
		}
		c.wantSameState()
	})
}

func TestLostMajorityIsToldByTheDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.leader()
		c.put(n, "k", "v")
		for _, o := range c.but(n) {
			c.kill(o)
		}
		for i := range 10 {
			begin := time.Now()
			_, err := n.Put(c.within(700*time.Millisecond), "k", []byte(fmt.Sprint(i)))
			if took := time.Since(begin); took != 700*time.Millisecond {
				t.Errorf("put %d took %v of 700ms", i, took)
			}
			want := ErrNoLeader
			if errors.Is(err, ErrOutcomeUnknown) && i < 3 { // it does not know yet
				want = ErrOutcomeUnknown
			}
			wantErr(t, fmt.Sprintf("put %d", i), err, want, context.DeadlineExceeded)
			_, err = n.Get(c.within(700*time.Millisecond), "k")
			wantErr(t, fmt.Sprintf("get %d", i), err, ErrNoLeader, context.DeadlineExceeded)
		}
		if kv, err := n.Get(c.ctx(), "k", Stale()); err != nil || string(kv.Value) != "v" {
			t.Errorf("stale Get = %q, %v", kv.Value, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Hour, cancel)
		_, err := n.Put(ctx, "k", nil)
		wantErr(t, "Put that is canceled", err, ErrNoLeader, context.Canceled)
	})
}

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
