package raftkv

import pb "go.etcd.io/raft/v3/raftpb"

// What the loop does as time goes by: ticks are all that it knows of time.

// isDue reports whether what process did lets flush do more, so that the next
// round must not wait for a message or a tick.
func (l *loop) isDue() bool {
	if !l.runs() || l.lead.raftID == 0 || l.lead.raftID == l.raftID && !l.lead.ready {
		return false
	}
	return l.reads.IsDue(l.now) || !l.change.worker.IsIdle() && l.change.stepped != l.change.decided
}

// tick advances the node's time by one.
func (l *loop) tick() {
	l.now++
	if !l.runs() {
		return
	}
	l.rest()
	l.raw.Tick()
	l.standOnHint()
	l.doubtLeader()
	l.leaveInGoodHands()
	l.tendSnapshots()
	l.judge()
	l.tellWaiting()
}

// doubtLeader acts, once per election timeout, on a leader that is not heard of.
// This node may have been removed without hearing of it: nobody sends to it any
// more, and as a learner it holds no elections in which it would be told. Or a
// majority may be lost. So it asks the others how they stand. Raft never lets a
// learner forget a leader, so that is done here too.
func (l *loop) doubtLeader() {
	election := uint64(l.cfg.Timing.electionTicks())
	if l.now%election != 0 || l.lead.raftID == l.raftID || l.hearsLeader() {
		return
	}
	s := l.ownStanding()
	s.Asks = true
	for _, m := range l.roster.Members {
		l.net.stand(m.RaftID, s)
	}
	if l.lead.raftID != 0 && !l.roster.IsVoter(l.raftID) {
		_ = l.raw.ForgetLeader() // fails only with lease-based reads
	}
}

// tellWaiting logs, once per time without a leader, that calls wait for one.
func (l *loop) tellWaiting() {
	if l.lead.raftID != 0 || l.lead.told || l.now-l.lead.since < 2*uint64(l.cfg.Timing.electionTicks()) {
		return
	}
	if l.out.Waiting() > 0 || l.reads.Waiting() || l.change.worker.HasRequests() {
		l.lead.told = true
		l.logger.Warn("calls wait for a leader; too few voters can be reached", "silent", l.silent())
	}
}

// silent returns the members that have not been heard of for an election
// timeout.
func (l *loop) silent() (ids []uint64) {
	for _, m := range l.roster.Members {
		if !l.answers(m.RaftID) {
			ids = append(ids, m.ID())
		}
	}
	return ids
}

func (l *loop) answers(raftID uint64) bool {
	if raftID == l.raftID {
		return true
	}
	at, ok := l.links.contact[raftID]
	return ok && l.now-at <= uint64(l.cfg.Timing.electionTicks())
}

// hear notes a message that only a leader sends.
func (l *loop) hear(m *pb.Message) {
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		l.lead.voice, l.lead.heard = m.GetFrom(), l.now
	}
}

// hearsLeader reports whether this node leads with a commit in its term, or has
// heard of the leader, as such, within an election timeout.
func (l *loop) hearsLeader() bool {
	if l.lead.raftID == l.raftID {
		return l.lead.ready
	}
	return l.lead.raftID != 0 && l.lead.voice == l.lead.raftID && l.now-l.lead.heard <= uint64(l.cfg.Timing.electionTicks())
}

// isOver reports whether a removed node has gone on for long enough.
func (l *loop) isOver() bool {
	return l.change.gone != 0 && l.now > l.change.gone+uint64(l.cfg.Timing.electionTicks())
}
