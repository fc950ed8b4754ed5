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
	overtaken    int         // how often in a row one that was spared has answered first
	slow         uint64      // the tick up to which it is taken for slow
}

// An account is how far a member was told something in the present term, how far
// after a rest because it was spared, and how far it has answered.
type account struct{ sent, spared, answered uint64 }

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
	if a, mark := to.account(m); a != nil && m.GetTerm() == l.lead.term {
		a.sent = max(a.sent, mark)
	}
	l.net.send(m)
}

// tellLate is tell for what was held back.
func (l *loop) tellLate(m *pb.Message, to *toward) {
	if a, mark := to.account(m); a != nil && m.GetTerm() == l.lead.term {
		a.spared = max(a.spared, mark)
	}
	l.tell(m, to)
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
// were told the same, and none of them is slow (Moraru et al., EPaxos, 2013, call
// that thrifty). It may wait a moment; then it is sent all the same, in case one of
// the others does not answer. Raft sends in the order of raft IDs; so who stands
// first when the leader has died normally has all that is committed. If it lacks
// something, the next one stands a heartbeat later.
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
		if told >= quorum(len(voters)) {
			return true
		}
	}
	return false
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
	if to.held != nil && isNext(m, to.held) && to.entries.answered <= to.held.GetIndex() { // else raft would take nothing of it
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
		l.tellLate(held, to)
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
			l.tellLate(to.question, to)
		}
	}
	for _, to := range l.links.toward {
		to.held, to.heldBytes, to.question = nil, 0, nil // for who is no member
	}
	l.links.held = 0
}

// overtakenMax is how often in a row a member may be overtaken until nobody counts
// on it: for two heartbeats, as it may only have been held up, and each time twice as
// long, up to an election timeout.
const overtakenMax = 3

// answered notes what a member has confirmed in the present term. If it was spared,
// those who were told before it should have answered before it.
func (l *loop) answered(m *pb.Message) {
	from := l.links.toward[m.GetFrom()]
	if from == nil || m.GetTerm() != l.lead.term || m.GetReject() {
		return
	}
	a, mark := from.confirmed(m)
	if a == nil || mark <= a.answered {
		return
	}
	a.answered = mark
	before, after := false, false // one that was spared has answered
	for _, v := range l.roster.Conf.GetVoters() {
		other := l.toward(v)
		switch o, _ := other.confirmed(m); {
		case other == from || v == l.raftID:
		case o.answered < mark && o.sent >= mark && o.spared < mark && mark <= a.spared:
			l.overtake(other)
		case o.spared >= mark && o.answered >= mark:
			before = true
		case o.spared >= mark || o.sent < mark:
			after = true // or will
		}
	}
	if mark > a.spared && after && !before {
		from.overtaken = 0
	}
}

// confirmed returns what an answer counts for and how far it goes; nil if nothing.
func (t *toward) confirmed(m *pb.Message) (*account, uint64) {
	switch {
	case m.GetType() == pb.MsgHeartbeatResp && len(m.GetContext()) > 0:
		return &t.reads, firewall.ReadCount(m.GetContext())
	case m.GetType() == pb.MsgAppResp:
		return &t.entries, m.GetIndex()
	default:
		return nil, 0
	}
}

func (l *loop) overtake(to *toward) {
	if to.overtaken++; to.overtaken >= overtakenMax {
		ticks := 2 * l.cfg.Timing.heartbeatTicks() << min(to.overtaken-overtakenMax, 8)
		l.avoid(to, min(ticks, l.cfg.Timing.electionTicks()))
	}
}

// avoid has nobody count on a member for so many ticks.
func (l *loop) avoid(to *toward, ticks int) { to.slow = max(to.slow, l.now+uint64(ticks)) }

// forgetTold notes that indexes and the confirmations of reads are of another term.
func (l *loop) forgetTold() {
	for _, to := range l.links.toward {
		to.entries, to.reads, to.overtaken = account{}, account{}, 0
		if to.question != nil {
			to.question = nil
			l.links.held--
		}
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
	l.avoid(to, l.cfg.Timing.heartbeatTicks()) // then raft knows whether it answers
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
