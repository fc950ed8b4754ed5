package frame

import (
	"bytes"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// FuzzDecode compares the decoder with generated code, which accepts more: what
// is unknown, and what streams do not carry.
func FuzzDecode(f *testing.F) {
	for _, fr := range frames() {
		data := encode(f, fr)
		f.Add(data[:len(data)-checksumSize])
	}
	for _, m := range []*pb.Message{
		{Snapshot: &pb.Snapshot{}}, {Responses: []*pb.Message{heartbeat()}},
	} {
		data, _ := proto.Marshal(m) // cannot fail
		f.Add(field(2, data...))
	}
	f.Add(field(2, append(field(7), field(7)...)...))
	f.Add(append(field(6, 8, 1), field(6, 16, 1)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		data := seal(body)
		before := bytes.Clone(data)
		got, err := Decode(data)
		want, ok := generated(body)
		if (err == nil) != ok {
			t.Fatalf("Decode: %v; generated code accepts: %v", err, ok)
		}
		if err != nil {
			return
		}
		if !equal(&got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		again, err := Decode(encode(t, &got))
		if err != nil || !equal(&again, want) {
			t.Fatalf("got %v, %v, once encoded again, want %v", again, err, want)
		}
		if !bytes.Equal(data, before) {
			t.Fatal("the bytes have changed")
		}
	})
}

// generated decodes a frame with generated code and looks for all that shall not
// be in one.
func generated(body []byte) (*Frame, bool) {
	r := new(kvpb.MessagesRequest)
	if proto.Unmarshal(body, r) != nil || r.Hello != nil || isUnknown(r) || hasChecksum(body) {
		return nil, false
	}
	f := &Frame{Proposals: r.Proposals, Standing: r.Standing}
	entries := 0
	for _, data := range r.Messages {
		m := new(pb.Message)
		if proto.Unmarshal(data, m) != nil || m.Snapshot != nil || m.Responses != nil || isUnknown(m) {
			return nil, false
		}
		for _, e := range m.Entries {
			if isUnknown(e) {
				return nil, false
			}
			entries++
		}
		f.Messages = append(f.Messages, m)
	}
	for _, r := range r.Refusals {
		if isUnknown(r) {
			return nil, false
		}
		f.Refusals = append(f.Refusals, r.FirstSequence)
	}
	return f, len(f.Messages) <= MessagesMax && entries <= EntriesMax && len(f.Proposals) <= BatchesMax && len(f.Refusals) <= RefusalsMax
}

func isUnknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

// hasChecksum reports whether the checksum's field is in a well formed body.
func hasChecksum(body []byte) bool {
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeField(body)
		if num == 5 && typ == protowire.Fixed32Type {
			return true
		}
		body = body[n:]
	}
	return false
}

// FuzzEncode compares the encoder with generated code, on frames that grow from
// a seed.
func FuzzEncode(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed, uint8(seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, size uint8) {
		want := grow(rand.New(rand.NewPCG(seed, 1)), int(size))
		data := encode(t, want)
		r := request(t, want)
		checksum.Seal(r)
		if n := proto.Size(r); r.Crc != 0 && n != len(data) {
			t.Errorf("%d bytes, want %d", len(data), n)
		}
		got := new(kvpb.MessagesRequest)
		if err := proto.Unmarshal(data, got); err != nil || !proto.Equal(got, r) {
			t.Errorf("generated code reads %v, %v, want %v", got, err, r)
		}
		decoded, err := Decode(data)
		if err != nil || !equal(&decoded, want) {
			t.Errorf("decoded %v, %v, want %v", decoded, err, want)
		}
	})
}

// grow returns some frame.
func grow(r *rand.Rand, size int) *Frame {
	number := func() *uint64 {
		if r.IntN(3) == 0 {
			return nil
		}
		return new(r.Uint64() >> r.IntN(65))
	}
	payload := func() []byte {
		if r.IntN(4) == 0 {
			return nil
		}
		return make([]byte, r.IntN(10)*r.IntN(200))
	}
	f := new(Frame)
	for range r.IntN(1 + size/8) {
		m := &pb.Message{
			To: number(), From: number(), Term: number(), LogTerm: number(), Index: number(), Commit: number(),
			RejectHint: number(), Vote: number(), Context: payload(),
		}
		if r.IntN(4) > 0 {
			m.Type, m.Reject = new(pb.MessageType(r.Uint32()>>r.IntN(33))), new(r.IntN(2) == 0)
		}
		for range r.IntN(1 + size/16) {
			e := &pb.Entry{Term: number(), Index: number(), Data: payload()}
			if r.IntN(2) == 0 {
				e.Type = new(pb.EntryType(r.Uint32() >> r.IntN(33)))
			}
			m.Entries = append(m.Entries, e)
		}
		f.Messages = append(f.Messages, m)
	}
	for range r.IntN(1 + size/16) {
		f.Proposals = append(f.Proposals, payload())
		f.Refusals = append(f.Refusals, r.Uint64()>>r.IntN(65))
	}
	if r.IntN(4) == 0 {
		f.Standing = &kvpb.Standing{RosterIndex: r.Uint64() >> r.IntN(65), HearsLeader: r.IntN(2) == 0, Asks: r.IntN(2) == 0}
	}
	return f
}
