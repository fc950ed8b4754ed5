package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A traffic makes a random history on a store that is right: every operation
// takes effect at one moment between its call and its return, and what remains
// unknown does so at any later one, or never.
type traffic struct {
	rng     *rand.Rand
	r       *Recorder
	store   store
	past    []store // for stale reads
	keys    int
	clients []*pendingOp // nil if the client is idle
	late    []Op         // unknown to their clients, on their way
	seen    map[string]uint64
	number  int
	now     int64

	unknown float64 // how often a write's outcome is
	lists   float64
	keep    string // a key that nobody deletes
	stale   int    // one in so many reads, for both kinds; 0 for none
}

type pendingOp struct {
	id     ID
	op     Op
	result *Result // once it has taken effect
}

func newTraffic(seed uint64, clients, keys int) *traffic {
	return &traffic{
		rng: rand.New(rand.NewPCG(seed, 7)), r: new(Recorder), keys: keys,
		clients: make([]*pendingOp, clients), past: make([]store, 1),
		seen: make(map[string]uint64), unknown: 0.1, lists: 0.05, stale: 5,
	}
}

// run does so many operations and then a List of everything, with the clients
// quiet.
func (w *traffic) run(ops int) *Recorder {
	for began := 0; began < ops; w.now++ {
		client := w.rng.IntN(len(w.clients))
		switch p := w.clients[client]; {
		case len(w.late) > 0 && w.rng.IntN(50) == 0:
			w.arrive()
		case p == nil:
			op := w.op()
			w.clients[client] = &pendingOp{id: w.r.Begin(client, op, w.now), op: op}
			began++
		default:
			w.advance(client, p)
		}
	}
	for client := range w.clients {
		for w.clients[client] != nil {
			w.advance(client, w.clients[client])
		}
	}
	all := Op{Kind: List}
	w.r.End(w.r.Begin(0, all, w.now), w.store.do(all), w.now)
	return w.r
}

func (w *traffic) arrive() {
	at := w.rng.IntN(len(w.late))
	w.apply(w.late[at])
	w.late = slices.Delete(w.late, at, at+1)
}

// apply does an operation on the store and keeps what was before for stale reads.
func (w *traffic) apply(op Op) Result {
	if op.isStale() {
		return w.staleRead(op)
	}
	before := w.store.revision
	result := w.store.do(op)
	if w.store.revision != before && w.rng.IntN(4) == 0 {
		if len(w.past) == 8 {
			w.past = w.past[1:]
		}
		w.past = append(w.past, store{w.store.revision, maps.Clone(w.store.keys)})
	}
	return result
}

func (w *traffic) staleRead(op Op) Result {
	s := &w.past[w.rng.IntN(len(w.past))]
	if s.revision < op.MinRevision {
		s = &w.store
	}
	if op.Kind == List {
		return s.list(op)
	}
	return s.do(op)
}

func (w *traffic) advance(client int, p *pendingOp) {
	isRead := p.op.isRead()
	switch luck := w.rng.Float64(); {
	case p.result == nil && luck < w.unknown:
		outcome := NotDone
		if w.rng.IntN(2) == 0 && !isRead {
			outcome = Unknown
			if w.rng.IntN(2) == 0 {
				w.late = append(w.late, p.op)
			}
		}
		w.end(client, p, Result{Outcome: outcome})
	case p.result == nil:
		result := w.apply(p.op)
		p.result = &result
	case luck < w.unknown && !isRead:
		w.end(client, p, Result{Outcome: Unknown})
	default:
		w.end(client, p, *p.result)
	}
}

func (w *traffic) end(client int, p *pendingOp, result Result) {
	w.r.End(p.id, result, w.now)
	w.clients[client] = nil
	if p.op.Key != "" && result.Outcome == OK && p.op.Kind != List {
		w.seen[p.op.Key] = result.Revision
	}
}

func (w *traffic) op() Op {
	w.number++
	op := Op{Key: fmt.Sprintf("key%02d", w.rng.IntN(w.keys))}
	switch luck := w.rng.Float64(); {
	case luck < w.lists:
		op.Kind, op.Key = List, []string{"", "key", "key0"}[w.rng.IntN(3)]
		if w.rng.IntN(3) == 0 {
			op.After, op.Limit = "key01", 1+w.rng.IntN(4)
		}
	case luck < 0.4, luck < 0.55 && op.Key == w.keep:
		op.Kind = Get
	case luck < 0.55:
		op.Kind = Delete
	default:
		op.Kind, op.Value = Put, fmt.Sprint("v", w.number)
	}
	switch {
	case op.isRead() && w.stale > 0 && w.rng.IntN(w.stale) == 0:
		op.Stale = true
	case op.isRead() && w.stale > 0 && w.rng.IntN(w.stale) == 0:
		op.MinRevision = w.rng.Uint64N(w.store.revision + 1)
	case !op.isRead() && w.rng.IntN(3) == 0:
		op.Conditional, op.IfRevision = true, w.condition(op.Key)
	}
	return op
}

// condition is what the client has seen most of the time, else a guess.
func (w *traffic) condition(key string) uint64 {
	switch w.rng.IntN(8) {
	case 0:
		return 0
	case 1:
		return w.rng.Uint64N(w.store.revision + 2)
	}
	return w.seen[key]
}

func TestEveryLegalHistoryPasses(t *testing.T) {
	for seed := range uint64(600) {
		w := newTraffic(seed, 2+int(seed%9), 1+int(seed%7))
		w.unknown = float64(seed%5) / 10
		for range 2 { // windows
			report, err := w.run(20 + int(seed%300)).Check(time.Minute)
			if err != nil {
				t.Fatalf("seed %d: %v\n%v", seed, report, err)
			}
			if w.r, err = w.r.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The hardest to search are many clients on one key, half of their writes
// unknown.
func TestSearchIsFastOnHotKeys(t *testing.T) {
	for seed := range uint64(8) {
		w := newTraffic(seed, 20, 1)
		w.unknown = float64(seed%4) / 6
		report, err := w.run(5000).Check(10 * time.Second)
		if err != nil {
			t.Fatalf("seed %d: %v\n%v", seed, report, err)
		}
	}
}

func TestSearchGivesUp(t *testing.T) {
	r := newTraffic(1, 5, 3).run(100)
	if _, err := r.Check(0); err == nil {
		t.Error("a search without time passed")
	}
	c := newChecker(r.ops, r.last, r.startRevision)
	if err := c.sweep(); err != nil {
		t.Fatal(err)
	}
	const want = "not done after 10 steps"
	if err := c.searchKey(&c.keys[0], c.steps()[0], 10, time.Minute); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("search of too many steps: %v, want %q", err, want)
	}
}

// In a bubble, time stands still while Check works.
func TestCheckInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, err := newTraffic(1, 5, 3).run(1000).Check(time.Minute); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	for _, size := range []struct {
		ops, clients, keys int
		unknown            float64
		lists              float64
	}{
		{36_000, 10, 50, 0.02, 0},
		{36_000, 10, 50, 0.2, 0.01},
		{36_000, 50, 4, 0.2, 0},
		{200_000, 20, 50, 0.05, 0.001},
		{200_000, 20, 200, 0.05, 0.01},
	} {
		name := fmt.Sprintf("ops=%d/clients=%d/keys=%d/unknown=%v/lists=%v", size.ops, size.clients, size.keys, size.unknown, size.lists)
		b.Run(name, func(b *testing.B) {
			w := newTraffic(1, size.clients, size.keys)
			w.unknown, w.lists = size.unknown, size.lists
			r := w.run(size.ops)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Check(time.Minute); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
