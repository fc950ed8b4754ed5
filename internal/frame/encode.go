package frame

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
)

const (
	// aliasBytesMin is the size from which on a payload is a buffer of its own. It
	// takes three small allocations and gRPC some work with the buffers; to copy
	// less is as fast (measured: even at 4 KiB for one payload, at 2 for several).
	aliasBytesMin = 2 << 10

	// pooledBytesMax is up to where gRPC's pool is worth while: it clears what it
	// hands out, and its next size is 1 MiB.
	pooledBytesMax = 32 << 10
)

// Encode returns the bytes of a frame for gRPC to send and to free. They alias
// the payloads, which must not change, ever; the frame itself may be used again.
// An error says that a message cannot go over a stream.
func (f *Frame) Encode() (mem.BufferSlice, error) {
	size, aliased, count := checksumSize, 0, 0
	alias := func(data []byte) {
		if len(data) >= aliasBytesMin {
			aliased += len(data)
			count++
		}
	}
	for _, m := range f.Messages {
		if m.Snapshot != nil || len(m.Responses) > 0 {
			return nil, fmt.Errorf("raftkv: encode frame: %v with a snapshot or responses", m.GetType())
		}
		size += 1 + protowire.SizeBytes(messageSize(m))
		for _, e := range m.Entries {
			alias(e.GetData())
		}
		alias(m.Context)
	}
	for _, data := range f.Proposals {
		size += 1 + protowire.SizeBytes(len(data))
		alias(data)
	}
	for _, first := range f.Refusals {
		size += 1 + protowire.SizeBytes(refusalSize(first))
	}
	if f.Standing != nil {
		size += 1 + protowire.SizeBytes(proto.Size(f.Standing))
	}
	var e encoder
	e.makeRoom(size-aliased, count)
	e.frame(f)
	return e.finish(), nil
}

// An encoder writes a frame: payloads as they are, all else into one buffer that
// is cut where they go.
type encoder struct {
	own    []byte // what was written of the buffer; never grows beyond its capacity
	buffer mem.Buffer
	cut    int // where in own the part begins that is not in parts yet
	crc    uint32
	parts  mem.BufferSlice
}

// makeRoom allocates for so many own bytes and aliases.
func (e *encoder) makeRoom(size, aliases int) {
	e.parts = make(mem.BufferSlice, 0, 2*aliases+1)
	if mem.IsBelowBufferPoolingThreshold(size) || size > pooledBytesMax {
		e.own = make([]byte, 0, size)
		e.buffer = mem.SliceBuffer(e.own[:size])
		return
	}
	pool := mem.DefaultBufferPool()
	room := pool.Get(size)
	e.own = (*room)[:0:size]
	e.buffer = mem.NewBuffer(room, pool)
}

func (e *encoder) frame(f *Frame) {
	for _, m := range f.Messages {
		e.length(tagMessages, messageSize(m))
		e.message(m)
	}
	for _, data := range f.Proposals {
		e.length(tagProposals, len(data))
		e.payload(data)
	}
	for _, first := range f.Refusals {
		e.length(tagRefusals, refusalSize(first))
		if first != 0 {
			e.uint(tagFirstSequence, &first)
		}
	}
	if f.Standing != nil {
		e.length(tagStanding, proto.Size(f.Standing))
		own, err := proto.MarshalOptions{}.MarshalAppend(e.own, f.Standing)
		if err != nil {
			panic(fmt.Sprintf("raftkv: BUG: %v", err)) // three numbers
		}
		e.own = own
	}
}

// finish seals the frame and returns its parts.
func (e *encoder) finish() mem.BufferSlice {
	e.crc = checksum.Add(e.crc, e.own[e.cut:])
	e.own = append(e.own, tagChecksum)
	e.own = binary.LittleEndian.AppendUint32(e.own, e.crc)
	if len(e.own) != e.buffer.Len() {
		panic(fmt.Sprintf("raftkv: BUG: frame has %d bytes of its own, not %d", len(e.own), e.buffer.Len()))
	}
	if e.cut == 0 {
		return append(e.parts, e.buffer)
	}
	e.parts = append(e.parts, e.buffer.Slice(e.cut, len(e.own)))
	e.buffer.Free() // the parts have references of their own
	return e.parts
}

func (e *encoder) message(m *pb.Message) {
	if m.Type != nil {
		e.number(tagType, uint64(*m.Type))
	}
	e.uint(tagTo, m.To)
	e.uint(tagFrom, m.From)
	e.uint(tagTerm, m.Term)
	e.uint(tagLogTerm, m.LogTerm)
	e.uint(tagIndex, m.Index)
	for _, entry := range m.Entries {
		e.length(tagEntries, entrySize(entry))
		if entry != nil {
			e.entry(entry)
		}
	}
	e.uint(tagCommit, m.Commit)
	if m.Reject != nil {
		e.number(tagReject, protowire.EncodeBool(*m.Reject))
	}
	e.uint(tagRejectHint, m.RejectHint)
	if m.Context != nil {
		e.length(tagContext, len(m.Context))
		e.payload(m.Context)
	}
	e.uint(tagVote, m.Vote)
}

func (e *encoder) entry(entry *pb.Entry) {
	if entry.Type != nil {
		e.number(tagEntryType, uint64(*entry.Type))
	}
	e.uint(tagEntryTerm, entry.Term)
	e.uint(tagEntryIndex, entry.Index)
	if entry.Data != nil {
		e.length(tagEntryData, len(entry.Data))
		e.payload(entry.Data)
	}
}

func (e *encoder) uint(tag byte, v *uint64) {
	if v != nil {
		e.number(tag, *v)
	}
}

func (e *encoder) number(tag byte, v uint64) {
	e.own = protowire.AppendVarint(append(e.own, tag), v)
}

func (e *encoder) length(tag byte, n int) { e.number(tag, uint64(n)) }

func (e *encoder) payload(data []byte) {
	if len(data) < aliasBytesMin {
		e.own = append(e.own, data...)
		return
	}
	e.crc = checksum.Add(e.crc, e.own[e.cut:])
	e.crc = checksum.Add(e.crc, data)
	e.parts = append(e.parts, e.buffer.Slice(e.cut, len(e.own)), mem.SliceBuffer(data))
	e.cut = len(e.own)
}

func messageSize(m *pb.Message) int {
	n := uintSize(m.To) + uintSize(m.From) + uintSize(m.Term) + uintSize(m.LogTerm) + uintSize(m.Index) +
		uintSize(m.Commit) + uintSize(m.RejectHint) + uintSize(m.Vote)
	if m.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*m.Type))
	}
	if m.Reject != nil {
		n += 2
	}
	if m.Context != nil {
		n += 1 + protowire.SizeBytes(len(m.Context))
	}
	for _, e := range m.Entries {
		n += 1 + protowire.SizeBytes(entrySize(e))
	}
	return n
}

// entrySize takes no entry at all for an empty one, as protobuf does.
func entrySize(e *pb.Entry) int {
	if e == nil {
		return 0
	}
	n := uintSize(e.Term) + uintSize(e.Index)
	if e.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*e.Type))
	}
	if e.Data != nil {
		n += 1 + protowire.SizeBytes(len(e.Data))
	}
	return n
}

func uintSize(v *uint64) int {
	if v == nil {
		return 0
	}
	return 1 + protowire.SizeVarint(*v)
}

func refusalSize(first uint64) int {
	if first == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(first)
}
