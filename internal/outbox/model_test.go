package outbox

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
)

// A ledger is the log and the state machine as far as an outbox can tell: it
// applies each number once and remembers whose key it was.
type ledger struct {
	t       *testing.T
	applied map[uint64]string // by number
	counts  map[string]int    // by key
}

// apply takes in a batch, perhaps not for the first time, and returns results
// that name the numbers.
func (l *ledger) apply(b Batch) []dedup.Result {
	p, err := command.Parse(b.Data)
	if err != nil {
		l.t.Errorf("batch from number %d: %v", b.First, err)
		return nil
	}
	var results []dedup.Result
	for number, c := range p.All() {
		switch key, ok := l.applied[number]; {
		case !ok:
			l.applied[number] = string(c.Key)
			l.counts[string(c.Key)]++
		case key != string(c.Key):
			l.t.Errorf("number %d is %q, and was %q", number, c.Key, key)
		}
		results = append(results, dedup.Result{Revision: number})
	}
	return results
}

// drive is the loop and the applier: it sends, loses, sends again and applies in
// an order of its own, until donec is closed and nothing waits.
func (l *ledger) drive(o *Outbox, rng *rand.Rand, donec <-chan struct{}) {
	var sent []Batch
	for now := uint64(0); ; now++ {
		r := Route{Leader: 1, Term: 1 + now/50}
		local := r.Term%2 == 0
		if local {
			r.Leader = origin
		}
		for b, ok := o.Next(r, now); ok; b, ok = o.Next(r, now) {
			if local {
				b.Data = bytes.Clone(b.Data) // as raft does
			}
			sent = append(sent, b)
		}
		sent = append(sent, o.Due(r, now, local)...)
		if len(sent) > 0 {
			i := rng.IntN(len(sent))
			b := sent[i]
			sent = append(sent[:i], sent[i+1:]...)
			switch rng.IntN(5) {
			case 0: // lost
				o.Refused(b.First, now+2)
			case 1:
				o.CutOff()
				sent = append(sent, b)
			default:
				o.Resolve(b.First, l.apply(b))
			}
			continue
		}
		select {
		case <-donec:
			if o.Waiting() == 0 {
				return
			}
		default:
		}
	}
}

func TestConcurrentCallersGetTheirOwnResults(t *testing.T) {
	const callers, each, seed = 8, 150, 42
	t.Logf("seed %d", seed)
	o := newOutbox(func(l *Limits) { l.BatchBytesMax, l.RetryTicks = 400, 3 })
	l := &ledger{t: t, applied: make(map[uint64]string), counts: make(map[string]int)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	answered, never := make(map[string]uint64), make(map[string]bool)
	for caller := range callers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(caller)))
			for i := range each {
				key := fmt.Sprintf("%d/%d", caller, i)
				ticket, _, err := o.Add(put(key))
				if err != nil {
					t.Errorf("Add(%q): %v", key, err)
					return
				}
				if rng.IntN(4) == 0 {
					if !o.Abandon(ticket) {
						mu.Lock()
						never[key] = true
						mu.Unlock()
					}
					continue
				}
				<-ticket.Done()
				r, err := ticket.Result()
				if err != nil {
					t.Errorf("Result(%q): %v", key, err)
				}
				mu.Lock()
				answered[key] = r.Revision
				mu.Unlock()
			}
		})
	}
	donec := make(chan struct{})
	go func() {
		wg.Wait()
		close(donec)
	}()
	l.drive(o, rand.New(rand.NewPCG(seed, 99)), donec)
	<-donec
	for key, number := range answered {
		if l.applied[number] != key || l.counts[key] != 1 {
			t.Errorf("%q was answered with number %d, which is %q; applied %d times, want once", key, number, l.applied[number], l.counts[key])
		}
	}
	for key := range never {
		if l.counts[key] != 0 {
			t.Errorf("%q was abandoned unsent and took effect", key)
		}
	}
	wantEmpty(t, o)
}
