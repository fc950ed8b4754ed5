package dedup

import (
	"bytes"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What Load accepts is the table that the generated code finds in the same
// bytes; it holds the invariants, leaves as bytes that make the same table again,
// and can be gone on with.
func FuzzLoad(f *testing.F) {
	for _, parts := range refusals(f) {
		if len(parts) <= 2 && len(parts[0]) < 1000 {
			f.Add(parts[0], parts[len(parts)-1])
		}
	}
	table := New()
	table.Retain([]uint64{1, 2})
	table.Advance(2, 3)
	for _, seq := range []uint64{5, 6, 9} {
		table.Record(2, seq, Result{Revision: seq, Mismatch: seq == 6})
	}
	parts := slices.Collect(table.Parts(60))
	for i := range parts[1:] {
		f.Add(parts[i], parts[i+1])
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		table, err := load(a, b)
		if err != nil {
			return
		}
		m := model{}
		for _, data := range [][]byte{a, b} {
			m.load(t, data)
		}
		checkTable(t, table, m)
		encoded := slices.Collect(table.Parts(100))
		again, err := load(encoded...)
		if err != nil || again.Hash() != table.Hash() {
			t.Fatalf("loaded again: hash %#x, %v, want %#x", again.Hash(), err, table.Hash())
		}
		if !slices.EqualFunc(encoded, slices.Collect(again.Parts(100)), bytes.Equal) {
			t.Fatal("encoded again it is other bytes")
		}
		goOn(t, table, m)
	})
}

// load adds what the generated code reads.
func (m model) load(t *testing.T, data []byte) {
	t.Helper()
	o := new(kvpb.DedupOrigin)
	if err := proto.Unmarshal(data, o); err != nil {
		t.Fatalf("the generated code refuses %x: %v", data, err)
	}
	if len(o.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("%x has unknown fields", data)
	}
	m.retain(append(m.ids(), o.GetOrigin())...)
	m.advance(o.GetOrigin(), o.GetAnsweredTo())
	for _, r := range o.GetRuns() {
		for i, v := range r.GetResults() {
			m[o.GetOrigin()].results[r.GetFirst()+uint64(i)] = Result{Revision: v >> 1, Mismatch: v&1 == 1}
		}
	}
}

func (m model) ids() []uint64 {
	var ids []uint64
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

// goOn records and advances in a loaded table and leaves a clone as it was.
func goOn(t *testing.T, table *Table, m model) {
	t.Helper()
	clone, hash := table.Clone(), table.Hash()
	for _, id := range m.ids() {
		o := m[id]
		for _, seq := range []uint64{o.answeredTo + 1, o.answeredTo + 3, o.answeredTo + Window} {
			if _, state := table.Lookup(id, seq); state == Fresh {
				table.Record(id, seq, Result{Revision: seq / 2})
				o.results[seq] = Result{Revision: seq / 2}
			}
		}
		table.Advance(id, o.answeredTo+2)
		m.advance(id, o.answeredTo+2)
	}
	checkTable(t, table, m)
	if err := clone.check(); err != nil || clone.Hash() != hash {
		t.Fatalf("the clone has changed: %v, hash %#x, want %#x", err, clone.Hash(), hash)
	}
	table.Retain(nil)
	if table.Hash() != 0 || table.Len() != 0 {
		t.Fatalf("hash %#x, %d results, want none of nobody", table.Hash(), table.Len())
	}
}
