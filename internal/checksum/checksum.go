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
//
// Frames have the same checksum, but are too many and too large to be encoded
// twice: internal/frame looks at their bytes as they go and come.
package checksum

import (
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"example.com/raftkv/internal/fault"
)

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Message has a field named crc for its checksum.
type Message interface {
	proto.Message
	GetCrc() uint32
}

// Of returns the checksum of bytes.
func Of(data []byte) uint32 { return Add(0, data) }

// Add returns the checksum of bytes of which the first ones have the sum given.
func Add(sum uint32, data []byte) uint32 { return crc32.Update(sum, castagnoli, data) }

// Seal sets a message's checksum. Nobody else may use the message meanwhile, and
// what it says must not change afterwards.
func Seal(m Message) {
	m.ProtoReflect().Set(field(m), protoreflect.ValueOfUint32(content(m)))
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

// content returns the checksum that a message should have.
func content(m Message) uint32 {
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

func marshal(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil // a string that is no UTF-8: nobody can send or have received it
	}
	return data
}
