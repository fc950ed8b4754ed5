package history

import (
	"math"
	"slices"
)

// evidence is the greatest revision that was shown, and by whom.
type evidence struct {
	revision uint64
	by       int32 // -1 if that is what the store had in the beginning
}

// shown returns a revision that the store had reached when an operation
// returned, 0 if it does not say.
func (c *checker) shown(i int32) uint64 {
	switch o := &c.ops[i]; {
	case c.effect[i] == dropped:
		return 0
	case o.result.Outcome == OK || o.result.Outcome == Mismatch:
		return o.result.Revision
	}
	return 0
}

// checkOrder goes through all calls and returns in order. What an operation
// shows must not be older than what had been shown before its call.
func (c *checker) checkOrder() {
	calls, returns := make([]int32, c.last+1), make([]int32, c.last+1) // by seq: the operation from 1
	c.known = make([]evidence, len(c.ops))
	latest := evidence{c.startRevision, -1}
	for i := range c.ops {
		c.known[i] = latest
		if o := &c.ops[i]; o.call != beginning {
			calls[o.call] = int32(i) + 1
			if o.ret != never {
				returns[o.ret] = int32(i) + 1
			}
		}
	}
	for at := range calls {
		if i := calls[at] - 1; i >= 0 {
			c.known[i] = latest
		}
		if i := returns[at] - 1; i >= 0 {
			c.checkShown(i)
			if revision := c.shown(i); revision > latest.revision {
				latest = evidence{revision, i}
			}
		}
	}
}

func (c *checker) checkShown(i int32) {
	o, known := &c.ops[i], c.known[i]
	involved := known.and(i)
	revision := c.shown(i)
	switch {
	case c.effect[i] == changed && revision <= known.revision:
		c.violation(involved, "a write took revision %d, though %d had been shown before its call", revision, known.revision)
	case c.effect[i] == removed || c.effect[i] == absent || o.result.Outcome == Mismatch || c.effect[i] == read && o.Kind == List:
		if revision < known.revision {
			c.violation(involved, "the store shows revision %d, though %d had been shown before the call", revision, known.revision)
		}
	case c.effect[i] == staleRead && o.Kind == List && revision < o.MinRevision:
		c.violation([]int32{i}, "a List shows revision %d, which is below its minimum", revision)
	}
}

// and returns the operations of a violation: who gave the evidence, and others.
func (e evidence) and(ops ...int32) []int32 {
	if e.by >= 0 {
		return append([]int32{e.by}, ops...)
	}
	return ops
}

// checkUnclaimed looks at the revisions that no write is known to have taken.
// Each must have gone to a write of unknown outcome, called before anybody saw
// the store reach it, or to an acknowledged delete that returned it. One more,
// and some write took effect twice.
//
// Who was called before revision g was seen is who has known < g. Those who
// could take g can also take every later one, so it is enough to count.
func (c *checker) checkUnclaimed() {
	var top evidence
	var claims []uint64 // deletes that may have taken the revision they returned
	var unknown []uint64
	for i := range c.ops {
		if revision := c.shown(int32(i)); revision > top.revision {
			top = evidence{revision, int32(i)}
		}
		switch {
		case c.isClaim(int32(i)):
			claims = append(claims, c.ops[i].result.Revision)
		case c.effect[i] == uncertain && c.rev[i] == 0:
			unknown = append(unknown, c.known[i].revision)
		}
	}
	slices.Sort(claims)
	slices.Sort(unknown)
	unclaimed, candidates := 0, 0
	for g := c.writer.nextFree(c.startRevision); g <= top.revision; g = c.writer.nextFree(g) {
		if _, ok := slices.BinarySearch(claims, g); ok {
			continue
		}
		for candidates < len(unknown) && unknown[candidates] < g {
			candidates++
		}
		if unclaimed++; unclaimed > candidates {
			c.violation(c.around(g, top), "nobody has taken revision %d: up to it the history explains all but %d revisions, "+
				"and %d writes of unknown outcome could have taken one; a write took effect twice, or one that was not to",
				g, unclaimed, candidates)
			return
		}
	}
}

// isClaim reports whether an acknowledged delete may have taken the revision
// that it returned. Otherwise there was nothing to delete.
func (c *checker) isClaim(i int32) bool {
	revision := c.ops[i].result.Revision
	return c.effect[i] == removed && c.known[i].revision < revision && c.writer.isFree(revision)
}

// settleClaims gives a revision to the delete that returned it if nobody else
// can have taken it.
func (c *checker) settleClaims() {
	claims := make(map[uint64]int)  // how many have one
	first := uint64(math.MaxUint64) // from here on a write of unknown outcome can have taken it
	for i := range c.ops {
		switch {
		case c.isClaim(int32(i)):
			claims[c.ops[i].result.Revision]++
		case c.effect[i] == uncertain && c.rev[i] == 0:
			first = min(first, c.known[i].revision+1)
		}
	}
	for i := range c.ops {
		revision := c.ops[i].result.Revision
		if revision < first && claims[revision] == 1 && c.isClaim(int32(i)) {
			c.effect[i], c.rev[i] = changed, revision
		}
	}
	c.orderRevisions()
}

// around returns the operations next to a revision.
func (c *checker) around(g uint64, top evidence) []int32 {
	var ops []int32
	at, _ := slices.BinarySearch(c.writer.revs, g)
	if at > 0 {
		ops = append(ops, c.writer.ops[at-1])
	}
	if at < len(c.writer.ops) {
		return append(ops, c.writer.ops[at])
	}
	return append(ops, top.by)
}
