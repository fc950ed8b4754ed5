package keyspace

import "iter"

// A View is the items of a Keyspace at one moment. It never changes and may be
// used by any number of goroutines while the Keyspace is written to. It has
// the methods Get, Len, DataBytes, Bytes and Hash of the Keyspace.
type View struct{ contents }

// All returns the items in no particular order; it is the fastest way to read
// all of them.
func (v *View) All() iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for i := range v.shards {
			for j := range v.shards[i].slots {
				if s := &v.shards[i].slots[j]; !s.isEmpty() && !yield(v.records.record(s.at).item()) {
					return
				}
			}
		}
	}
}

// Ascend returns, in the order of their keys, the items whose keys have the
// prefix and, unless after is empty, come after it: at most limit of them,
// unless limit is 0. The Keyspace must have been in order when it was frozen.
func (v *View) Ascend(prefix, after string, limit int) iter.Seq[Item] {
	return func(yield func(Item) bool) { v.ascend(prefix, after, limit, yield) }
}
