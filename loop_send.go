package raftkv

import pb "go.etcd.io/raft/v3/raftpb"

// What the loop does so that neither others nor this node drown in messages.

func (l *loop) send(m *pb.Message) {
	l.links.asked.Sent(m)
	switch {
	case m.GetType() == pb.MsgSnap:
		l.sendSnapshot(m)
	case m.GetType() == pb.MsgApp && l.isRepeated(m), m.GetType() == pb.MsgAppResp && l.isKnown(m):
	case l.isPatient(m):
		l.links.held[m.GetTo()] = m
	default:
		l.sendHeld(m.GetTo(), m)
		l.net.send(m)
	}
}

// isPatient reports whether a message may wait a moment for the next append to
// the member: it only says what is committed. Under load there always is one, and
// half of the frames are saved on both ways. A member that has sent us writes
// waits for that news and gets it at once.
func (l *loop) isPatient(m *pb.Message) bool {
	return m.GetType() == pb.MsgApp && len(m.GetEntries()) == 0 && l.now > l.links.eager[m.GetTo()]
}

// sendHeld sends what was held back for a member, unless the message that follows
// says it too. Raft takes the loss of a message as it takes any.
func (l *loop) sendHeld(to uint64, next *pb.Message) {
	held := l.links.held[to]
	if held == nil {
		return
	}
	delete(l.links.held, to)
	covers := next.GetType() == pb.MsgApp && next.GetTerm() == held.GetTerm() &&
		next.GetIndex() >= held.GetIndex() && next.GetCommit() >= held.GetCommit()
	if !covers {
		l.net.send(held)
	}
}

// holds reports whether something is held back; rest sends it. Whoever drives the
// loop calls rest when nothing else has happened for a moment.
func (l *loop) holds() bool { return len(l.links.held) > 0 }

func (l *loop) rest() {
	for _, m := range l.roster.Members { // in order, so that a run can be replayed
		l.sendHeld(m.RaftID, nil)
	}
	clear(l.links.held) // nobody else is a member
}

// An appended is the latest append with entries that was sent to a member, or the
// latest acknowledgement.
type appended struct {
	term, index uint64
	entries     int
}

// A sentAppend is one of these and the tick from which on it may be repeated.
type sentAppend struct {
	appended
	again uint64
}

// isRepeated reports whether the same entries were sent to the member less than
// a heartbeat ago. Raft probes anew with every answer to a heartbeat; of these
// a member that was cut off gives hundreds at once, as every round of reads has
// sent it one, and each would bring a megabyte of the same entries after it.
func (l *loop) isRepeated(m *pb.Message) bool {
	if len(m.GetEntries()) == 0 {
		return false
	}
	now := appended{m.GetTerm(), m.GetIndex(), len(m.GetEntries())}
	old := l.links.appended[m.GetTo()]
	if old.appended == now && l.now < old.again {
		return true
	}
	l.links.appended[m.GetTo()] = sentAppend{now, l.now + uint64(l.cfg.Timing.heartbeatTicks())}
	return false
}

// isKnown reports whether the same entries were acknowledged to the member less
// than a heartbeat ago: news of a commit needs no answer, and appends that were
// answered before need none so soon. After a heartbeat the answer may be what a
// leader waits for that has lost the first.
func (l *loop) isKnown(m *pb.Message) bool {
	if m.GetReject() {
		return false
	}
	now := appended{m.GetTerm(), m.GetIndex(), 0}
	old := l.links.acknowledged[m.GetTo()]
	if old.appended == now && l.now < old.again {
		return true
	}
	l.links.acknowledged[m.GetTo()] = sentAppend{now, l.now + uint64(l.cfg.Timing.heartbeatTicks())}
	return false
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
