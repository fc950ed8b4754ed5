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
// left wider then, so that the search finds out for itself.
//
// The place of each is the revision after which it likely took effect.
func (c *checker) tighten() (call, ret []seq, place []uint64) {
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
	replaced := c.replacements()
	for i, by := range replaced {
		if by >= 0 {
			call[by] = max(call[by], call[i])
		}
	}
	c.tightenCalls(groups, call)
	c.tightenReturns(groups, ret)
	for i, by := range replaced {
		if by >= 0 {
			ret[i] = min(ret[i], ret[by])
		}
	}
	lastShown := c.lastShown(call)
	for id := range c.keys {
		c.tightenNotFound(&c.keys[id], call, ret, lastShown, revision)
	}
	for i := range c.ops {
		if call[i] >= ret[i] {
			call[i] = c.ops[i].call
		}
		if call[i] >= ret[i] {
			ret[i] = c.ret(int32(i))
		}
	}
	return call, ret, revision
}

// replacements returns for every linearizable Get that found its key the next
// write of the key, before which it must have come, or -1.
func (c *checker) replacements() []int32 {
	by := make([]int32, len(c.ops))
	for i := range c.ops {
		o := &c.ops[i]
		by[i] = -1
		if o.Kind != Get || c.effect[i] != read || o.result.Outcome != OK {
			continue
		}
		k := &c.keys[c.key[i]]
		for at := k.after(o.result.Revision); at < len(k.marks); at++ {
			if w := k.marks[at].by; c.rev[w] != 0 {
				by[i] = w
				break
			}
		}
	}
	return by
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

// An era of a key is from one known write to the next.
type era struct {
	revision uint64
	from, to seq // the write that begins it can be no earlier, that which ends it no later
	// absentFrom is the earliest time at which there may be no such key, if the
	// era begins with a put: all that show what was put come before.
	absentFrom seq
	shown      seq // the latest call of those
}

// tightenNotFound raises the calls of the Gets that found nothing to when there
// may first have been no such key. It comes last, as it needs the others.
func (c *checker) tightenNotFound(k *keyHistory, call, ret, lastShown []seq, place []uint64) {
	eras := c.eras(k, call, ret, lastShown)
	first := 0
	for _, i := range k.ops { // by call
		if c.effect[i] != read || c.ops[i].result.Outcome != NotFound {
			continue
		}
		for first < len(eras)-1 && eras[first].to < c.ops[i].call {
			first++
		}
		earliest := ret[i]
		for _, e := range eras[first:] {
			if e.from >= earliest {
				break
			}
			if e.absentFrom < earliest && e.absentFrom <= e.to {
				earliest, place[i] = e.absentFrom, e.revision
			}
		}
		if earliest < ret[i] {
			call[i] = max(call[i], earliest)
		}
	}
}

// eras returns the eras of a key in order, one before its first write included.
func (c *checker) eras(k *keyHistory, call, ret, lastShown []seq) []era {
	eras := []era{{to: never}}
	for _, m := range k.marks {
		last := &eras[len(eras)-1]
		if c.rev[m.by] == 0 { // it says that there is no such key, in this era
			last.absentFrom = min(last.absentFrom, max(call[m.by], last.shown))
			continue
		}
		last.to = ret[m.by]
		e := era{revision: m.revision, from: call[m.by], to: never, absentFrom: call[m.by]}
		if m.isSet {
			e.shown = lastShown[m.by]
			e.absentFrom = max(e.from, e.shown, k.pending.removal(m.revision))
		}
		eras = append(eras, e)
	}
	return eras
}

// lastShown returns for every put the latest call of what showed its value.
func (c *checker) lastShown(call []seq) []seq {
	last := make([]seq, len(c.ops))
	show := func(i int32, revision uint64) {
		if w, ok := c.writer.lookup(revision); ok {
			last[w] = max(last[w], call[i])
		}
	}
	for i := range c.ops {
		if c.effect[i] != read {
			continue
		}
		o := &c.ops[i]
		if o.Kind == Get && o.result.Outcome == OK {
			show(int32(i), o.result.Revision)
		}
		for _, item := range o.result.Items {
			show(int32(i), item.Revision)
		}
	}
	return last
}
