package firewall

import (
	"fmt"
	"io"
	"log"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/roster"
)

// A node is a RawNode with the storage and the roster around it that the
// library has, but no applier and no network.
type node struct {
	id      uint64
	rn      *raft.RawNode
	ms      *raft.MemoryStorage
	ros     *roster.Roster
	applied uint64
	readSeq uint64
	reads   Reads
	answers map[string]uint64 // answered read requests
	out     []*pb.Message

	committed map[uint64]uint64 // the terms of the entries that were committed here
}

// storage makes snapshots on demand, at the index that is applied.
type storage struct {
	*raft.MemoryStorage
	n *node
}

func (s storage) Snapshot() (*pb.Snapshot, error) {
	term, err := s.Term(s.n.applied)
	if err != nil || s.n.applied == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return snapshotAt(s.n.applied, term, s.n.ros.Conf), nil
}

func snapshotAt(index, term uint64, conf *pb.ConfState) *pb.Snapshot {
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: proto.Uint64(index), Term: proto.Uint64(term),
		ConfState: proto.Clone(conf).(*pb.ConfState),
	}}
}

// newNode starts a founding member, or a blank joiner if the roster has none.
func newNode(t testing.TB, id uint64, ros *roster.Roster) *node {
	t.Helper()
	n := &node{id: id, ms: raft.NewMemoryStorage(), ros: ros, answers: map[string]uint64{}, committed: map[uint64]uint64{}}
	if len(ros.Members) > 0 {
		n.applied = 1
		if err := n.ms.ApplySnapshot(snapshotAt(1, 1, ros.Conf)); err != nil {
			t.Fatal(err)
		}
		if err := n.ms.SetHardState(&pb.HardState{Term: proto.Uint64(1), Commit: proto.Uint64(1)}); err != nil {
			t.Fatal(err)
		}
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: id, ElectionTick: 10, HeartbeatTick: 1, Storage: storage{n.ms, n}, Applied: n.applied,
		MaxSizePerMsg: 1 << 10, MaxInflightMsgs: 8, CheckQuorum: true, PreVote: true,
		DisableProposalForwarding: true, StepDownOnRemoval: true,
		Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.rn = rn
	return n
}

// drain does what the loop does with every Ready.
func (n *node) drain() {
	for n.rn.HasReady() {
		rd := n.rn.Ready()
		n.save(rd)
		for _, m := range rd.Messages {
			n.reads.Sent(m)
			n.out = append(n.out, m)
		}
		for _, rs := range rd.ReadStates {
			n.answers[string(rs.RequestCtx)] = rs.Index
		}
		for _, e := range rd.CommittedEntries {
			n.apply(e)
		}
		n.rn.Advance(rd)
	}
}

func (n *node) save(rd raft.Ready) {
	if rd.Snapshot != nil && !raft.IsEmptySnap(rd.Snapshot) {
		must(n.ms.ApplySnapshot(rd.Snapshot))
		meta := rd.Snapshot.GetMetadata()
		n.applied = meta.GetIndex()
		n.ros = rosterOf(n.ros, meta.GetConfState(), meta.GetIndex())
	}
	if rd.HardState != nil && !raft.IsEmptyHardState(rd.HardState) {
		must(n.ms.SetHardState(rd.HardState))
	}
	must(n.ms.Append(rd.Entries))
}

// rosterOf stands in for the roster that travels beside a snapshot.
func rosterOf(old *roster.Roster, conf *pb.ConfState, index uint64) *roster.Roster {
	ros := &roster.Roster{ClusterID: old.ClusterID, Index: index, Conf: conf}
	seen := map[uint64]bool{}
	for id := uint64(1); id < 100; id++ {
		for _, list := range [][]uint64{conf.GetVoters(), conf.GetVotersOutgoing(), conf.GetLearners()} {
			for _, c := range list {
				if roster.Number(c) == id && !seen[c] {
					seen[c] = true
					ros.Counter = id
					ros.Members = append(ros.Members, member(roster.MemberID(c), id))
				}
			}
		}
	}
	return ros
}

func (n *node) apply(e *pb.Entry) {
	if e.GetIndex() != n.applied+1 {
		panic(fmt.Sprintf("entry %d is committed after %d", e.GetIndex(), n.applied))
	}
	n.applied = e.GetIndex()
	n.committed[e.GetIndex()] = e.GetTerm()
	if e.GetType() != pb.EntryConfChangeV2 {
		return
	}
	cc := new(pb.ConfChangeV2)
	must(proto.Unmarshal(e.GetData(), cc))
	next, err := n.ros.Apply(cc, e.GetIndex())
	if err != nil {
		return // refused: raft must not hear of it
	}
	n.ros = next
	if conf := n.rn.ApplyConfChange(cc); !roster.SameConf(conf, next.Conf) {
		panic(fmt.Sprintf("raft has configuration %v, the roster %v", conf, next.Conf))
	}
}

// view is how the loop would build it, from what is saved.
func (n *node) view() *View {
	st := n.rn.BasicStatus()
	last, err := n.ms.LastIndex()
	must(err)
	return &View{
		Self: n.id, Term: st.GetTerm(), Lead: st.Lead, Last: last, Commit: st.GetCommit(),
		ReadsMax: n.reads.Max(st.GetTerm()),
		TermAt: func(index uint64) (uint64, bool) {
			term, err := n.ms.Term(index)
			return term, err == nil
		},
		IsVoter: n.ros.IsVoter,
	}
}

// receive takes a message as the library would.
func (n *node) receive(data []byte, from uint64, snapshot bool) (*pb.Message, error) {
	open, check := decode, Check
	if snapshot {
		open, check = DecodeSnapshot, CheckSnapshot
	}
	m, err := open(data, from, n.id)
	if err != nil {
		return nil, err
	}
	return m, check(m, n.view())
}

// decode has a message that came in a frame decoded and admitted. What is
// malformed is a violation here, so that verdict need not know of frames.
func decode(data []byte, from, self uint64) (*pb.Message, error) {
	f := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), data)
	crc := checksum.Of(f)
	f = protowire.AppendFixed32(protowire.AppendTag(f, 5, protowire.Fixed32Type), crc)
	got, err := frame.Decode(f)
	if err != nil {
		return nil, violation("%v", err)
	}
	return got.Messages[0], Admit(got.Messages[0], from, self)
}

func (n *node) isLeader() bool { return n.rn.BasicStatus().RaftState == raft.StateLeader }

func member(id, number uint64) roster.Member {
	return roster.Member{
		RaftID: roster.RaftID(id, number), Addr: fmt.Sprintf("n%d:1", id),
		Nonce: fmt.Sprintf("nonce-%010d", id),
	}
}

// founding is a cluster of n voters.
func founding(n int) *roster.Roster {
	var members []roster.Member
	for id := 1; id <= n; id++ {
		members = append(members, member(uint64(id), uint64(id)))
	}
	return roster.Found("cluster-id-16-by", members)
}

func marshal(m *pb.Message) []byte {
	data, err := proto.Marshal(m)
	must(err)
	return data
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
