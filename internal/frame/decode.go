package frame

import (
	"encoding/binary"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// Decode returns what a frame says. All payloads alias the bytes, which must not
// change any more. An error is an ErrInvalid, and says that they are not as a
// member has sent them, or that it breaks the protocol.
func Decode(data []byte) (Frame, error) {
	body, err := open(data)
	if err != nil {
		return Frame{}, err
	}
	n, err := count(body)
	if err != nil {
		return Frame{}, err
	}
	d := newDecoder(n)
	err = d.decode(body)
	return d.frame, err
}

// open checks a frame's checksum and returns what is before it.
func open(data []byte) ([]byte, error) {
	n := len(data) - checksumSize
	if n < 0 || data[n] != tagChecksum {
		return nil, invalid("of %d bytes ends without a checksum", len(data))
	}
	if got, want := binary.LittleEndian.Uint32(data[n+1:]), checksum.Of(data[:n]); got != want {
		return nil, invalid("with checksum %08x, its content has %08x", got, want)
	}
	return data[:n], nil
}

// counts say how much memory a frame needs.
type counts struct{ messages, entries, proposals, refusals int }

// count looks at a frame before memory is spent on it.
func count(body []byte) (counts, error) {
	var n counts
	r := reader{data: body}
	for r.next() {
		switch r.tag {
		case tagMessages:
			n.messages++
			for m := (reader{data: r.bytes()}); m.next(); {
				if m.tag == tagEntries {
					n.entries++
				}
			} // what is malformed is found when it is decoded
		case tagProposals:
			n.proposals++
		case tagRefusals:
			n.refusals++
		}
	}
	if n.messages > MessagesMax || n.entries > EntriesMax || n.proposals > BatchesMax || n.refusals > RefusalsMax {
		return n, invalid("of %d messages, %d entries, %d batches and %d refusals",
			n.messages, n.entries, n.proposals, n.refusals)
	}
	return n, nil
}

// A message is a raft message and what its pointers point to.
type message struct {
	pb.Message
	typ                                                      pb.MessageType
	reject                                                   bool
	to, from, term, logTerm, index, commit, rejectHint, vote uint64
}

// An entry likewise.
type entry struct {
	pb.Entry
	typ         pb.EntryType
	term, index uint64
}

// A decoder fills a frame from slabs, of which it takes what is next.
type decoder struct {
	frame    Frame
	messages []message
	entries  []entry
	pointers []*pb.Entry // to entries
}

func newDecoder(n counts) *decoder {
	d := new(decoder)
	if n.messages > 0 {
		d.frame.Messages = make([]*pb.Message, 0, n.messages)
		d.messages = make([]message, n.messages)
	}
	if n.entries > 0 {
		d.entries = make([]entry, n.entries)
		d.pointers = make([]*pb.Entry, n.entries)
	}
	if n.proposals > 0 {
		d.frame.Proposals = make([][]byte, 0, n.proposals)
	}
	if n.refusals > 0 {
		d.frame.Refusals = make([]uint64, 0, n.refusals)
	}
	return d
}

func (d *decoder) decode(body []byte) error {
	f := &d.frame
	r := reader{data: body}
	for r.next() {
		switch r.tag {
		case tagMessages:
			m, err := d.message(r.bytes())
			if err != nil {
				return err
			}
			f.Messages = append(f.Messages, m)
		case tagProposals:
			f.Proposals = append(f.Proposals, r.bytes())
		case tagRefusals:
			first, err := decodeRefusal(r.bytes())
			if err != nil {
				return err
			}
			f.Refusals = append(f.Refusals, first)
		case tagStanding:
			if f.Standing == nil {
				f.Standing = new(kvpb.Standing)
			}
			// Rare, and small: there is no leader.
			if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(r.bytes(), f.Standing); err != nil {
				return invalid("with a malformed standing: %v", err)
			}
		default:
			return r.unknown("a frame")
		}
	}
	return r.err("a frame")
}

func (d *decoder) message(data []byte) (*pb.Message, error) {
	m := &d.messages[0]
	d.messages = d.messages[1:]
	n := 0 // entries
	r := reader{data: data}
	for r.next() {
		switch r.tag {
		case tagType:
			m.typ = pb.MessageType(r.value)
			m.Type = &m.typ
		case tagTo:
			m.to = r.value
			m.To = &m.to
		case tagFrom:
			m.from = r.value
			m.From = &m.from
		case tagTerm:
			m.term = r.value
			m.Term = &m.term
		case tagLogTerm:
			m.logTerm = r.value
			m.LogTerm = &m.logTerm
		case tagIndex:
			m.index = r.value
			m.Index = &m.index
		case tagEntries:
			e, err := d.entry(r.bytes())
			if err != nil {
				return nil, err
			}
			d.pointers[n] = e
			n++
		case tagCommit:
			m.commit = r.value
			m.Commit = &m.commit
		case tagReject:
			m.reject = protowire.DecodeBool(r.value)
			m.Reject = &m.reject
		case tagRejectHint:
			m.rejectHint = r.value
			m.RejectHint = &m.rejectHint
		case tagContext:
			m.Context = r.bytes()
		case tagVote:
			m.vote = r.value
			m.Vote = &m.vote
		default:
			return nil, r.unknown("a message")
		}
	}
	if n > 0 {
		m.Entries = d.pointers[:n:n] // raft may append to it
		d.pointers = d.pointers[n:]
	}
	return &m.Message, r.err("a message")
}

func (d *decoder) entry(data []byte) (*pb.Entry, error) {
	e := &d.entries[0]
	d.entries = d.entries[1:]
	r := reader{data: data}
	for r.next() {
		switch r.tag {
		case tagEntryType:
			e.typ = pb.EntryType(r.value)
			e.Type = &e.typ
		case tagEntryTerm:
			e.term = r.value
			e.Term = &e.term
		case tagEntryIndex:
			e.index = r.value
			e.Index = &e.index
		case tagEntryData:
			e.Data = r.bytes()
		default:
			return nil, r.unknown("an entry")
		}
	}
	return &e.Entry, r.err("an entry")
}

func decodeRefusal(data []byte) (first uint64, err error) {
	r := reader{data: data}
	for r.next() {
		if r.tag != tagFirstSequence {
			return 0, r.unknown("a refusal")
		}
		first = r.value
	}
	return first, r.err("a refusal")
}

// A reader takes the fields of a protobuf message one by one. It keeps offsets,
// because each store of a pointer is one that the garbage collector may want to
// know of: half of the time, before.
type reader struct {
	data      []byte
	at        int // where the next field begins
	malformed bool
	tag       uint64 // of the present field
	value     uint64 // if it is a number
	from      int    // where its bytes begin, if it is bytes
}

// next goes to the next field, if there is one and it is well formed.
func (r *reader) next() bool {
	if r.at == len(r.data) {
		return false
	}
	if r.tag = r.varint(); r.malformed {
		return false
	}
	r.value = r.varint()
	switch protowire.Type(r.tag & 7) {
	case protowire.VarintType:
	case protowire.BytesType:
		if r.from = r.at; r.value > uint64(len(r.data)-r.at) {
			r.malformed = true
			return false
		}
		r.at += int(r.value)
	default:
		r.malformed = true // no field that we know has another type
	}
	return !r.malformed
}

// bytes returns the present field's. They cannot grow into what follows.
func (r *reader) bytes() []byte { return r.data[r.from:r.at:r.at] }

func (r *reader) varint() uint64 {
	if r.at < len(r.data) && r.data[r.at] < 0x80 {
		r.at++
		return uint64(r.data[r.at-1])
	}
	return r.longVarint()
}

func (r *reader) longVarint() uint64 {
	v, n := protowire.ConsumeVarint(r.data[r.at:])
	if n < 0 {
		r.malformed = true
		return 0
	}
	r.at += n
	return v
}

// err returns why next has come to an end.
func (r *reader) err(of string) error {
	if r.malformed {
		return invalid("with a malformed field of %s", of)
	}
	return nil
}

// unknown refuses the present field: of a later version, perhaps, but what it
// means cannot be judged.
func (r *reader) unknown(of string) error {
	return invalid("with an unknown field of %s, number %d", of, r.tag>>3)
}
