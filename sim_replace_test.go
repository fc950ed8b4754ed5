package raftkv

import (
	"slices"

	"example.com/raftkv/internal/roster"
)

// How far replacements of members are: for the floors, and for the faults that
// strike at a certain step.

// A replaceStep is how far a replacement is.
type replaceStep int

const (
	added replaceStep = iota
	adopted
	snapshotting
	caughtUp
	joint
	replaceSteps
)

var stepNames = [...]string{"added", "adopted", "snapshotting", "caught up", "joint"}

// A replacement is the way of a new process into the place of a dead one.
type replacement struct {
	id, old, raftID uint64 // member ID; raft IDs of both incarnations
	step            replaceStep
}

// follow looks at a membership that is new in the world.
func (f *facts) follow() {
	now := f.newest
	f.changes = slices.DeleteFunc(f.changes, func(r *replacement) bool { return f.isOver(r) })
	for _, m := range now.Members {
		old, ok := now.Replaced(m)
		if !ok {
			f.countSwap(m)
			continue
		}
		if !slices.ContainsFunc(f.changes, func(r *replacement) bool { return r.raftID == m.RaftID }) {
			r := &replacement{id: m.ID(), old: old.RaftID, raftID: m.RaftID, step: -1}
			f.changes = append(f.changes, r)
			f.step(m.RaftID, added)
		}
		if now.IsJoint() && slices.Contains(now.Conf.GetVoters(), m.RaftID) {
			f.step(m.RaftID, joint)
		}
	}
}

// isOver reports whether a replacement has ended, and counts how.
func (f *facts) isOver(r *replacement) bool {
	m, ok := f.newest.Lookup(r.raftID)
	switch {
	case !ok:
		f.w.count.add("replacements given up", 1)
		return true
	case !f.newest.IsVoter(r.raftID):
		_, still := f.newest.Replaced(m)
		return !still
	case f.newest.IsJoint():
		return false
	}
	f.w.count.add("replacements completed", 1)
	f.w.note(r.id, "replaced", r.old, r.raftID, 0)
	return true
}

// countSwap counts a learner that was replaced in one step.
func (f *facts) countSwap(m roster.Member) {
	if f.before == nil {
		return
	}
	was, ok := f.before.Newest(m.ID())
	if _, two := f.before.Replaced(was); ok && !two && was.RaftID != m.RaftID && !f.before.IsVoter(was.RaftID) {
		f.w.count.add("learners replaced", 1)
	}
}

// step notes that a replacement has come to a step, where faults may wait for
// it.
func (f *facts) step(raftID uint64, s replaceStep) {
	for _, r := range f.changes {
		if r.raftID == raftID && r.step < s {
			r.step = s
			f.w.count.add("replacement "+stepNames[s], 1)
			f.w.faults.strike(r)
		}
	}
}

// receiving notes that a snapshot is on its way to a member.
func (f *facts) receiving(x *simSnapshot) { f.step(x.to.RaftID, snapshotting) }

// watchCatchUp looks at newcomers as their leader does.
func (f *facts) watchCatchUp(p *process) {
	for _, r := range f.changes {
		if r.step >= caughtUp {
			continue
		}
		if pr := p.n.loop.Progress(r.raftID); pr.Replicates && pr.Match+16 >= p.n.loop.Last() {
			f.step(r.raftID, caughtUp)
		}
	}
}

// died counts what a death has interrupted.
func (f *facts) died(p *process, led bool) {
	for _, r := range f.changes {
		switch m, _ := f.newest.Lookup(r.raftID); {
		case m.Nonce == p.n.loop.nonce:
			f.w.count.add("newcomer died when "+stepNames[r.step], 1)
		case led:
			f.w.count.add("leader died when "+stepNames[r.step], 1)
		}
	}
}
