package raftkv

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/roster"
)

// A logMaker makes seeded random logs of all that can be in one.
type logMaker struct {
	rng    *rand.Rand
	roster *roster.Roster
	index  uint64
	next   map[uint64]uint64 // by origin: the next number
	batch  [][]byte          // all so far, to be retried
}

func randomLog(seed uint64, n int) []task {
	m := &logMaker{rng: rand.New(rand.NewPCG(seed, 1)), roster: testRoster(3), index: 1, next: make(map[uint64]uint64)}
	var log []task
	for range n {
		m.index++
		log = append(log, m.task())
	}
	return log
}

func (m *logMaker) task() task {
	t := task{index: m.index, term: 1 + m.index/20}
	switch n := m.rng.IntN(20); {
	case n == 0: // empty: a new leader's
	case n == 1:
		t.roster = m.change()
	case n < 6 && len(m.batch) > 0:
		t.data = m.batch[m.rng.IntN(len(m.batch))]
	default:
		t.data = m.newBatch()
	}
	return t
}

// change adds a learner or removes the last one.
func (m *logMaker) change() *roster.Roster {
	id := fmt.Sprintf("%016d", m.index)
	cc := m.roster.AddLearner(id, 4, "n4:1", testNonce)
	if l, ok := m.roster.Newest(4); ok {
		cc = m.roster.Remove(id, l.RaftID)
	}
	next, err := m.roster.Apply(cc, m.index)
	if err != nil {
		panic(err)
	}
	m.roster = next
	return next
}

func (m *logMaker) newBatch() []byte {
	origins := append(m.roster.RaftIDs(), 9<<32|9) // one who is no member
	origin := origins[m.rng.IntN(len(origins))]
	first := m.next[origin] + 1
	h := command.Header{Origin: origin, First: first, AnsweredTo: m.rng.Uint64N(first)}
	if m.rng.IntN(30) == 0 {
		h.First += dedup.Window // beyond what an origin may send
	}
	var cs []command.Command
	for range 1 + m.rng.IntN(5) {
		cs = append(cs, m.command())
	}
	if h.First == first {
		m.next[origin] += uint64(len(cs))
	}
	data := batchOf(h, cs...)
	m.batch = append(m.batch, data)
	return data
}

func (m *logMaker) command() command.Command {
	key := fmt.Sprint("key", m.rng.IntN(12))
	c := putOf(key, strings.Repeat("v", m.rng.IntN(30)))
	if m.rng.IntN(3) == 0 {
		c = deleteOf(key)
	}
	if m.rng.IntN(3) == 0 {
		c = onlyIf(m.rng.Uint64N(m.index), c)
	}
	return c
}

// A naiveFSM says in the fewest words what a log means.
type naiveFSM struct {
	revision uint64
	keys     map[string]KeyValue
	seen     map[uint64]map[uint64]bool // by origin and number
	answered map[uint64]uint64          // by origin
}

func newNaiveFSM() *naiveFSM {
	n := &naiveFSM{keys: make(map[string]KeyValue), seen: make(map[uint64]map[uint64]bool), answered: make(map[uint64]uint64)}
	n.retain(testRoster(3))
	return n
}

func (n *naiveFSM) retain(r *roster.Roster) {
	for _, id := range r.RaftIDs() {
		if n.seen[id] == nil {
			n.seen[id] = make(map[uint64]bool)
		}
	}
	maps.DeleteFunc(n.seen, func(id uint64, _ map[uint64]bool) bool { return !slices.Contains(r.RaftIDs(), id) })
}

func (n *naiveFSM) apply(t task) {
	if t.roster != nil {
		n.retain(t.roster)
	}
	if len(t.data) == 0 {
		return
	}
	b, err := command.Parse(t.data)
	if err != nil {
		panic(err)
	}
	seen := n.seen[b.Origin]
	if seen == nil {
		return
	}
	n.answered[b.Origin] = max(n.answered[b.Origin], b.AnsweredTo)
	for number, c := range b.All() {
		if answered := n.answered[b.Origin]; number <= answered || number > answered+dedup.Window || seen[number] {
			continue
		}
		seen[number] = true
		current := n.keys[string(c.Key)]
		switch {
		case c.Conditional && c.IfRevision != current.Revision:
		case c.Op == command.Put:
			n.revision++
			n.keys[string(c.Key)] = KeyValue{string(c.Key), bytes.Clone(c.Value), n.revision}
		case current.Revision != 0:
			n.revision++
			delete(n.keys, string(c.Key))
		}
	}
}

func TestStateAgreesWithTheNaiveOne(t *testing.T) {
	for seed := range uint64(30) {
		f, n := newTestFSM(testOrigins[0]), newNaiveFSM()
		for _, entry := range randomLog(seed, 200) {
			applyAll(t, f, entry)
			n.apply(entry)
			if f.revision != n.revision || f.keys.Len() != len(n.keys) {
				t.Fatalf("seed %d, entry %d: revision %d with %d keys, want %d with %d", seed, entry.index, f.revision, f.keys.Len(), n.revision, len(n.keys))
			}
		}
		for key, want := range n.keys {
			item, ok := itemOf(f, key)
			if !ok || item.Revision != want.Revision || string(item.Value) != string(want.Value) {
				t.Fatalf("seed %d: key %q is %+v, %v, want %+v", seed, key, item, ok, want)
			}
		}
	}
}

func TestSameLogSameBytes(t *testing.T) {
	for seed := range uint64(30) {
		log := randomLog(seed, 200)
		one := newTestFSM(testOrigins[0])
		applyAll(t, one, log...)
		rng := rand.New(rand.NewPCG(seed, 2))
		other := newTestFSM(testOrigins[1]) // on another member
		for rest := log; len(rest) > 0; {
			n := 1 + rng.IntN(min(len(rest), 10))
			chunk := slices.Clone(rest[:n])
			rest = rest[n:]
			if rng.IntN(3) == 0 { // snapshots leave no trace
				chunk = slices.Insert(chunk, rng.IntN(n+1), task{freeze: true})
			}
			applyAll(t, other, chunk...)
		}
		i, revision, hash := one.status()
		j, otherRevision, otherHash := other.status()
		if i != j || revision != otherRevision || hash != otherHash {
			t.Fatalf("seed %d: index %d, revision %d, hash %x, and in other chunks %d, %d, %x", seed, i, revision, hash, j, otherRevision, otherHash)
		}
		if !bytes.Equal(stateBytes(one), stateBytes(other)) {
			t.Fatalf("seed %d: the same log made other snapshots", seed)
		}
		if one.applied.Load() != i || one.stateBytes.Load() != one.keys.Bytes() {
			t.Errorf("seed %d: applied %d and %d bytes are shown, want %d and %d", seed, one.applied.Load(), one.stateBytes.Load(), i, one.keys.Bytes())
		}
	}
}

func TestHashCoversEverything(t *testing.T) {
	base := func() *fsm {
		f := newTestFSM(testOrigins[0])
		applyAll(t, f, task{index: 2, term: 1, data: batchOf(command.Header{Origin: testOrigins[0], First: 1}, putOf("k", "v"))})
		return f
	}
	want := base().hash()
	if got := base().hash(); got != want {
		t.Fatalf("hash %x and %x of equal states", got, want)
	}
	for name, edit := range map[string]func(f *fsm){
		"value":     func(f *fsm) { f.keys.Put([]byte("k"), []byte("w"), 1) },
		"key":       func(f *fsm) { f.keys.Put([]byte("l"), []byte("v"), 1) },
		"revision":  func(f *fsm) { f.revision++ },
		"watermark": func(f *fsm) { f.dedup.Advance(testOrigins[1], 1) },
		"result":    func(f *fsm) { f.dedup.Record(testOrigins[1], 1, dedup.Result{}) },
		"member":    func(f *fsm) { f.roster = testRoster(2) },
	} {
		f := base()
		if edit(f); f.hash() == want {
			t.Errorf("another %s does not change the hash", name)
		}
	}
}
