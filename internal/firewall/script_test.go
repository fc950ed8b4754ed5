package firewall

import (
	"encoding/binary"
	"math"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// A script is what hostile peers and a node's own caller do, one after the
// other, as bytes: so that a fuzzer can write it, every sequence of bytes is one.
// Numbers in messages are relative to the node, because nearly all numbers far
// from its own are refused at once.
//
// Messages come as the loop takes them in: in frames, with a Ready at the end of
// each and not after each message. So raft is often ahead of what is saved.
type script struct {
	t    *testing.T
	n    *node
	rest []byte
}

// stepsMax keeps a run short.
const stepsMax = 200

func (s *script) next() byte {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return b
}

// run plays the script and then lets time pass.
func (s *script) run() {
	for range stepsMax {
		if len(s.rest) == 0 {
			break
		}
		before := s.n.view()
		s.check(before, s.step(before))
	}
	s.n.drain()
	s.checkLog()
	before := s.n.view()
	s.n.elapse()
	s.checkLog()
	s.check(before, before.Term+elapseTicks)
}

// check fails unless the node went on as a node does, from a view and a term
// that it was told of.
func (s *script) check(before *View, told uint64) {
	s.t.Helper()
	after := s.n.view()
	if after.Commit < before.Commit {
		s.t.Fatalf("commit went from %d to %d", before.Commit, after.Commit)
	}
	// Pre-votes may just have been enough, and so may votes.
	if most := max(before.Term, told) + 1; after.Term < before.Term || after.Term > most {
		s.t.Fatalf("term went from %d to %d, want %d at most", before.Term, after.Term, most)
	}
	if before.Term == after.Term && before.Lead != 0 && after.Lead != 0 && before.Lead != after.Lead {
		s.t.Fatalf("%d led term %d, and now %d does", before.Lead, after.Term, after.Lead)
	}
	for index, term := range s.n.committed {
		if got, ok := after.TermAt(index); ok && got != term {
			s.t.Fatalf("entry %d was committed with term %d and has term %d now", index, term, got)
		}
	}
}

// checkLog fails unless the log is one, and a leader knows where it ends. It is
// for when all is saved.
func (s *script) checkLog() {
	s.t.Helper()
	v := s.n.view()
	if v.Last > 0 && len(s.n.ros.Members) == 0 {
		s.t.Fatalf("log up to %d without a configuration", v.Last)
	}
	last := uint64(0)
	first, err := s.n.ms.FirstIndex()
	must(err)
	for index := first - 1; index <= v.Last; index++ {
		term, _ := v.TermAt(index)
		if term < last || term > v.Term {
			s.t.Fatalf("entry %d has term %d after %d, in term %d", index, term, last, v.Term)
		}
		last = term
	}
	s.n.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if s.n.isLeader() && p.Match > v.Last {
			s.t.Fatalf("%d has %d entries, the leader %d", id, p.Match, v.Last)
		}
	})
}

// step does the next thing and returns the term that the node is told of.
func (s *script) step(v *View) (told uint64) {
	n := s.n
	switch op := s.next(); op % 16 {
	default:
		return s.send(v, s.message(v), false)
	case 9:
		return s.send(v, s.snapshot(v), true)
	case 10, 11:
		n.drain()
	case 12:
		n.rn.Tick()
	case 13:
		_ = n.rn.Propose([]byte("local")) // an error says that there is no leader
	case 14:
		n.rn.ReadIndex([]byte("local"))
	case 15:
		s.command()
	}
	return v.Term
}

// command is what the loop may do to raft beside.
func (s *script) command() {
	n := s.n
	switch s.next() % 5 {
	case 0:
		_ = n.rn.Campaign() // an error says that we may not
	case 1:
		if cc := s.change(); cc != nil {
			_ = n.rn.ProposeConfChange(cc) // an error says that there is no leader
		}
	case 2:
		n.rn.ReportUnreachable(peer)
	case 3:
		if n.isLeader() {
			n.rn.TransferLeader(peer)
		}
	case 4:
		n.rn.ReportSnapshot(peer, 1)
	}
}

// send sends a message as the loop and its transport would.
func (s *script) send(v *View, m *pb.Message, snapshot bool) (told uint64) {
	n := s.n
	m.To = proto.Uint64(n.id)
	m.From = proto.Uint64([]uint64{peer, peer, third, stranger}[s.next()%4])
	if n.ros.IsRemoved(m.GetFrom()) {
		return v.Term
	}
	m, err := n.receive(marshal(m), m.GetFrom(), snapshot)
	if err != nil {
		return v.Term
	}
	rewrites := snapshot || Rewrites(m, v)
	_ = n.rn.Step(m) // an error is raft's own refusal
	if rewrites {
		n.drain()
	}
	return m.GetTerm()
}

// number returns a number near one that the node knows.
func (s *script) number(v *View) uint64 {
	b := s.next()
	bases := [8]uint64{v.Last, v.Commit, v.Term, 0, 5, 1 << 20, indexMax, math.MaxUint64}
	return bases[b%8] + uint64(b/8%16) - 4
}

// term returns a term that a message may have, mostly.
func (s *script) term(v *View) uint64 {
	if b := s.next(); b < 0xc0 {
		return v.Term + uint64(b%8) - 2
	}
	return s.number(v)
}

var sent = []pb.MessageType{
	pb.MsgApp, pb.MsgHeartbeat, pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp,
	pb.MsgHeartbeatResp, pb.MsgTimeoutNow, pb.MsgReadIndex, pb.MsgReadIndexResp, pb.MsgApp,
}

func (s *script) message(v *View) *pb.Message {
	m := &pb.Message{Type: sent[int(s.next())%len(sent)].Enum()}
	if m.GetType() == pb.MsgReadIndex {
		m.Entries = []*pb.Entry{{Data: []byte{s.next()}}}
		return m
	}
	m.Term = proto.Uint64(s.term(v))
	m.Index = proto.Uint64(s.number(v))
	m.LogTerm = proto.Uint64(s.logTerm(v, m.GetIndex()))
	m.Commit = proto.Uint64(s.number(v))
	if flags := s.next(); flags != 0 {
		m.Reject = proto.Bool(flags&1 != 0)
		if flags&2 != 0 {
			m.RejectHint = proto.Uint64(s.number(v))
		}
		m.Context = s.context(flags >> 2)
	}
	switch m.GetType() {
	case pb.MsgApp:
		s.entries(v, m)
	case pb.MsgReadIndexResp:
		m.Entries = []*pb.Entry{{Data: []byte{s.next()}}}
	}
	return m
}

// logTerm returns a term for an entry: the true one, unless the script wants
// another.
func (s *script) logTerm(v *View, index uint64) uint64 {
	if b := s.next(); b >= 0x80 {
		return v.Term + uint64(b%8) - 4
	}
	if index > v.Last {
		return v.Term
	}
	term, _ := v.TermAt(index)
	return term
}

func (s *script) context(kind byte) []byte {
	switch kind % 4 {
	case 1:
		return binary.LittleEndian.AppendUint64(nil, uint64(s.next()))
	case 2:
		return []byte(campaignTransfer)
	case 3:
		return []byte{s.next()}
	}
	return nil
}

func (s *script) entries(v *View, m *pb.Message) {
	index, term := m.GetIndex(), m.GetLogTerm()
	for range s.next() % 5 {
		index++
		b := s.next()
		term += uint64(b % 4)
		if b&4 != 0 {
			term = m.GetTerm()
		}
		e := entry(term, index, nil)
		switch b / 8 % 8 {
		case 1:
			e.Data = []byte{b}
		case 2, 3:
			e.Type = pb.EntryConfChangeV2.Enum()
			if cc := s.change(); cc != nil {
				data, err := proto.Marshal(cc)
				must(err)
				e.Data = data
			}
		case 4:
			e.Type = pb.EntryConfChangeV2.Enum()
			e.Data = s.rest[:min(len(s.rest), int(b%8)*4)]
		case 5:
			e.Index = proto.Uint64(s.number(v))
		}
		m.Entries = append(m.Entries, e)
	}
}

// change returns a change to the membership that may be legal.
func (s *script) change() *pb.ConfChangeV2 {
	ros := s.n.ros
	ids := ros.RaftIDs()
	if len(ids) == 0 {
		return nil
	}
	b := s.next()
	name := string([]byte{b}) + "change id 15 by"
	some := func() (some []uint64) {
		mask := s.next()
		for i, id := range ids {
			if mask>>(i%8)&1 != 0 {
				some = append(some, id)
			}
		}
		return some
	}
	switch b % 4 {
	case 0:
		id := uint64(4 + s.next()%4)
		m := member(id, 1)
		return ros.AddLearner(name, id, m.Addr, m.Nonce)
	case 1:
		return ros.Remove(name, ids[int(s.next())%len(ids)])
	case 2:
		return ros.SetVoters(name, some(), s.next()%2 != 0, 0)
	}
	return new(pb.ConfChangeV2) // leaves a joint configuration
}

func (s *script) snapshot(v *View) *pb.Message {
	conf := proto.Clone(s.n.ros.Conf).(*pb.ConfState)
	switch b := s.next(); b % 8 {
	case 1:
		conf = &pb.ConfState{Voters: []uint64{s.n.id, peer}}
	case 2:
		conf.Voters = append(conf.Voters, roster.RaftID(uint64(b), uint64(b)))
	case 3:
		conf.Learners = append(conf.Learners, s.n.id)
	case 4:
		conf.VotersOutgoing, conf.AutoLeave = []uint64{peer, third}, proto.Bool(b&8 != 0)
	case 5:
		conf.VotersOutgoing, conf.LearnersNext = []uint64{s.n.id, peer}, []uint64{third}
	case 6:
		conf = &pb.ConfState{Voters: []uint64{peer}, Learners: []uint64{s.n.id}}
	}
	term := s.term(v)
	index := s.number(v)
	m := snap(term, index, s.logTerm(v, index), conf)
	if b := s.next(); b&1 != 0 {
		m.Index, m.Commit = proto.Uint64(s.number(v)), proto.Uint64(s.number(v))
	}
	return m
}
