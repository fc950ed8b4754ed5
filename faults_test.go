package raftkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWritesTakeEffectOnceThoughLeadersDie: two of five members, each while it
// leads.
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

// TestWritesTakeEffectOnceThoughLeadershipMoves: by transfers, and by leaders
// that are cut off until another is elected.
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

// TestForwardedWritesTakeEffectOnceThoughConnectionsBreak: and are sent again
// at once, not when a timeout ends.
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

// TestWritesOnAnIsolatedLeader: who has patience gets a result; who has not is
// told whether the write may still be done.
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

// TestLostMajorityIsToldByTheDeadline: a voter without the others takes all
// the time that a call has, and not more.
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

// TestMemberCutOffForLongCatchesUpByLog: the log has all that it missed, so no
// snapshot is sent.
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
