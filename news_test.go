package raftkv

import (
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
	return &loop{cfg: cfg, raftID: raftID, roster: r, links: newLinks(links{}), net: out, now: 1}, out
}

func question(to uint64) *pb.Message {
	return &pb.Message{Type: pb.MsgHeartbeat.Enum(), To: &to, Context: []byte{1, 0, 0, 0, 0, 0, 0, 0}}
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
		"an append of another term":   {Type: pb.MsgApp.Enum(), To: new(uint64(3)), Term: new(uint64(2)), Index: new(uint64(2))},
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

// TestNobodyCountsOnTheSlow: a member that has not answered for some rests is not
// one of those who are enough, until it answers.
func TestNobodyCountsOnTheSlow(t *testing.T) {
	l, out := teller(1, 3)
	l.lead.term = 1
	index := uint64(0)
	isSpared := func() bool { // whether member 3 is
		out.sent = nil
		l.send(appendOf(2, index, 1, 0, "a"))
		l.send(appendOf(3, index, 1, 0, "a"))
		index++
		return len(out.sent) == 1
	}
	answer := func(from uint64) {
		l.answered(&pb.Message{Type: pb.MsgAppResp.Enum(), From: &from, Term: new(uint64(1)), Index: &index})
	}
	for i := range 10 * lateRestsMax {
		if !isSpared() {
			t.Fatal("member 2 answers in time, but nobody counts on it")
		}
		l.rest()
		if i%lateRestsMax == 0 { // not at once
			answer(2)
		}
	}
	answer(2)
	for range lateRestsMax + 1 {
		if !isSpared() {
			t.Fatal("a member that has just answered counts as slow")
		}
		l.rest()
	}
	if isSpared() {
		t.Fatal("a member that does not answer is counted on")
	}
	answer(2)
	l.now += uint64(l.cfg.Timing.electionTicks())
	if !isSpared() {
		t.Fatal("a member is never counted on again")
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
