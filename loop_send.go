package raftkv

import pb "go.etcd.io/raft/v3/raftpb"

// What the loop does so that neither others nor this node drown in messages.

func (l *loop) send(m *pb.Message) {
	l.links.asked.Sent(m)
	switch {
	case m.GetType() == pb.MsgSnap:
		l.sendSnapshot(m)
	case m.GetType() == pb.MsgApp && l.isRepeated(m):
	default:
		l.net.send(m)
	}
}

// An appended is the latest append with entries that was sent to a member.
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

// whenThereIsRoom calls a function, now or when the applier has caught up, that
// makes room for more to be received. So a member whose applier lags reads less
// from its streams, and neither its queue nor its log grows without bound.
func (l *loop) whenThereIsRoom(f func()) {
	l.links.owed = append(l.links.owed, f)
	l.release()
}

func (l *loop) release() {
	if l.tasks.isFull() {
		return
	}
	for _, f := range l.links.owed {
		f()
	}
	l.links.owed = nil
}
