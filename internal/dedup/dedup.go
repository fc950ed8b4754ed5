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
	// arrayMin is the least number of results that an array has room for.
	arrayMin = 64
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
// The results of a run are appended and cut off in front. Clone shares them and
// copies only the runs' headers; from then on they are not overwritten. As long
// as nobody shares them, results move to the front of their array again when it
// is full, so that in the steady state, a window of batches that slides on,
// nothing is allocated.
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
	idle       []uint64 // the array of a run that has gone, for the next one
	sum        uint64
	seed       uint64 // of the hashes of results
}

type run struct {
	first   uint64
	results []uint64 // as DedupRun in command.proto has them
	array   []uint64 // of which results are a part, from its beginning; empty if a clone may share it
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
			o = newOrigin(id, 0)
		}
		next = append(next, *o)
		hash += o.sum
	}
	t.origins, t.hash = next, hash
}

func newOrigin(id, answeredTo uint64) *origin {
	return &origin{id: id, answeredTo: answeredTo, sum: originHash(id, answeredTo), seed: mix.Uint64(2, id)}
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
		if array := o.runs[gone].array; cap(array) > cap(o.idle) {
			o.idle = array
		}
		gone++
	}
	if gone > 0 {
		o.runs = slices.Delete(o.runs, 0, gone)
	}
	t.hash += o.sum - before
}

// trim cuts off the numbers of a run up to the watermark and reports whether
// the run is empty now.
func (o *origin) trim(r *run) bool {
	if r.first > o.answeredTo {
		return false
	}
	n := min(uint64(len(r.results)), o.answeredTo-r.first+1)
	o.sum -= hashOf(o.seed, r.first, r.results[:n])
	r.first, r.results = r.first+n, r.results[n:]
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

// IsFresh reports whether n numbers from first on are all Fresh.
func (t *Table) IsFresh(origin, first uint64, n int) bool {
	o := t.find(origin)
	if o == nil || !o.isInWindow(first, uint64(n)) {
		return false
	}
	i := o.runBefore(first)
	if i >= 0 && first-o.runs[i].first < uint64(len(o.runs[i].results)) {
		return false
	}
	return i+1 == len(o.runs) || o.runs[i+1].first-first >= uint64(n)
}

// isInWindow reports whether n numbers from first on, one at least, are all in
// the window.
func (o *origin) isInWindow(first, n uint64) bool {
	offset := first - o.answeredTo
	return first > o.answeredTo && offset <= Window && n != 0 && n <= Window+1-offset &&
		offset+n-1 <= math.MaxUint64-o.answeredTo
}

// Record stores the results of consecutive numbers that are Fresh.
func (t *Table) Record(origin, first uint64, results ...Result) {
	var highest uint64
	for _, r := range results {
		highest = max(highest, r.Revision)
	}
	if highest > revisionMax || !t.IsFresh(origin, first, len(results)) {
		_, state := t.Lookup(origin, first)
		panic(fmt.Sprintf("raftkv: BUG: %d results, the highest revision %d, for number %d of origin %d, which is %v",
			len(results), highest, first, origin, state))
	}
	o := t.find(origin)
	room := o.extend(first, len(results))
	for i, r := range results {
		room[i] = r.Revision << 1
		if r.Mismatch {
			room[i] |= 1
		}
	}
	h := hashOf(o.seed, first, room)
	o.sum += h
	t.hash += h
}

// extend adds n numbers and returns the place for their results.
func (o *origin) extend(first uint64, n int) []uint64 {
	i := o.runBefore(first)
	if i < 0 || first-o.runs[i].first != uint64(len(o.runs[i].results)) {
		i++
		o.runs = slices.Insert(o.runs, i, run{first: first, results: o.idle[:0], array: o.idle})
		o.idle = nil
	}
	r := &o.runs[i]
	at := len(r.results)
	r.grow(at + n)
	r.results = r.results[:at+n]
	return r.results[at:]
}

// grow makes room for n results.
func (r *run) grow(n int) {
	isWaste := cap(r.array) > 16*max(arrayMin, n)
	switch {
	case n <= cap(r.results) && !isWaste:
	case n <= cap(r.array)/2 && !isWaste: // half of it is free, so a result moves once at most
		r.results = append(r.array[:0], r.results...)
	default:
		r.array = append(make([]uint64, 0, max(arrayMin, 2*n)), r.results...)
		r.results = r.array
	}
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

// Clone returns a copy that never changes when the table does. For who else uses
// the table it is a change.
func (t *Table) Clone() *Table {
	c := &Table{origins: slices.Clone(t.origins), hash: t.hash}
	for i := range c.origins {
		o := &c.origins[i]
		o.runs = slices.Clone(o.runs)
		for j := range o.runs {
			// Without capacity, the copy cannot append where the table does.
			o.runs[j].results, o.runs[j].array = slices.Clip(o.runs[j].results), nil
			t.origins[i].runs[j].array = nil
		}
		o.idle = nil
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
		sum += hashOf(o.seed, r.first, r.results)
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

// hashOf is the sum of the hashes of consecutive numbers with their results. A
// number and its result go into one step: the origin's seed spreads the numbers.
func hashOf(seed, first uint64, results []uint64) (sum uint64) {
	for i, v := range results {
		sum += mix.Uint64(seed+first+uint64(i), v)
	}
	return sum
}
