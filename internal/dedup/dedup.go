// Package dedup is the replicated table by which a command that is proposed
// more than once takes effect once (DESIGN.md section 7, thesis §6.3).
package dedup

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"example.com/raftkv/internal/mix"
)

const (
	// Window is how far above its watermark an origin's numbers may be. The
	// origin keeps to it before it sends; here it bounds the table.
	Window = 65536
	// OriginsMax bounds the origins: far more than a membership has, and yet a
	// bound for what a snapshot can make us keep.
	OriginsMax = 1024
	// revisionMax leaves a bit for Mismatch.
	revisionMax = math.MaxUint64 >> 1
)

// A Result is what a command came to.
type Result struct {
	Revision uint64
	Mismatch bool // its condition was not met
}

// A State is what the table knows of a number.
type State uint8

// The states of a number. Only a Fresh one may be applied.
const (
	Fresh    State = iota // not seen, and within the window
	Applied               // its result is in the table
	Answered              // at or below the watermark: its caller has gone
	Beyond                // above the window: no correct origin sends it
	Stranger              // its origin is not in the membership
)

// String returns the state's name.
func (s State) String() string {
	names := [...]string{"fresh", "applied", "answered", "beyond", "stranger"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// A Table holds, for each origin, a low watermark and the results of all
// applied numbers above it. It is part of the state machine: it depends on the
// log alone. The zero value is a table that knows nobody.
//
// An origin's commands come in batches of consecutive numbers, mostly in
// order, sometimes twice, and regrouped after a leader died. So results are
// kept as runs of consecutive numbers: a batch extends the last run, and to
// find a number is a binary search over a few runs. A ring of Window places
// would be simpler, but costs each origin half a megabyte as soon as one
// number is far from the watermark.
//
// The results of a run are only ever appended or cut off in front, never
// overwritten. Clone relies on that: a clone shares them and copies only the
// runs' headers.
//
// Invariants, with offset = number - watermark:
//
//  1. Origins ascend; there are no more than OriginsMax, and 0 is none.
//  2. The runs of an origin ascend, do not overlap, and are not empty. They
//     may touch: which runs hold the numbers is history, not content.
//  3. All offsets are from 1 to Window. No number exceeds the largest uint64.
//  4. The hash is the sum of the hashes of origins with their watermarks and of
//     numbers with their results; an origin's sum is its share in it.
//
// Numbers are compared by their offsets, which cannot overflow.
type Table struct {
	origins []origin
	hash    uint64
}

type origin struct {
	id         uint64 // raft ID
	answeredTo uint64 // the watermark
	runs       []run
	sum        uint64
}

type run struct {
	first   uint64
	results []uint64 // as DedupRun in command.proto has them
}

// New returns a table that knows nobody.
func New() *Table { return new(Table) }

// Retain makes exactly the given origins known: new ones have no numbers yet,
// and those that are not given are forgotten.
func (t *Table) Retain(origins []uint64) {
	ids := slices.Compact(slices.Sorted(slices.Values(origins)))
	if len(ids) > OriginsMax || len(ids) > 0 && ids[0] == 0 {
		panic(fmt.Sprintf("raftkv: BUG: %d origins, the first %d", len(ids), ids[0]))
	}
	next := make([]origin, 0, len(ids))
	var hash uint64
	for _, id := range ids {
		o := t.find(id)
		if o == nil {
			o = &origin{id: id, sum: originHash(id, 0)}
		}
		next = append(next, *o)
		hash += o.sum
	}
	t.origins, t.hash = next, hash
}

// Knows reports whether an origin is known.
func (t *Table) Knows(origin uint64) bool { return t.find(origin) != nil }

// Advance moves an origin's watermark up to a number, and forgets the results
// at and below it. A lower number than the watermark, or an origin that is not
// known, changes nothing: entries may come in another order than they were
// sent.
func (t *Table) Advance(origin, answeredTo uint64) {
	o := t.find(origin)
	if o == nil || answeredTo <= o.answeredTo {
		return
	}
	before := o.sum
	o.sum += originHash(o.id, answeredTo) - originHash(o.id, o.answeredTo)
	o.answeredTo = answeredTo
	gone := 0
	for gone < len(o.runs) && o.trim(&o.runs[gone]) {
		gone++
	}
	o.runs = slices.Delete(o.runs, 0, gone)
	t.hash += o.sum - before
}

// trim cuts off the numbers of a run up to the watermark and reports whether
// the run is empty now.
func (o *origin) trim(r *run) bool {
	for len(r.results) > 0 && r.first <= o.answeredTo {
		o.sum -= resultHash(o.id, r.first, r.results[0])
		r.first, r.results = r.first+1, r.results[1:]
	}
	return len(r.results) == 0
}

// Lookup returns what is known of a number, and its result if it is Applied.
func (t *Table) Lookup(origin, seq uint64) (Result, State) {
	o := t.find(origin)
	switch {
	case o == nil:
		return Result{}, Stranger
	case seq <= o.answeredTo:
		return Result{}, Answered
	case seq-o.answeredTo > Window:
		return Result{}, Beyond
	}
	if i := o.runBefore(seq); i >= 0 {
		if r := o.runs[i]; seq-r.first < uint64(len(r.results)) {
			v := r.results[seq-r.first]
			return Result{Revision: v >> 1, Mismatch: v&1 == 1}, Applied
		}
	}
	return Result{}, Fresh
}

// Record stores the result of a number that is Fresh.
func (t *Table) Record(origin, seq uint64, result Result) {
	if _, state := t.Lookup(origin, seq); state != Fresh || result.Revision > revisionMax {
		panic(fmt.Sprintf("raftkv: BUG: result %+v for number %d of origin %d, which is %v", result, seq, origin, state))
	}
	v := result.Revision << 1
	if result.Mismatch {
		v |= 1
	}
	o := t.find(origin)
	o.record(seq, v)
	h := resultHash(origin, seq, v)
	o.sum += h
	t.hash += h
}

func (o *origin) record(seq, v uint64) {
	i := o.runBefore(seq)
	if i >= 0 && seq-o.runs[i].first == uint64(len(o.runs[i].results)) {
		o.runs[i].results = append(o.runs[i].results, v)
		return
	}
	o.runs = slices.Insert(o.runs, i+1, run{first: seq, results: []uint64{v}})
}

// runBefore returns the last run that begins at or before a number, or -1.
func (o *origin) runBefore(seq uint64) int {
	if n := len(o.runs); n > 0 && o.runs[n-1].first <= seq {
		return n - 1 // nearly always
	}
	i, found := slices.BinarySearchFunc(o.runs, seq, func(r run, seq uint64) int { return cmp.Compare(r.first, seq) })
	if found {
		return i
	}
	return i - 1
}

// find returns the origin with a raft ID, or nil.
func (t *Table) find(id uint64) *origin {
	i, ok := slices.BinarySearchFunc(t.origins, id, func(o origin, id uint64) int { return cmp.Compare(o.id, id) })
	if !ok {
		return nil
	}
	return &t.origins[i]
}

// Len returns the number of results.
func (t *Table) Len() int {
	n := 0
	for i := range t.origins {
		n += t.origins[i].len()
	}
	return n
}

func (o *origin) len() int {
	n := 0
	for _, r := range o.runs {
		n += len(r.results)
	}
	return n
}

// Hash returns a hash of the origins, watermarks, numbers and results, the
// same wherever they are the same.
func (t *Table) Hash() uint64 { return t.hash }

// Clone returns a copy that never changes when the table does.
func (t *Table) Clone() *Table {
	c := &Table{origins: slices.Clone(t.origins), hash: t.hash}
	for i := range c.origins {
		o := &c.origins[i]
		o.runs = slices.Clone(o.runs)
		for j := range o.runs {
			// Without capacity, the copy cannot append where the table does.
			o.runs[j].results = slices.Clip(o.runs[j].results)
		}
	}
	return c
}

// check verifies the invariants, for tests.
func (t *Table) check() error {
	if len(t.origins) > OriginsMax {
		return fmt.Errorf("%d origins", len(t.origins))
	}
	var hash, last uint64
	for i := range t.origins {
		o := &t.origins[i]
		if o.id <= last {
			return fmt.Errorf("origin %d after %d", o.id, last)
		}
		last = o.id
		if err := o.check(); err != nil {
			return fmt.Errorf("origin %d: %w", o.id, err)
		}
		hash += o.sum
	}
	if hash != t.hash {
		return fmt.Errorf("hash %#x, want %#x", t.hash, hash)
	}
	return nil
}

func (o *origin) check() error {
	sum, end := originHash(o.id, o.answeredTo), uint64(1)
	for _, r := range o.runs {
		offset := r.first - o.answeredTo
		if len(r.results) == 0 || offset < end || offset > Window || uint64(len(r.results)) > Window+1-offset {
			return fmt.Errorf("%d results from %d, watermark %d", len(r.results), r.first, o.answeredTo)
		}
		end = offset + uint64(len(r.results))
		if end-1 > math.MaxUint64-o.answeredTo {
			return fmt.Errorf("%d results from %d", len(r.results), r.first)
		}
		for i, v := range r.results {
			sum += resultHash(o.id, r.first+uint64(i), v)
		}
	}
	if sum != o.sum {
		return fmt.Errorf("hash %#x, want %#x", o.sum, sum)
	}
	return nil
}

// The seeds keep the two kinds of summands apart.
func originHash(id, answeredTo uint64) uint64 {
	return mix.Uint64(mix.Uint64(1, id), answeredTo)
}

func resultHash(id, seq, v uint64) uint64 {
	return mix.Uint64(mix.Uint64(mix.Uint64(2, id), seq), v)
}
