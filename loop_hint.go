package raftkv

import "example.com/raftkv/internal/roster"

// What the loop does when the leader's process has ended. Nothing then needs to
// wait for the election timeout, which is for leaders that are only silent.

// A hint is evidence that the process of the leader is gone, and what has been
// made of it. It takes two things, in this order: the last of the leader's streams
// to this node has ended, and then a dial to its address was refused or met
// another process. The kernel of a process that was killed does both, within a
// millisecond. A dial that times out is no evidence: so is a leader that is far
// away, or stopped by a signal.
//
// Evidence may be wrong: a firewall refuses, a proxy restarts, a leader has run
// out of descriptors. So a hint starts what an election timeout starts, no more.
// Its node forgets the leader, which lets it grant pre-votes, and stands for
// election by a pre-vote (thesis §9.6), which changes no term and which all who
// hear the leader ignore. Only if a majority has evidence is there a new leader,
// and the old one, if it lives after all, steps down as it would after a
// partition. Beyond that:
//
//  1. Anything that comes from the leader ends the hint.
//  2. A node follows one hint in a term, and one in an election timeout.
//  3. The voters stand one heartbeat after the other, in the order of their IDs.
//     Were all to stand at once, each would get every pre-vote and then keep its
//     own vote.
//
// Whoever stands before the others have their evidence is ignored, so it stands
// again on each tick, and the first of them also when another says that it hears
// of no leader. The election timeout goes on beneath all this.
type hint struct {
	of    uint64 // the raft ID of the leader whose streams have ended, 0 if it was heard of since
	term  uint64 // in which a hint was last followed
	since uint64 // the tick of that, 0 for never
	next  uint64 // the tick at which to stand for election, 0 for never
}

// streamBegan notes that a member was let in.
func (l *loop) streamBegan(raftID uint64) { l.links.streams[raftID]++ }

// streamEnded notes that one of a member's streams is over. If it was the last of
// the leader's, a dial shall tell whether anybody is there.
func (l *loop) streamEnded(raftID uint64) {
	if l.links.streams[raftID]--; l.links.streams[raftID] > 0 {
		return
	}
	delete(l.links.streams, raftID)
	if l.runs() && l.lead.raftID == raftID {
		l.lead.hint.of = raftID
		l.net.redial(raftID)
	}
}

// presumeDead takes the news that nobody, or somebody else, answers at a member's
// address. With its streams ended, that is a hint.
func (l *loop) presumeDead(raftID uint64) {
	h := &l.lead.hint
	if !l.runs() || raftID != h.of || raftID != l.lead.raftID {
		return
	}
	if h.term == l.lead.term || h.since != 0 && l.now-h.since < uint64(l.cfg.Timing.electionTicks()) {
		return
	}
	l.logger.Info("the leader's process has ended", "leader", roster.MemberID(raftID), "term", l.lead.term)
	h.term, h.since = l.lead.term, max(l.now, 1)
	_ = l.raw.ForgetLeader() // fails only with lease-based reads
	s := l.ownStanding()
	s.HearsLeader = false
	for _, m := range l.roster.Members {
		l.net.stand(m.RaftID, s)
	}
	if l.roster.IsVoter(l.raftID) {
		h.next = max(l.now, 1) + l.rank()*uint64(l.cfg.Timing.heartbeatTicks())
		l.standOnHint()
	}
}

// rank returns how many voters stand before this one when the leader is gone.
func (l *loop) rank() (rank uint64) {
	for _, m := range l.roster.Members {
		if m.RaftID < l.raftID && m.RaftID != l.lead.hint.of && l.roster.IsVoter(m.RaftID) {
			rank++
		}
	}
	return rank
}

// standOnHint stands for election if a hint asks for it and it is time.
func (l *loop) standOnHint() {
	h := &l.lead.hint
	if h.next == 0 || l.now < h.next {
		return
	}
	s := l.raw.BasicStatus()
	if s.Lead != 0 || s.GetTerm() != h.term || l.now-h.since >= uint64(l.cfg.Timing.electionTicks()) {
		h.next = 0
		return
	}
	h.next = l.now + 1
	_ = l.raw.Campaign() // with a pre-vote; it has no error
}

// standAgain has the first voter not wait for the next tick when another member
// says that it hears of no leader, and so may grant a pre-vote now.
func (l *loop) standAgain() {
	if h := &l.lead.hint; h.next != 0 && l.rank() == 0 {
		h.next = max(l.now, 1)
		l.standOnHint()
	}
}

// dropHint ends a hint: its leader lives.
func (l *loop) dropHint(raftID uint64) {
	if h := &l.lead.hint; h.of == raftID {
		h.of, h.next = 0, 0
	}
}
