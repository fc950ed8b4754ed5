// Package frame is the codec of the message stream between members: what goes
// over it, as bytes and back, without reflection and without a copy of its own.
//
// A frame is a MessagesRequest of proto/raftkv/v1/peer.proto, with raftpb.Messages
// inside, and any protobuf library reads it. Only the code is another one. The
// generated code costs a microsecond for a heartbeat and five allocations for an
// entry, since raftpb has a pointer for every number; it copies a payload three
// times on each side; and it cannot alias what it decodes. One field has its
// place: the checksum is the last five bytes, and is the CRC-32C of all before
// it. So it is computed in one pass over the bytes that are sent and received,
// and no damage can move it.
//
// Who owns which bytes:
//   - Encode copies no payload of aliasBytesMin or more: the buffers that it hands
//     to gRPC are those of the entries and batches, which never change once they
//     are in the log or in the outbox. All else is in one buffer of its own, that
//     gRPC frees.
//   - The codec brings a frame that has arrived into one piece of memory, which
//     belongs to the garbage collector. That is the only copy.
//   - What Decode returns aliases that piece, and so does the log, as long as one
//     of the frame's entries is in it. Nearly always that is the whole frame:
//     members that send entries send little else. The structs are allocated for a
//     frame at once, so entries keep each other's too. A log is compacted from its
//     beginning, so they go together.
//
// The package knows syntax alone. It refuses what it does not know, which nobody
// could judge, and more of anything than a sender may put into a frame, before
// memory is spent on it. What the messages say is judged by internal/firewall.
package frame

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What one frame holds at most. Senders keep to it, and receivers refuse more.
const (
	MessagesMax  = 1024
	BatchesMax   = 4096
	RefusalsMax  = 4096
	EntriesMax   = 1 << 18 // in all messages together; see below
	checksumSize = 5       // a tag and four bytes
)

// Of EntriesMax: raft fills a message up to MaxSizePerMsg (256 KiB), and an entry
// has more than four bytes, a term, an index and nearly always data. What is
// larger has a frame of its own, and all others together are smaller than that.
// Without the bound a frame of two-byte entries would decode to a hundred times
// its size.

// A Frame is what one member says to another at once. The zero Frame says
// nothing, which tells that the stream lives. The hello that opens a stream is
// none: it goes as generated code writes it, so that every version reads it.
type Frame struct {
	Messages  []*pb.Message
	Proposals [][]byte // batches that the receiver, as leader, shall propose
	Refusals  []uint64 // the first numbers of the receiver's batches that were not taken
	Standing  *kvpb.Standing
}

// IsPing reports whether a frame carries nothing for raft or the outbox.
func (f *Frame) IsPing() bool {
	return len(f.Messages)+len(f.Proposals)+len(f.Refusals) == 0
}

// Tags of the fields, as they are on the wire: number and wire type.
const (
	tagMessages  = 2<<3 | 2
	tagProposals = 3<<3 | 2
	tagRefusals  = 4<<3 | 2
	tagChecksum  = 5<<3 | 5
	tagStanding  = 6<<3 | 2

	tagFirstSequence = 1 << 3 // of a Refusal
)

// Tags of a raftpb.Message, without the two that no stream carries: snapshot,
// which has a way of its own, and responses, by which raft talks to itself.
const (
	tagType       = 1 << 3
	tagTo         = 2 << 3
	tagFrom       = 3 << 3
	tagTerm       = 4 << 3
	tagLogTerm    = 5 << 3
	tagIndex      = 6 << 3
	tagEntries    = 7<<3 | 2
	tagCommit     = 8 << 3
	tagReject     = 10 << 3
	tagRejectHint = 11 << 3
	tagContext    = 12<<3 | 2
	tagVote       = 13 << 3
)

// Tags of a raftpb.Entry.
const (
	tagEntryType  = 1 << 3
	tagEntryTerm  = 2 << 3
	tagEntryIndex = 3 << 3
	tagEntryData  = 4<<3 | 2
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: frame %s", fault.ErrInvalid, fmt.Sprintf(format, args...))
}

// name is how the codec is asked for, as a part of the content type.
const name = "raftkv"

// Bytes are those of a frame that has come in, for Decode. They are not looked
// at before, because an error of a codec is an error of gRPC's to the sender, and
// to the receiver no reason to blame it.
type Bytes []byte

// Option has a call's messages pass the codec.
func Option() grpc.CallOption { return grpc.CallContentSubtype(name) }

// IsSpoken reports whether the context is that of a stream whose client has asked
// for the codec. If not, gRPC can neither send a Frame on it nor receive Bytes.
func IsSpoken(ctx context.Context) bool {
	return slices.Contains(metadata.ValueFromIncomingContext(ctx, "content-type"), "application/grpc+"+name)
}

// A codec sends *Frame, receives *Bytes, and leaves all else to protobuf.
type codec struct{}

// registered is there for what makes it: gRPC wants to know a codec before it is
// used, and has no other way for a server to have one for single calls.
var registered = register()

func register() bool {
	encoding.RegisterCodecV2(codec{})
	return true
}

// Name is part of gRPC's interface.
func (codec) Name() string { return name }

// Marshal is part of gRPC's interface.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*Frame); ok {
		return f.Encode()
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

// Unmarshal is part of gRPC's interface.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if b, ok := v.(*Bytes); ok {
		*b = materialize(data)
		return nil
	}
	return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
}

// materialize is Materialize on memory that nobody clears first.
func materialize(data mem.BufferSlice) []byte {
	parts := make([][]byte, 0, 16) // 16 KiB each, mostly
	for _, b := range data {
		parts = append(parts, b.ReadOnlyData())
	}
	return bytes.Join(parts, nil)
}
