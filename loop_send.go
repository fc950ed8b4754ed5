package raftkv

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/firewall"
)

// What the loop does so that neither others nor this node drown in messages.

// toward is what was said to a member of late.
type toward struct {
	appended     said        // the latest append with entries
	acknowledged said        // the latest acknowledgement
	held         *pb.Message // an append that waits for the next one
	eager        uint64      // the tick up to which no append is held back
	question     *pb.Message // a heartbeat that waits for whether others are enough
	asked        uint64      // the latest read confirmation asked for, held back or not
	due          uint64      // that of when the loop rested last
	answered     uint64      // the latest that the member has confirmed
	slow         uint64      // the tick up to which it is taken for slow
}

// A said is what a message said about entries, and the tick from which on it may
// be said again.
type said struct {
	term, index uint64
	entries     int
	again       uint64
}

func (l *loop) toward(raftID uint64) *toward {
	t := l.links.toward[raftID]
	if t == nil {
		t = new(toward)
		l.links.toward[raftID] = t
	}
	return t
}

func (l *loop) send(m *pb.Message) {
	l.links.asked.Sent(m)
	to := l.toward(m.GetTo())
	switch {
	case m.GetType() == pb.MsgSnap:
		l.sendSnapshot(m)
	case l.isPatient(m, to):
		l.hold(&to.held, m)
	case l.isSpare(m, to):
		l.hold(&to.question, m)
	case m.GetType() == pb.MsgApp && len(m.GetEntries()) > 0 && l.isRepeated(m, &to.appended):
	case m.GetType() == pb.MsgAppResp && !m.GetReject() && l.isRepeated(m, &to.acknowledged):
	default:
		l.sendHeld(to, m)
		l.net.send(m)
	}
}

// isPatient reports whether a message may wait a moment for the next append to
// the member: it only says what is committed. Under load there always is one, and
// half of the frames are saved on both ways. A member that has sent us writes
// waits for that news and gets it at once.
func (l *loop) isPatient(m *pb.Message, to *toward) bool {
	return m.GetType() == pb.MsgApp && len(m.GetEntries()) == 0 && l.now > to.eager
}

// isSpare reports whether a message only asks for the confirmation of reads, and
// others are asked who are enough for a quorum (Moraru et al., EPaxos, 2013, call
// that thrifty). It may wait a moment; then it is sent all the same, in case one of
// the others does not answer. A later question stands for it.
func (l *loop) isSpare(m *pb.Message, to *toward) bool {
	if m.GetType() != pb.MsgHeartbeat || len(m.GetContext()) == 0 {
		return false
	}
	to.asked = firewall.ReadCount(m.GetContext())
	if len(l.roster.Conf.GetVotersOutgoing()) > 0 {
		return false
	}
	voters := l.roster.Conf.GetVoters()
	need := quorum(len(voters))
	if l.roster.IsVoter(l.raftID) {
		need-- // this one confirms itself
	}
	for _, v := range voters {
		switch {
		case v == l.raftID || l.now < l.toward(v).slow:
		case need == 0:
			return true
		case v == m.GetTo():
			return false
		default:
			need--
		}
	}
	return need == 0
}

// hold holds a message back, in place of what it says more than.
func (l *loop) hold(place **pb.Message, m *pb.Message) {
	if *place == nil {
		l.links.held++
	}
	*place = m
}

// sendHeld sends what was held back for a member, unless the message that follows
// says it too. Raft takes the loss of a message as it takes any.
func (l *loop) sendHeld(to *toward, next *pb.Message) {
	held := to.held
	if held == nil {
		return
	}
	to.held = nil
	l.links.held--
	covers := next.GetType() == pb.MsgApp && next.GetTerm() == held.GetTerm() &&
		next.GetIndex() >= held.GetIndex() && next.GetCommit() >= held.GetCommit()
	if !covers {
		l.net.send(held)
	}
}

// holds reports whether something is held back; rest sends it. Whoever drives the
// loop calls rest when nothing else has happened for a moment.
func (l *loop) holds() bool { return l.links.held > 0 }

func (l *loop) rest() {
	if !l.holds() {
		return
	}
	for _, m := range l.roster.Members { // in order, so that a run can be replayed
		to := l.toward(m.RaftID)
		l.sendHeld(to, nil)
		if to.question != nil {
			l.net.send(to.question)
		}
		if to.answered < to.due && l.lead.raftID == l.raftID {
			to.slow = l.now + uint64(l.cfg.Timing.electionTicks())
		}
		to.due = to.asked
	}
	for _, to := range l.links.toward {
		to.held, to.question = nil, nil // for who is no member
	}
	l.links.held = 0
}

// answered notes that a member has confirmed reads of the present term.
func (l *loop) answered(m *pb.Message) {
	if m.GetType() == pb.MsgHeartbeatResp && len(m.GetContext()) > 0 && m.GetTerm() == l.lead.term {
		to := l.toward(m.GetFrom())
		to.answered = max(to.answered, firewall.ReadCount(m.GetContext()))
	}
}

// forgetAsked notes that the confirmations of reads are numbered anew.
func (l *loop) forgetAsked() {
	for _, to := range l.links.toward {
		to.asked, to.due, to.answered = 0, 0, 0
	}
}

// isRepeated reports whether the same was said to a member less than a heartbeat
// ago, and notes that it is said.
//
// Raft probes anew with every answer to a heartbeat; of these a member that was
// cut off gives hundreds at once, as every round of reads has sent it one, and each
// would bring a megabyte of the same entries after it. Acknowledgements answer news
// of a commit, too, which need no answer. After a heartbeat it may be what the
// other side waits for, because it has lost the first; with the other's ticks in
// between it has it after two.
func (l *loop) isRepeated(m *pb.Message, old *said) bool {
	now := said{term: m.GetTerm(), index: m.GetIndex(), entries: len(m.GetEntries()), again: old.again}
	if *old == now && l.now < old.again {
		return true
	}
	now.again = l.now + uint64(l.cfg.Timing.heartbeatTicks())
	*old = now
	return false
}

// forgetSaid notes that a member may not have got what was said to it.
func (l *loop) forgetSaid(raftID uint64) {
	to := l.toward(raftID)
	to.appended, to.acknowledged = said{}, said{}
}

// owe gives the transport room for so many bytes to receive, now or when the
// applier has caught up. So a member whose applier lags reads less from its
// streams, and neither its queue nor its log grows without bound.
func (l *loop) owe(bytes int64) {
	l.links.owed += bytes
	l.release()
}

func (l *loop) release() {
	if l.links.owed == 0 || l.tasks.isFull() {
		return
	}
	l.net.room(l.links.owed)
	l.links.owed = 0
}
