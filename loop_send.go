package raftkv

import (
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/firewall"
)

// What the loop does so that neither others nor this node drown in messages.

// toward is what was said to a member of late.
type toward struct {
	appended     said        // the latest append with entries
	acknowledged said        // the latest acknowledgement
	held         *pb.Message // appends that wait for the next one, in one
	heldBytes    int         // of their entries
	eager        uint64      // the tick up to which no append is held back
	question     *pb.Message // a heartbeat that waits for whether others are enough
	entries      account     // up to which index
	reads        account     // up to which confirmation of reads
	late         int         // for how many rests an answer has been due
	slow         uint64      // the tick up to which it is taken for slow
}

// An account is how far a member was told something in the present term, and how
// far it has answered.
type account struct {
	sent, answered uint64
	due            uint64 // what sent was at a rest, until that is answered
}

// isLate reports, at a rest, whether what was sent before an earlier one is not
// answered.
func (a *account) isLate() bool {
	if a.answered < a.due {
		return true
	}
	a.due = a.sent
	return false
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
	case m.GetType() == pb.MsgApp && len(m.GetEntries()) > 0 && l.isRepeated(m, &to.appended):
	case m.GetType() == pb.MsgAppResp && !m.GetReject() && l.isRepeated(m, &to.acknowledged):
	case l.isPatient(m, to) && l.holdAppend(m, to):
	case m.GetType() == pb.MsgHeartbeat && l.isSpare(m, to):
		l.hold(&to.question, m) // a later question stands for an earlier one
	default:
		l.sendHeld(to, m)
		l.tell(m, to)
	}
}

// tell hands a message to the transport.
func (l *loop) tell(m *pb.Message, to *toward) {
	if a, mark := to.account(m); a != nil {
		a.sent = max(a.sent, mark)
	}
	l.net.send(m)
}

// account returns what a message counts for, entries or the confirmation of reads,
// and how far it goes; nil if it is neither.
func (t *toward) account(m *pb.Message) (*account, uint64) {
	switch {
	case m.GetType() == pb.MsgApp && len(m.GetEntries()) > 0:
		return &t.entries, m.GetIndex() + uint64(len(m.GetEntries()))
	case m.GetType() == pb.MsgHeartbeat && len(m.GetContext()) > 0:
		return &t.reads, firewall.ReadCount(m.GetContext())
	default:
		return nil, 0
	}
}

// isPatient reports whether an append may wait a moment for the next one to the
// member: it only says what is committed, or others have its entries who are
// enough. Under load there always is a next one, and frames are saved on both ways.
// A member that has sent us writes waits for them and gets them at once.
func (l *loop) isPatient(m *pb.Message, to *toward) bool {
	return m.GetType() == pb.MsgApp && l.now > to.eager && (len(m.GetEntries()) == 0 || l.isSpare(m, to))
}

// isSpare reports whether a message with entries, or one that asks for the
// confirmation of reads, goes to one more than is needed: others who make a quorum
// were told the same, and have answered in time of late (Moraru et al., EPaxos,
// 2013, call that thrifty). It may wait a moment; then it is sent all the same, in
// case one of the others does not answer. Raft sends in the order of raft IDs; so
// who stands first when the leader has died has all that is committed.
func (l *loop) isSpare(m *pb.Message, to *toward) bool {
	a, mark := to.account(m)
	if a == nil || len(l.roster.Conf.GetVotersOutgoing()) > 0 {
		return false
	}
	voters, told := l.roster.Conf.GetVoters(), 0
	for _, v := range voters {
		other := l.toward(v)
		a, _ := other.account(m)
		if v == l.raftID || other != to && a.sent >= mark && l.now >= other.slow {
			told++
		}
	}
	return told >= quorum(len(voters))
}

// hold holds a message back, in place of what it says more than.
func (l *loop) hold(place **pb.Message, m *pb.Message) {
	if *place == nil {
		l.links.held++
	}
	*place = m
}

// heldBytesMax is how much of entries is held back for a member: what is worth a
// frame of its own waits for nothing.
const heldBytesMax = 128 << 10

// holdAppend holds an append back, in one with those before it. It reports whether
// it could.
func (l *loop) holdAppend(m *pb.Message, to *toward) bool {
	bytes := 0
	for _, e := range m.GetEntries() {
		bytes += len(e.GetData()) + entryOverheadBytes
	}
	if to.heldBytes+bytes > heldBytesMax {
		return false
	}
	if to.held != nil && isNext(m, to.held) {
		to.held.Entries = append(to.held.Entries, m.GetEntries()...)
		to.held.Commit = m.Commit
	} else {
		l.sendHeld(to, m)
		m.Entries = slices.Clip(m.GetEntries()) // the array may be raft's
		l.hold(&to.held, m)
	}
	to.heldBytes += bytes
	return true
}

// isNext reports whether an append goes on where an earlier one ends.
func isNext(m, before *pb.Message) bool {
	return m.GetTerm() == before.GetTerm() && m.GetCommit() >= before.GetCommit() &&
		m.GetIndex() == before.GetIndex()+uint64(len(before.GetEntries()))
}

// sendHeld sends what was held back for a member, unless the message that follows
// says it too. Raft takes the loss of a message as it takes any.
func (l *loop) sendHeld(to *toward, next *pb.Message) {
	held := to.held
	if held == nil {
		return
	}
	to.held, to.heldBytes = nil, 0
	l.links.held--
	covers := len(held.GetEntries()) == 0 && next.GetType() == pb.MsgApp && next.GetTerm() == held.GetTerm() &&
		next.GetIndex() >= held.GetIndex() && next.GetCommit() >= held.GetCommit()
	if !covers {
		l.tell(held, to)
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
			l.tell(to.question, to)
		}
		l.clock(to)
	}
	for _, to := range l.links.toward {
		to.held, to.heldBytes, to.question = nil, 0, nil // for who is no member
	}
	l.links.held = 0
}

// lateRestsMax is how many rests an answer may take until nobody counts on the
// member for a while.
const lateRestsMax = 3

// clock notes, at a rest, whether a member answers in time.
func (l *loop) clock(to *toward) {
	isLate := to.entries.isLate()
	if to.reads.isLate() || isLate {
		to.late++
	} else {
		to.late = 0
	}
	if to.late >= lateRestsMax {
		to.slow = l.now + 2*uint64(l.cfg.Timing.heartbeatTicks())
	}
}

// answered notes what a member has confirmed in the present term.
func (l *loop) answered(m *pb.Message) {
	to := l.toward(m.GetFrom())
	switch {
	case m.GetTerm() != l.lead.term:
	case m.GetType() == pb.MsgHeartbeatResp && len(m.GetContext()) > 0:
		to.reads.answered = max(to.reads.answered, firewall.ReadCount(m.GetContext()))
	case m.GetType() == pb.MsgAppResp && !m.GetReject():
		to.entries.answered = max(to.entries.answered, m.GetIndex())
	}
}

// forgetTold notes that indexes and the confirmations of reads are of another term.
func (l *loop) forgetTold() {
	for _, to := range l.links.toward {
		to.entries, to.reads, to.late = account{}, account{}, 0
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
