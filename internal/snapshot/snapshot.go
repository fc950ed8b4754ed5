// Package snapshot turns the state of the state machine into parts of bounded
// size, as the message SnapshotPart in command.proto describes them, and parts
// back into a state.
package snapshot

import (
	"iter"

	"google.golang.org/protobuf/encoding/protowire"

	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/mix"
)

// The fields of the messages SnapshotPart and SnapshotRecord.
const (
	partRecords = 1
	partOrigins = 2

	recordKey      = 1
	recordValue    = 2
	recordRevision = 3

	// fieldBytes is the most that a field takes beside its content: a tag of one
	// byte and a length or number.
	fieldBytes = 1 + 5
)

// StateHash combines the hashes of what a state consists of, and its revision.
func StateHash(keys, table, roster, revision uint64) uint64 {
	return mix.Uint64(mix.Uint64(mix.Uint64(mix.Uint64(0, keys), table), roster), revision)
}

// Parts returns a state in parts of at most partBytes, or a single record where
// that alone has more. An empty state has no parts. Each part is a slice of its
// own, so the caller may keep it. The view and the table must not change while
// the parts are made; both are made for that (Freeze, Clone).
//
// Keys come as they stand in the view, in no order that another process would have.
func Parts(view *keyspace.View, table *dedup.Table, partBytes int) iter.Seq[[]byte] {
	return PartsOf(view.All(), view.Bytes(), table, partBytes)
}

// PartsOf is Parts for items in an order that the caller chooses, and about so many
// bytes of them.
func PartsOf(items iter.Seq[keyspace.Item], itemBytes int64, table *dedup.Table, partBytes int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		w := partWriter{partBytes: partBytes, yield: yield, left: itemBytes}
		for item := range items {
			if !w.reserve(recordSize(item)) {
				return
			}
			w.buf = appendRecord(w.buf, item)
		}
		for origin := range table.Parts(partBytes - fieldBytes) {
			if !w.reserve(fieldSize(len(origin))) {
				return
			}
			w.buf = appendBytes(w.buf, partOrigins, origin)
		}
		w.flush()
	}
}

// A partWriter fills one part after the other.
type partWriter struct {
	partBytes int
	yield     func([]byte) bool
	buf       []byte
	left      int64 // bytes of records still to come, about: a small state needs no large buffer
}

// reserve makes room for n bytes and reports whether the caller wants more
// parts.
func (w *partWriter) reserve(n int) bool {
	if len(w.buf)+n > w.partBytes && !w.flush() {
		return false
	}
	if w.buf == nil {
		w.buf = make([]byte, 0, max(n, int(min(int64(w.partBytes), w.left))))
	}
	w.left -= int64(n)
	return true
}

func (w *partWriter) flush() bool {
	if len(w.buf) == 0 {
		return true
	}
	part := w.buf
	w.buf = nil
	return w.yield(part)
}

// recordSize is the size of an item as a record of a part.
func recordSize(item keyspace.Item) int { return fieldSize(bodySize(item)) }

// bodySize is the size of a SnapshotRecord; as in every proto3 encoding an
// empty value takes no bytes.
func bodySize(item keyspace.Item) int {
	n := fieldSize(len(item.Key)) + 1 + protowire.SizeVarint(item.Revision)
	if len(item.Value) > 0 {
		n += fieldSize(len(item.Value))
	}
	return n
}

func appendRecord(buf []byte, item keyspace.Item) []byte {
	buf = protowire.AppendTag(buf, partRecords, protowire.BytesType)
	buf = protowire.AppendVarint(buf, uint64(bodySize(item)))
	buf = protowire.AppendTag(buf, recordKey, protowire.BytesType)
	buf = protowire.AppendString(buf, item.Key)
	if len(item.Value) > 0 {
		buf = protowire.AppendTag(buf, recordValue, protowire.BytesType)
		buf = protowire.AppendString(buf, item.Value)
	}
	buf = protowire.AppendTag(buf, recordRevision, protowire.VarintType)
	return protowire.AppendVarint(buf, item.Revision)
}

func fieldSize(n int) int { return 1 + protowire.SizeBytes(n) }

func appendBytes(buf []byte, num protowire.Number, b []byte) []byte {
	buf = protowire.AppendTag(buf, num, protowire.BytesType)
	return protowire.AppendBytes(buf, b)
}
