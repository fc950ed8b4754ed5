package raftkv

import pb "go.etcd.io/raft/v3/raftpb"

// What the loop does so that neither others nor this node drown in messages.

// toward is what was said to a member of late.
type toward struct {
	appended     said        // the latest append with entries
	acknowledged said        // the latest acknowledgement
	held         *pb.Message // an append that waits for the next one
	eager        uint64      // the tick up to which nothing is held back
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
		l.hold(to, m)
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

func (l *loop) hold(to *toward, m *pb.Message) {
	if to.held == nil {
		l.links.held++
	}
	to.held = m
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
		l.sendHeld(l.toward(m.RaftID), nil)
	}
	for _, to := range l.links.toward {
		to.held = nil // for who is no member
	}
	l.links.held = 0
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
