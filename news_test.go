package raftkv

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/roster"
)

// TestNewsOfACommitTravelsSoon: a leader holds it back for the next append, but
// not for long, and not at all from a member that has sent writes itself.
func TestNewsOfACommitTravelsSoon(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		follower := c.but(leader)[0]
		c.pause(time.Second) // after which nobody is known to write
		for range 10 {
			revision := c.put(leader, "a", "1")
			begin := time.Now()
			if _, err := follower.Get(c.ctx(), "a", MinRevision(revision)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > restAfter {
				t.Errorf("a follower showed a write %v after it was acknowledged, want %v at most", took, restAfter)
			}
		}
		c.put(follower, "b", "0")
		for range 10 {
			begin := time.Now()
			c.put(follower, "b", "1")
			if took := time.Since(begin); took > 0 {
				t.Errorf("a write through a follower took %v on a network without delay", took)
			}
		}
	})
}

// A tray is a transport that keeps what it shall send.
type tray struct {
	transport
	sent []*pb.Message
}

func (t *tray) send(m *pb.Message) { t.sent = append(t.sent, m) }

// teller returns a loop that can do no more than send, as a member of a cluster
// with so many voters.
func teller(raftID, voters uint64) (*loop, *tray) {
	r, out := &roster.Roster{Conf: &pb.ConfState{}}, new(tray)
	for v := uint64(1); v <= voters; v++ {
		r.Conf.Voters = append(r.Conf.Voters, v)
		r.Members = append(r.Members, roster.Member{RaftID: v})
	}
	cfg, _ := Config{ID: raftID, Addr: "localhost:1"}.withDefaults()
	l := &loop{cfg: cfg, raftID: raftID, roster: r, links: newLinks(links{}), net: out, now: 1}
	l.lead.term = 1
	return l, out
}

func question(to uint64) *pb.Message {
	return &pb.Message{Type: pb.MsgHeartbeat.Enum(), To: &to, Term: new(uint64(1)), Context: []byte{1, 0, 0, 0, 0, 0, 0, 0}}
}

// appendOf returns an append of so many entries that follow an index.
func appendOf(to, index uint64, entries int, commit uint64, value string) *pb.Message {
	m := &pb.Message{Type: pb.MsgApp.Enum(), To: &to, Term: new(uint64(1)), Index: &index, Commit: &commit}
	for i := range entries {
		m.Entries = append(m.Entries, &pb.Entry{Index: new(index + uint64(i) + 1), Data: []byte(value)})
	}
	return m
}

// TestLeaderTellsAsManyAsAreEnough, whichever of the voters it is, and the others
// a moment later.
func TestLeaderTellsAsManyAsAreEnough(t *testing.T) {
	for what, message := range map[string]func(to uint64) *pb.Message{
		"question": question,
		"append":   func(to uint64) *pb.Message { return appendOf(to, 7, 2, 7, "a") },
	} {
		for voters := uint64(1); voters <= 7; voters++ {
			for leader := uint64(1); leader <= voters+1; leader++ { // the last one has no vote
				l, out := teller(leader, voters)
				others, votes := 0, 0
				if leader <= voters {
					votes++
				}
				for v := uint64(1); v <= voters; v++ {
					if v != leader {
						others++
						l.send(message(v))
					}
				}
				if votes += len(out.sent); votes != quorum(int(voters)) {
					t.Errorf("%s: leader %d of %d voters counts on %d, want %d", what, leader, voters, votes, quorum(int(voters)))
				}
				if l.rest(); len(out.sent) != others || l.holds() {
					t.Errorf("%s: leader %d of %d voters told %d at last, want %d", what, leader, voters, len(out.sent), others)
				}
			}
		}
	}
}

// TestHeldAppendsGoAsOne, in the order of the log, with the newest commit.
func TestHeldAppendsGoAsOne(t *testing.T) {
	l, out := teller(1, 3)
	rafts := appendOf(0, 0, 3, 0, "a").Entries // raft hands out parts of an array that is its own
	third := rafts[2]
	for _, to := range []uint64{2, 3} {
		first := appendOf(to, 0, 0, 0, "")
		first.Entries = rafts[:2]
		l.send(first)
		l.send(appendOf(to, 2, 1, 1, "a"))
		l.send(appendOf(to, 3, 0, 3, "")) // news of a commit
		l.send(appendOf(to, 3, 3, 3, "a"))
	}
	if rafts[2] != third {
		t.Error("an array of raft's was written to")
	}
	l.rest()
	last := out.sent[len(out.sent)-1]
	if len(out.sent) != 4 || last.GetTo() != 3 || last.GetIndex() != 0 || last.GetCommit() != 3 || len(last.GetEntries()) != 6 {
		t.Fatalf("sent %v; want three appends to 2 and one to 3", out.sent)
	}
	for i, e := range last.GetEntries() {
		if e.GetIndex() != uint64(i)+1 {
			t.Errorf("entry %d of the append to 3 has index %d", i, e.GetIndex())
		}
	}
}

// TestHeldAppendsKeepTheirOrder: what does not follow on them comes after them, as
// does any other message.
func TestHeldAppendsKeepTheirOrder(t *testing.T) {
	for what, next := range map[string]*pb.Message{
		"an append that leaves a gap": appendOf(3, 9, 1, 0, "a"),
		"an append of another term":   {Type: pb.MsgApp.Enum(), To: new(uint64(3)), Term: new(uint64(2)), Index: new(uint64(2)), Commit: new(uint64(1))},
		"an older commit":             {Type: pb.MsgApp.Enum(), To: new(uint64(3)), Term: new(uint64(1)), Index: new(uint64(2))},
		"a call to stand":             {Type: pb.MsgTimeoutNow.Enum(), To: new(uint64(3))},
	} {
		l, out := teller(1, 3)
		l.send(appendOf(2, 0, 2, 1, "a"))
		l.send(appendOf(3, 0, 2, 1, "a"))
		l.send(next)
		l.rest()
		if n := len(out.sent); n != 3 || out.sent[2] != next || len(out.sent[1].GetEntries()) != 2 {
			t.Errorf("%s: sent %v; want it last, in a message of its own", what, out.sent)
		}
	}
}

// TestHeldAppendsAreBounded: they go at once when they have enough for a frame.
func TestHeldAppendsAreBounded(t *testing.T) {
	l, out := teller(1, 3)
	value := strings.Repeat("x", heldBytesMax/3)
	index := uint64(0)
	for range 3 {
		l.send(appendOf(2, index, 1, 0, value))
		l.send(appendOf(3, index, 1, 0, value))
		index++
	}
	if n := len(out.sent); n != 5 || out.sent[3].GetTo() != 3 || len(out.sent[3].GetEntries()) != 2 || l.holds() {
		t.Errorf("sent %d messages, want 2 held appends and the third by then", n)
	}
}

// An exchange tells, and is answered, one thing after the other.
type exchange struct {
	*testing.T
	l    *loop
	out  *tray
	mark uint64
	ask  bool // for the confirmation of reads, not appends
}

func newExchange(t *testing.T, voters uint64, ask bool) *exchange {
	l, out := teller(1, voters)
	return &exchange{T: t, l: l, out: out, ask: ask}
}

// tell tells all voters the next thing and returns how many were told at once.
func (x *exchange) tell() int {
	x.mark++
	x.out.sent = nil
	for _, v := range x.l.roster.Conf.GetVoters()[1:] {
		m := appendOf(v, x.mark-1, 1, 0, "a")
		if x.ask {
			m = question(v)
			m.Context = binary.LittleEndian.AppendUint64(nil, x.mark)
		}
		x.l.send(m)
	}
	return len(x.out.sent)
}

// answer has a member answer up to something.
func (x *exchange) answer(from, mark uint64) {
	m := &pb.Message{Type: pb.MsgAppResp.Enum(), From: &from, Term: new(uint64(1)), Index: &mark}
	if x.ask {
		m.Type, m.Context = pb.MsgHeartbeatResp.Enum(), binary.LittleEndian.AppendUint64(nil, mark)
	}
	x.l.answered(m)
}

func (x *exchange) wantTold(want int, when string) {
	x.Helper()
	if got := x.tell(); got != want {
		x.Fatalf("%d were told at once %s, want %d", got, when, want)
	}
}

func exchanges(t *testing.T, test func(t *testing.T, ask bool)) {
	for _, ask := range []bool{false, true} {
		t.Run(fmt.Sprint("reads=", ask), func(t *testing.T) { test(t, ask) })
	}
}

// TestNobodyCountsOnTheSlow: a member that is overtaken by one that was told later,
// some times in a row, is not one of those who are enough for a while, and longer
// each time.
func TestNobodyCountsOnTheSlow(t *testing.T) {
	exchanges(t, func(t *testing.T, ask bool) {
		x := newExchange(t, 3, ask)
		for i := range 4 * overtakenMax { // now and then
			x.wantTold(1, "while member 2 is as fast as member 3")
			x.l.rest()
			if i%overtakenMax != 0 {
				x.answer(3, x.mark)
			}
			x.answer(2, x.mark)
		}
		x.wantTold(1, "before member 2 is slow")
		x.l.rest()
		x.answer(2, x.mark)
		for range overtakenMax {
			x.wantTold(1, "before member 2 has been overtaken so often")
			x.l.rest()
			x.answer(3, x.mark)
			x.answer(3, x.mark) // once more, which counts once
			x.answer(2, x.mark)
		}
		x.wantTold(2, "when member 2 is slow")
		x.answer(3, x.mark)
		x.answer(2, x.mark) // is no proof that it is faster: nobody was spared
		heartbeat, election := x.l.cfg.Timing.heartbeatTicks(), x.l.cfg.Timing.electionTicks()
		for _, ticks := range []int{2 * heartbeat, 4 * heartbeat, 8 * heartbeat, election, election} {
			x.l.now += uint64(ticks) - 1
			x.wantTold(2, "while member 2 is slow")
			x.l.now++
			x.wantTold(1, "when that is over")
			x.l.rest()
			x.answer(3, x.mark)
			x.wantTold(2, "when it is slow still")
		}
	})
}

// TestSlowAreThoseWhoWereToldFirst: in a large cluster nobody is slow for being
// behind others who were told at the same time, or for not having been told.
func TestSlowAreThoseWhoWereToldFirst(t *testing.T) {
	exchanges(t, func(t *testing.T, ask bool) {
		x := newExchange(t, 5, ask)
		for i := range 4 * overtakenMax { // an even number
			x.wantTold(2, "while members 2 and 3 mostly answer first")
			x.answer(2, x.mark)
			x.l.rest()
			if i%2 == 0 {
				x.answer(5, x.mark)
			}
			x.answer(3, x.mark)
			x.answer(5, x.mark)
			x.answer(4, x.mark)
		}
		for range overtakenMax {
			x.wantTold(2, "before member 3 is slow")
			x.answer(2, x.mark)
			x.l.rest()
			x.answer(5, x.mark)
		}
		x.wantTold(3, "when member 3 is slow, of whom it is one")
		if x.l.now < x.l.toward(2).slow || x.l.now < x.l.toward(4).slow || x.l.now >= x.l.toward(3).slow {
			t.Error("another than member 3 is slow")
		}
	})
}

// TestAnswersOfAnotherTermSayNothing, nor do refusals.
func TestAnswersOfAnotherTermSayNothing(t *testing.T) {
	x := newExchange(t, 3, false)
	for _, m := range []*pb.Message{
		{Type: pb.MsgAppResp.Enum(), From: new(uint64(2)), Term: new(uint64(2)), Index: new(uint64(9))},
		{Type: pb.MsgAppResp.Enum(), From: new(uint64(2)), Term: new(uint64(1)), Index: new(uint64(9)), Reject: new(true)},
	} {
		x.tell()
		x.l.answered(m)
		if got := x.l.toward(2).entries.answered; got != 0 {
			t.Errorf("an answer up to %d was taken for one", got)
		}
	}
	x.answer(2, 1)
	x.answer(7, 1) // of nobody that anything was said to
	x.l.forgetTold()
	if to := x.l.toward(2); to.entries != (account{}) || x.l.links.toward[7] != nil {
		t.Errorf("of the last term %+v is kept", to)
	}
}

// TestQuestionsOfAnotherTermAreDropped, while held appends of it may go: raft takes
// care of those.
func TestQuestionsOfAnotherTermAreDropped(t *testing.T) {
	x := newExchange(t, 3, true)
	x.tell()
	x.l.lead.term = 2
	x.l.forgetTold()
	if x.l.holds() {
		t.Error("a question of the last term is held")
	}
	if x.l.rest(); len(x.out.sent) != 1 {
		t.Errorf("%d questions were sent, want that to member 2 alone", len(x.out.sent))
	}
	x.l.send(appendOf(3, 9, 0, 9, ""))
	x.l.send(appendOf(3, 9, 1, 9, "a"))
	if x.l.rest(); x.l.toward(3).entries.sent != 0 {
		t.Error("an append of the last term counts in this one")
	}
}

// TestWritersGetTheirEntriesAtOnce: they wait for them.
func TestWritersGetTheirEntriesAtOnce(t *testing.T) {
	x := newExchange(t, 3, false)
	x.l.toward(3).eager = x.l.now + eagerTicks
	x.wantTold(2, "when member 3 has sent a write")
	x.l.now += eagerTicks + 1
	x.wantTold(1, "when that is long ago")
}

// TestLostMemberIsNotCountedOn, before it has had the chance to be overtaken.
func TestLostMemberIsNotCountedOn(t *testing.T) {
	x := newExchange(t, 3, false)
	x.wantTold(1, "while all can be reached")
	x.l.rest()
	x.l.forgetSaid(2)
	x.wantTold(2, "when messages to member 2 were lost")
}

// TestHeldAppendsAreNotAddedToWhatIsKnown: of a message that begins before what a
// follower has committed raft takes nothing, and nothing of what was added to it.
func TestHeldAppendsAreNotAddedToWhatIsKnown(t *testing.T) {
	x := newExchange(t, 3, false)
	for _, index := range []uint64{5, 8} {
		x.l.send(appendOf(2, index, 3, 8, "a"))
		x.l.send(appendOf(3, index, 3, 8, "a"))
		x.answer(3, 8)
	}
	x.l.rest()
	if n := len(x.out.sent); n != 4 || x.out.sent[3].GetIndex() != 8 || len(x.out.sent[3].GetEntries()) != 3 {
		t.Errorf("sent %v; want what follows on index 8 in a message of its own", x.out.sent)
	}
}

// TestSlowVoterCostsNothing, whether it comes first or not, and however often calls
// come: but for some calls in an election timeout, they take as long as the faster of
// the others does.
func TestSlowVoterCostsNothing(t *testing.T) {
	for _, apart := range []time.Duration{0, 20 * time.Millisecond} {
		bubble(t, func(t *testing.T, c *cluster) {
			c.found(3)
			if c.leader().cfg.ID != 1 {
				if err := c.leader().TransferLeadership(c.ctx(), 1); err != nil {
					t.Fatal(err)
				}
			}
			delay := func(id int, d time.Duration) {
				c.net.Delay("n1:1", fmt.Sprintf("n%d:1", id), d)
				c.net.Delay(fmt.Sprintf("n%d:1", id), "n1:1", d)
			}
			delay(2, 2500*time.Microsecond)
			delay(3, 200*time.Microsecond)
			for what, call := range map[string]func(){
				"read":  func() { c.wantValue(c.nodes[1], "a", "1") },
				"write": func() { c.put(c.nodes[1], "a", "1") },
			} {
				c.put(c.nodes[1], "a", "1")
				late := 0
				const calls = 100
				for range calls {
					begin := time.Now()
					call()
					if time.Since(begin) > 500*time.Microsecond {
						late++
					}
					c.pause(apart)
				}
				if late > calls/10 {
					t.Errorf("%d of %d calls (%s), %v apart, waited for the slow voter", late, calls, what, apart)
				}
			}
		})
	}
}

// TestOthersAreToldWhenOneDoesNotAnswer: a leader first tells as many as are
// enough for a quorum.
func TestOthersAreToldWhenOneDoesNotAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		c.put(leader, "a", "1")
		for what, call := range map[string]func(){
			"read":  func() { c.wantValue(leader, "a", "1") },
			"write": func() { c.put(leader, "a", "1") },
		} {
			for _, silent := range c.but(leader) {
				c.net.Cut(leader.cfg.Addr, silent.cfg.Addr)
				late := 0
				const calls = 200
				for range calls {
					begin := time.Now()
					call()
					took := time.Since(begin)
					if took > 2*restAfter {
						t.Errorf("with member %d silent a %s took %v, want %v at most", silent.cfg.ID, what, took, 2*restAfter)
					}
					if took > 0 {
						late++
					}
					c.pause(time.Millisecond)
				}
				if late > calls/10 {
					t.Errorf("with member %d silent %d of %d calls (%s) waited for it", silent.cfg.ID, late, calls, what)
				}
				c.net.Heal(leader.cfg.Addr, silent.cfg.Addr)
				c.pause(2 * leader.cfg.Timing.Election)
			}
		}
	})
}
