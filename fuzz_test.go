package raftkv

import (
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// Fuzzers of everything that another process can say to this one, beside raft
// messages (internal/firewall) and the formats (internal/command and others).
// They drive the loop and the applier as lifecycle.go does, without a goroutine.

// nowhere is a transport that remembers whom it is to be linked with.
type nowhere struct{ members []roster.Member }

func (n *nowhere) connect(_ *kvpb.Identity, members []roster.Member) { n.members = members }
func (n *nowhere) send(*pb.Message)                                  {}
func (n *nowhere) forward(uint64, outbox.Batch)                      {}
func (n *nowhere) refuse(_, _ uint64)                                {}
func (n *nowhere) stand(uint64, *kvpb.Standing)                      {}
func (n *nowhere) room(int64)                                        {}
func (n *nowhere) redial(uint64)                                     {}
func (n *nowhere) sendSnapshot(*pb.Message, *snapshotHandle) bool    { return false }

// A target is member 2, driven by hand.
type target struct {
	*loop
	node   *Node
	net    *nowhere
	t      *testing.T
	isOver bool // the applier cannot go on
}

// newTarget returns a blank process, or a founder of testRoster(3).
func newTarget(t *testing.T, isFounded bool) *target {
	t.Helper()
	cfg, err := Config{ID: 2, Addr: "n2:1", Limits: Limits{MaxStateBytes: 64 << 20}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(cfg)
	tg := &target{loop: n.loop, node: n, net: new(nowhere), t: t}
	tg.loop.net, tg.nonce = tg.net, testNonce
	if isFounded {
		if err := tg.found(testRoster(3)); err != nil {
			t.Fatal(err)
		}
	}
	return tg
}

// settle does what is left of a round of the loop, and what the applier does.
//
// A leader can end a member by committing what no member can read. That is no
// panic but an orderly stop, on all members at the same entry, and the only one
// that is allowed here: entries are not parsed before they are in the log.
func (tg *target) settle() {
	tg.t.Helper()
	if tg.isOver {
		return
	}
	for _, f := range tg.node.inbox.take() {
		f(tg.loop)
	}
	tg.flush()
	tg.process()
	tasks, bytes := tg.tasks.take()
	frozen, err := tg.fsm.apply(tasks)
	tg.tasks.finish(bytes)
	if errors.Is(err, command.ErrMalformed) || errors.Is(err, command.ErrVersion) {
		tg.isOver = true
		return
	}
	if tg.failed != nil || err != nil {
		tg.t.Fatalf("the node stops: %v, %v", tg.failed, err)
	}
	for _, h := range frozen {
		tg.frozen(h)
	}
	tg.check()
}

// elapse lets a few election timeouts pass.
func (tg *target) elapse() {
	tg.t.Helper()
	for range 4 * tg.cfg.Timing.electionTicks() {
		if tg.isOver {
			return
		}
		tg.tick()
		tg.settle()
	}
}

// check verifies what holds for every process.
func (tg *target) check() {
	tg.t.Helper()
	if (tg.raw == nil) != (tg.raftID == 0) {
		tg.t.Fatalf("raft ID %d, but raft runs: %v", tg.raftID, tg.raw != nil)
	}
	if tg.raftID != 0 && (roster.MemberID(tg.raftID) != tg.cfg.ID || roster.Number(tg.raftID) == 0) {
		tg.t.Fatalf("became %d", tg.raftID)
	}
	if len(tg.links.guests) > roster.MembersMax {
		tg.t.Fatalf("%d guests", len(tg.links.guests))
	}
	for _, m := range tg.net.members {
		if m.RaftID == tg.raftID {
			tg.t.Fatalf("linked with itself at %s", m.Addr)
		}
		conn, err := tg.node.transport.dial(m.Addr)
		if err != nil {
			tg.t.Fatal(err) // link panics then
		}
		if err := conn.Close(); err != nil {
			tg.t.Fatal(err)
		}
	}
}

func marshalled(f *testing.F, m proto.Message) []byte {
	f.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// helloFrom is the hello of a member of testRoster(3) to member 2.
func helloFrom(id, number uint64) *kvpb.Hello {
	return &kvpb.Hello{
		From: &kvpb.Identity{
			Protocol: protocolVersion, ClusterId: []byte(testNonce), Id: id, RaftId: roster.RaftID(id, number),
			Nonce: []byte(testNonce), Addr: "n:1", HeartbeatMs: 100, ElectionMs: 1000,
		},
		ToId: 2, ToRaftId: roster.RaftID(2, 2), ToNonce: []byte(testNonce),
	}
}

// hellos are legal ones and some that are wrong in one thing.
func hellos() []*kvpb.Hello {
	all := []*kvpb.Hello{helloFrom(1, 1), helloFrom(3, 3), helloFrom(4, 9), helloFrom(2, 2), helloFrom(2, 9), {}}
	for _, spoil := range []func(h *kvpb.Hello){
		func(h *kvpb.Hello) { h.From.Protocol++ },
		func(h *kvpb.Hello) { h.From.ClusterName = "other" },
		func(h *kvpb.Hello) { h.From.ClusterId = []byte("another cluster.") },
		func(h *kvpb.Hello) { h.From.ClusterId = nil },
		func(h *kvpb.Hello) { h.From.Id = 1 << 32 },
		func(h *kvpb.Hello) { h.From.Nonce = []byte("another process.") },
		func(h *kvpb.Hello) { h.From.RaftId = 0 },
		func(h *kvpb.Hello) { h.ToId = 3 },
		func(h *kvpb.Hello) { h.ToRaftId = 0 },
		func(h *kvpb.Hello) { h.ToRaftId = roster.RaftID(2, 0) },
		func(h *kvpb.Hello) { h.ToRaftId = roster.RaftID(2, 1<<32-1) },
		func(h *kvpb.Hello) { h.ToNonce = []byte("another process.") },
		func(h *kvpb.Hello) { h.ToNonce = nil },
		func(h *kvpb.Hello) { h.From.RaftId, h.From.Addr = roster.RaftID(1, 99), "%zz:1" },
	} {
		h := helloFrom(1, 1)
		spoil(h)
		all = append(all, h)
	}
	return all
}

// A blank process becomes a member only through somebody who knows its nonce,
// and a member stays who it is, whatever hellos and rosters come in whatever
// order.
func FuzzHello(f *testing.F) {
	for _, h := range hellos() {
		for _, r := range []*roster.Roster{testRoster(3), testRoster(1)} {
			f.Add(false, marshalled(f, h), r.Append(nil), []byte{0, 2, 5})
			f.Add(false, marshalled(f, h), r.Append(nil), []byte{1, 2, 3, 4, 2, 5})
			f.Add(true, marshalled(f, h), r.Append(nil), []byte{2, 0, 1, 3, 4, 5})
		}
	}
	f.Fuzz(func(t *testing.T, isFounded bool, hello, founding, script []byte) {
		h, p := new(kvpb.Hello), new(kvpb.Roster)
		if proto.Unmarshal(hello, h) != nil || proto.Unmarshal(founding, p) != nil {
			return
		}
		r, err := roster.FromProto(p)
		if err != nil {
			r = testRoster(3)
		}
		tg := newTarget(t, isFounded)
		for _, op := range script[:min(len(script), 20)] {
			tg.greet(op, h, r)
			tg.settle()
		}
		tg.elapse()
	})
}

// greet does one of the things that somebody else can ask of a process.
func (tg *target) greet(op byte, h *kvpb.Hello, r *roster.Roster) {
	tg.t.Helper()
	wasBlank, raftID, clusterID := tg.raw == nil, tg.raftID, tg.roster.ClusterID
	meant := string(h.GetToNonce()) == tg.nonce && h.GetToId() == tg.cfg.ID
	if b := tg.links.bound; b != nil {
		meant = true // it has agreed; checked below
	}
	switch op % 6 {
	case 0:
		resp, err := tg.whoIs(h)
		if err == nil && (string(resp.GetIdentity().GetNonce()) != tg.nonce || wasBlank && resp.GetMember() != nil) {
			tg.t.Fatalf("answers %v", resp)
		}
		meant = false
	case 1:
		if tg.bind(h, r) == nil {
			if m, _ := r.Newest(tg.cfg.ID); m.Nonce != tg.nonce || !wasBlank {
				tg.t.Fatalf("takes part in the founding of %+v", r)
			}
		}
		meant = false
	case 2:
		if tg.welcome(h) == nil && string(h.GetFrom().GetClusterId()) != tg.roster.ClusterID {
			tg.t.Fatalf("in cluster %q, lets in %v", tg.roster.ClusterID, h)
		}
	case 3:
		if tg.links.bound == nil || tg.found(tg.links.bound) != nil {
			meant = false
		}
	case 4:
		tg.unbind(r)
		meant = false
	case 5:
		tg.tick()
		meant = !wasBlank
	}
	if wasBlank && tg.raw != nil && !meant {
		tg.t.Fatalf("%v made a blank process %d", h, tg.raftID)
	}
	if !wasBlank && (tg.raftID != raftID || tg.roster.ClusterID != clusterID) {
		tg.t.Fatalf("%d of %q became %d of %q", raftID, clusterID, tg.raftID, tg.roster.ClusterID)
	}
}

// A frame from a member does no more than an honest one: the node does not stop,
// neither at once nor later, and what is committed stays.
func FuzzFrame(f *testing.F) {
	from := roster.RaftID(1, 1)
	message := func(m *pb.Message) []byte {
		m.From, m.To = proto.Uint64(from), proto.Uint64(roster.RaftID(2, 2))
		return marshalled(f, m)
	}
	batch := batchOf(command.Header{Origin: from, First: 1}, putOf("k", "v"), deleteOf("x"))
	heartbeat := message(&pb.Message{Type: pb.MsgHeartbeat.Enum(), Term: proto.Uint64(2), Commit: proto.Uint64(1)})
	entries := []*pb.Entry{{Term: proto.Uint64(2), Index: proto.Uint64(2)}, {Term: proto.Uint64(2), Index: proto.Uint64(3), Data: batch}}
	app := message(&pb.Message{
		Type: pb.MsgApp.Enum(), Term: proto.Uint64(2), LogTerm: proto.Uint64(1), Index: proto.Uint64(1),
		Commit: proto.Uint64(3), Entries: entries,
	})
	vote := message(&pb.Message{Type: pb.MsgVote.Enum(), Term: proto.Uint64(2), LogTerm: proto.Uint64(1), Index: proto.Uint64(1)})
	for _, seed := range []*kvpb.MessagesRequest{
		{Messages: [][]byte{heartbeat}}, {Messages: [][]byte{app}}, {Messages: [][]byte{heartbeat, app, heartbeat}},
		{Messages: [][]byte{vote, app}}, {Proposals: [][]byte{batch}}, {Refusals: []*kvpb.Refusal{{FirstSequence: 1}}},
		{Messages: [][]byte{app}, Proposals: [][]byte{batch, batch}, Refusals: []*kvpb.Refusal{{}}},
	} {
		f.Add(true, marshalled(f, seed))
		f.Add(false, marshalled(f, seed))
	}
	f.Fuzz(func(t *testing.T, isFounded bool, data []byte) {
		data = protowire.AppendFixed32(append(slices.Clone(data), 5<<3|5), checksum.Of(data)) // what a fuzzer never finds
		if got, err := frame.Decode(data); err == nil && got.IsPing() {
			return // take waits for the loop
		}
		tg := newTarget(t, isFounded)
		if err := tg.welcome(helloFrom(1, 1)); err != nil {
			t.Fatal(err)
		}
		tg.settle()
		commit := tg.raw.BasicStatus().GetCommit()
		var cut atomic.Pointer[error]
		err := tg.node.transport.take(t.Context(), from, tg.raftID, data, &cut)
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("refused with %v, want %v", err, ErrInvalid)
		}
		tg.settle()
		if err := cut.Load(); err != nil && !errors.Is(*err, ErrInvalid) {
			t.Fatalf("cut off with %v, want %v", *err, ErrInvalid)
		}
		if got := tg.raw.BasicStatus().GetCommit(); got < commit {
			t.Fatalf("commit went from %d to %d", commit, got)
		}
		tg.elapse()
	})
}

// A snapshot whose header passes can be installed: raft takes it or has no need
// of it, and the node goes on.
func FuzzSnapshotHeader(f *testing.F) {
	header := func(index, term uint64, r *roster.Roster) *kvpb.SnapshotHeader {
		m := &pb.Message{
			Type: pb.MsgSnap.Enum(), From: proto.Uint64(roster.RaftID(1, 1)), To: proto.Uint64(roster.RaftID(2, 2)), Term: proto.Uint64(term),
			Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: proto.Uint64(index), Term: proto.Uint64(term), ConfState: r.Conf}},
		}
		return &kvpb.SnapshotHeader{
			Hello: helloFrom(1, 1), Message: marshalled(f, m), Roster: r.Proto(), Revision: index, Keys: 2, SizeBytes: 10,
		}
	}
	later, err := testRoster(3).Apply(testRoster(3).AddLearner("0123456789abcdeX", 4, "n4:1", testNonce), 5)
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range []*kvpb.SnapshotHeader{
		header(1, 1, testRoster(3)), header(50, 2, testRoster(3)), header(50, 2, later), header(4, 2, later), header(1<<62, 2, later),
		header(9, 1, testRoster(2)), header(9, 1, testRoster(1)), {},
	} {
		f.Add(true, marshalled(f, h))
		f.Add(false, marshalled(f, h))
	}
	f.Fuzz(func(t *testing.T, isFounded bool, data []byte) {
		h := new(kvpb.SnapshotHeader)
		if proto.Unmarshal(data, h) != nil {
			return
		}
		tg := newTarget(t, isFounded)
		if tg.welcome(h.GetHello()) != nil {
			return
		}
		r := &snapshotReceiver{hello: h.GetHello()}
		if r.open(h) != nil {
			return
		}
		s := r.staged
		if !roster.SameConf(s.roster.Conf, r.message.GetSnapshot().GetMetadata().GetConfState()) ||
			s.roster.ClusterID != tg.roster.ClusterID || s.roster.Index > s.index {
			t.Fatalf("staged %+v in cluster %q", s, tg.roster.ClusterID)
		}
		s.keys, s.dedup = keyspace.New(), dedup.New()
		s.dedup.Retain(s.roster.RaftIDs())
		commit := tg.raw.BasicStatus().GetCommit()
		if err := tg.receiveSnapshot(r.message, s); err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("refused with %v, want %v", err, ErrInvalid)
		}
		tg.settle()
		switch got := tg.raw.BasicStatus().GetCommit(); {
		case got < commit:
			t.Fatalf("commit went from %d to %d", commit, got)
		case got == s.index && got > commit && !tg.roster.Equal(s.roster):
			t.Fatalf("installed %+v, has %+v", s.roster, tg.roster)
		}
		tg.elapse()
	})
}

// A request that a member forwards is understood, or refused as invalid.
func FuzzForwardRequest(f *testing.F) {
	id := []byte(testNonce)
	for _, req := range []*kvpb.ForwardRequest{
		{ChangeId: id, Change: &kvpb.ForwardRequest_AddLearner{AddLearner: &kvpb.AddLearnerRequest{Id: 4, Addr: "n4:1"}}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_AddLearner{AddLearner: &kvpb.AddLearnerRequest{Id: 1 << 31, Addr: "n4:1"}}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_AddLearner{AddLearner: &kvpb.AddLearnerRequest{Id: 4, Addr: "%zz:1"}}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_RemoveLearner{RemoveLearner: &kvpb.RemoveLearnerRequest{Id: 4}}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_ChangeMembership{ChangeMembership: &kvpb.ChangeMembershipRequest{
			Voters: []uint64{2, 1, 1}, Retain: true, IfIndex: 3,
		}}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_ChangeMembership{}},
		{ChangeId: id, Change: &kvpb.ForwardRequest_TransferLeadership{TransferLeadership: &kvpb.TransferLeadershipRequest{To: 3}}},
		{ChangeId: id[1:], Change: &kvpb.ForwardRequest_TransferLeadership{}},
		{ChangeId: id, Hello: helloFrom(1, 1)},
	} {
		f.Add(marshalled(f, req))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req := new(kvpb.ForwardRequest)
		if proto.Unmarshal(data, req) != nil {
			return
		}
		r, err := requestFromProto(req)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("refused with %v, want %v", err, ErrInvalid)
			}
			return
		}
		if !slices.IsSorted(r.Voters) || len(slices.Compact(slices.Clone(r.Voters))) != len(r.Voters) {
			t.Fatalf("voters %v are not ascending", r.Voters)
		}
		again, err := requestFromProto(requestProto(r))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v forwarded on is %+v, %v", r, again, err)
		}
	})
}

// A batch that may be proposed can be applied by every member, to the same
// effect, and once.
func FuzzCheckBatch(f *testing.F) {
	for _, origin := range []uint64{testOrigins[0], roster.RaftID(9, 9)} {
		for _, h := range []command.Header{
			{Origin: origin, First: 1}, {Origin: origin, First: 9, AnsweredTo: 8}, {Origin: origin, First: 70_000}, {Origin: origin},
		} {
			f.Add(batchOf(h, putOf("k", "v"), onlyIf(0, putOf("k", "w")), deleteOf("k"), deleteOf("x")), origin)
			f.Add(batchOf(h), origin)
			f.Add(batchOf(h, putOf("k", "")), origin+1)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, origin uint64) {
		batch, err := checkBatch(data, origin)
		if err != nil {
			return
		}
		if !slices.Equal(batch.Data, data) || batch.First == 0 {
			t.Fatalf("batch %+v of %x", batch, data)
		}
		log := []task{{index: 2, term: 1, data: data}}
		once, twice := newTestFSM(testOrigins[0]), newTestFSM(testOrigins[1])
		applyAll(t, once, log...)
		applyAll(t, twice, append(log, task{index: 3, term: 1, data: data})...)
		if once.hash() != twice.hash() || once.revision != twice.revision {
			t.Fatalf("revision %d once and %d twice, hash %x and %x", once.revision, twice.revision, once.hash(), twice.hash())
		}
	})
}
