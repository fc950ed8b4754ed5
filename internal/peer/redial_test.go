package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/raftkv/internal/simnet"
)

// triesSince returns how many tries have failed since a moment, the moment itself
// included.
func (r *recorder) triesSince(began time.Time) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range r.tries {
		if !at.Before(began) {
			n++
		}
	}
	return n
}

func TestRedialEndsThePauseAtOnce(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		run(t, l)
		time.Sleep(5 * time.Second) // the pauses have become long
		s := serve(t, n)
		r.take()
		l.Redial()
		time.Sleep(2 * redialDelay)
		synctest.Wait()
		if got := r.take(); len(got) == 0 || got[len(got)-1] != "connected" { // gRPC may fail one before it has dialed
			t.Errorf("events %q, want connected in the end", got)
		}
		s.stop()
	})
}

// TestRedialDuringAStreamIsForWhenItEnds: then there is no pause before the next
// tries, of which there are a few.
func TestRedialDuringAStreamIsForWhenItEnds(t *testing.T) {
	for _, asked := range []bool{false, true} {
		linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
			s := serve(t, n)
			run(t, l)
			r.want("connected")
			if asked {
				l.Redial()
				l.Redial()
			}
			began := time.Now()
			s.stop()
			time.Sleep(retryDelayMin/2 - time.Millisecond) // less than any pause
			synctest.Wait()
			want := 1 // the stream that has ended
			if asked {
				want += redialsMax
			}
			if got := r.triesSince(began); got != want {
				t.Errorf("asked to redial: %v: %d tries, want %d", asked, got, want)
			}
		})
	}
}

// TestRedialsAreNoStorm: a link that is asked again and again, as by a leader whose
// streams flap, goes on to pause.
func TestRedialsAreNoStorm(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		run(t, l)
		time.Sleep(5 * time.Second)
		began := time.Now()
		for range 5 {
			l.Redial()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := r.triesSince(began); got < 5*redialsMax || got > 5*(redialsMax+2) {
			t.Errorf("%d tries for 5 redials in 5 seconds", got)
		}
	})
}
