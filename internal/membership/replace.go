package membership

import (
	"example.com/raftkv/internal/roster"
)

// mayReplace reports whether a member is being replaced, or might have to be.
func (w *Worker) mayReplace() bool {
	now := w.raft.Roster()
	if now.IsReplacing() {
		return true
	}
	for _, m := range now.Members {
		if w.raft.InPlace(m.RaftID) != "" {
			return true
		}
	}
	return false
}

// replace takes the next step, if there is one, to put a process that came back
// blank in the place of the member that it was (DESIGN.md section 7). The state
// kept in memory is lost, its vote and what it acknowledged included, so it may
// not go on under its old raft ID (raft-guide section 7).
//
// Each step is a look at the roster in force and one change of it, so that a new
// leader goes on wherever the old one died, and a process that restarts again in
// the middle is only another step:
//
//  1. A blank process was met where a member's newest incarnation should be, and
//     that is silent: the process becomes its next incarnation, as a learner. If
//     what it replaces is a learner, a plain one or one of an earlier attempt, it
//     is swapped for it at once.
//  2. A new incarnation beside an old voter has caught up: it gets the vote in
//     one joint change that removes the old one.
//  3. The old incarnation answers after all, for longer than what was on its way
//     when it died can explain: the newcomer is a clone, and has to go.
//
// Safety does not depend on the old incarnation being dead. Every change is
// conditional on the roster that led to it, so that what an operator changes
// meanwhile wins: the role is read again, and a member that is removed is
// removed with both incarnations (roster.SetVoters).
func (w *Worker) replace() {
	now := w.raft.Roster()
	if now.IsJoint() || w.raft.IsPending() || !w.mayReplace() {
		return
	}
	for _, m := range now.Members {
		if newest, _ := now.Newest(m.ID()); newest == m && w.replaceMember(now, m) {
			return // one change at a time
		}
	}
}

// replaceMember takes a step for one member, given its newest incarnation. It
// reports whether it did.
func (w *Worker) replaceMember(now *roster.Roster, m roster.Member) bool {
	old, replaces := now.Replaced(m)
	if replaces && w.raft.Progress(old.RaftID).Answers {
		if w.hasRevived(old.RaftID) {
			w.propose(now.Remove("", m.RaftID))
			return true
		}
		return false
	}
	delete(w.revived, old.RaftID)
	// Named by the nonce, so that no process is ever added twice.
	if nonce := w.raft.InPlace(m.RaftID); nonce != "" && !now.HasChange(nonce) && w.raft.Progress(m.RaftID).Silent {
		w.propose(now.Replace(nonce, m, m.Addr, nonce))
		return true
	}
	if replaces && w.raft.Progress(old.RaftID).Silent && w.hasCaughtUp(m.RaftID, w.raft.Progress(m.RaftID)) {
		w.propose(now.Promote(old, m))
		return true
	}
	return false
}

// hasRevived reports whether an old incarnation, although its member is being
// replaced, has answered for two election timeouts: twice what a message from
// before its death counts for.
func (w *Worker) hasRevived(raftID uint64) bool {
	if _, ok := w.revived[raftID]; !ok {
		w.revived[raftID] = w.now
	}
	return w.now-w.revived[raftID] > 2*w.electionTicks
}
