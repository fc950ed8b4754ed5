package history

// tighten returns for every linearizable operation an interval within that from
// its call to its return, in which it must have taken effect if the history is
// linearizable at all: not before the call of what must come before it by the
// revisions, not after the return of what must come after it.
//
// This is what makes the search fast: a write that hangs for long overlaps with
// everything meanwhile, and a search would try it at every place. Tightened, it
// overlaps with next to nothing, as does a write of unknown outcome that was
// seen.
//
// Where an interval would become empty the history is not linearizable; it is
// left as it is then, so that the search finds out for itself.
func (c *checker) tighten() (call, ret []seq) {
	call, ret = make([]seq, len(c.ops)), make([]seq, len(c.ops))
	revision := make([]uint64, len(c.ops))
	var shows []int32
	for i := range c.ops {
		call[i], ret[i] = c.ops[i].call, c.ret(int32(i))
		if revision[i] = max(c.shown(int32(i)), c.rev[i]); revision[i] != 0 {
			shows = append(shows, int32(i))
		}
	}
	sortOps(shows, revision)
	groups := groupBy(shows, revision)
	c.tightenCalls(groups, call)
	c.tightenReturns(groups, ret)
	for i := range c.ops {
		if call[i] >= ret[i] {
			call[i], ret[i] = c.ops[i].call, c.ret(int32(i))
		}
	}
	return call, ret
}

// groupBy splits sorted operations by revision.
func groupBy(sorted []int32, revision []uint64) [][]int32 {
	var groups [][]int32
	for from, at := 0, 1; at <= len(sorted); at++ {
		if at == len(sorted) || revision[sorted[at]] != revision[sorted[from]] {
			groups = append(groups, sorted[from:at])
			from = at
		}
	}
	return groups
}

// tightenCalls goes up the revisions. Within a group the write that took the
// revision comes first; the others have no order. A Get may come any time after
// the write that it shows, so nothing comes after it. A delete that may have
// taken the revision may be the first, or one of the others.
func (c *checker) tightenCalls(groups [][]int32, call []seq) {
	latest := beginning // the last of the calls with a lower revision
	for _, group := range groups {
		next, written := latest, latest
		for _, i := range group {
			if c.rev[i] != 0 {
				written = max(written, call[i])
			}
		}
		for _, i := range group {
			isGet := c.ops[i].Kind == Get
			if c.effect[i] != staleRead && !isGet {
				next = max(next, call[i])
			}
			if c.rev[i] != 0 || c.effect[i] == removed {
				call[i] = max(call[i], latest)
			} else {
				call[i] = max(call[i], written)
			}
		}
		latest = max(next, written)
	}
}

// tightenReturns goes down the revisions. Any that shows a revision, stale or
// not, proves that the write had happened, and all before it.
func (c *checker) tightenReturns(groups [][]int32, ret []seq) {
	first := never // the first of the returns with a higher revision
	for at := len(groups) - 1; at >= 0; at-- {
		inGroup := first
		for _, i := range groups[at] {
			inGroup = min(inGroup, ret[i])
		}
		for _, i := range groups[at] {
			switch {
			case c.rev[i] != 0:
				ret[i] = min(ret[i], inGroup)
			case c.ops[i].Kind != Get:
				ret[i] = min(ret[i], first)
			}
		}
		first = inGroup
	}
}
