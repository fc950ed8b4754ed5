package raftkv

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// What ends that a member is spared, and what must not. See also news_test.go.

// TestNobodyIsSparedInAJointConfiguration: who is enough for one half is not for the
// other.
func TestNobodyIsSparedInAJointConfiguration(t *testing.T) {
	exchanges(t, func(t *testing.T, ask bool) {
		x := newExchange(t, 3, ask)
		x.l.roster.Conf.VotersOutgoing = []uint64{3, 4, 5}
		x.wantTold(2, "in a joint configuration")
		x.l.roster.Conf.VotersOutgoing = nil
		x.wantTold(1, "after it")
	})
}

// TestNobodyIsSparedWhatItWasTold: when a member is told something again, it is not
// itself one of the others who know.
func TestNobodyIsSparedWhatItWasTold(t *testing.T) {
	l, out := teller(1, 3)
	l.send(appendOf(2, 0, 3, 0, "a"))
	l.send(appendOf(2, 1, 2, 0, "a")) // raft probes
	if len(out.sent) != 2 {
		t.Errorf("sent %v, want both appends to 2, as nobody else has the entries", out.sent)
	}
}

// TestHeldNewsOfACommitIsLostInNothingLess: it is not sent if what follows says as
// much.
func TestHeldNewsOfACommitIsLostInNothingLess(t *testing.T) {
	for what, c := range map[string]struct {
		next *pb.Message
		want int
	}{
		"entries that follow":            {appendOf(2, 5, 1, 5, "a"), 1},
		"later entries, a later commit":  {appendOf(2, 9, 1, 7, "a"), 1},
		"entries before what it says":    {appendOf(2, 3, 1, 5, "a"), 2},
		"entries with an earlier commit": {appendOf(2, 5, 1, 4, "a"), 2},
		"a heartbeat":                    {&pb.Message{Type: pb.MsgHeartbeat.Enum(), To: new(uint64(2)), Term: new(uint64(1)), Commit: new(uint64(5))}, 2},
	} {
		l, out := teller(1, 3)
		l.send(appendOf(2, 5, 0, 5, ""))
		l.send(c.next)
		if len(out.sent) != c.want || out.sent[c.want-1] != c.next || l.holds() {
			t.Errorf("%s: sent %v, want %d messages, it last", what, out.sent, c.want)
		}
	}
}

// TestAppendsAreHeldAgain after what was held had become too much.
func TestAppendsAreHeldAgain(t *testing.T) {
	l, out := teller(1, 3)
	value := make([]byte, heldBytesMax/2)
	for index := range uint64(3) {
		l.send(appendOf(2, index, 1, 0, string(value)))
		l.send(appendOf(3, index, 1, 0, string(value)))
	}
	if n := len(out.sent); n != 5 || !l.holds() {
		t.Errorf("sent %d messages, want 3, and the 2 that were too much", n)
	}
}

// TestLossChangesWhatIsSaidToAMember: it is told again what it may have missed, and
// if it is slow it stays so.
func TestLossChangesWhatIsSaidToAMember(t *testing.T) {
	l, out := teller(1, 3)
	l.toward(2).slow = 1000
	say := func(want int) {
		t.Helper()
		l.send(appendOf(2, 0, 1, 0, "a"))
		l.send(&pb.Message{Type: pb.MsgAppResp.Enum(), To: new(uint64(2)), Term: new(uint64(1)), Index: new(uint64(7))})
		if len(out.sent) != want {
			t.Errorf("sent %v, want %d messages", out.sent, want)
		}
	}
	say(2)
	say(2)
	l.forgetSaid(2)
	say(4)
	if l.toward(2).slow != 1000 {
		t.Errorf("slow until tick %d, want 1000", l.toward(2).slow)
	}
}

// TestAccountsAreOfOneTerm: indexes and confirmations begin anew with a leader.
func TestAccountsAreOfOneTerm(t *testing.T) {
	cfg, err := Config{ID: 1, Addr: "n1:1"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l := newNode(cfg).loop
	to := l.toward(2)
	told := toward{entries: account{9, 9, 9}, reads: account{9, 9, 9}, overtaken: 9, slow: 9}
	*to = told
	if l.observe(raft.Ready{}); *to != told {
		t.Errorf("without a new term %+v has become %+v", told, *to)
	}
	if l.observe(raft.Ready{HardState: &pb.HardState{Term: new(uint64(2))}}); *to != (toward{slow: 9}) {
		t.Errorf("in another term there is %+v, want nothing but who is slow", *to)
	}
}

// TestWhatIsHeldOverATermCountsInNone, as its indexes may be those of other entries.
func TestWhatIsHeldOverATermCountsInNone(t *testing.T) {
	x := newExchange(t, 3, false)
	x.wantTold(1, "in the first term")
	x.l.lead.term = 2
	x.l.forgetTold()
	if x.l.rest(); len(x.out.sent) != 2 || x.l.toward(3).entries != (account{}) {
		t.Errorf("sent %v, and of member 3 %+v is kept; want it told, and nothing kept", x.out.sent, x.l.toward(3).entries)
	}
}

// TestWhoIsRemovedIsToldAtOnce, before its link ends. What was said to it is forgotten
// with the next change, if not before: the loss of what it was told after it had gone
// may still be noted.
func TestWhoIsRemovedIsToldAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(4)
		leader := c.leader()
		others := c.but(leader)
		voter, learner := others[2], c.learner(5)
		for _, removed := range []*Node{learner, voter} {
			c.pause(time.Second)
			var err error
			if removed == learner {
				_, err = leader.RemoveLearner(c.ctx(), learner.cfg.ID)
			} else {
				_, err = leader.ChangeMembership(c.ctx(), []uint64{leader.cfg.ID, others[0].cfg.ID, others[1].cfg.ID})
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.pause(2 * restAfter); !removed.view.Load().gone {
				t.Errorf("member %d does not know of its removal %v later", removed.cfg.ID, 2*restAfter)
			}
		}
		if err := leader.do(func(l *loop) {
			if to := l.links.toward[learner.view.Load().raftID]; to != nil {
				t.Errorf("of what was said to member 5 there is kept %+v", *to)
			}
		}); err != nil {
			t.Fatal(err)
		}
	})
}
