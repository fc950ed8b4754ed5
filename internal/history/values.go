package history

import "slices"

// owners says who took which revision, as far as it is known: acknowledged
// writes, and those of unknown outcome that a read has shown.
type owners struct {
	ops  []int32  // by revision
	revs []uint64 // of ops
	// end is the end of each one's run: the last revision of those that follow
	// it without a gap.
	end []uint64
	// start is a revision up to which all are taken.
	start uint64
}

// lookup returns the operation that took a revision.
func (w *owners) lookup(revision uint64) (int32, bool) {
	at, ok := slices.BinarySearch(w.revs, revision)
	if !ok {
		return 0, false
	}
	return w.ops[at], true
}

// isFree reports whether a write could have taken a revision unnoticed.
func (w *owners) isFree(revision uint64) bool {
	if revision <= w.start {
		return false
	}
	_, ok := slices.BinarySearch(w.revs, revision)
	return !ok
}

// nextFree returns the first such revision after one.
func (w *owners) nextFree(after uint64) uint64 {
	next := max(after, w.start) + 1
	if at, ok := slices.BinarySearch(w.revs, next); ok {
		return w.end[at] + 1
	}
	return next
}

// bindValues finds the write of every value that was read. A write of unknown
// outcome thereby becomes known.
func (c *checker) bindValues() {
	writes := make(map[string]int32, len(c.ops)/2)
	for i := range c.ops {
		if c.ops[i].Kind != Put {
			continue
		}
		if first, ok := writes[c.ops[i].Value]; ok {
			c.violation([]int32{first, int32(i)}, "the test is wrong: two puts of one value")
		}
		writes[c.ops[i].Value] = int32(i)
	}
	shownBy := make([]int32, len(c.ops))
	for i := range c.ops {
		o := &c.ops[i]
		if c.effect[i] != read && c.effect[i] != staleRead || o.result.Outcome != OK {
			continue
		}
		if o.Kind == Get {
			c.bind(writes, shownBy, int32(i), o.Key, o.result.Value, o.result.Revision)
		}
		for _, item := range o.result.Items {
			c.bind(writes, shownBy, int32(i), item.Key, item.Value, item.Revision)
		}
	}
}

// bind takes account of a read that showed a value of a key at a revision.
func (c *checker) bind(writes map[string]int32, shownBy []int32, reader int32, key, value string, revision uint64) {
	w, ok := writes[value]
	if !ok && c.isPast(reader, revision) {
		return
	}
	if !ok || c.ops[w].Key != key {
		c.violation([]int32{reader}, "key %.64q shows the value %.64q at revision %d, which nobody put there", key, value, revision)
		return
	}
	both := []int32{w, reader}
	switch {
	case c.effect[w] == refused:
		c.violation(both, "key %.64q shows the value of a write that was not to take effect", key)
	case c.ops[reader].ret < c.ops[w].call:
		c.violation(both, "key %.64q shows a value before it was put", key)
	case revision == 0:
		c.violation(both, "key %.64q shows revision 0", key)
	case c.effect[w] == changed && c.rev[w] != revision:
		c.violation(both, "key %.64q shows a write at revision %d, its acknowledgement said %d: it took effect twice, or one of them is wrong",
			key, revision, c.rev[w])
	case c.rev[w] == 0:
		c.rev[w], shownBy[w] = revision, reader
	case c.rev[w] != revision:
		c.violation([]int32{w, shownBy[w], reader}, "key %.64q shows a write at revision %d and at revision %d: it took effect twice",
			key, c.rev[w], revision)
	}
}

// isPast reports whether a stale read shows what was replaced before the history
// begins, of which nothing is known.
func (c *checker) isPast(reader int32, revision uint64) bool {
	return c.effect[reader] == staleRead && revision != 0 && revision <= c.startRevision
}

// orderRevisions finds out who took which revision, and that nobody else did.
func (c *checker) orderRevisions() {
	w := owners{start: c.startRevision}
	for i := range c.ops {
		o := &c.ops[i]
		switch {
		case c.rev[i] == 0 || c.rev[i] > c.startRevision || o.client == startClient:
		case o.isCarried: // took effect before the history began, as a stale read shows
			c.effect[i], c.rev[i] = dropped, 0
		default:
			c.violation([]int32{int32(i)}, "a write took revision %d, but the history begins at %d", c.rev[i], c.startRevision)
		}
		if c.rev[i] != 0 {
			w.ops = append(w.ops, int32(i))
		}
	}
	sortOps(w.ops, c.rev)
	w.revs, w.end = make([]uint64, len(w.ops)), make([]uint64, len(w.ops))
	for at, i := range w.ops {
		w.revs[at] = c.rev[i]
		if at > 0 && w.revs[at] == w.revs[at-1] {
			c.violation(w.ops[at-1:at+1], "two writes took revision %d", c.rev[i])
		}
	}
	for at := len(w.ops) - 1; at >= 0; at-- {
		w.end[at] = w.revs[at]
		if at+1 < len(w.ops) && w.revs[at+1] == w.revs[at]+1 {
			w.end[at] = w.end[at+1]
		}
	}
	c.writer = w
}
