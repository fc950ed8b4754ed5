package dedup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
)

// The fields of the messages DedupOrigin and DedupRun.
const (
	originID         = 1
	originAnsweredTo = 2
	originRuns       = 3

	runFirst   = 1
	runResults = 2

	resultBytes = 8
	// runBytes is the most that a run takes beside its results: a length of
	// three bytes holds 2 MiB, four times the results of a full window.
	runBytes = (1 + 3) + (1 + 8) + (1 + 3)
)

// Parts returns the table as DedupOrigin messages, at least one for each
// origin, each of at most bytesMax bytes unless it has a single result. The
// messages are a function of the table's content, whatever its history. They
// are the caller's to keep; the table must not change meanwhile (see Clone).
func (t *Table) Parts(bytesMax int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range t.origins {
			w := partWriter{o: &t.origins[i], bytesMax: bytesMax, yield: yield}
			if !w.write() {
				return
			}
		}
	}
}

// A partWriter encodes one origin. It gathers consecutive numbers into runs of
// its own: those of the table may touch, depending on history.
type partWriter struct {
	o        *origin
	bytesMax int
	yield    func([]byte) bool

	buf     []byte // the message so far
	head    int    // how much of it is not runs
	first   uint64 // the first number of the run that is being gathered
	results []uint64
}

// write yields the origin's messages and reports whether the caller wants more.
func (w *partWriter) write() bool {
	w.begin()
	for _, r := range w.o.runs {
		for i, v := range r.results {
			if !w.add(r.first+uint64(i), v) {
				return false
			}
		}
	}
	w.endRun()
	return w.yield(w.buf)
}

func (w *partWriter) begin() {
	w.buf = appendFixed(nil, originID, w.o.id)
	if w.o.answeredTo != 0 {
		w.buf = appendFixed(w.buf, originAnsweredTo, w.o.answeredTo)
	}
	w.head = len(w.buf)
}

func (w *partWriter) add(seq, v uint64) bool {
	if n := len(w.results); n > 0 && seq-w.first != uint64(n) {
		w.endRun()
	}
	full := len(w.buf)+runBytes+(len(w.results)+1)*resultBytes > w.bytesMax
	if isEmpty := len(w.buf) == w.head && len(w.results) == 0; full && !isEmpty {
		w.endRun()
		if !w.yield(w.buf) {
			return false
		}
		w.begin()
	}
	if len(w.results) == 0 {
		w.first = seq
	}
	w.results = append(w.results, v)
	return true
}

func (w *partWriter) endRun() {
	if len(w.results) == 0 {
		return
	}
	packed := len(w.results) * resultBytes
	w.buf = appendLen(w.buf, originRuns, 1+8+1+protowire.SizeBytes(packed))
	w.buf = appendFixed(w.buf, runFirst, w.first)
	w.buf = appendLen(w.buf, runResults, packed)
	for _, v := range w.results {
		w.buf = protowire.AppendFixed64(w.buf, v)
	}
	w.results = w.results[:0]
}

func appendFixed(buf []byte, num protowire.Number, v uint64) []byte {
	buf = protowire.AppendTag(buf, num, protowire.Fixed64Type)
	return protowire.AppendFixed64(buf, v)
}

func appendLen(buf []byte, num protowire.Number, n int) []byte {
	buf = protowire.AppendTag(buf, num, protowire.BytesType)
	return protowire.AppendVarint(buf, uint64(n))
}

var errMalformed = errors.New("malformed origin of a deduplication table")

// Load adds a message of Parts to the table, in the order in which Parts
// returns them. It checks all of it. After an error the table is of no use.
func (t *Table) Load(msg []byte) error {
	id, rest, ok := takeFixed(msg, originID)
	if !ok {
		return errMalformed
	}
	answeredTo, rest, _ := takeFixed(rest, originAnsweredTo) // absent if 0
	o, err := t.loading(id, answeredTo)
	if err != nil {
		return err
	}
	before := o.sum
	for len(rest) > 0 {
		var body []byte
		if body, rest, ok = takeBytes(rest, originRuns); !ok {
			return errMalformed
		}
		if err := o.loadRun(body); err != nil {
			return err
		}
	}
	t.hash += o.sum - before
	return nil
}

// loading returns the origin to which a message belongs: the one before it
// again, or a new one.
func (t *Table) loading(id, answeredTo uint64) (*origin, error) {
	if n := len(t.origins); n > 0 && t.origins[n-1].id >= id {
		last := &t.origins[n-1]
		if last.id != id || last.answeredTo != answeredTo {
			return nil, fmt.Errorf("origin %d, watermark %d after origin %d, watermark %d: %w",
				id, answeredTo, last.id, last.answeredTo, errMalformed)
		}
		return last, nil
	}
	if id == 0 || len(t.origins) == OriginsMax {
		return nil, fmt.Errorf("origin %d after %d others: %w", id, len(t.origins), errMalformed)
	}
	o := newOrigin(id, answeredTo)
	t.origins = append(t.origins, *o)
	t.hash += o.sum
	return &t.origins[len(t.origins)-1], nil
}

// loadRun adds a DedupRun message.
func (o *origin) loadRun(body []byte) error {
	first, rest, ok := takeFixed(body, runFirst)
	if !ok {
		return errMalformed
	}
	packed, rest, ok := takeBytes(rest, runResults)
	if !ok || len(rest) > 0 || len(packed)%resultBytes != 0 {
		return errMalformed
	}
	if n := uint64(len(packed) / resultBytes); !o.admits(first, n) {
		return fmt.Errorf("%d results from %d, watermark %d: %w", n, first, o.answeredTo, errMalformed)
	}
	room := o.extend(first, len(packed)/resultBytes)
	for i := range room {
		room[i] = binary.LittleEndian.Uint64(packed[i*resultBytes:])
	}
	o.sum += hashOf(o.seed, first, room)
	return nil
}

// admits reports whether n numbers from first are in the window and after all
// that the origin has.
func (o *origin) admits(first, n uint64) bool {
	if !o.isInWindow(first, n) {
		return false
	}
	if len(o.runs) == 0 {
		return true
	}
	last := o.runs[len(o.runs)-1]
	return first > last.first && first-last.first >= uint64(len(last.results))
}

// takeFixed takes the field with a number off a message if it comes next.
func takeFixed(b []byte, num protowire.Number) (v uint64, rest []byte, ok bool) {
	got, typ, n := protowire.ConsumeTag(b)
	if n < 0 || got != num || typ != protowire.Fixed64Type {
		return 0, b, false
	}
	v, m := protowire.ConsumeFixed64(b[n:])
	if m < 0 {
		return 0, b, false
	}
	return v, b[n+m:], true
}

func takeBytes(b []byte, num protowire.Number) (v, rest []byte, ok bool) {
	got, typ, n := protowire.ConsumeTag(b)
	if n < 0 || got != num || typ != protowire.BytesType {
		return nil, b, false
	}
	v, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, b, false
	}
	return v, b[n+m:], true
}
