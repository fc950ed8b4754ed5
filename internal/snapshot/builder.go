package snapshot

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/keyspace"
)

// ErrMalformed says that what arrived is not the snapshot that was announced.
// The receiver drops it and raft sends another.
var ErrMalformed = errors.New("raftkv: malformed snapshot")

// expectMin is for how many keys a Builder makes room before the first.
const expectMin = 1 << 14

// A Builder makes a state from the parts of a snapshot that another member
// sends. It believes nothing: every key is held to the protocol's limits, and
// there can be no more of them, and no more bytes, than were declared before
// the first part, so that the receiver can decide then whether it has the
// room. The deduplication table is bounded by itself: by dedup.OriginsMax and
// dedup.Window.
//
// That the parts are those of the sender's state is for the state hash to say,
// which comes with the snapshot's end.
type Builder struct {
	keysLeft  uint64
	bytesLeft uint64 // of keys and values
	expected  int    // keys that the keyspace has been told to expect
	keys      *keyspace.Keyspace
	table     *dedup.Table
	err       error // the first, which stays
}

// NewBuilder returns a Builder for a declared number of keys and of bytes in
// keys and values (keyspace.View has them as Len and DataBytes).
func NewBuilder(keys, sizeBytes uint64) *Builder {
	return &Builder{keysLeft: keys, bytesLeft: sizeBytes, keys: keyspace.New(), table: dedup.New()}
}

// Add takes in the next part and copies what it needs of it. Origins of the
// deduplication table must come in the order of Parts. After an error, which
// wraps ErrMalformed, the Builder returns only that error.
func (b *Builder) Add(part []byte) error {
	if b.err == nil {
		if err := b.addPart(part); err != nil {
			b.err = fmt.Errorf("%w: %w", ErrMalformed, err)
			b.keys, b.table = nil, nil // a failed snapshot need not keep its memory
		}
	}
	return b.err
}

// Finish returns the state, if it is all that was declared. The Builder is of
// no use afterwards.
func (b *Builder) Finish() (*keyspace.Keyspace, *dedup.Table, error) {
	if b.err == nil && (b.keysLeft != 0 || b.bytesLeft != 0) {
		b.err = fmt.Errorf("%w: %d keys and %d bytes are missing", ErrMalformed, b.keysLeft, b.bytesLeft)
	}
	if b.err != nil {
		return nil, nil, b.err
	}
	b.err = errors.New("raftkv: snapshot is finished")
	b.keys.Expect(0)
	return b.keys, b.table, nil
}

func (b *Builder) addPart(part []byte) error {
	for len(part) > 0 {
		num, typ, n := protowire.ConsumeTag(part)
		if n < 0 || typ != protowire.BytesType {
			return errors.New("bad field of a part")
		}
		body, m := protowire.ConsumeBytes(part[n:])
		if m < 0 {
			return errors.New("field of a part is cut off")
		}
		part = part[n+m:]
		var err error
		switch num {
		case partRecords:
			err = b.addRecord(body)
		case partOrigins:
			err = b.table.Load(body)
		default:
			err = fmt.Errorf("unknown field %d of a part", num)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) addRecord(body []byte) error {
	r, err := parseRecord(body)
	if err != nil {
		return err
	}
	size := uint64(len(r.key) + len(r.value))
	if b.keysLeft == 0 || size > b.bytesLeft {
		return errors.New("more keys or bytes than declared")
	}
	before := b.keys.Len()
	if before == b.expected {
		b.expect(before)
	}
	b.keys.Put(r.key, r.value, r.revision)
	if b.keys.Len() == before {
		return fmt.Errorf("key %q comes twice", r.key)
	}
	b.keysLeft--
	b.bytesLeft -= size
	return nil
}

// expect prepares for more keys than the so many that have come. What was declared is
// only a claim: room is made for a few times of what has come.
func (b *Builder) expect(keys int) {
	b.expected = keys + int(min(b.keysLeft, uint64(max(expectMin, 3*keys))))
	b.keys.Expect(b.expected)
}

type record struct {
	key, value []byte
	revision   uint64
}

// parseRecord reads a SnapshotRecord message: its fields in ascending order,
// none twice.
func parseRecord(body []byte) (record, error) {
	var r record
	for last := protowire.Number(0); len(body) > 0; {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 || num <= last {
			return record{}, errors.New("bad tag in a record")
		}
		last, body = num, body[n:]
		switch {
		case num == recordKey && typ == protowire.BytesType:
			r.key, n = protowire.ConsumeBytes(body)
		case num == recordValue && typ == protowire.BytesType:
			r.value, n = protowire.ConsumeBytes(body)
		case num == recordRevision && typ == protowire.VarintType:
			r.revision, n = protowire.ConsumeVarint(body)
		default:
			return record{}, fmt.Errorf("unknown field %d of a record", num)
		}
		if n < 0 {
			return record{}, errors.New("record is cut off")
		}
		body = body[n:]
	}
	if len(r.key) == 0 || len(r.key) > command.KeyBytesMax || len(r.value) > command.ValueBytesMax ||
		r.revision == 0 || r.revision > math.MaxUint64>>1 {
		return record{}, fmt.Errorf("key of %d bytes, value of %d, revision %d", len(r.key), len(r.value), r.revision)
	}
	return r, nil
}
