package raftkv

import (
	"time"

	"example.com/raftkv/internal/roster"
)

// What the simulator knows of readiness: what a process must have while it says
// that it is ready, and restarts one after another by those who believe it.

// A footing is what was true when a process took up its present leader.
type footing struct {
	leader, term uint64
	since        uint64 // the tick
	revision     uint64 // the highest that any call had returned
	membership   uint64 // the index of the newest that was committed
}

// stand notes that a process has taken up a leader.
func (f *facts) stand(p *process) {
	lead, s := &p.n.loop.lead, &p.seen.footing
	if s.leader == lead.raftID && s.term == lead.term && s.since == lead.since {
		return
	}
	*s = footing{lead.raftID, lead.term, lead.since, f.w.hist.floor, f.newest.Index}
}

// checkReady checks a process that says that it is ready. It was confirmed to show
// all under its present leader, so it shows at least what had been acknowledged,
// and knows the membership that had been committed, when it took that leader up. A
// new leader is doubted from the next tick on.
func (f *facts) checkReady(p *process) {
	l, s := p.n.loop, &p.seen.footing
	if !p.n.view.Load().ready || l.now <= l.lead.since {
		return
	}
	switch self, ok := l.roster.Lookup(l.raftID); {
	case !ok:
		f.w.fail("member %d is ready and no member of %s", p.place.id, membershipText(l.roster))
	case isHalf(l.roster, self):
		f.w.fail("member %d is ready, and its vote is still that of an earlier process", p.place.id)
	case isHalf(f.newest, self):
		f.w.fail("member %d is ready, and is being replaced", p.place.id)
	case p.n.fsm.revision < s.revision:
		f.w.fail("member %d is ready at revision %d; %d had been returned before it took up its leader", p.place.id, p.n.fsm.revision, s.revision)
	case l.roster.Index < s.membership:
		f.w.fail("member %d is ready with the membership of %d; that of %d was in force before it took up its leader", p.place.id, l.roster.Index, s.membership)
	}
	if !p.seen.ready {
		f.w.count.add("processes that became ready", 1)
	}
	p.seen.ready = true
}

// isHalf reports whether a membership has another incarnation of a member.
func isHalf(r *roster.Roster, m roster.Member) bool {
	for _, o := range r.Members {
		if o.ID() == m.ID() && o.RaftID != m.RaftID {
			return true
		}
	}
	return false
}

// rollingRestart restarts all members one after another, each as soon as the one
// before says that it is ready: what users are told to do.
func (w *world) rollingRestart() {
	if w.faults.rolling {
		return
	}
	w.faults.rolling = true
	w.rollOn(w.rnd.Perm(len(w.places)), nil, w.now+2*time.Minute)
}

// rollOn restarts the first of the rest once the last one is ready.
func (w *world) rollOn(rest []int, last *place, until time.Duration) {
	for len(rest) > 0 && w.isSpare(w.places[rest[0]]) {
		rest = rest[1:]
	}
	switch {
	case !w.faults.active || w.now > until || len(rest) == 0:
		w.faults.rolling = false
		if len(rest) == 0 {
			w.count.add("rolling restarts", 1)
		}
		return
	case w.isReady(last):
		w.checkVotes(last)
		p := w.procs[rest[0]]
		if w.strike(p) || last != nil && w.strikeNext(p) {
			last, rest = w.places[rest[0]], rest[1:]
		}
	}
	w.after(w.between(0, 200*time.Millisecond), func() { w.rollOn(rest, last, until) })
}

func (w *world) isSpare(pl *place) bool {
	_, member := w.facts.newest.Newest(pl.id)
	return !member
}

// isReady reports whether the process at a place says that it is ready, or for no
// place whether those of all members do.
func (w *world) isReady(pl *place) bool {
	if pl != nil {
		p := w.procs[pl.at]
		return p != nil && !p.paused && p.n.view.Load().ready || w.isSpare(pl)
	}
	for _, m := range w.facts.newest.Members {
		if p := w.runs(m); p == nil || !p.n.view.Load().ready {
			return false
		}
	}
	return true
}

// strikeNext kills a process though the budget does not allow it, for that counts
// the membership before the newest for as long as somebody has not heard of the
// newest: if all members run and nobody has asked for a change, who restarts them
// one after another as he is told may not lose a majority so either.
func (w *world) strikeNext(p *process) bool {
	now := w.facts.newest
	if p == nil || now.IsJoint() || len(w.ops.wanted()) > 0 || w.ops.request != nil {
		return false
	}
	for _, m := range now.Members {
		if w.runs(m) == nil {
			return false
		}
	}
	w.count.add("restarts of a next member beyond the budget", 1)
	w.crashAndRestart(p)
	return true
}

// checkVotes checks that nothing of a member that is ready counts as dead: then the
// next that dies, if nothing else has, takes no majority with it.
func (w *world) checkVotes(pl *place) {
	if pl == nil {
		return
	}
	for _, half := range appendHalves(nil, w.facts.newest) {
		for _, m := range half {
			if m.ID() == pl.id && w.runs(m) == nil {
				w.fail("member %d is ready, and an earlier process of it still has a vote", pl.id)
			}
		}
	}
}
