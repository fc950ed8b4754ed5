package history

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A mutation makes one response of a history wrong in a way that can be seen. It
// reports whether there was one to which it applies.
type mutation struct {
	name  string
	apply func(m *mutant) bool
	// search: it shows in the order of a key's operations, so that the search
	// alone finds it too.
	search bool
}

// A mutant is a history, with what was known of it while it was right.
type mutant struct {
	*checker
	rng     *rand.Rand
	r       *Recorder
	removes map[string]bool // keys with a delete that may have had an effect
}

func newMutant(seed uint64, unknown float64) *mutant {
	w := newTraffic(seed, 6, 5)
	w.unknown, w.lists, w.keep = unknown, 0.1, "key00"
	r := w.run(300)
	m := &mutant{checker: newChecker(r.ops, r.last, 0), rng: w.rng, r: r, removes: make(map[string]bool)}
	if err := m.sweep(); err != nil {
		panic(err)
	}
	for i := range r.ops {
		if r.ops[i].Kind == Delete && m.effect[i] != refused && m.effect[i] != dropped {
			m.removes[r.ops[i].Key] = true
		}
	}
	return m
}

// any returns a random operation that satisfies a condition.
func (m *mutant) any(is func(i int32, o *operation) bool) (*operation, bool) {
	at := m.rng.Perm(len(m.r.ops))
	for _, i := range at {
		if is(int32(i), &m.r.ops[i]) {
			return &m.r.ops[i], true
		}
	}
	return nil, false
}

// replacedBefore returns an old value of a key that had surely been replaced at
// a revision of the store.
func (m *mutant) replacedBefore(key string, revision uint64) (Item, bool) {
	var found []Item
	marks := m.keys[m.keyIDs[key]].marks
	for at := range marks {
		if marks[at].isSet && at+1 < len(marks) && marks[at+1].revision <= revision {
			found = append(found, Item{key, m.ops[marks[at].by].Value, marks[at].revision})
		}
	}
	if len(found) == 0 {
		return Item{}, false
	}
	return found[m.rng.IntN(len(found))], true
}

var mutations = []mutation{
	{name: "a get is stale", search: true, apply: func(m *mutant) bool {
		var old Item
		o, ok := m.any(func(i int32, o *operation) (ok bool) {
			if m.effect[i] != read || o.Kind != Get {
				return false
			}
			old, ok = m.replacedBefore(o.Key, m.known[i].revision)
			return ok
		})
		if ok {
			o.result = Result{Outcome: OK, Value: old.Value, Revision: old.Revision}
		}
		return ok
	}},
	{name: "a list has an old value", search: true, apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool { return m.effect[i] == read && len(o.result.Items) > 0 })
		if !ok {
			return false
		}
		item := &o.result.Items[m.rng.IntN(len(o.result.Items))]
		old, ok := m.replacedBefore(item.Key, o.result.Revision)
		if ok {
			*item = old
		}
		return ok
	}},
	{name: "a list misses a key", search: true, apply: func(m *mutant) bool {
		lost := func(i Item) bool { return !m.removes[i.Key] }
		o, ok := m.any(func(i int32, o *operation) bool {
			return m.effect[i] == read && o.Limit == 0 && slices.ContainsFunc(o.result.Items, lost)
		})
		if ok {
			at := slices.IndexFunc(o.result.Items, lost)
			o.result.Items = slices.Delete(o.result.Items, at, at+1)
		}
		return ok
	}},
	{name: "a get misses the key", search: true, apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool {
			marks := m.markedBefore(o, i)
			return m.effect[i] == read && o.Kind == Get && len(marks) > 0 && !m.removes[o.Key]
		})
		if ok {
			o.result = Result{Outcome: NotFound}
		}
		return ok
	}},
	{name: "a list is of an old revision", apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool {
			return m.effect[i] == read && o.Kind == List && m.known[i].revision > 0
		})
		if ok {
			o.result.Revision = 0
		}
		return ok
	}},
	{name: "a get shows another revision", apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool {
			if o.Kind != Get || m.effect[i] != read || o.result.Outcome != OK {
				return false
			}
			w, _ := m.writer.lookup(o.result.Revision)
			return m.effect[w] == changed
		})
		if ok {
			o.result.Revision++
		}
		return ok
	}},
	{name: "a write that is not done shows", apply: func(m *mutant) bool {
		get, ok := m.any(func(i int32, o *operation) bool {
			return o.Kind == Get && m.effect[i] == read && o.result.Outcome == OK
		})
		if ok {
			w, _ := m.writer.lookup(get.result.Revision)
			m.ops[w].result = Result{Outcome: NotDone}
		}
		return ok
	}},
	{name: "two writes have one revision", apply: func(m *mutant) bool {
		isWrite := func(i int32, _ *operation) bool { return m.effect[i] == changed }
		a, _ := m.any(isWrite)
		b, _ := m.any(isWrite)
		b.result.Revision = a.result.Revision
		return a != b
	}},
	{name: "revisions go back", apply: func(m *mutant) bool {
		isWrite := func(i int32, _ *operation) bool { return m.effect[i] == changed }
		a, _ := m.any(isWrite)
		b, ok := m.any(func(i int32, o *operation) bool { return isWrite(i, o) && o.call > a.ret })
		if ok {
			a.result.Revision, b.result.Revision = b.result.Revision, a.result.Revision
		}
		return ok
	}},
	{name: "a mismatch is of an old revision", apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool { return o.result.Outcome == Mismatch && m.known[i].revision > 0 })
		if ok {
			o.result.Revision = 0
		}
		return ok
	}},
}

// certain are for histories in which every outcome is known: what is unknown
// could explain them.
var certain = []mutation{
	{name: "a write is said to be not done", apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, _ *operation) bool { return m.effect[i] == changed })
		if ok {
			o.result = Result{Outcome: NotDone}
		}
		return ok
	}},
	{name: "a write is said to be refused", apply: func(m *mutant) bool {
		o, ok := m.any(func(i int32, o *operation) bool { return m.effect[i] == changed && o.Conditional })
		if ok {
			o.result.Outcome = Mismatch
		}
		return ok
	}},
	{name: "a refused write is said to be done", apply: func(m *mutant) bool {
		o, ok := m.any(func(_ int32, o *operation) bool { return o.result.Outcome == Mismatch && o.IfRevision > 0 })
		if ok {
			o.result = Result{Outcome: OK, Revision: o.result.Revision + 1}
		}
		return ok
	}},
	{name: "a write takes effect twice, unseen", apply: func(m *mutant) bool {
		twice := 1 + m.rng.Uint64N(m.writer.revs[len(m.writer.revs)-1]-1)
		for i := range m.ops { // as if a revision had been taken once more
			result := &m.ops[i].result
			if result.Revision > twice {
				result.Revision++
			}
			for n := range result.Items {
				if item := &result.Items[n]; item.Revision > twice {
					item.Revision++
				}
			}
			if m.ops[i].IfRevision > twice {
				m.ops[i].IfRevision++
			}
		}
		return true
	}},
}

// markedBefore returns what had surely happened to a key before a call.
func (m *mutant) markedBefore(o *operation, i int32) []mark {
	if o.Kind == List {
		return nil
	}
	k := &m.keys[m.key[i]]
	return k.marks[:k.after(m.known[i].revision)]
}

func TestMutationsAreFound(t *testing.T) {
	for _, set := range []struct {
		mutations []mutation
		unknown   float64
	}{{mutations, 0.1}, {mutations, 0}, {certain, 0}} {
		for _, mutation := range set.mutations {
			applied := 0
			for seed := range uint64(60) {
				m := newMutant(seed, set.unknown)
				if !mutation.apply(m) {
					continue
				}
				applied++
				if _, err := m.r.Check(time.Minute); err == nil {
					t.Errorf("%s: seed %d: accepted", mutation.name, seed)
				}
				if mutation.search && m.r.searchAlone() == nil {
					t.Errorf("%s: seed %d: the search alone accepts it", mutation.name, seed)
				}
			}
			if applied < 20 {
				t.Errorf("%s: applies to %d histories only", mutation.name, applied)
			}
		}
	}
}
