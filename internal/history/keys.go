package history

import (
	"slices"
	"sort"
)

// A mark is what is known of a key at a revision of the store: that it was set
// at that revision, or that there was no such key.
type mark struct {
	revision uint64
	by       int32
	isSet    bool
	// absentCall is the earliest call of this mark and those after it which
	// say that there was no such key.
	absentCall seq
}

// pending is what the writes of unknown outcome that nobody saw could have done
// to a key: for each kind, the earliest call. That is all that counts, as such
// a write can take effect at any later time; that it cannot do so twice is for
// checkUnclaimed to say.
type pending struct {
	put, create, remove seq // create is a put if there is no such key
	// onRevision has those with another condition; removeAny is the earliest
	// delete of them.
	onRevision map[uint64]conditional
	removeAny  seq
}

type conditional struct{ put, remove seq }

func (c *checker) pendingOf(k *keyHistory) pending {
	p := pending{put: never, create: never, remove: never, removeAny: never}
	for _, i := range k.ops {
		if c.effect[i] != uncertain || c.rev[i] != 0 {
			continue
		}
		switch o := &c.ops[i]; {
		case o.Conditional && o.IfRevision != 0:
			p.add(o)
		case o.Kind == Delete:
			p.remove = min(p.remove, o.call)
		case o.Conditional:
			p.create = min(p.create, o.call)
		default:
			p.put = min(p.put, o.call)
		}
	}
	return p
}

func (p *pending) add(o *operation) {
	if p.onRevision == nil {
		p.onRevision = make(map[uint64]conditional)
	}
	on, ok := p.onRevision[o.IfRevision]
	if !ok {
		on = conditional{never, never}
	}
	if o.Kind == Put {
		on.put = min(on.put, o.call)
	} else {
		on.remove = min(on.remove, o.call)
		p.removeAny = min(p.removeAny, o.call)
	}
	p.onRevision[o.IfRevision] = on
}

// on returns the earliest calls that could replace and remove what was set at a
// revision.
func (p *pending) on(revision uint64) (put, remove seq) {
	put, remove = p.put, p.remove
	if on, ok := p.onRevision[revision]; ok {
		put, remove = min(put, on.put), min(remove, on.remove)
	}
	return put, remove
}

// removal returns the earliest call that could have led to there being no such
// key, given that it was set at a revision. A condition on a revision that
// nobody has seen may be met by a write that nobody has seen.
func (p *pending) removal(revision uint64) seq {
	put, remove := p.on(revision)
	if put != never {
		return min(remove, p.removeAny)
	}
	return remove
}

// checkKeys holds what each operation says of its key to what others say.
func (c *checker) checkKeys() {
	for n := range c.keys {
		k := &c.keys[n]
		k.pending = c.pendingOf(k)
		c.mark(k)
		for _, i := range k.ops {
			c.checkOperation(k, i)
		}
	}
}

func (c *checker) mark(k *keyHistory) {
	for _, i := range k.ops {
		switch c.effect[i] {
		case changed, uncertain:
			if c.rev[i] != 0 {
				k.marks = append(k.marks, mark{revision: c.rev[i], by: i, isSet: c.ops[i].Kind == Put})
			}
		case removed, absent:
			k.marks = append(k.marks, mark{revision: c.ops[i].result.Revision, by: i})
		}
	}
	slices.SortFunc(k.marks, func(a, b mark) int {
		switch {
		case a.revision != b.revision && a.revision < b.revision:
			return -1
		case a.revision != b.revision:
			return 1
		case a.isSet != b.isSet && a.isSet: // so that the other contradicts it
			return -1
		case a.isSet != b.isSet:
			return 1
		}
		return int(a.by - b.by)
	})
	earliest := never
	for at := len(k.marks) - 1; at >= 0; at-- {
		m := &k.marks[at]
		if !m.isSet {
			earliest = min(earliest, c.ops[m.by].call)
		}
		m.absentCall = earliest
	}
}

// after returns the place of the first mark that is later than a revision.
func (k *keyHistory) after(revision uint64) int {
	return sort.Search(len(k.marks), func(at int) bool { return k.marks[at].revision > revision })
}

func (c *checker) checkOperation(k *keyHistory, i int32) {
	o, known := &c.ops[i], c.known[i]
	switch c.effect[i] {
	case changed, uncertain:
		if o.Conditional && c.rev[i] != 0 {
			c.checkCondition(k, i)
		}
	case removed, absent:
		if !c.isClaim(i) {
			c.wantAbsent(k, i, o.result.Revision)
		}
	case refused:
		if o.result.Outcome == Mismatch {
			c.checkMismatch(k, i)
		}
	case read, staleRead:
		if c.effect[i] == staleRead {
			known = evidence{o.MinRevision, -1}
		}
		if o.result.Outcome == OK {
			c.wantSet(k, i, o.result.Revision, known)
		} else if c.effect[i] == read || o.MinRevision != 0 {
			c.checkNotFound(k, i, known)
		}
	}
}

// checkCondition is for a write that took effect on condition: nothing may have
// come between the revision that it named and its own.
func (c *checker) checkCondition(k *keyHistory, i int32) {
	o := &c.ops[i]
	if o.IfRevision == 0 {
		c.wantAbsent(k, i, c.rev[i]-1)
		return
	}
	if o.IfRevision >= c.rev[i] {
		c.violation([]int32{i}, "a write took revision %d on condition of a later one", c.rev[i])
		return
	}
	if w, ok := c.writer.lookup(o.IfRevision); ok && (c.ops[w].Key != o.Key || c.ops[w].Kind != Put) {
		c.violation([]int32{w, i}, "a write took effect on condition of revision %d, which another took", o.IfRevision)
		return
	}
	if m := k.marks[k.after(o.IfRevision)]; m.revision < c.rev[i] {
		c.violation([]int32{m.by, i}, "key %.64q changed between the revision that a conditional write named and its own", k.name)
	}
}

// checkMismatch is for a condition that did not hold: it must not hold for what
// is known of the key at the revision that the store had.
func (c *checker) checkMismatch(k *keyHistory, i int32) {
	o := &c.ops[i]
	at := k.after(o.result.Revision)
	var current uint64
	involved := []int32{i}
	put, remove := k.pending.put, never
	if at > 0 {
		involved = []int32{k.marks[at-1].by, i}
		if k.marks[at-1].isSet {
			current = k.marks[at-1].revision
		}
	}
	if current == 0 {
		put = min(put, k.pending.create)
	} else {
		put, remove = k.pending.on(current)
	}
	if current != o.IfRevision {
		return
	}
	if min(put, remove) > o.ret || c.writer.nextFree(current) > o.result.Revision {
		c.violation(involved, "a mismatch, though the condition held for key %.64q at store revision %d", k.name, o.result.Revision)
	}
}

// wantSet is for a read that showed a key as it was set at a revision: nothing
// may have come after that, up to what was known.
func (c *checker) wantSet(k *keyHistory, i int32, revision uint64, known evidence) {
	at := k.after(revision)
	if at > 0 && k.marks[at-1].revision == revision && !k.marks[at-1].isSet {
		c.violation([]int32{k.marks[at-1].by, i}, "key %.64q is there at revision %d, at which there is no such key", k.name, revision)
	}
	if at < len(k.marks) && k.marks[at].revision <= known.revision {
		c.violation(known.and(k.marks[at].by, i), "key %.64q shows revision %d, though it had changed and the store had shown revision %d",
			k.name, revision, known.revision)
	}
}

// wantAbsent is for what says that there was no such key at a revision.
func (c *checker) wantAbsent(k *keyHistory, i int32, revision uint64) {
	for at := k.after(revision) - 1; at >= 0; at-- {
		m := &k.marks[at]
		if m.by == i {
			continue
		}
		canChange := k.pending.removal(m.revision) < c.ret(i) && c.writer.nextFree(m.revision) <= revision
		if m.isSet && !canChange {
			c.violation([]int32{m.by, i}, "there is no key %.64q at revision %d, though it was set and nobody can have removed it", k.name, revision)
		}
		return
	}
}

// checkNotFound is for a Get. Unlike a List it does not say at what revision
// there was no such key, only that it was not before what is known.
func (c *checker) checkNotFound(k *keyHistory, i int32, known evidence) {
	at := k.after(known.revision)
	if at == 0 || !k.marks[at-1].isSet {
		return
	}
	set := &k.marks[at-1]
	remove := k.pending.removal(set.revision)
	if at < len(k.marks) { // what came later may have been removed, or have removed it
		remove = min(remove, k.pending.removeAny, k.marks[at].absentCall)
	}
	if remove > c.ops[i].ret {
		c.violation(known.and(set.by, i), "key %.64q is not found, though it was set and nobody can have removed it", k.name)
	}
}
