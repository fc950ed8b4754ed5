package snapshot

import (
	"errors"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What the Builder in FuzzBuilder is told to expect.
const (
	declaredKeys  = 10
	declaredBytes = 1000
)

// What a Builder accepts is the state that the generated code finds in the same
// bytes, whole or cut into two parts; it keeps to what was declared and to the
// memory that goes with it, and it survives another round.
func FuzzBuilder(f *testing.F) {
	for _, p := range refusals(f) {
		if len(p) < 1000 {
			f.Add(p, uint16(len(p)/2))
		}
	}
	k, table := randomState(8, 5, 5)
	var whole []byte
	for p := range Parts(k.Freeze(), table, 100) {
		f.Add(p, uint16(0))
		f.Add(slices.Concat(whole, p), uint16(len(whole)))
		whole = append(whole, p...)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		b := NewBuilder(declaredKeys, declaredBytes)
		err := addMeasured(t, b, data)
		cutAt := min(int(cut), len(data))
		halves := NewBuilder(declaredKeys, declaredBytes)
		_ = halves.Add(data[:cutAt])                                 // stays, so that
		if errHalves := halves.Add(data[cutAt:]); errHalves == nil { // this returns it, too
			if err != nil || hashOf(halves.keys, halves.table) != hashOf(b.keys, b.table) {
				t.Fatalf("accepted in two parts, but not the same in one: %v", err)
			}
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) || b.keys != nil || b.table != nil {
				t.Fatalf("%v, which is of another kind or keeps the memory", err)
			}
			return
		}
		checkBuilt(t, b, data)
	})
}

// addMeasured adds a part and fails if that takes more memory than was declared.
func addMeasured(t *testing.T, b *Builder, part []byte) error {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before) // exact, unlike what runtime/metrics says
	err := b.Add(part)
	runtime.ReadMemStats(&after)
	// A key takes a map and places in the index, an error quotes its key. The
	// rest is for what else the process does.
	limit := uint64(declaredKeys<<10 + declaredBytes + 32*len(part) + 64<<10)
	if got := after.TotalAlloc - before.TotalAlloc; got > limit {
		t.Fatalf("a part of %d bytes took %d bytes of memory, want %d at most", len(part), got, limit)
	}
	return err
}

// checkBuilt checks the state of a Builder that has accepted one part.
func checkBuilt(t *testing.T, b *Builder, data []byte) {
	t.Helper()
	k, table := b.keys, b.table // Finish refuses most, as keys are missing
	if k.Len() > declaredKeys || k.DataBytes() > declaredBytes {
		t.Fatalf("%d keys of %d bytes, more than declared", k.Len(), k.DataBytes())
	}
	p := new(kvpb.SnapshotPart)
	if err := proto.Unmarshal(data, p); err != nil {
		t.Fatalf("the generated code refuses it: %v", err)
	}
	if len(p.GetRecords()) != k.Len() {
		t.Fatalf("%d keys, the generated code reads %d", k.Len(), len(p.GetRecords()))
	}
	for _, r := range p.GetRecords() {
		item, ok := k.Get(string(r.GetKey()))
		if !ok || item.Value != string(r.GetValue()) || item.Revision != r.GetRevision() {
			t.Fatalf("record %v is %+v", r, item)
		}
	}
	for _, o := range p.GetOrigins() {
		if !table.Knows(o.GetOrigin()) {
			t.Fatalf("origin %d is not known", o.GetOrigin())
		}
	}
	for _, partBytes := range []int{50, 512 << 10} {
		parts := slices.Collect(Parts(k.Freeze(), table, partBytes))
		k2, table2, err := build(k.Len(), k.DataBytes(), parts...)
		if err != nil || hashOf(k2, table2) != hashOf(k, table) || describe(k2, table2) != describe(k, table) {
			t.Fatalf("another round in parts of %d bytes: %v", partBytes, err)
		}
	}
	if _, _, err := build(k.Len()+1, k.DataBytes(), data); !errors.Is(err, ErrMalformed) {
		t.Fatalf("with a key missing: %v, want %v", err, ErrMalformed)
	}
}
