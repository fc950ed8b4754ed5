package raftkv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/raftkv/internal/roster"
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

// TestReceiverGoesOnFromItsSnapshotHoweverMuchWasWrittenMeanwhile: more than the log
// keeps without a pin and more than raft has on its way to a member, less than the
// log keeps with a pin.
func TestReceiverGoesOnFromItsSnapshotHoweverMuchWasWrittenMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		c.found(3, j.record)
		n, value := c.leader(), strings.Repeat("v", 1<<20)
		write := func(times int) {
			for range times {
				c.put(n, "k", value)
				c.pause(8 * time.Millisecond)
			}
		}
		write(80) // the log does not have all of it
		for id := 1; id <= 3; id++ {
			c.net.Delay("n4:1", fmt.Sprintf("n%d:1", id), 100*time.Millisecond)
			c.net.Delay(fmt.Sprintf("n%d:1", id), "n4:1", 100*time.Millisecond)
		}
		var wg sync.WaitGroup
		wg.Go(func() { c.learner(4, j.record) })
		write(300)
		wg.Wait()
		c.pause(time.Second)
		if got := j.of("sending snapshot"); got != 1 {
			t.Errorf("%d snapshots were sent, want 1", got)
		}
		c.wantSameState()
	})
}

// TestPinFollowsItsReceiver, which has its snapshot and lags, until it has nearly
// caught up. What has fallen stays down, and is counted until then.
func TestPinFollowsItsReceiver(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 })
		n := c.leader()
		receiver := c.but(n)[0]
		const delay = 200 * time.Millisecond
		c.net.Delay(n.cfg.Addr, receiver.cfg.Addr, delay)
		c.net.Delay(receiver.cfg.Addr, n.cfg.Addr, delay)
		c.pause(time.Second)
		for range 40 {
			c.put(n, "k", strings.Repeat("v", 1<<10))
		}
		raftID := receiver.view.Load().raftID
		tend := func(change func(l *loop)) (pins []pin, match, until uint64) {
			t.Helper()
			if err := n.do(func(l *loop) {
				change(l)
				l.tendSnapshots()
				if p := l.log.pins[raftID]; p != nil {
					pins = append(pins, *p)
				}
				match, until = l.Progress(raftID).Match, l.pinUntil()
			}); err != nil {
				t.Fatal(err)
			}
			return pins, match, until
		}
		pins, match, until := tend(func(l *loop) { l.log.pin(raftID, l.log.first, l.now) })
		if want := (pin{index: match, until: until}); !slices.Equal(pins, []pin{want}) {
			t.Errorf("while the receiver lags the pin is %+v, want %+v", pins, want)
		}
		pins, _, _ = tend(func(l *loop) { l.log.pins[raftID] = &pin{falls: 1} })
		if want := (pin{falls: 1}); !slices.Equal(pins, []pin{want}) {
			t.Errorf("the pin that has fallen is %+v, want %+v", pins, want)
		}
		c.pause(4 * delay)
		if pins, _, _ = tend(func(*loop) {}); len(pins) > 0 {
			t.Errorf("when the receiver has caught up there is still %+v", pins)
		}
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

// TestFrozenStateIsFreedWhenItsReceiverHasGone: a receiver that dies on the way
// never replicates, and its pin must not keep the state in memory for ever.
func TestFrozenStateIsFreedWhenItsReceiverHasGone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		c.put(n, "k", "v")
		n.post(func(l *loop) {
			n.fsm.mu.Lock()
			defer n.fsm.mu.Unlock()
			l.frozen(n.fsm.freeze())
			l.log.pin(roster.RaftID(9, 9), l.log.handle.index, l.pinUntil())
		})
		held := func() (held bool) {
			if err := n.do(func(l *loop) { held = l.log.handle != nil }); err != nil {
				t.Fatal(err)
			}
			return held
		}
		c.pause(pinElections * n.cfg.Timing.Election / 2)
		if !held() {
			t.Error("the state is gone while it is pinned")
		}
		c.pause(pinElections * n.cfg.Timing.Election)
		if held() {
			t.Error("the state is held although its pin is over")
		}
	})
}

// TestSenderOfASnapshotRests: for a multiple of its work while entries are
// committed, unless the log that is kept for the receiver runs out.
func TestSenderOfASnapshotRests(t *testing.T) {
	const work = 100 * time.Microsecond
	for _, tt := range []struct {
		name      string
		committed int64 // since it last rested
		sent      int
		worked    time.Duration
		want      time.Duration
	}{
		{"nothing is written", 0, 500, work, 0},
		{"entries are committed", 100, 500, work, restPerWork * work},
		{"a chunk took long", 100, 500, time.Second, pauseMax},
		{"early, as much of the log is used as is sent", 500, 500, work, restPerWork * work},
		{"late, likewise", 750, 750, work, restPerWork * work / 2},
		{"more is used than may be", 951, 750, work, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			tasks := new(taskQueue)
			p := &pace{tasks: tasks, log: 1000, size: 1000}
			tasks.committed.Add(tt.committed)
			begin := time.Now()
			p.rest(tt.sent, tt.worked)
			if got := time.Since(begin); got != tt.want {
				t.Errorf("%s: it rests for %v after %v, want %v", tt.name, got, tt.worked, tt.want)
			}
		})
	}
}

// TestSenderOfASnapshotRestsWhenProcessorsAreShort: the later it wakes up.
func TestSenderOfASnapshotRestsWhenProcessorsAreShort(t *testing.T) {
	for late, want := range map[time.Duration]time.Duration{
		0: 0, lateMin - 1: 0, lateMin: restPerLate * lateMin, 5 * lateMin: restPerLate * 5 * lateMin, time.Second: lateRestMax,
	} {
		if got := restOfLate(late); got != want {
			t.Errorf("it rests for %v when it is %v late, want %v", got, late, want)
		}
	}
}
