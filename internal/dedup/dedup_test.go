package dedup

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// A model is the naive table that a Table must agree with.
type model map[uint64]*modelOrigin

type modelOrigin struct {
	answeredTo uint64
	results    map[uint64]Result
}

func (m model) retain(ids ...uint64) {
	for id := range m {
		if !slices.Contains(ids, id) {
			delete(m, id)
		}
	}
	for _, id := range ids {
		if m[id] == nil {
			m[id] = &modelOrigin{results: map[uint64]Result{}}
		}
	}
}

func (m model) advance(id, to uint64) {
	o := m[id]
	if o == nil || to <= o.answeredTo {
		return
	}
	o.answeredTo = to
	maps.DeleteFunc(o.results, func(seq uint64, _ Result) bool { return seq <= to })
}

func (m model) lookup(id, seq uint64) (Result, State) {
	o := m[id]
	switch {
	case o == nil:
		return Result{}, Stranger
	case seq <= o.answeredTo:
		return Result{}, Answered
	case seq-o.answeredTo > Window:
		return Result{}, Beyond
	}
	if r, ok := o.results[seq]; ok {
		return r, Applied
	}
	return Result{}, Fresh
}

func (m model) len() (n int) {
	for _, o := range m {
		n += len(o.results)
	}
	return n
}

// table makes a Table of the model's content by another history: numbers in
// random order, which makes other runs.
func (m model) table(rng *rand.Rand) *Table {
	t := New()
	t.Retain(slices.Collect(maps.Keys(m)))
	for id, o := range m {
		t.Advance(id, o.answeredTo)
		seqs := slices.Sorted(maps.Keys(o.results))
		rng.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
		for _, seq := range seqs {
			t.Record(id, seq, o.results[seq])
		}
	}
	return t
}

// checkTable fails unless a table has a model's content.
func checkTable(t *testing.T, table *Table, m model) {
	t.Helper()
	if err := table.check(); err != nil {
		t.Fatal(err)
	}
	if table.Len() != m.len() {
		t.Fatalf("Len = %d, want %d", table.Len(), m.len())
	}
	for id, o := range m {
		if !table.Knows(id) {
			t.Fatalf("origin %d is not known", id)
		}
		for seq := range o.results {
			checkLookup(t, table, m, id, seq)
		}
		for _, seq := range []uint64{0, o.answeredTo, o.answeredTo + 1, o.answeredTo + Window, o.answeredTo + Window + 1} {
			checkLookup(t, table, m, id, seq)
		}
	}
}

func checkLookup(t *testing.T, table *Table, m model, id, seq uint64) {
	t.Helper()
	got, state := table.Lookup(id, seq)
	if want, wantState := m.lookup(id, seq); got != want || state != wantState {
		t.Fatalf("Lookup(%d, %d) = %+v, %v, want %+v, %v", id, seq, got, state, want, wantState)
	}
}

// mutate does what applying random batches does, to a table and to a model:
// some batches are old, some come twice, regrouped or out of order.
func mutate(t *testing.T, rng *rand.Rand, table *Table, m model, batches int) {
	t.Helper()
	for range batches {
		if rng.IntN(50) == 0 {
			ids := rng.Perm(6)[:3+rng.IntN(3)]
			origins := make([]uint64, len(ids))
			for i, id := range ids {
				origins[i] = uint64(id)<<32 + 1 + uint64(rng.IntN(2))
			}
			table.Retain(origins)
			m.retain(origins...)
		}
		id := uint64(rng.IntN(6))<<32 + 1 + uint64(rng.IntN(2))
		var base uint64
		if o := m[id]; o != nil {
			base = o.answeredTo
		}
		to := base + uint64(rng.IntN(40))
		if rng.IntN(3) == 0 {
			table.Advance(id, to)
			m.advance(id, to)
		}
		first := base + uint64(rng.IntN(100))
		if rng.IntN(2) == 0 {
			recordAll(t, rng, table, m, id, first)
		}
		for seq, end := first, first+uint64(rng.IntN(30)); seq < end; seq++ {
			checkLookup(t, table, m, id, seq)
			if _, state := table.Lookup(id, seq); state == Fresh {
				r := Result{Revision: rng.Uint64() >> (1 + rng.IntN(64)), Mismatch: rng.IntN(2) == 0}
				table.Record(id, seq, r)
				m[id].results[seq] = r
			}
		}
	}
}

// recordAll does what applying a batch of which nothing is known does, if it is
// one.
func recordAll(t *testing.T, rng *rand.Rand, table *Table, m model, id, first uint64) {
	t.Helper()
	results := make([]Result, rng.IntN(30))
	want := len(results) > 0
	for i := range results {
		_, state := m.lookup(id, first+uint64(i))
		want = want && state == Fresh
		results[i] = Result{Revision: rng.Uint64() >> (1 + rng.IntN(64)), Mismatch: rng.IntN(2) == 0}
	}
	if got := table.IsFresh(id, first, len(results)); got != want {
		t.Fatalf("IsFresh(%d, %d, %d) = %v, want %v", id, first, len(results), got, want)
	}
	if !want {
		return
	}
	table.Record(id, first, results...)
	for i, r := range results {
		m[id].results[first+uint64(i)] = r
	}
}

func TestTableEqualsANaiveMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	table, m := new(Table), model{}
	for range 200 {
		mutate(t, rng, table, m, 20)
		checkTable(t, table, m)
	}
}

func TestHashDependsOnContentAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	table, m := New(), model{}
	for range 50 {
		mutate(t, rng, table, m, 50)
		other := m.table(rng)
		if err := other.check(); err != nil {
			t.Fatal(err)
		}
		if table.Hash() != other.Hash() {
			t.Fatalf("equal contents have the hashes %#x and %#x", table.Hash(), other.Hash())
		}
	}
	table.Retain(nil)
	if table.Hash() != 0 || table.Len() != 0 {
		t.Errorf("a table of nobody has hash %#x and %d results, want 0 and 0", table.Hash(), table.Len())
	}
}

func TestHashChangesWithEverythingInTheTable(t *testing.T) {
	seen := map[uint64]string{}
	for name, change := range map[string]func(*Table){
		"nothing":          func(*Table) {},
		"another origin":   func(t *Table) { t.Retain([]uint64{1, 2, 3}) },
		"one origin less":  func(t *Table) { t.Retain([]uint64{1}) },
		"watermark":        func(t *Table) { t.Advance(1, 1) },
		"other's mark":     func(t *Table) { t.Advance(2, 1) },
		"result":           func(t *Table) { t.Record(1, 7, Result{Revision: 1}) },
		"other's result":   func(t *Table) { t.Record(2, 7, Result{Revision: 1}) },
		"another number":   func(t *Table) { t.Record(1, 8, Result{Revision: 1}) },
		"another revision": func(t *Table) { t.Record(1, 7, Result{Revision: 2}) },
		"revision 0":       func(t *Table) { t.Record(1, 7, Result{}) },
		"mismatch":         func(t *Table) { t.Record(1, 7, Result{Revision: 1, Mismatch: true}) },
	} {
		table := New()
		table.Retain([]uint64{1, 2})
		change(table)
		if other, ok := seen[table.Hash()]; ok {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[table.Hash()] = name
	}
}

func TestOnlyFreshNumbersAreRecorded(t *testing.T) {
	table := New()
	table.Retain([]uint64{9, 4, 9})
	table.Advance(4, 10)
	table.Record(4, 12, Result{Revision: 1})
	for _, c := range []struct {
		name        string
		origin, seq uint64
		revision    uint64
		want        State
	}{
		{"applied", 4, 12, 1, Applied},
		{"answered", 4, 10, 1, Answered},
		{"zero", 9, 0, 1, Answered},
		{"beyond", 4, 11 + Window, 1, Beyond},
		{"stranger", 5, 1, 1, Stranger},
		{"revision too large", 4, 13, 1 << 63, Fresh},
	} {
		if _, state := table.Lookup(c.origin, c.seq); state != c.want {
			t.Errorf("%s: Lookup(%d, %d) = %v, want %v", c.name, c.origin, c.seq, state, c.want)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: number %d of origin %d was recorded", c.name, c.seq, c.origin)
				}
			}()
			table.Record(c.origin, c.seq, Result{Revision: c.revision})
		}()
	}
	if err := table.check(); err != nil || table.Len() != 1 {
		t.Errorf("%d results, %v; want 1 and no error", table.Len(), err)
	}
}

func TestFreshRunsEndAtTheWindow(t *testing.T) {
	for _, watermark := range []uint64{0, 1 << 40, math.MaxUint64 - Window, math.MaxUint64 - 10, math.MaxUint64} {
		table := New()
		table.Retain([]uint64{1})
		table.Advance(1, watermark)
		room := min(Window, math.MaxUint64-watermark)
		for _, c := range []struct {
			offset uint64
			n      int
			want   bool
		}{
			{1, int(room), room > 0}, {1, int(room) + 1, false}, {0, 1, false}, {1, 0, false},
			{room, 1, room > 0}, {room, 2, false}, {room + 1, 1, false}, {1, Window + 1, false},
		} {
			if got := table.IsFresh(1, watermark+c.offset, c.n); got != c.want {
				t.Errorf("watermark %d: %d numbers from offset %d are fresh: %v, want %v", watermark, c.n, c.offset, got, c.want)
			}
		}
	}
}

// Sums over sets of numbers with results tell apart what differs in which number
// has which result.
func TestSumsOfResultsDiffer(t *testing.T) {
	seen := make(map[uint64][4]uint64)
	for a := range uint64(24) {
		for b := range a {
			for x := range uint64(24) {
				for y := range uint64(24) {
					sum := hashOf(7, a, []uint64{x}) + hashOf(7, b, []uint64{y})
					if other, ok := seen[sum]; ok {
						t.Fatalf("%d and %v have the same sum", []uint64{a, x, b, y}, other)
					}
					seen[sum] = [4]uint64{a, x, b, y}
				}
			}
		}
	}
}

// A window that slides on allocates nothing, and a burst leaves no large array.
func TestASlidingWindowKeepsItsMemory(t *testing.T) {
	table := New()
	table.Retain([]uint64{1})
	next, results := uint64(1), make([]Result, 4096)
	slide := func(batch, window int) {
		table.Advance(1, next-1-min(next-1, uint64(batch*(window-1))))
		table.Record(1, next, results[:batch]...)
		next += uint64(batch)
	}
	for _, batch := range []int{1, 16, 64} {
		for range 200 {
			slide(batch, 4)
		}
		if n := testing.AllocsPerRun(1000, func() { slide(batch, 4) }); n > 0 {
			t.Errorf("batches of %d allocate %v times", batch, n)
		}
	}
	for range 16 {
		slide(4096, 16)
	}
	for range 200 {
		slide(16, 4)
	}
	if got := cap(table.origins[0].runs[0].array); got > 16*arrayMin {
		t.Errorf("after a burst there is room for %d results, want at most %d", got, 16*arrayMin)
	}
	if err := table.check(); err != nil {
		t.Fatal(err)
	}
}

func TestTheWindowBoundsTheTable(t *testing.T) {
	for _, watermark := range []uint64{0, 1 << 40, math.MaxUint64 - Window, math.MaxUint64 - 10, math.MaxUint64} {
		table := New()
		table.Retain([]uint64{1})
		table.Advance(1, watermark)
		for offset := uint64(1); offset <= Window && offset <= math.MaxUint64-watermark; offset++ {
			table.Record(1, watermark+offset, Result{Revision: offset})
		}
		if want := int(min(Window, math.MaxUint64-watermark)); table.Len() != want {
			t.Errorf("watermark %d: %d results, want %d", watermark, table.Len(), want)
		}
		if err := table.check(); err != nil {
			t.Errorf("watermark %d: %v", watermark, err)
		}
		table.Advance(1, math.MaxUint64)
		table.Advance(1, 5)
		if _, state := table.Lookup(1, math.MaxUint64); state != Answered || table.Len() != 0 {
			t.Errorf("watermark at the top: the last number is %v, %d results left", state, table.Len())
		}
	}
}

func TestRetainRefusesImpossibleOrigins(t *testing.T) {
	many := make([]uint64, OriginsMax+1)
	for i := range many {
		many[i] = uint64(i + 1)
	}
	New().Retain(many[:OriginsMax])
	for name, origins := range map[string][]uint64{"too many": many, "zero": {0, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: Retain accepted them", name)
				}
			}()
			New().Retain(origins)
		}()
	}
}

func TestAReturningOriginStartsEmpty(t *testing.T) {
	table := New()
	table.Retain([]uint64{1})
	table.Advance(1, 3)
	table.Record(1, 5, Result{Revision: 1})
	table.Retain([]uint64{2})
	table.Retain([]uint64{1, 2})
	if _, state := table.Lookup(1, 1); state != Fresh || table.Len() != 0 {
		t.Errorf("number 1 is %v and %d results are left, want fresh and none", state, table.Len())
	}
}

func TestClonesStayAsTheyWere(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	table, m := New(), model{}
	var clones []*Table
	var want []model
	for range 20 {
		mutate(t, rng, table, m, 30)
		copied := model{}
		for id, o := range m {
			copied[id] = &modelOrigin{o.answeredTo, maps.Clone(o.results)}
		}
		clones, want = append(clones, table.Clone()), append(want, copied)
	}
	for i, c := range clones {
		checkTable(t, c, want[i])
	}
	// And the other way round: a clone that is written to leaves the table be.
	hash := table.Hash()
	c := table.Clone()
	for i := range c.origins {
		id := c.origins[i].id
		for seq := range uint64(200) {
			if _, state := c.Lookup(id, seq); state == Fresh {
				c.Record(id, seq, Result{Revision: 77})
			}
		}
	}
	checkTable(t, table, m)
	if table.Hash() != hash {
		t.Errorf("a write to a clone changed the hash from %#x to %#x", hash, table.Hash())
	}
}

func TestStatesHaveNames(t *testing.T) {
	for state, want := range map[State]string{Fresh: "fresh", Stranger: "stranger", 9: "state(9)"} {
		if got := state.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
}

// BenchmarkApply is a batch of 100 commands: lookups, records and the
// watermark behind it.
func BenchmarkApply(b *testing.B) {
	table := New()
	table.Retain([]uint64{1, 2, 3, 4, 5})
	seq, results := uint64(1), make([]Result, 100)
	b.ReportAllocs()
	for b.Loop() {
		table.Advance(3, seq-min(seq, 1000))
		if table.IsFresh(3, seq, len(results)) {
			table.Record(3, seq, results...)
		}
		seq += uint64(len(results))
	}
}

func BenchmarkClone(b *testing.B) {
	table := New()
	table.Retain([]uint64{1, 2, 3})
	for seq := uint64(1); seq <= Window; seq++ {
		table.Record(1+seq%3, seq, Result{Revision: seq})
		table.Record(1+(seq+1)%3, seq, Result{Revision: seq})
	}
	b.ReportAllocs()
	for b.Loop() {
		table.Clone()
	}
}
