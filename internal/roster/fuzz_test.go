package roster

import (
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// rosters returns one of every shape.
func rosters(t *testing.T) []*Roster {
	simple := addLearner(t, three(), 4)
	joint := apply(t, simple, simple.SetVoters(id16("set"), simple.RaftIDs()[1:], true, 0))
	return []*Roster{three(), simple, joint, leave(t, joint), Blank(id16("cluster"))}
}

// Whatever is in the log, applying it does not panic, and what comes of it is a
// roster that could be sent to others.
func FuzzApply(f *testing.F) {
	r := addLearner(new(testing.T), three(), 4)
	for _, cc := range []*pb.ConfChangeV2{
		new(pb.ConfChangeV2),
		r.AddLearner(id16("x"), 8, "n8:1", id16("n")),
		r.Remove(id16("x"), r.RaftIDs()[3]),
		r.SetVoters(id16("x"), r.RaftIDs(), false, 0),
		r.SetVoters(id16("x"), r.RaftIDs()[1:], true, r.Index),
		r.SetVoters(id16("x"), nil, false, 0),
		change(&kvpb.ConfContext{}, single(pb.ConfChangeUpdateNode, r.RaftIDs()[0])),
		change(&kvpb.ConfContext{}, single(pb.ConfChangeAddNode, r.RaftIDs()[3]), single(pb.ConfChangeRemoveNode, r.RaftIDs()[3])),
	} {
		data, err := proto.Marshal(cc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cc := new(pb.ConfChangeV2)
		if proto.Unmarshal(data, cc) != nil {
			return
		}
		for _, r := range rosters(t) {
			before := r.Hash()
			next, err := r.Apply(cc, r.Index+1)
			if r.Hash() != before {
				t.Errorf("Apply(%v) changed the roster that it was called on", cc)
			}
			if err != nil {
				continue
			}
			if err := next.check(); err != nil {
				t.Errorf("Apply(%v) made a roster that is not one: %v", cc, err)
			}
			if _, err := next.Apply(cc, next.Index+1); err == nil && ChangeID(cc) != "" {
				t.Errorf("change %v took effect twice", cc)
			}
		}
	})
}

// A roster from outside that passes can be used: encoded, changed, asked.
func FuzzFromProto(f *testing.F) {
	for _, r := range rosters(new(testing.T)) {
		f.Add(r.Append(nil))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := new(kvpb.Roster)
		if proto.Unmarshal(data, p) != nil {
			return
		}
		r, err := FromProto(p)
		if err != nil {
			return
		}
		again, err := FromProto(r.Proto())
		if err != nil || !again.Equal(r) {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
		for _, m := range r.Members {
			if _, err := r.Apply(r.Remove(id16("x"), m.RaftID), r.Index+1); err == nil && r.IsJoint() {
				t.Errorf("a joint %+v took a change", r)
			}
		}
	})
}
