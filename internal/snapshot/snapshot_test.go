package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/keyspace"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// randomState makes a state; equal seeds make equal contents.
func randomState(seed uint64, keys, results int) (*keyspace.Keyspace, *dedup.Table) {
	rng := rand.New(rand.NewPCG(seed, 1))
	k, t := keyspace.New(), dedup.New()
	for i := range keys {
		value := bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(60))
		k.Put(fmt.Appendf(nil, "%x/%d", rng.Uint32(), i), value, 1+rng.Uint64()>>(1+rng.IntN(63)))
	}
	t.Retain([]uint64{1<<32 | 1, 2<<32 | 2, 3<<32 | 3})
	t.Advance(2<<32|2, 1000)
	for range results {
		seq := 1001 + rng.Uint64N(uint64(results))
		if _, state := t.Lookup(2<<32|2, seq); state == dedup.Fresh {
			t.Record(2<<32|2, seq, dedup.Result{Revision: rng.Uint64() >> 1, Mismatch: rng.IntN(2) == 0})
		}
	}
	return k, t
}

func hashOf(k *keyspace.Keyspace, t *dedup.Table) uint64 { return StateHash(k.Hash(), t.Hash(), 3, 4) }

func build(keys int, sizeBytes int64, parts ...[]byte) (*keyspace.Keyspace, *dedup.Table, error) {
	b := NewBuilder(uint64(keys), uint64(sizeBytes))
	for _, p := range parts {
		if err := b.Add(p); err != nil {
			return nil, nil, err
		}
	}
	return b.Finish()
}

// describe writes out a whole state.
func describe(k *keyspace.Keyspace, t *dedup.Table) string {
	var s strings.Builder
	for !k.Order() {
	}
	for item := range k.Freeze().Ascend("", "", 0) {
		fmt.Fprintf(&s, "%q=%q@%d\n", item.Key, item.Value, item.Revision)
	}
	for p := range t.Parts(1 << 20) {
		fmt.Fprintf(&s, "%x\n", p)
	}
	return s.String()
}

func TestStatesArriveAsTheyLeft(t *testing.T) {
	for _, size := range []struct{ keys, results int }{{0, 0}, {1, 0}, {0, 500}, {700, 500}} {
		k, table := randomState(1, size.keys, size.results)
		view := k.Freeze()
		for _, partBytes := range []int{1, 100, 1000, 512 << 10} {
			parts := slices.Collect(Parts(view, table, partBytes))
			k2, table2, err := build(view.Len(), view.DataBytes(), parts...)
			if err != nil {
				t.Fatalf("%+v in parts of %d bytes: %v", size, partBytes, err)
			}
			if got, want := describe(k2, table2), describe(k, table); got != want {
				t.Fatalf("%+v in parts of %d bytes: got\n%s\nwant\n%s", size, partBytes, got, want)
			}
			if hashOf(k2, table2) != hashOf(k, table) {
				t.Errorf("%+v in parts of %d bytes: another state hash", size, partBytes)
			}
		}
	}
	if parts := slices.Collect(Parts(keyspace.New().Freeze(), dedup.New(), 100)); len(parts) != 0 {
		t.Errorf("an empty state has %d parts, want none", len(parts))
	}
}

func TestEqualStatesHaveEqualParts(t *testing.T) {
	k, table := randomState(2, 300, 200)
	want := slices.Collect(Parts(k.Freeze(), table, 500))
	other, otherTable, err := build(k.Len(), k.DataBytes(), slices.Collect(Parts(k.Freeze(), table, 77))...)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(Parts(other.Freeze(), otherTable, 500)); !slices.EqualFunc(got, want, bytes.Equal) {
		t.Error("a state that came as a snapshot leaves as other parts")
	}
}

func TestPartsKeepToTheirSize(t *testing.T) {
	k, table := randomState(3, 500, 500)
	k.Put([]byte("large"), make([]byte, 5000), 1)
	for _, partBytes := range []int{200, 1000, 4000} {
		large, small := 0, 0
		for p := range Parts(k.Freeze(), table, partBytes) {
			switch {
			case len(p) > partBytes:
				large++
			case len(p) < partBytes/2:
				small++
			}
		}
		// Small are the last, and those before and between what does not fit.
		if large != 1 || small > 5 {
			t.Errorf("parts of %d bytes: %d are larger, %d under half, want 1 and few", partBytes, large, small)
		}
	}
}

func TestPartsAreSlicesOfTheirOwn(t *testing.T) {
	k, table := randomState(4, 100, 100)
	var parts, copies [][]byte
	for p := range Parts(k.Freeze(), table, 300) {
		parts, copies = append(parts, p), append(copies, bytes.Clone(p))
	}
	if !slices.EqualFunc(parts, copies, bytes.Equal) {
		t.Error("a part changed after it was yielded")
	}
	want := describe(k, table)
	k2, table2, err := build(k.Len(), k.DataBytes(), parts...)
	for _, p := range parts {
		clear(p)
	}
	if err != nil || describe(k2, table2) != want {
		t.Errorf("%v, or the state aliases its parts", err)
	}
}

func TestPartsStopWhenTheCallerDoes(t *testing.T) {
	k, table := randomState(5, 50, 50)
	all := len(slices.Collect(Parts(k.Freeze(), table, 100)))
	for stop := range all {
		n := 0
		for range Parts(k.Freeze(), table, 100) {
			if n++; n > stop {
				break
			}
		}
		if n != stop+1 {
			t.Fatalf("%d parts came, want %d", n, stop+1)
		}
	}
}

func TestEncodingIsTheGeneratedCodes(t *testing.T) {
	k, table := randomState(6, 200, 100)
	k.Put([]byte("empty"), nil, math.MaxUint64>>1)
	keys := 0
	for part := range Parts(k.Freeze(), table, 700) {
		var p kvpb.SnapshotPart
		if err := proto.Unmarshal(part, &p); err != nil {
			t.Fatal(err)
		}
		if generated, err := proto.Marshal(&p); err != nil || !bytes.Equal(generated, part) {
			t.Fatalf("Marshal = %x, %v, want %x", generated, err, part)
		}
		for _, r := range p.GetRecords() {
			item, ok := k.Get(string(r.GetKey()))
			if !ok || item.Value != string(r.GetValue()) || item.Revision != r.GetRevision() {
				t.Fatalf("record %v, want %+v", r, item)
			}
			keys++
		}
	}
	if keys != k.Len() {
		t.Errorf("%d records, want %d", keys, k.Len())
	}
}

func TestNoCorruptionGoesUnnoticed(t *testing.T) {
	k, table := randomState(7, 4, 6)
	part := slices.Collect(Parts(k.Freeze(), table, 1<<20))[0]
	want, wantHash := describe(k, table), hashOf(k, table)
	try := func(name string, part []byte) {
		k2, table2, err := build(k.Len(), k.DataBytes(), part)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%s: %v, want %v", name, err, ErrMalformed)
			}
			return
		}
		if same := describe(k2, table2) == want; same != (hashOf(k2, table2) == wantHash) {
			t.Fatalf("%s: the state is the same: %v, but its hash says otherwise", name, same)
		}
	}
	for n := range part {
		try(fmt.Sprintf("cut off at %d", n), part[:n])
		for _, mask := range []byte{1, 2, 3, 4, 8, 16, 24, 32, 64, 128, 255} {
			corrupt := bytes.Clone(part)
			corrupt[n] ^= mask
			try(fmt.Sprintf("byte %d with mask %#x", n, mask), corrupt)
		}
	}
}

func part(t testing.TB, p *kvpb.SnapshotPart) []byte {
	t.Helper()
	data, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func records(t testing.TB, rs ...*kvpb.SnapshotRecord) []byte {
	t.Helper()
	return part(t, &kvpb.SnapshotPart{Records: rs})
}

// refusals are parts that a Builder for two keys of six bytes refuses, by what
// is wrong with them.
func refusals(t testing.TB) map[string][]byte {
	r := func(key, value string, revision uint64) *kvpb.SnapshotRecord {
		return &kvpb.SnapshotRecord{Key: []byte(key), Value: []byte(value), Revision: revision}
	}
	body := func(b ...byte) []byte { return append([]byte{partRecords<<3 | 2, byte(len(b))}, b...) }
	return map[string][]byte{
		"no key":              records(t, r("", "v", 1)),
		"key too long":        records(t, r(strings.Repeat("k", command.KeyBytesMax+1), "", 1)),
		"revision 0":          records(t, r("k", "v", 0)),
		"revision too large":  records(t, r("k", "v", 1<<63)),
		"the same key again":  records(t, r("k", "v", 1), r("k", "v", 1)),
		"more keys":           records(t, r("a", "", 1), r("b", "", 1), r("c", "", 1)),
		"more bytes":          records(t, r("k", "123456", 1)),
		"origin 0":            part(t, &kvpb.SnapshotPart{Origins: []*kvpb.DedupOrigin{{AnsweredTo: 1}}}),
		"unknown field":       {3<<3 | 2, 0},
		"field is a varint":   {partRecords << 3, 0},
		"bad tag":             {0},
		"cut off":             {partRecords<<3 | 2, 5, 1},
		"unknown record":      body(4<<3, 0),
		"record is cut off":   body(recordKey<<3|2, 9),
		"record with bad tag": body(0),
		"key is a varint":     body(recordKey<<3, 1),
		"key twice":           body(recordKey<<3|2, 1, 'a', recordKey<<3|2, 1, 'b', recordRevision<<3, 1),
		"revision first":      body(recordRevision<<3, 1, recordKey<<3|2, 1, 'a'),
	}
}

func TestBuilderRefusesWhatNoStateHas(t *testing.T) {
	for name, p := range refusals(t) {
		b := NewBuilder(2, 6)
		err := b.Add(p)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want %v", name, err, ErrMalformed)
		}
		if again := b.Add(nil); again != err {
			t.Errorf("%s: the next part gives %v, want the same error", name, again)
		}
		if k, table, last := b.Finish(); k != nil || table != nil || last != err {
			t.Errorf("%s: Finish gives %v, want the same error", name, last)
		}
	}
}

func TestBuilderRefusesAValueThatIsTooLong(t *testing.T) {
	k := keyspace.New()
	k.Put([]byte("k"), make([]byte, command.ValueBytesMax+1), 1)
	for p := range Parts(k.Freeze(), dedup.New(), 1000) {
		if err := NewBuilder(1, math.MaxUint64).Add(p); !errors.Is(err, ErrMalformed) {
			t.Errorf("Add = %v, want %v", err, ErrMalformed)
		}
	}
}

func TestBuilderWantsAllThatWasDeclared(t *testing.T) {
	one := records(t, &kvpb.SnapshotRecord{Key: []byte("k"), Value: []byte("v"), Revision: 1})
	for _, c := range []struct {
		keys      int
		sizeBytes int64
		ok        bool
	}{{1, 2, true}, {2, 2, false}, {1, 3, false}, {1, 1, false}, {0, 2, false}} {
		_, _, err := build(c.keys, c.sizeBytes, one)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("declared %d keys of %d bytes: %v", c.keys, c.sizeBytes, err)
		}
	}
}

func TestBuilderIsOfNoUseAfterFinish(t *testing.T) {
	b := NewBuilder(0, 0)
	if _, _, err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Finish(); err == nil || b.Add(nil) == nil {
		t.Error("the state was handed out twice")
	}
}

func TestTheLargestRecordArrives(t *testing.T) {
	k := keyspace.New()
	k.Put(make([]byte, command.KeyBytesMax), make([]byte, command.ValueBytesMax), 1)
	parts := slices.Collect(Parts(k.Freeze(), dedup.New(), 1000))
	k2, _, err := build(1, k.DataBytes(), parts...)
	if err != nil || len(parts) != 1 || k2.Hash() != k.Hash() {
		t.Errorf("%v, %d parts, want one with the record", err, len(parts))
	}
}

func TestStateHashDependsOnEachPart(t *testing.T) {
	seen := map[uint64][4]uint64{}
	for _, v := range [][4]uint64{{}, {1}, {0, 1}, {0, 0, 1}, {0, 0, 0, 1}, {1, 2, 3, 4}, {2, 1, 3, 4}, {1, 3, 2, 4}, {1, 2, 4, 3}} {
		h := StateHash(v[0], v[1], v[2], v[3])
		if other, ok := seen[h]; ok {
			t.Errorf("%v and %v have the same hash", v, other)
		}
		seen[h] = v
	}
	// Members of different releases compare it.
	if got, want := StateHash(1, 2, 3, 4), uint64(0x9c75d1f66e4c52da); got != want {
		t.Errorf("StateHash(1, 2, 3, 4) = %#x, want %#x", got, want)
	}
}

func BenchmarkParts(b *testing.B) {
	k, table := randomState(9, 50_000, 1000)
	view := k.Freeze()
	b.SetBytes(view.DataBytes())
	b.ReportAllocs()
	for b.Loop() {
		for range Parts(view, table, 512<<10) {
		}
	}
}

func BenchmarkBuilder(b *testing.B) {
	k, table := randomState(9, 50_000, 1000)
	view := k.Freeze()
	parts := slices.Collect(Parts(view, table, 512<<10))
	b.SetBytes(view.DataBytes())
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := build(view.Len(), view.DataBytes(), parts...); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAnEmptyClaimCostsNoMemory: a header may declare what never comes.
func TestAnEmptyClaimCostsNoMemory(t *testing.T) {
	k := keyspace.New()
	for i := range 5000 {
		k.Put(fmt.Appendf(nil, "%d", i), nil, 1)
	}
	var parts [][]byte
	for part := range Parts(k.Freeze(), dedup.New(), 1<<10) {
		parts = append(parts, part)
	}
	cost := func(declared uint64) uint64 {
		b := NewBuilder(declared, 1<<40)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, part := range parts {
			if err := b.Add(part); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const room = 64 * expectMin // generous for a slot
	if honest, hostile := cost(5000), cost(1<<40); hostile > honest+room {
		t.Errorf("5000 keys cost %d bytes, and %d if 2^40 are declared", honest, hostile)
	}
}
