package checksum

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

func hello() *kvpb.Hello {
	return &kvpb.Hello{
		From: &kvpb.Identity{
			Protocol: 1, ClusterName: "cluster", ClusterId: []byte("0123456789abcdef"), Id: 3, RaftId: 3<<32 | 3,
			Nonce: []byte("fedcba9876543210"), Addr: "n3:1", HeartbeatMs: 100, ElectionMs: 1000,
		},
		ToId: 2, ToRaftId: 2<<32 | 2, ToNonce: []byte("0123456701234567"),
	}
}

func frame() *kvpb.MessagesRequest {
	return &kvpb.MessagesRequest{
		Messages:  [][]byte{[]byte("append"), {}, []byte("heartbeat")},
		Proposals: [][]byte{[]byte("batch"), []byte("other")},
		Refusals:  []*kvpb.Refusal{{FirstSequence: 7}, {FirstSequence: 1 << 40}},
	}
}

func roster() *kvpb.Roster {
	return &kvpb.Roster{
		ClusterId: []byte("0123456789abcdef"), Counter: 3, Index: 9, ConfState: []byte("conf"),
		Members: []*kvpb.RosterMember{{RaftId: 1<<32 | 1, Addr: "n1:1", Nonce: []byte("fedcba9876543210")}},
		Changes: [][]byte{[]byte("0123456701234567")},
	}
}

// messages returns one of each kind that has a checksum, by name.
func messages() map[string]Message {
	h := frame()
	h.Hello = hello()
	return map[string]Message{
		"frame":             frame(),
		"frame and hello":   h,
		"accepted":          &kvpb.MessagesResponse{Identity: hello().From},
		"hello":             &kvpb.HelloRequest{Hello: hello()},
		"answer":            &kvpb.HelloResponse{Identity: hello().From, Member: roster().Members[0]},
		"snapshot":          &kvpb.SnapshotHeader{Hello: hello(), Message: []byte("snap"), Roster: roster(), Revision: 5, Keys: 6, SizeBytes: 7},
		"founding":          &kvpb.FoundRequest{Hello: hello(), Roster: roster()},
		"founded":           &kvpb.FoundRequest{Commit: true},
		"changed":           &kvpb.ForwardResponse{Roster: roster()},
		"add learner":       &kvpb.ForwardRequest{Hello: hello(), ChangeId: []byte("id"), Change: &kvpb.ForwardRequest_AddLearner{AddLearner: &kvpb.AddLearnerRequest{Id: 4, Addr: "n4:1"}}},
		"change membership": &kvpb.ForwardRequest{Change: &kvpb.ForwardRequest_ChangeMembership{ChangeMembership: &kvpb.ChangeMembershipRequest{Voters: []uint64{1, 2, 300}, Retain: true}}},
	}
}

// TestEveryFlippedBitIsFound, in every kind of message, its checksum included:
// unless it changes nothing that the message says.
func TestEveryFlippedBitIsFound(t *testing.T) {
	for name, m := range messages() {
		Seal(m)
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for bit := range 8 * len(data) {
			damaged := bytes.Clone(data)
			damaged[bit/8] ^= 1 << (bit % 8)
			got := m.ProtoReflect().New().Interface().(Message)
			if proto.Unmarshal(damaged, got) != nil {
				continue // nobody comes to see it
			}
			err := Check(got)
			if err == nil && !proto.Equal(m, got) {
				t.Errorf("%s: bit %d of byte %d makes %v of %v, and it passes", name, bit%8, bit/8, got, m)
			}
			if err != nil && !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: Check = %v, want an ErrInvalid", name, err)
			}
			if err != nil {
				refused++
			}
		}
		if refused < 32 {
			t.Errorf("%s: %d damaged messages were refused, want at least its checksum's bits", name, refused)
		}
	}
}

func TestSealedMessagePasses(t *testing.T) {
	for name, m := range messages() {
		if Check(m) == nil {
			t.Errorf("%s: passes without being sealed", name)
		}
		before := proto.Clone(m)
		Seal(m)
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got := m.ProtoReflect().New().Interface().(Message)
		if err := proto.Unmarshal(data, got); err != nil {
			t.Fatal(err)
		}
		for range 2 { // Check leaves the message as it is
			if err := Check(got); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		m.ProtoReflect().Clear(field(m))
		if !proto.Equal(m, before) {
			t.Errorf("%s: Seal has changed more than the checksum: %v, was %v", name, m, before)
		}
	}
}

// TestNothingMovesWithinAFrame: the same bytes in another list, order or division
// are another frame.
func TestNothingMovesWithinAFrame(t *testing.T) {
	for name, change := range map[string]func(f *kvpb.MessagesRequest){
		"a message becomes a proposal": func(f *kvpb.MessagesRequest) {
			f.Proposals = append([][]byte{f.Messages[2]}, f.Proposals...)
			f.Messages = f.Messages[:2]
		},
		"a proposal becomes a message": func(f *kvpb.MessagesRequest) {
			f.Messages = append(f.Messages, f.Proposals[0])
			f.Proposals = f.Proposals[1:]
		},
		"all messages become proposals": func(f *kvpb.MessagesRequest) {
			f.Messages, f.Proposals = nil, append(f.Messages, f.Proposals...)
		},
		"the lists change places":  func(f *kvpb.MessagesRequest) { f.Messages, f.Proposals = f.Proposals, f.Messages },
		"two messages swap":        func(f *kvpb.MessagesRequest) { f.Messages[0], f.Messages[2] = f.Messages[2], f.Messages[0] },
		"two messages become one":  func(f *kvpb.MessagesRequest) { f.Messages = [][]byte{[]byte("append"), []byte("heartbeat")} },
		"a byte changes sides":     func(f *kvpb.MessagesRequest) { f.Messages[0], f.Messages[1] = []byte("appen"), []byte("d") },
		"an empty message is lost": func(f *kvpb.MessagesRequest) { f.Messages = [][]byte{f.Messages[0], f.Messages[2]} },
		"an empty message comes":   func(f *kvpb.MessagesRequest) { f.Messages = append(f.Messages, nil) },
		"an empty proposal comes":  func(f *kvpb.MessagesRequest) { f.Proposals = append(f.Proposals, nil) },
		"refusals swap":            func(f *kvpb.MessagesRequest) { f.Refusals[0], f.Refusals[1] = f.Refusals[1], f.Refusals[0] },
		"a refusal is lost":        func(f *kvpb.MessagesRequest) { f.Refusals = f.Refusals[:1] },
		"a refusal of 0 comes":     func(f *kvpb.MessagesRequest) { f.Refusals = append(f.Refusals, &kvpb.Refusal{}) },
		"a hello comes":            func(f *kvpb.MessagesRequest) { f.Hello = hello() },
		"a refusal becomes a message": func(f *kvpb.MessagesRequest) {
			f.Messages, f.Refusals = append(f.Messages, []byte{7, 0, 0, 0, 0, 0, 0, 0}), f.Refusals[1:]
		},
		"everything is lost": func(f *kvpb.MessagesRequest) { f.Messages, f.Proposals, f.Refusals = nil, nil, nil },
	} {
		f := frame()
		Seal(f)
		change(f)
		if Check(f) == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

// TestHelloOfANewerVersionPasses: it has fields that we do not know, and must be
// refused for its version.
func TestHelloOfANewerVersionPasses(t *testing.T) {
	h := hello()
	h.From.ProtoReflect().SetUnknown([]byte{15 << 3, 1})
	for _, m := range []Message{&kvpb.MessagesRequest{Hello: h}, &kvpb.HelloRequest{Hello: h}} {
		Seal(m)
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got := m.ProtoReflect().New().Interface().(Message)
		if err := proto.Unmarshal(data, got); err != nil {
			t.Fatal(err)
		}
		if err := Check(got); err != nil {
			t.Error(err)
		}
	}
}
