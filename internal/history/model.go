package history

// A state is what a key may be like: one or several of three conditions, since
// writes of unknown outcome that nobody saw leave it open which. They are no
// steps of the search; instead every step considers that some may have come
// right before it. To try each at every place takes exponential time, and most
// histories with faults have many.
type state struct {
	revision uint64 // at which it is set, if that is known
	known    condition
	hidden   condition // set by a write that nobody saw, at an unknown revision
	absent   condition
}

// A condition is one that the key may be in, if ok.
type condition struct {
	ok bool
	// called is the latest call among the unseen writes that led here. What
	// comes later in the order must not have returned before it.
	called seq
	// store is a revision that the store has reached.
	store uint64
}

// join makes a condition reachable in another way.
func (to *condition) join(from condition) {
	switch {
	case !from.ok:
	case !to.ok:
		*to = from
	default: // allows for too much if neither is better, for too little never
		to.called, to.store = min(to.called, from.called), min(to.store, from.store)
	}
}

// A step is an operation as one key sees it.
type step struct {
	op        int32
	call, ret seq
	place     uint64 // the revision after which it likely comes
	kind      stepKind
	// revision is that of the store, or of the key for reads of set keys;
	// stored that of the store for a List.
	revision, stored uint64
	conditional      bool
	condition        uint64
	isClaim          bool // of a stepRemove
}

// compare brings steps in the order in which they likely took effect: the write
// that took a revision, what showed it, and what found that it was gone.
func (p *step) compare(q *step) int {
	switch {
	case p.place != q.place && p.place < q.place:
		return -1
	case p.place != q.place:
		return 1
	case p.kind != q.kind:
		return int(p.kind) - int(q.kind)
	}
	return int(p.op - q.op)
}

type stepKind uint8

const (
	stepPut stepKind = iota
	stepDelete
	stepRemove // perhaps without effect
	stepMismatch
	stepSet
	stepAbsent
)

// A model is the model of one key.
type model struct {
	pending *pending
	writer  *owners
}

// unseen returns the states that a key may be in after some of the pending
// writes called before a time.
func (m *model) unseen(s state, before seq) state {
	if m.pending.isNone() {
		return s
	}
	put, remove := m.pending.on(s.revision)
	for range 2 { // set, removed, and set again
		m.lead(&s.absent, s.known, remove, before)
		m.lead(&s.absent, s.hidden, min(m.pending.remove, m.pending.removeAny), before)
		m.lead(&s.hidden, s.known, put, before)
		m.lead(&s.hidden, s.absent, min(m.pending.put, m.pending.create), before)
	}
	return s
}

func (p *pending) isNone() bool {
	return p.put == never && p.create == never && p.remove == never && len(p.onRevision) == 0
}

func (m *model) lead(to *condition, from condition, call, before seq) {
	if from.ok && call < before {
		to.join(condition{true, max(from.called, call), m.writer.nextFree(from.store)})
	}
}

// next returns the state after a step; it is impossible if no condition is ok.
func (m *model) next(s state, p *step) state {
	s = m.unseen(s, p.ret)
	for _, c := range []*condition{&s.known, &s.hidden, &s.absent} {
		c.ok = c.ok && c.called < p.ret
	}
	switch p.kind {
	case stepPut, stepDelete:
		return m.write(s, p)
	case stepRemove:
		return remove(s, p)
	case stepMismatch:
		s.known.ok = s.known.ok && p.condition != s.revision
		s.absent.ok = s.absent.ok && p.condition != 0
		return s.at(p.revision)
	case stepSet:
		s.known.ok = s.known.ok && s.revision == p.revision
		s.hidden.ok, s.absent.ok = false, false
		return s.at(p.stored)
	}
	s.known.ok, s.hidden.ok = false, false
	return s.at(p.stored)
}

// at leaves what is possible when the store is at a revision, which may be 0 if
// that is not known.
func (s state) at(store uint64) state {
	if store == 0 {
		return s.clean()
	}
	for _, c := range []*condition{&s.known, &s.hidden, &s.absent} {
		c.ok = c.ok && c.store <= store
		c.store = store
	}
	return s.clean()
}

// clean makes equal states equal.
func (s state) clean() state {
	if !s.known.ok {
		s.known, s.revision = condition{}, 0
	}
	if !s.hidden.ok {
		s.hidden = condition{}
	}
	if !s.absent.ok {
		s.absent = condition{}
	}
	return s
}

func (s state) isPossible() bool { return s.known.ok || s.hidden.ok || s.absent.ok }

// write is for what took a revision.
func (m *model) write(s state, p *step) state {
	if p.conditional {
		s.known.ok = s.known.ok && s.revision == p.condition
		s.absent.ok = s.absent.ok && p.condition == 0
		s.hidden.ok = s.hidden.ok && m.writer.isFree(p.condition)
	}
	s.absent.ok = s.absent.ok && p.kind == stepPut
	to := before(p.revision, s.known, s.hidden, s.absent)
	to.store = p.revision
	if p.kind == stepDelete {
		return state{absent: to}.clean()
	}
	return state{known: to, revision: p.revision}.clean()
}

// remove is for a delete that had an effect if there was one to be had.
func remove(s state, p *step) state {
	var to condition
	if p.isClaim {
		to = before(p.revision, s.known, s.hidden)
	}
	if s.absent.ok && s.absent.store <= p.revision {
		to.join(s.absent)
	}
	to.store = p.revision
	return state{absent: to}.clean()
}

// before joins the conditions in which the store has not reached a revision.
func before(revision uint64, from ...condition) condition {
	var to condition
	for _, c := range from {
		if c.store < revision {
			to.join(c)
		}
	}
	return to
}
