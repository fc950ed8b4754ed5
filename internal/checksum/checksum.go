// Package checksum guards what members say to each other against bits that flip
// on the way.
//
// TCP's own checksum has 16 bits and is weak: of damaged segments about one in
// 65,536 passes. A message that is damaged and still decodes would break
// consensus without a trace, or have a member told that it was removed. So every
// message of PeerService that says anything has a CRC-32C over the rest of it,
// which is checked before anything is made of it. Only the statuses that end
// streams and calls have none: gRPC carries them in trailers. It is no protection against
// malice: whoever can forge a message can seal it too.
//
// The checksum is one of content, not of encoding: the receiver computes it over
// what it has decoded. Damage that changes no content passes, and harms nothing.
// Sender and receiver must encode alike what is nested; they do, as they speak
// one version of the protocol. A hello is also the same to an older version that
// does not know its last fields, so that it can refuse it for the right reason.
package checksum

import (
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Message has a field named crc for its checksum.
type Message interface {
	proto.Message
	GetCrc() uint32
}

// Of returns the checksum of bytes.
func Of(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// Seal sets a message's checksum. Nobody else may use the message meanwhile, and
// what it says must not change afterwards.
func Seal(m Message) {
	crc := content(m)
	if frame, ok := m.(*kvpb.MessagesRequest); ok {
		frame.Crc = crc
		return
	}
	m.ProtoReflect().Set(field(m), protoreflect.ValueOfUint32(crc))
}

// Check returns an ErrInvalid if a message is not what its sender has sealed.
// Nobody else may use the message meanwhile.
func Check(m Message) error {
	if got, want := m.GetCrc(), content(m); got != want {
		return fmt.Errorf("%w: %s with checksum %08x, its content has %08x", fault.ErrInvalid,
			m.ProtoReflect().Descriptor().Name(), got, want)
	}
	return nil
}

// content returns the checksum that a message should have. Frames are many and
// large, so they are neither marshalled again nor looked at by reflection.
func content(m Message) uint32 {
	if frame, ok := m.(*kvpb.MessagesRequest); ok {
		return frameContent(frame)
	}
	r, crc := m.ProtoReflect(), field(m)
	set := r.Get(crc)
	r.Clear(crc)
	sum := Of(marshal(m))
	r.Set(crc, set)
	return sum
}

func field(m Message) protoreflect.FieldDescriptor {
	return m.ProtoReflect().Descriptor().Fields().ByName("crc")
}

// frameContent says of every list how long it is, and of everything in it, so
// that no content has the bytes of another.
func frameContent(frame *kvpb.MessagesRequest) uint32 {
	var hello []byte
	if h := frame.GetHello(); h != nil {
		hello = marshal(h)
	}
	crc := addBytes(0, hello)
	for _, list := range [...][][]byte{frame.GetMessages(), frame.GetProposals()} {
		crc = addNumber(crc, uint64(len(list)))
		for _, data := range list {
			crc = addBytes(crc, data)
		}
	}
	var standing []byte
	if s := frame.GetStanding(); s != nil {
		standing = marshal(s)
	}
	crc = addBytes(crc, standing)
	crc = addNumber(crc, uint64(len(frame.GetRefusals())))
	for _, r := range frame.GetRefusals() {
		crc = addNumber(crc, r.GetFirstSequence())
	}
	return crc
}

func addBytes(crc uint32, data []byte) uint32 {
	return crc32.Update(addNumber(crc, uint64(len(data))), castagnoli, data)
}

// addNumber is crc32.Update with the number's eight bytes, which would have to
// be on the heap for that.
func addNumber(crc uint32, v uint64) uint32 {
	crc = ^crc
	for range 8 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return ^crc
}

func marshal(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil // a string that is no UTF-8: nobody can send or have received it
	}
	return data
}
