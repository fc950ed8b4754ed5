package raftkv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestIsolatedLeaderStepsDownAndIsReplaced (W1): it tells its callers the truth,
// and follows when it is back.
func TestIsolatedLeaderStepsDownAndIsReplaced(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 5 * time.Second, 30 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				old := c.leader()
				c.put(old, "k", "before")
				c.pause(time.Second)
				others, before := c.but(old), old.Status().Term
				c.net.Isolate(old.cfg.Addr)
				began := time.Now()
				_, err := old.Put(c.within(300*time.Millisecond), "k", []byte("hasty"))
				wantErr(t, "Put on the isolated leader", err, ErrOutcomeUnknown, context.DeadlineExceeded)
				_, err = old.Get(c.within(300*time.Millisecond), "k")
				wantErr(t, "Get on the isolated leader", err, ErrNoLeader, context.DeadlineExceeded)
				if away > time.Second {
					c.until("the old leader steps down", func() bool { return !old.view.Load().leads })
					if took := time.Since(began); took > 2*old.cfg.Timing.Election+200*time.Millisecond {
						t.Errorf("it stepped down after %v", took)
					}
					c.agreed(others...)
					c.put(others[0], "k", "after")
					_, err = old.Put(c.within(time.Second), "k", nil)
					wantErr(t, "Put on the one that led", err, ErrNoLeader, context.DeadlineExceeded)
				}
				c.pause(away - time.Since(began))
				c.net.Rejoin(old.cfg.Addr)
				began = time.Now()
				c.put(old, "back", "v")
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("Put after it is back took %v", took)
				}
				c.wantSameState()
				if s := old.Status(); s.Term > before+8 { // a split vote takes one, too
					t.Errorf("%d terms", s.Term-before)
				}
			})
		})
	}
}

// TestElectionsTakeTwoTimeouts (W1): and the time of a few messages, unless the
// two that are left stand for election in the same tick, each with its own vote.
// They choose among 20 ticks, so that this happens once in 20 times, and then
// another timeout has to pass.
func TestElectionsTakeTwoTimeouts(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 5*time.Millisecond)
		late := 0
		for range 20 {
			old := c.leader()
			c.pause(time.Second)
			c.net.Isolate(old.cfg.Addr)
			began := time.Now()
			c.agreed(c.but(old)...)
			switch took := time.Since(began); {
			case took > 10*old.cfg.Timing.Election:
				t.Errorf("a new leader after %v", took)
			case took > 2*old.cfg.Timing.Election+200*time.Millisecond:
				late++
			}
			c.net.Rejoin(old.cfg.Addr)
			c.ready()
		}
		if late > 8 { // once in ten million times
			t.Errorf("%d of 20 elections took longer than two timeouts", late)
		}
	})
}

// TestPausedLeaderNeverReadsStale (N2): the loop of the leader stands still, as
// if its process were stopped, while its links go on to take in what the others
// send. When it goes on it must not answer by what it believed before.
func TestPausedLeaderNeverReadsStale(t *testing.T) {
	for _, pause := range []time.Duration{300 * time.Millisecond, 2 * time.Second, 15 * time.Second} {
		t.Run(pause.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				c.delay(3, 5*time.Millisecond)
				old := c.leader()
				others := c.but(old)
				c.put(old, "k", "0")
				began := time.Now()
				old.post(func(*loop) { c.pause(pause) })
				var acknowledged atomic.Int64
				var wg sync.WaitGroup
				for range 5 { // they join while it stands still
					wg.Go(func() {
						for time.Since(began) < 2*pause {
							before := acknowledged.Load()
							kv, err := old.Get(c.within(pause/10), "k")
							if got, _ := strconv.ParseInt(string(kv.Value), 10, 64); err == nil && got < before { // only numbers are written
								t.Errorf("read %d; %d was acknowledged before", got, before)
							} else if err != nil {
								wantErr(t, "Get", err, ErrNoLeader, context.DeadlineExceeded)
							}
							c.pause(pause / 200)
						}
					})
				}
				wg.Go(func() {
					for i := int64(1); i < 30; i++ {
						if _, err := others[i%2].Put(c.ctx(), "k", []byte(strconv.FormatInt(i, 10))); err != nil {
							t.Error(err)
						}
						acknowledged.Store(i)
						c.pause(pause / 15)
					}
				})
				wg.Wait()
				c.wantSameState()
			})
		})
	}
}

// TestLateConfirmationsLetNoStaleReadThrough (W8): what the leader answers a
// follower's question comes long after another leads, and the follower has heard
// of that or not.
func TestLateConfirmationsLetNoStaleReadThrough(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 3*time.Millisecond)
		c.put(c.nodes[1], "k", "0")
		reader := c.nodes[3]
		var acknowledged, answered, stop atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for stop.Load() == 0 {
					before := acknowledged.Load()
					kv, err := reader.Get(c.ctx(), "k")
					if err != nil {
						t.Error(err)
						return
					}
					answered.Add(1)
					if got, _ := strconv.ParseInt(string(kv.Value), 10, 64); got < before { // only numbers are written
						t.Errorf("read %d; %d was acknowledged before", got, before)
					}
					c.pause(7 * time.Millisecond)
				}
			})
		}
		wg.Go(func() {
			for i := int64(1); stop.Load() == 0; i++ {
				c.put(c.nodes[2-uint64(i%2)], "k", strconv.FormatInt(i, 10))
				acknowledged.Store(i)
				c.pause(5 * time.Millisecond)
			}
		})
		for i := range 12 {
			from, to := uint64(i%2+1), uint64(2-i%2)
			if err := c.nodes[to].TransferLeadership(c.ctx(), from); err != nil {
				t.Error(err)
			}
			c.net.Delay(c.addrs[from], reader.cfg.Addr, 700*time.Millisecond)
			c.pause(250 * time.Millisecond) // answers are on their way
			if err := c.nodes[from].TransferLeadership(c.ctx(), to); err != nil {
				t.Error(err)
			}
			c.pause(time.Second)
			c.net.Delay(c.addrs[from], reader.cfg.Addr, 3*time.Millisecond)
		}
		stop.Store(1)
		wg.Wait()
		if answered.Load() < 200 || acknowledged.Load() < 200 {
			t.Errorf("%d reads, %d writes: the test tests nothing", answered.Load(), acknowledged.Load())
		}
	})
}

// TestPartialPartitionsDoNotUnseatLeaders (W3): two halves that one member
// reaches both of, and a chain in which each reaches its neighbours only. Who
// reaches a majority goes on, and elections stay rare.
func TestPartialPartitionsDoNotUnseatLeaders(t *testing.T) {
	for name, reach := range map[string]func(a, b uint64) bool{
		"bridge": func(a, b uint64) bool { return a == 3 || b == 3 || a < 3 == (b < 3) },
		"chain":  func(a, b uint64) bool { return a+1 == b || b+1 == a },
	} {
		for leader := uint64(0); leader < 5; leader += uint64(raceless(1, 2)) {
			t.Run(named(name+", leader", leader+1), func(t *testing.T) {
				bubble(t, func(t *testing.T, c *cluster) {
					c.found(5)
					c.delay(5, 2*time.Millisecond)
					if err := c.nodes[1].TransferLeadership(c.ctx(), leader+1); err != nil {
						t.Fatal(err)
					}
					before := c.leader().Status().Term
					for _, a := range upTo(5) {
						for _, b := range upTo(5) {
							if a != b && !reach(a, b) {
								c.net.Cut(c.addrs[a], c.addrs[b])
							}
						}
					}
					begin, length := time.Now(), time.Duration(raceless(180, 60))*time.Second
					for i := 0; time.Since(begin) < length; i++ {
						// Member 3 reaches a majority in both, and so hears whoever leads.
						if _, err := c.nodes[3].Put(c.within(6*time.Second), fmt.Sprint(i), nil); err != nil {
							t.Errorf("after %v: %v", time.Since(begin), err)
						}
						c.pause(time.Second)
					}
					highest := uint64(0)
					for _, n := range c.nodes {
						highest = max(highest, n.Status().Term)
					}
					if highest-before > uint64(3*length/time.Minute) {
						t.Errorf("%d elections in %v", highest-before, length)
					}
					c.calm()
					c.wantHealed(5*time.Second, upTo(5)...)
				})
			})
		}
	}
}

// TestBlackHoleIsNoticed (W5): nothing breaks a connection whose packets all
// vanish but the keepalive of 10 and 3 seconds.
func TestBlackHoleIsNoticed(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		c.found(3, func(cfg *Config) {
			if cfg.ID == 1 {
				j.record(cfg)
			}
		})
		c.pause(20 * time.Second)
		if lost := j.of("messages lost"); lost != 0 {
			t.Fatalf("messages were lost %d times before anything happened", lost)
		}
		c.net.Cut("n1:1", "n2:1")
		c.net.Cut("n2:1", "n1:1")
		began := time.Now()
		c.until("the leader notices", func() bool { return j.of("messages lost") > 0 })
		if took := time.Since(began); took > 14*time.Second {
			t.Errorf("noticed after %v", took)
		}
		c.calm()
		c.wantHealed(5*time.Second, 1, 2, 3)
	})
}

// TestFlappingLinkLeaksNothing (W6): a link that comes and goes for a minute,
// and breaks its connections or keeps them.
func TestFlappingLinkLeaksNothing(t *testing.T) {
	for name, off := range map[string]func(c *cluster, a, b string){
		"held up": func(c *cluster, a, b string) { c.net.Cut(a, b); c.net.Cut(b, a) },
		"broken":  func(c *cluster, a, b string) { c.net.Cut(a, b); c.net.Cut(b, a); c.net.Reset(a, b) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				var dials atomic.Int64
				c.found(3, func(cfg *Config) {
					dial := cfg.Dialer
					cfg.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
						dials.Add(1)
						return dial(ctx, addr)
					}
				})
				c.delay(3, 2*time.Millisecond)
				leader := c.leader()
				n := c.but(leader)[0]
				c.pause(3 * time.Second)
				before, goroutines := leader.Status().Term, runtime.NumGoroutine()
				dials.Store(0)
				for i := range 150 {
					off(c, leader.cfg.Addr, n.cfg.Addr)
					c.pause(200 * time.Millisecond)
					c.calm()
					c.pause(200 * time.Millisecond)
					if i%10 == 0 {
						c.put(n, fmt.Sprint(i), "v")
					}
				}
				c.pause(5 * time.Second)
				c.wantHealed(5*time.Second, 1, 2, 3)
				if grown := runtime.NumGoroutine() - goroutines; grown > 5 {
					t.Errorf("%d goroutines more than before", grown)
				}
				if d := dials.Load(); d > 4*150 {
					t.Errorf("%d dials for 150 outages", d)
				}
				if after := leader.Status().Term; after > before+1 {
					t.Errorf("%d elections", after-before)
				}
			})
		})
	}
}

// TestFollowerCutOffUnderLoadDoesNotFillTheLeader (A8): what it lacks is not
// kept for it; it gets a snapshot when it is back.
func TestFollowerCutOffUnderLoadDoesNotFillTheLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		const logMax = 256 << 10
		var j journal
		c.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = logMax }, j.record)
		c.delay(3, 2*time.Millisecond)
		leader := c.leader()
		n := c.but(leader)[0]
		c.net.Isolate(n.cfg.Addr)
		value := make([]byte, 4<<10)
		begin := time.Now()
		for i := 0; time.Since(begin) < 10*time.Minute; i++ {
			if _, err := leader.Put(c.ctx(), fmt.Sprint(i%10), value); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				var bytes int64
				if err := leader.do(func(l *loop) { bytes = l.log.bytes }); err != nil || bytes > 2*logMax {
					t.Fatalf("the leader's log has %d bytes, %v", bytes, err)
				}
			}
			c.pause(400 * time.Millisecond)
		}
		if j.of("installing snapshot") > 0 {
			t.Fatal("a snapshot went through the cut")
		}
		c.net.Rejoin(n.cfg.Addr)
		c.wantHealed(8*time.Second, 1, 2, 3)
		if j.of("installing snapshot") == 0 {
			t.Error("no snapshot: the test tests nothing")
		}
	})
}

// TestContextsLeaveNoWaiters (A2): that have ended before, end at once, or in
// the middle of the call.
func TestContextsLeaveNoWaiters(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		c.delay(4, 3*time.Millisecond)
		for role, n := range at {
			for name, call := range everyCall() {
				if name == "Init" || name == "Ready" {
					continue // these say what they wait for as well
				}
				wantErr(t, name+" with a canceled context on the "+role, call(n, canceled()), context.Canceled)
			}
			var wg sync.WaitGroup
			for i := range raceless(2000, 200) {
				wg.Go(func() {
					d := time.Duration(i%40) * 500 * time.Microsecond
					if i%40 == 0 {
						d = 1 // a nanosecond
					}
					ctx, cancel := context.WithCancel(context.Background())
					defer time.AfterFunc(d, cancel).Stop()
					var err error
					switch i % 4 {
					case 0:
						_, err = n.Put(ctx, fmt.Sprint(i), nil)
					case 1:
						_, err = n.Get(ctx, "k")
					case 2:
						_, err = n.List(ctx, "k")
					case 3:
						_, err = n.Get(ctx, "k", MinRevision(1<<40))
					}
					if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, context.Canceled) {
						t.Errorf("call %d on the %s: %v", i, role, err)
					}
				})
			}
			wg.Wait()
		}
		c.pause(5 * time.Second)
		for role, n := range at {
			if w, b, r, calls := n.out.Waiting(), n.out.PendingBytes(), n.reads.Waiting(), n.calls.state.Load()/2; w != 0 || b != 0 || r || calls != 0 {
				t.Errorf("on the %s %d writes of %d bytes, reads %v, %d calls are still held", role, w, b, r, calls)
			}
		}
		c.wantSameState()
	})
}
