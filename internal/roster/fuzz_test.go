package roster

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/raftslog"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// rosters returns one of every shape.
func rosters(t *testing.T) []*Roster {
	simple := addLearner(t, three(), 4)
	joint := apply(t, simple, simple.SetVoters(id16("set"), simple.RaftIDs()[1:], true, 0))
	return []*Roster{three(), simple, joint, leave(t, joint), Blank(id16("cluster"))}
}

// rosterOf returns the roster that data is, or else one that data chooses.
func rosterOf(t *testing.T, data []byte) *Roster {
	p := new(kvpb.Roster)
	if proto.Unmarshal(data, p) == nil {
		if r, err := FromProto(p); err == nil {
			return r
		}
	}
	all := rosters(t)
	return all[len(data)%len(all)]
}

// rawNode returns a raft with a configuration.
func rawNode(t *testing.T, conf *pb.ConfState) *raft.RawNode {
	t.Helper()
	s := raft.NewMemoryStorage()
	if len(conf.GetVoters()) > 0 {
		err := s.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{
			Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: proto.Clone(conf).(*pb.ConfState),
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: RaftID(1, 1), ElectionTick: 10, HeartbeatTick: 1, Storage: s,
		MaxSizePerMsg: 1, MaxInflightMsgs: 1, Logger: raftslog.New(nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	return rn
}

// Whatever is in the log, applying it does not panic; what comes of it is a
// roster that could be sent to others, that has the configuration which raft has,
// and that is the same on members that came to the roster before by a snapshot.
func FuzzApply(f *testing.F) {
	r := addLearner(new(testing.T), three(), 4)
	var befores [][]byte
	for i, r := range rosters(new(testing.T)) {
		befores = append(befores, r.Append(nil), make([]byte, i))
	}
	for i, cc := range []*pb.ConfChangeV2{
		new(pb.ConfChangeV2),
		r.AddLearner(id16("x"), 8, "n8:1", id16("n")),
		r.Remove(id16("x"), r.RaftIDs()[3]),
		r.SetVoters(id16("x"), r.RaftIDs(), false, 0),
		r.SetVoters(id16("x"), r.RaftIDs()[1:], true, r.Index),
		r.SetVoters(id16("x"), nil, false, 0),
		change(&kvpb.ConfContext{}, single(pb.ConfChangeUpdateNode, r.RaftIDs()[0])),
		change(&kvpb.ConfContext{}, single(pb.ConfChangeAddNode, r.RaftIDs()[3]), single(pb.ConfChangeRemoveNode, r.RaftIDs()[3])),
		change(&kvpb.ConfContext{Add: founder(8).Proto()}, single(pb.ConfChangeRemoveNode, r.RaftIDs()[3])),
		{Changes: []*pb.ConfChangeSingle{{}}},
		{Transition: pb.ConfChangeTransitionJointExplicit.Enum()},
	} {
		data, err := proto.Marshal(cc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(befores[i%len(befores)], data)
		f.Add(befores[2], data)
	}
	f.Fuzz(func(t *testing.T, before, data []byte) {
		cc := new(pb.ConfChangeV2)
		if proto.Unmarshal(data, cc) != nil {
			return
		}
		r := rosterOf(t, before)
		hash := r.Hash()
		next, err := r.Apply(cc, r.Index+1)
		if r.Hash() != hash {
			t.Fatalf("Apply(%v) changed the roster that it was called on", cc)
		}
		arrived := r // on a member that got it with a snapshot
		if len(r.Members) > 0 {
			if arrived, _ = FromProto(r.Proto()); arrived == nil {
				t.Fatalf("%+v does not arrive", r)
			}
		}
		again, errAgain := arrived.Apply(cc, r.Index+1)
		if (err == nil) != (errAgain == nil) || err == nil && again.Hash() != next.Hash() {
			t.Fatalf("Apply(%v) gives %+v, %v, but after a snapshot %+v, %v", cc, next, err, again, errAgain)
		}
		if err != nil {
			return
		}
		checkNext(t, r, next, cc)
	})
}

// checkNext checks what Apply made of a roster.
func checkNext(t *testing.T, r, next *Roster, cc *pb.ConfChangeV2) {
	t.Helper()
	if err := next.check(); err != nil {
		t.Fatalf("Apply(%v) made a roster that is not one: %v", cc, err)
	}
	if next.Counter < r.Counter || next.ClusterID != r.ClusterID {
		t.Fatalf("Apply(%v) made %+v of %+v", cc, next, r)
	}
	if conf := rawNode(t, r.Conf).ApplyConfChange(cc); !SameConf(conf, next.Conf) {
		t.Fatalf("after %v raft has %v, the roster %v", cc, conf, next.Conf)
	}
	for _, m := range r.Members {
		if _, stays := next.Lookup(m.RaftID); !stays && !next.IsRemoved(m.RaftID) {
			t.Fatalf("member %d went with %v and is not removed", m.RaftID, cc)
		}
	}
	if _, err := next.Apply(cc, next.Index+1); err == nil && ChangeID(cc) != "" {
		t.Fatalf("change %v took effect twice", cc)
	}
}

// A roster from outside that passes can be used: encoded, changed, asked, and
// given to raft.
func FuzzFromProto(f *testing.F) {
	all := rosters(new(testing.T))
	for _, r := range all {
		f.Add(r.Append(nil))
	}
	for _, spoil := range []func(p *kvpb.Roster, conf *pb.ConfState){
		func(p *kvpb.Roster, _ *pb.ConfState) { p.Index = 0 },
		func(p *kvpb.Roster, _ *pb.ConfState) { p.Counter = 1 },
		func(p *kvpb.Roster, _ *pb.ConfState) { p.ClusterId = nil },
		func(p *kvpb.Roster, _ *pb.ConfState) { slices.Reverse(p.Members) },
		func(p *kvpb.Roster, _ *pb.ConfState) { p.Members = append(p.Members, p.Members[3]) },
		func(p *kvpb.Roster, _ *pb.ConfState) { p.Members[0].Nonce = nil },
		func(p *kvpb.Roster, _ *pb.ConfState) { p.Changes = [][]byte{nil} },
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.Voters = append(conf.Voters, conf.Voters[0]) },
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.Learners = conf.Voters[:1] },
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.AutoLeave = proto.Bool(true) },
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.VotersOutgoing = nil },
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.LearnersNext = conf.Voters },
		func(_ *kvpb.Roster, conf *pb.ConfState) { slices.Reverse(conf.Voters) },
		// Raft panics at what it does not know: the roster must not get that far.
		func(_ *kvpb.Roster, conf *pb.ConfState) { conf.ProtoReflect().SetUnknown([]byte{0x2a, 0}) },
	} {
		p, conf := all[2].Proto(), proto.Clone(all[2].Conf).(*pb.ConfState)
		spoil(p, conf)
		var err error
		if p.ConfState, err = proto.Marshal(conf); err != nil {
			f.Fatal(err)
		}
		data, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
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
		if err != nil || !again.Equal(r) || again.Hash() != r.Hash() {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
		rawNode(t, r.Conf) // panics if raft would not take it
		for _, m := range r.Members {
			if got, ok := r.Newest(m.ID()); !ok || got.RaftID < m.RaftID || r.IsRemoved(m.RaftID) {
				t.Fatalf("%+v does not know its member %d", r, m.RaftID)
			}
			if _, err := r.Apply(r.Remove(id16("x"), m.RaftID), r.Index+1); err == nil && r.IsJoint() {
				t.Fatalf("a joint %+v took a change", r)
			}
		}
	})
}
