package dedup

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

func load(parts ...[]byte) (*Table, error) {
	t := New()
	for _, p := range parts {
		if err := t.Load(p); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func TestPartsLoadAsTheSameTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	table, m := New(), model{}
	for range 20 {
		mutate(t, rng, table, m, 100)
		for _, bytesMax := range []int{0, 50, 64, 100, 333, 1 << 20} {
			parts := slices.Collect(table.Parts(bytesMax))
			for _, p := range parts {
				// 18 bytes of origin and watermark, and one result in a run.
				if len(p) > max(bytesMax, 18+runBytes+resultBytes) {
					t.Fatalf("a part has %d bytes, want at most %d", len(p), bytesMax)
				}
			}
			got, err := load(parts...)
			if err != nil {
				t.Fatalf("bytesMax %d: %v", bytesMax, err)
			}
			checkTable(t, got, m)
			if got.Hash() != table.Hash() {
				t.Fatalf("bytesMax %d: hash %#x, want %#x", bytesMax, got.Hash(), table.Hash())
			}
			// The encoding does not show that the runs are others now.
			if again := slices.Collect(got.Parts(bytesMax)); !slices.EqualFunc(parts, again, bytes.Equal) {
				t.Fatalf("bytesMax %d: encoded again it is other bytes", bytesMax)
			}
		}
	}
}

func TestEncodingIsTheGeneratedCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	table, m := New(), model{}
	mutate(t, rng, table, m, 500)
	table = m.table(rng) // in random order: runs that touch
	for p := range table.Parts(1 << 20) {
		var o kvpb.DedupOrigin
		if err := proto.Unmarshal(p, &o); err != nil {
			t.Fatal(err)
		}
		if generated, err := proto.Marshal(&o); err != nil || !bytes.Equal(generated, p) {
			t.Fatalf("Marshal = %x, %v, want %x", generated, err, p)
		}
		want := m[o.GetOrigin()]
		if want == nil || want.answeredTo != o.GetAnsweredTo() {
			t.Fatalf("origin %d has watermark %d, want %+v", o.GetOrigin(), o.GetAnsweredTo(), want)
		}
		n, end := 0, uint64(0)
		for _, r := range o.GetRuns() {
			if r.GetFirst() <= end {
				t.Fatalf("a run from %d touches or overlaps the one to %d", r.GetFirst(), end-1)
			}
			for i, v := range r.GetResults() {
				if got := (Result{v >> 1, v&1 == 1}); got != want.results[r.GetFirst()+uint64(i)] {
					t.Fatalf("number %d has result %+v, want %+v", r.GetFirst()+uint64(i), got, want.results[r.GetFirst()+uint64(i)])
				}
			}
			n += len(r.GetResults())
			end = r.GetFirst() + uint64(len(r.GetResults()))
		}
		if n != len(want.results) {
			t.Fatalf("origin %d has %d results, want %d", o.GetOrigin(), n, len(want.results))
		}
	}
}

func TestPartsStopWhenTheCallerDoes(t *testing.T) {
	table := New()
	table.Retain([]uint64{1, 2})
	for seq := range uint64(100) {
		table.Record(1, seq+1, Result{})
	}
	n := 0
	for range table.Parts(0) {
		if n++; n == 2 {
			break
		}
	}
	for range table.Parts(1 << 20) {
		break
	}
	if n != 2 {
		t.Errorf("%d parts came, want 2", n)
	}
}

func marshal(t testing.TB, o *kvpb.DedupOrigin) []byte {
	t.Helper()
	data, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// refusals are tables that Load refuses, by what is wrong with them.
func refusals(t testing.TB) map[string][][]byte {
	origin := func(id, answeredTo uint64, runs ...*kvpb.DedupRun) []byte {
		return marshal(t, &kvpb.DedupOrigin{Origin: id, AnsweredTo: answeredTo, Runs: runs})
	}
	run := func(first uint64, n int) *kvpb.DedupRun {
		return &kvpb.DedupRun{First: first, Results: make([]uint64, n)}
	}
	many := make([][]byte, OriginsMax+1)
	for i := range many {
		many[i] = origin(uint64(i+1), 0)
	}
	odd := appendLen(appendFixed(nil, originID, 1), originRuns, 14)
	odd = append(appendLen(appendFixed(odd, runFirst, 1), runResults, 3), 1, 2, 3)
	return map[string][][]byte{
		"empty":                 {nil},
		"no origin":             {origin(0, 5)},
		"origin 0":              {appendFixed(nil, originID, 0)},
		"unknown field":         {appendFixed(origin(1, 1), 4, 1)},
		"unknown field of run":  {append(appendLen(origin(1, 0), originRuns, 9), appendFixed(nil, 3, 1)...)},
		"not whole results":     {odd},
		"number 0":              {origin(1, 0, run(0, 1))},
		"at the watermark":      {origin(1, 7, run(7, 2))},
		"below the watermark":   {origin(1, 7, run(3, 2))},
		"empty run":             {origin(1, 7, run(9, 0))},
		"above the window":      {origin(1, 7, run(8+Window, 1))},
		"out of the window":     {origin(1, 7, run(8, Window+1))},
		"last out of it":        {origin(1, 7, run(7+Window, 2))},
		"numbers overflow":      {origin(1, math.MaxUint64-3, run(math.MaxUint64-1, 3))},
		"runs overlap":          {origin(1, 7, run(8, 3), run(10, 1))},
		"runs descend":          {origin(1, 7, run(20, 1), run(10, 1))},
		"parts overlap":         {origin(1, 7, run(8, 3)), origin(1, 7, run(8, 3))},
		"origins descend":       {origin(2, 7), origin(1, 7)},
		"origin comes back":     {origin(1, 7), origin(2, 7), origin(1, 7)},
		"watermark changes":     {origin(1, 7), origin(1, 8)},
		"more origins than max": many,
	}
}

func TestLoadRefusesWhatNoTableHas(t *testing.T) {
	for name, parts := range refusals(t) {
		if _, err := load(parts...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLoadRefusesEveryTruncation(t *testing.T) {
	table := New()
	table.Retain([]uint64{1})
	table.Advance(1, 5)
	table.Record(1, 7, Result{Revision: 1})
	for p := range table.Parts(1 << 20) {
		for n := range p {
			// Without its runs, or its watermark as well, it is a table still.
			if _, err := load(p[:n]); err == nil && n != 18 && n != 9 {
				t.Errorf("%d of %d bytes: no error", n, len(p))
			}
		}
	}
}

func TestTheTableAtItsLimitsLoads(t *testing.T) {
	full := func(id, answeredTo uint64) []byte {
		return marshal(t, &kvpb.DedupOrigin{Origin: id, AnsweredTo: answeredTo,
			Runs: []*kvpb.DedupRun{{First: answeredTo + 1, Results: make([]uint64, Window)}}})
	}
	table, err := load(full(1, 0), full(2, math.MaxUint64-Window))
	if err != nil {
		t.Fatal(err)
	}
	if err := table.check(); err != nil || table.Len() != 2*Window {
		t.Errorf("%d results, %v, want %d and no error", table.Len(), err, 2*Window)
	}
}
