package roster

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// id16 returns an ID of NonceBytes that is made of a name.
func id16(name string) string { return (name + strings.Repeat(".", NonceBytes))[:NonceBytes] }

func founder(id uint64) Member {
	return Member{RaftID: RaftID(id, 0), Addr: fmt.Sprintf("n%d:1", id), Nonce: id16(fmt.Sprint("nonce", id))}
}

// three returns a cluster of the members 1, 2 and 3 with as many numbers.
func three() *Roster {
	return Found(id16("cluster"), []Member{founder(1), founder(2), founder(3)})
}

func apply(t *testing.T, r *Roster, cc *pb.ConfChangeV2) *Roster {
	t.Helper()
	next, err := r.Apply(cc, r.Index+1)
	if err != nil {
		t.Fatalf("Apply(%v): %v", cc, err)
	}
	if err := next.check(); err != nil {
		t.Fatalf("after %v: %v", cc, err)
	}
	return next
}

func addLearner(t *testing.T, r *Roster, id uint64) *Roster {
	t.Helper()
	m := founder(id)
	return apply(t, r, r.AddLearner(id16(fmt.Sprint("add", id, r.Counter)), id, m.Addr, m.Nonce))
}

// leave ends the joint phase as raft does: with an entry of its own.
func leave(t *testing.T, r *Roster) *Roster {
	t.Helper()
	return apply(t, r, new(pb.ConfChangeV2))
}

func wantConf(t *testing.T, r *Roster, want *pb.ConfState) {
	t.Helper()
	if !SameConf(r.Conf, want) {
		t.Errorf("configuration %v, want %v", r.Conf, want)
	}
	if got := r.RaftIDs(); !slices.Equal(got, confIDs(want)) {
		t.Errorf("members %v, want those of %v", got, want)
	}
}

func wantRefusal(t *testing.T, r *Roster, cc *pb.ConfChangeV2, kind error, text string) {
	t.Helper()
	before := r.Append(nil)
	next, err := r.Apply(cc, r.Index+1)
	if !errors.Is(err, kind) {
		t.Errorf("Apply(%v) = %v, want %v", cc, err, kind)
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("Apply(%v) = %q, want a text with %q", cc, err, text)
	}
	if next != nil {
		t.Errorf("Apply(%v) returned a roster and an error", cc)
	}
	if !bytes.Equal(before, r.Append(nil)) {
		t.Errorf("Apply(%v) was refused and changed the roster", cc)
	}
}

func TestRaftIDsHoldMemberAndNumber(t *testing.T) {
	for _, id := range []uint64{1, 2, IDMax} {
		for _, number := range []uint64{1, 77, 1<<32 - 1} {
			raftID := RaftID(id, number)
			if MemberID(raftID) != id || Number(raftID) != number || (Member{RaftID: raftID}).ID() != id {
				t.Errorf("RaftID(%d, %d) = %d, which is member %d, number %d", id, number, raftID, MemberID(raftID), Number(raftID))
			}
		}
	}
}

func TestFoundedMembersAllVote(t *testing.T) {
	r := Found(id16("cluster"), []Member{founder(9), founder(2), founder(5)})
	if err := r.check(); err != nil {
		t.Fatal(err)
	}
	if r.Index != 1 || r.Counter != 3 || r.ClusterID != id16("cluster") || r.IsJoint() {
		t.Errorf("index %d, counter %d, joint %v, want 1, 3, false", r.Index, r.Counter, r.IsJoint())
	}
	wantConf(t, r, &pb.ConfState{Voters: []uint64{RaftID(2, 2), RaftID(5, 3), RaftID(9, 1)}})
	for _, id := range []uint64{2, 5, 9} {
		m, ok := r.Newest(id)
		if !ok || m.Addr != founder(id).Addr || m.Nonce != founder(id).Nonce || !r.IsVoter(m.RaftID) {
			t.Errorf("Newest(%d) = %+v, %v, want the founder as a voter", id, m, ok)
		}
		if got, ok := r.Lookup(m.RaftID); !ok || got != m {
			t.Errorf("Lookup(%d) = %+v, %v, want %+v", m.RaftID, got, ok, m)
		}
	}
}

func TestBlankRosterKnowsNobody(t *testing.T) {
	r := Blank(id16("cluster"))
	if _, ok := r.Newest(1); ok || len(r.Members) != 0 || r.IsRemoved(RaftID(1, 1)) || r.IsVoter(RaftID(1, 1)) {
		t.Error("a blank roster knows a member or one that was removed")
	}
}

func TestAddedLearnerTakesTheNextNumber(t *testing.T) {
	r := three()
	next := addLearner(t, r, 7)
	m, ok := next.Newest(7)
	if !ok || m.RaftID != RaftID(7, 4) || m.Addr != "n7:1" || m.Nonce != founder(7).Nonce {
		t.Errorf("Newest(7) = %+v, %v, want number 4 with address and nonce", m, ok)
	}
	if next.Counter != 4 || next.Index != 2 || next.IsVoter(m.RaftID) {
		t.Errorf("counter %d, index %d, votes %v, want 4, 2, false", next.Counter, next.Index, next.IsVoter(m.RaftID))
	}
	wantConf(t, next, &pb.ConfState{Voters: r.Conf.Voters, Learners: []uint64{m.RaftID}})
	if r.Counter != 3 || len(r.Members) != 3 || len(r.Changes) != 0 {
		t.Errorf("Apply changed the roster that it was called on: %+v", r)
	}
}

func TestRemovedIncarnationIsRemovedForGood(t *testing.T) {
	r := addLearner(t, three(), 7)
	old, _ := r.Newest(7)
	r = apply(t, r, r.Remove(id16("remove"), old.RaftID))
	if _, ok := r.Lookup(old.RaftID); ok || !r.IsRemoved(old.RaftID) {
		t.Errorf("raft ID %d is a member or not removed", old.RaftID)
	}
	r = addLearner(t, r, 7)
	again, _ := r.Newest(7)
	if Number(again.RaftID) != 5 || !r.IsRemoved(old.RaftID) || r.IsRemoved(again.RaftID) {
		t.Errorf("added again as %d, want number 5, and the old one removed for good", again.RaftID)
	}
	if r.IsRemoved(RaftID(7, 6)) {
		t.Error("a number above the counter counts as removed: it is only unknown")
	}
}

func TestPromotionOfOneLearnerIsSimple(t *testing.T) {
	r := addLearner(t, three(), 4)
	voters := r.RaftIDs()
	r = apply(t, r, r.SetVoters(id16("set"), voters, false, 0))
	if r.IsJoint() {
		t.Error("one new voter made a joint configuration")
	}
	wantConf(t, r, &pb.ConfState{Voters: voters})
	if r.SetVoters(id16("again"), voters, false, 0) != nil {
		t.Error("SetVoters to the voters in force is a change, want none")
	}
}

func TestSeveralChangesGoThroughAJointConfiguration(t *testing.T) {
	for _, retain := range []bool{false, true} {
		r := addLearner(t, three(), 4)
		ids := r.RaftIDs()
		then := ids[1:] // 1 goes, 4 comes
		joint := apply(t, r, r.SetVoters(id16("set"), then, retain, r.Index))
		want := &pb.ConfState{Voters: then, VotersOutgoing: ids[:3], AutoLeave: proto.Bool(true)}
		if retain {
			want.LearnersNext = ids[:1]
		}
		wantConf(t, joint, want)
		if !joint.IsJoint() || !joint.IsVoter(ids[0]) || !joint.IsVoter(ids[3]) {
			t.Errorf("retain %v: joint %v, the old votes %v, the new %v, want all true",
				retain, joint.IsJoint(), joint.IsVoter(ids[0]), joint.IsVoter(ids[3]))
		}
		wantRefusal(t, joint, joint.Remove(id16("mid"), ids[3]), fault.ErrMembershipRefused, "joint")
		r = leave(t, joint)
		want = &pb.ConfState{Voters: then}
		if retain {
			want.Learners = ids[:1]
		}
		wantConf(t, r, want)
		if r.IsJoint() || r.IsRemoved(ids[0]) == retain || !r.HasChange(id16("set")) {
			t.Errorf("retain %v: joint %v, removed %v, change remembered %v", retain, r.IsJoint(), r.IsRemoved(ids[0]), r.HasChange(id16("set")))
		}
	}
}

func TestApplyRefusesWhatIsNotLegal(t *testing.T) {
	r := addLearner(t, three(), 4)
	voter, learner, done := r.RaftIDs()[0], r.RaftIDs()[3], r.Changes[0]
	fresh := RaftID(8, 5)
	add := func(m Member, changes ...*pb.ConfChangeSingle) *pb.ConfChangeV2 {
		return change(&kvpb.ConfContext{ChangeId: []byte(id16("x")), Add: m.Proto()}, changes...)
	}
	asLearner := func(m Member) *pb.ConfChangeV2 { return add(m, single(pb.ConfChangeAddLearnerNode, m.RaftID)) }
	good := Member{RaftID: fresh, Addr: "n8:1", Nonce: id16("8")}
	member := func(edit func(*Member)) Member {
		m := good
		edit(&m)
		return m
	}
	raw := func(context []byte, changes ...*pb.ConfChangeSingle) *pb.ConfChangeV2 {
		return &pb.ConfChangeV2{Context: context, Changes: changes}
	}
	withTransition := func(cc *pb.ConfChangeV2, transition pb.ConfChangeTransition) *pb.ConfChangeV2 {
		cc.Transition = transition.Enum()
		return cc
	}
	if _, err := r.Apply(asLearner(good), 9); err != nil {
		t.Fatalf("the member that the cases vary is refused: %v", err)
	}
	for _, c := range []struct {
		name string
		cc   *pb.ConfChangeV2
		kind error
		text string
	}{
		{"number of the counter", asLearner(member(func(m *Member) { m.RaftID = RaftID(8, 4) })), fault.ErrMembershipRefused, "number 4 was used"},
		{"number below the counter", asLearner(member(func(m *Member) { m.RaftID = RaftID(8, 1) })), fault.ErrMembershipRefused, "number 1 was used"},
		{"number 0", asLearner(member(func(m *Member) { m.RaftID = RaftID(8, 0) })), fault.ErrMembershipRefused, "number 0 was used"},
		{"member 0", asLearner(member(func(m *Member) { m.RaftID = RaftID(0, 5) })), fault.ErrMembershipRefused, "malformed member"},
		{"member ID too large", asLearner(member(func(m *Member) { m.RaftID = RaftID(IDMax+1, 5) })), fault.ErrMembershipRefused, "malformed member"},
		{"short nonce", asLearner(member(func(m *Member) { m.Nonce = "short" })), fault.ErrMembershipRefused, "malformed member"},
		{"long address", asLearner(member(func(m *Member) { m.Addr = strings.Repeat("a", AddrBytesMax+1) })), fault.ErrMembershipRefused, "malformed member"},
		{"second incarnation of a learner", asLearner(member(func(m *Member) { m.RaftID = RaftID(4, 5) })), fault.ErrMembershipRefused, "member 4 has two incarnations"},
		{"second incarnation of a voter that votes at once", r.Promote(r.Members[0], member(func(m *Member) { m.RaftID = RaftID(1, 5) })), fault.ErrMembershipRefused, fmt.Sprintf("raft ID %d", RaftID(1, 5))},
		{"new member as a voter", add(good, single(pb.ConfChangeAddNode, fresh)), fault.ErrMembershipRefused, fmt.Sprintf("raft ID %d", fresh)},
		{"unknown raft ID promoted", raw(nil, single(pb.ConfChangeAddNode, fresh)), fault.ErrMembershipRefused, fmt.Sprintf("raft ID %d", fresh)},
		{"unknown raft ID removed", r.Remove(id16("x"), fresh), fault.ErrMembershipRefused, fmt.Sprintf("raft ID %d", fresh)},
		{"raft ID 0", r.Remove(id16("x"), 0), fault.ErrMembershipRefused, "raft ID 0"},
		{"another added than announced", add(good, single(pb.ConfChangeAddLearnerNode, RaftID(9, 6))), fault.ErrMembershipRefused, fmt.Sprintf("raft ID %d", RaftID(9, 6))},
		{"index of the past", r.SetVoters(id16("x"), r.RaftIDs(), false, 1), fault.ErrMembershipChanged, "index is 2, not 1"},
		{"index of the future", r.SetVoters(id16("x"), r.RaftIDs(), false, 3), fault.ErrMembershipChanged, "index is 2, not 3"},
		{"repeated change", r.Remove(done, learner), fault.ErrMembershipRefused, "already"},
		{"malformed context", raw([]byte{0xff}, single(pb.ConfChangeRemoveNode, learner)), fault.ErrMembershipRefused, "malformed context"},
		{"short change ID", r.Remove("short", learner), fault.ErrMembershipRefused, "malformed change ID"},
		{"all voters removed", r.SetVoters(id16("x"), nil, false, 0), fault.ErrMembershipRefused, "removed all voters"},
		{"leaving when not joint", new(pb.ConfChangeV2), fault.ErrMembershipRefused, "joint"},
		{"transition that is not left by itself", withTransition(raw(nil, single(pb.ConfChangeAddLearnerNode, voter)), pb.ConfChangeTransitionJointExplicit), fault.ErrMembershipRefused, "transition"},
		{"transition by name", withTransition(r.SetVoters(id16("x"), r.RaftIDs()[1:], false, 0), pb.ConfChangeTransitionJointImplicit), fault.ErrMembershipRefused, "transition"},
		{"unknown kind of change", raw(nil, &pb.ConfChangeSingle{Type: pb.ConfChangeType(77).Enum(), NodeId: proto.Uint64(learner)}), fault.ErrMembershipRefused, "77"},
	} {
		t.Run(c.name, func(t *testing.T) { wantRefusal(t, r, c.cc, c.kind, c.text) })
	}
}

func TestClusterHasAMostOfMembers(t *testing.T) {
	var founders []Member
	for id := uint64(1); id < MembersMax; id++ {
		founders = append(founders, founder(id))
	}
	r := addLearner(t, Found(id16("cluster"), founders), MembersMax)
	wantRefusal(t, r, r.AddLearner(id16("x"), 1000, "n:1", id16("n")), fault.ErrMembershipRefused, fmt.Sprint(MembersMax))
}

func TestRosterRemembersTheLatestChanges(t *testing.T) {
	r := three()
	changeID := func(i int) string { return id16(fmt.Sprintf("change %d ", i)) }
	for i := range ChangesMax + 5 {
		before := slices.Clone(r.Changes)
		old := r
		if m, ok := r.Newest(4); ok {
			r = apply(t, r, r.Remove(changeID(i), m.RaftID))
		} else {
			r = apply(t, r, r.AddLearner(changeID(i), 4, "n4:1", id16("n4")))
		}
		if !slices.Equal(old.Changes, before) {
			t.Fatalf("change %d altered the changes of the roster before it", i)
		}
	}
	if len(r.Changes) != ChangesMax || r.HasChange(changeID(4)) || !r.HasChange(changeID(5)) || !r.HasChange(changeID(ChangesMax+4)) {
		t.Errorf("%d changes are remembered, want the latest %d", len(r.Changes), ChangesMax)
	}
	if r.HasChange("") {
		t.Error("HasChange of no ID = true")
	}
}

func TestTwoRostersFromOneNeverShareChanges(t *testing.T) {
	r := addLearner(t, addLearner(t, addLearner(t, three(), 4), 8), 9) // room in the slice for a fourth
	a := apply(t, r, r.AddLearner(id16("a"), 5, "a:1", id16("a")))
	b := apply(t, r, r.AddLearner(id16("b"), 6, "b:1", id16("b")))
	if !a.HasChange(id16("a")) || a.HasChange(id16("b")) || b.HasChange(id16("a")) || !b.HasChange(id16("b")) {
		t.Errorf("changes %q and %q of two rosters from one are mixed", a.Changes, b.Changes)
	}
}

func TestChangeIDOfEveryChange(t *testing.T) {
	r := three()
	for _, cc := range []*pb.ConfChangeV2{
		r.AddLearner(id16("x"), 4, "n4:1", id16("n")), r.Remove(id16("x"), RaftID(1, 1)), r.SetVoters(id16("x"), r.RaftIDs()[1:], false, 0),
	} {
		if got := ChangeID(cc); got != id16("x") {
			t.Errorf("ChangeID(%v) = %q, want %q", cc, got, id16("x"))
		}
	}
	for _, context := range [][]byte{nil, {0xff}, {10, 1, 'x'}} {
		if got := ChangeID(&pb.ConfChangeV2{Context: context}); got != "" {
			t.Errorf("ChangeID of context %x = %q, want none", context, got)
		}
	}
}

func TestSameConfIgnoresOrderAlone(t *testing.T) {
	full := func() *pb.ConfState {
		return &pb.ConfState{
			Voters: []uint64{1, 2}, VotersOutgoing: []uint64{2, 3}, Learners: []uint64{4, 5},
			LearnersNext: []uint64{3}, AutoLeave: proto.Bool(true),
		}
	}
	other := full()
	slices.Reverse(other.Voters)
	slices.Reverse(other.VotersOutgoing)
	slices.Reverse(other.Learners)
	if !SameConf(full(), other) || !slices.Equal(other.Voters, []uint64{2, 1}) {
		t.Error("SameConf minds the order, or changes it")
	}
	for name, edit := range map[string]func(*pb.ConfState){
		"voters":        func(c *pb.ConfState) { c.Voters = []uint64{1} },
		"outgoing":      func(c *pb.ConfState) { c.VotersOutgoing = nil },
		"learners":      func(c *pb.ConfState) { c.Learners = []uint64{4, 6} },
		"learners next": func(c *pb.ConfState) { c.LearnersNext = nil },
		"auto leave":    func(c *pb.ConfState) { c.AutoLeave = nil },
	} {
		other := full()
		edit(other)
		if SameConf(full(), other) {
			t.Errorf("SameConf does not see other %s", name)
		}
	}
}

func TestEncodingIsAFunctionOfTheLog(t *testing.T) {
	history := func() *Roster {
		r := addLearner(t, addLearner(t, three(), 9), 4)
		r = apply(t, r, r.SetVoters(id16("set"), r.RaftIDs()[1:], true, 0))
		return r
	}
	a := history()
	for range 20 {
		b := history()
		if !bytes.Equal(a.Append(nil), b.Append(nil)) || a.Hash() != b.Hash() || !a.Equal(b) {
			t.Fatal("the same changes made another roster")
		}
	}
	if got := a.Append([]byte("head")); !bytes.Equal(got, append([]byte("head"), a.Append(nil)...)) {
		t.Error("Append does not append")
	}
	c := leave(t, history())
	if a.Hash() == c.Hash() || a.Equal(c) {
		t.Error("another roster has the same hash or is Equal")
	}
}

func TestRosterArrivesAsItLeft(t *testing.T) {
	r := addLearner(t, three(), 4)
	joint := apply(t, r, r.SetVoters(id16("set"), r.RaftIDs()[1:], true, 0))
	for _, want := range []*Roster{three(), r, joint, leave(t, joint)} {
		p := new(kvpb.Roster)
		if err := proto.Unmarshal(want.Append(nil), p); err != nil {
			t.Fatal(err)
		}
		got, err := FromProto(p)
		if err != nil || !got.Equal(want) || got.Hash() != want.Hash() {
			t.Errorf("FromProto = %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestFromProtoRefusesBrokenInvariants(t *testing.T) {
	conf := func(c *pb.ConfState) []byte {
		data, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ids := three().RaftIDs()
	for name, edit := range map[string]func(*kvpb.Roster){
		"no cluster ID":           func(p *kvpb.Roster) { p.ClusterId = nil },
		"short cluster ID":        func(p *kvpb.Roster) { p.ClusterId = []byte("short") },
		"index 0":                 func(p *kvpb.Roster) { p.Index = 0 },
		"no members":              func(p *kvpb.Roster) { p.Members, p.ConfState = nil, nil },
		"member missing":          func(p *kvpb.Roster) { p.Members = p.Members[1:] },
		"member not in the conf":  func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{Voters: ids[:2]}) },
		"members out of order":    func(p *kvpb.Roster) { slices.Reverse(p.Members) },
		"member twice":            func(p *kvpb.Roster) { p.Members = append(p.Members, p.Members[2]) },
		"number above counter":    func(p *kvpb.Roster) { p.Counter = 2 },
		"number 0":                func(p *kvpb.Roster) { p.Members[0].RaftId = RaftID(1, 0) },
		"member 0":                func(p *kvpb.Roster) { p.Members[0].RaftId = RaftID(0, 1) },
		"member ID too large":     func(p *kvpb.Roster) { p.Members[2].RaftId = RaftID(IDMax+1, 3) },
		"short nonce":             func(p *kvpb.Roster) { p.Members[1].Nonce = []byte("short") },
		"long address":            func(p *kvpb.Roster) { p.Members[1].Addr = strings.Repeat("a", AddrBytesMax+1) },
		"malformed configuration": func(p *kvpb.Roster) { p.ConfState = []byte{0xff} },
		"no voters":               func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{Learners: ids}) },
		"voter and learner":       func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{Voters: ids, Learners: ids[:1]}) },
		"outgoing alone":          func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{VotersOutgoing: ids}) },
		"learner next, not joint": func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{Voters: ids[:2], LearnersNext: ids[2:]}) },
		"voter twice":             func(p *kvpb.Roster) { p.ConfState = conf(&pb.ConfState{Voters: append(slices.Clone(ids), ids[0])}) },
		"leaves what is not joint": func(p *kvpb.Roster) {
			p.ConfState = conf(&pb.ConfState{Voters: ids, AutoLeave: proto.Bool(true)})
		},
		"short change ID": func(p *kvpb.Roster) { p.Changes = [][]byte{[]byte("short")} },
		"long change ID":  func(p *kvpb.Roster) { p.Changes = [][]byte{make([]byte, 1<<10)} },
		"many changes": func(p *kvpb.Roster) {
			for range ChangesMax + 1 {
				p.Changes = append(p.Changes, []byte(id16("c")))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := three().Proto()
			edit(p)
			if r, err := FromProto(p); err == nil {
				t.Errorf("FromProto = %+v, want an error", r)
			}
		})
	}
	p := three().Proto()
	for id := uint64(4); len(p.Members) <= MembersMax; id++ {
		p.Counter++
		p.Members = append(p.Members, Member{RaftID: RaftID(id, p.Counter), Nonce: id16("n")}.Proto())
	}
	c := new(pb.ConfState)
	for _, m := range p.Members {
		c.Voters = append(c.Voters, m.RaftId)
	}
	p.ConfState = conf(c)
	if _, err := FromProto(p); err == nil {
		t.Errorf("a roster of %d members was taken", len(p.Members))
	}
	if _, err := FromProto(nil); err == nil {
		t.Error("no roster at all was taken")
	}
}

// A stranger may send a roster before anybody asks who he is.
func TestFromProtoIsSoonDoneWithAnEndlessConfiguration(t *testing.T) {
	p, conf := three().Proto(), proto.Clone(three().Conf).(*pb.ConfState)
	for range 100_000 {
		conf.Voters = append(conf.Voters, conf.Voters[0])
	}
	var err error
	if p.ConfState, err = proto.Marshal(conf); err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(1, func() {
		if _, err := FromProto(p); err == nil || len(err.Error()) > 1000 {
			t.Fatal("no error, or one with all of the configuration")
		}
	})
	if allocs > 100 {
		t.Errorf("got %v allocations for a refused roster, want few", allocs)
	}
}
