package raftkv

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// An eavesdropper is a transport that keeps what kinds of messages a node sends
// and whom it redials.
type eavesdropper struct {
	nowhere
	sent    []pb.MessageType
	redials []uint64
	stands  int
}

func (e *eavesdropper) send(m *pb.Message)           { e.sent = append(e.sent, m.GetType()) }
func (e *eavesdropper) redial(raftID uint64)         { e.redials = append(e.redials, raftID) }
func (e *eavesdropper) stand(uint64, *kvpb.Standing) { e.stands++ }

// A survivor is member 2 of three, driven by hand.
type survivor struct {
	*target
	net *eavesdropper
}

func newSurvivor(t *testing.T) *survivor {
	s := &survivor{newTarget(t, true), new(eavesdropper)}
	s.loop.net = s.net
	s.passes(1)
	return s
}

// hears has a frame come from a member that leads a term.
func (s *survivor) hears(member, term uint64) {
	s.t.Helper()
	from, to := roster.RaftID(member, member), s.raftID
	if err := s.receive(from, []*pb.Message{{Type: pb.MsgHeartbeat.Enum(), From: &from, To: &to, Term: &term}}); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
}

// loses has the only stream from a member end, and a dial to it be refused.
func (s *survivor) loses(member uint64) {
	raftID := roster.RaftID(member, member)
	s.streamBegan(raftID)
	s.streamEnded(raftID)
	s.presumeDead(raftID)
	s.settle()
}

// passes lets ticks pass.
func (s *survivor) passes(ticks int) {
	for range ticks {
		s.tick()
		s.settle()
	}
}

// want checks whom the node takes for the leader, in what term it is, and that it
// has asked for pre-votes since it was last asked, or for nothing.
func (s *survivor) want(when string, member, term uint64, asked bool) {
	s.t.Helper()
	status := s.raw.BasicStatus()
	sent := slices.Contains(s.net.sent, pb.MsgPreVote)
	if roster.MemberID(status.Lead) != member || status.GetTerm() != term || sent != asked || slices.Contains(s.net.sent, pb.MsgVote) {
		s.t.Errorf("%s: leader %d, term %d, sent %v; want leader %d, term %d, pre-votes asked for: %v and no vote",
			when, roster.MemberID(status.Lead), status.GetTerm(), s.net.sent, member, term, asked)
	}
	s.net.sent = nil
}

func TestHintNeedsAllOfItsEvidence(t *testing.T) {
	s := newSurvivor(t)
	leader := roster.RaftID(1, 1)
	s.hears(1, 2)
	s.net.sent = nil
	s.presumeDead(leader)
	s.settle()
	s.want("a refused dial alone", 1, 2, false)
	s.streamBegan(leader)
	s.streamBegan(leader)
	s.streamEnded(leader)
	s.presumeDead(leader)
	s.settle()
	s.want("one of two streams has ended", 1, 2, false)
	if len(s.net.redials) != 0 {
		t.Errorf("redials %v", s.net.redials)
	}
	s.streamEnded(leader)
	s.settle()
	s.want("both have", 1, 2, false)
	if !slices.Equal(s.net.redials, []uint64{leader}) {
		t.Errorf("redials %v, want one of the leader", s.net.redials)
	}
	s.hears(1, 2)
	s.net.sent = nil
	s.presumeDead(leader)
	s.settle()
	s.want("a frame came between", 1, 2, false)
	s.loses(3)
	s.want("the evidence is about another member", 1, 2, false)
	s.loses(1)
	s.want("all of it", 0, 2, true)
	if s.net.stands == 0 {
		t.Error("it does not say that it hears of no leader")
	}
}

func TestHintEndsWithAFrameFromTheLeader(t *testing.T) {
	s := newSurvivor(t)
	s.hears(1, 2)
	s.loses(1)
	s.want("a hint", 0, 2, true)
	s.passes(1)
	s.want("the next tick", 0, 2, true)
	s.hears(1, 2)
	s.net.sent = nil
	s.passes(5)
	s.want("the leader lives", 1, 2, false)
}

func TestHintIsFollowedOnceInATermAndAnElectionTimeout(t *testing.T) {
	s := newSurvivor(t)
	election := s.cfg.Timing.electionTicks()
	s.hears(1, 2)
	s.loses(1)
	s.want("the first", 0, 2, true)
	for range 3 * election {
		s.hears(1, 2)
		s.net.sent = nil
		s.loses(1)
		s.want("again in the term", 1, 2, false)
		s.passes(1)
	}
	s.hears(1, 3)
	s.net.sent = nil
	s.loses(1)
	s.want("in the next term", 0, 3, true)
	s.hears(1, 4)
	s.net.sent = nil
	for range election - 1 {
		s.loses(1)
		s.want("within an election timeout", 1, 4, false)
		s.hears(1, 4)
		s.passes(1)
		s.net.sent = nil
	}
	s.passes(1)
	s.hears(1, 4)
	s.net.sent = nil
	s.loses(1)
	s.want("after an election timeout", 0, 4, true)
}

// TestVotersStandOneAfterTheOther: this one is the second if the third member
// led, and stands again until the hint is over.
func TestVotersStandOneAfterTheOther(t *testing.T) {
	s := newSurvivor(t)
	s.hears(3, 2)
	s.net.sent = nil
	s.loses(3)
	s.want("a hint", 0, 2, false)
	s.standsFor(roster.RaftID(1, 1), new(kvpb.Standing))
	s.settle()
	s.want("the first says that it hears nobody", 0, 2, false)
	s.passes(s.cfg.Timing.heartbeatTicks() - 1)
	s.want("before its turn", 0, 2, false)
	s.passes(1)
	s.want("its turn", 0, 2, true)
	s.passes(1)
	s.want("again", 0, 2, true)
	if s.raw.BasicStatus().RaftState != raft.StatePreCandidate {
		t.Errorf("state %v", s.raw.BasicStatus().RaftState)
	}
}

// TestFirstVoterStandsAgainWhenAnotherHearsNobody: it need not wait for the tick.
func TestFirstVoterStandsAgainWhenAnotherHearsNobody(t *testing.T) {
	s := newSurvivor(t)
	s.hears(1, 2)
	s.net.sent = nil
	s.loses(1)
	s.want("a hint", 0, 2, true)
	s.standsFor(roster.RaftID(3, 3), &kvpb.Standing{HearsLeader: true})
	s.settle()
	s.want("the other hears the leader", 0, 2, false)
	s.standsFor(roster.RaftID(3, 3), new(kvpb.Standing))
	s.settle()
	s.want("the other does not", 0, 2, true)
}

// TestReadersAskAgainWhenTheLeaderBegins: it ignores what it was asked before it
// has committed in its term, and they must not wait for their next turn.
func TestReadersAskAgainWhenTheLeaderBegins(t *testing.T) {
	s := newSurvivor(t)
	s.reads.Join(0)
	s.hears(1, 2)
	s.settle()
	asked := func(when string, want int) {
		t.Helper()
		n := 0
		for _, kind := range s.net.sent {
			if kind == pb.MsgReadIndex {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: asked %d times, want %d", when, n, want)
		}
	}
	asked("a leader", 1)
	from, to, term, index := roster.RaftID(1, 1), s.raftID, uint64(2), uint64(1)
	for range 2 { // the second brings nothing new
		index++
		before := index - 1
		entry := &pb.Entry{Term: &term, Index: &index}
		m := &pb.Message{Type: pb.MsgApp.Enum(), From: &from, To: &to, Term: &term, Index: &before, LogTerm: new(before), Entries: []*pb.Entry{entry}, Commit: &index}
		if err := s.receive(from, []*pb.Message{proto.CloneOf(m)}); err != nil {
			t.Fatal(err)
		}
		s.settle()
		s.settle()
		asked("a committed entry", 2)
	}
}
