package history

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// violationsMax is how many violations are described: the first few tell the
// story, and a broken store makes thousands.
const violationsMax = 8

// Check checks the history so far. The error describes the violations. A search
// that the timeout ends, or the bound on its steps, is an error too; the bound
// is there because the timeout never ends it in a synctest bubble, where
// nothing else can let the time go on.
func (r *Recorder) Check(timeout time.Duration) (Report, error) {
	begin := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := newChecker(r.ops, r.last, r.startRevision)
	err := c.sweep()
	if err == nil {
		err = c.search(timeout)
	}
	report := c.report()
	report.Took = time.Since(begin)
	if err != nil {
		err = fmt.Errorf("history: %w", err)
	}
	return report, err
}

// An effect is what is known of what an operation did.
type effect uint8

const (
	dropped   effect = iota // nothing is known, nothing was changed
	refused                 // a write that has no effect, ever; mismatch if it is that
	changed                 // an acknowledged write that took a revision
	removed                 // an acknowledged delete: perhaps there was nothing to delete
	absent                  // an acknowledged delete if there is no such key
	uncertain               // a write of unknown outcome that may have changed something
	read                    // a linearizable read
	staleRead
)

func effectOf(o *operation) effect {
	switch outcome := o.result.Outcome; {
	case o.isRead() && (outcome == OK || outcome == NotFound && o.Kind == Get):
		if o.isStale() {
			return staleRead
		}
		return read
	case o.isRead():
		return dropped
	case outcome == NotDone || outcome == Mismatch:
		return refused
	case o.Kind == Delete && o.Conditional && o.IfRevision == 0:
		if outcome == OK {
			return absent
		}
		return dropped
	case outcome == Unknown:
		return uncertain
	case o.Kind == Delete && !o.Conditional:
		return removed
	}
	return changed
}

// A checker is a history with what was found out about it.
type checker struct {
	ops           []operation
	last          seq
	startRevision uint64

	keyIDs map[string]int32
	key    []int32    // by operation; -1 for a List
	effect []effect   // by operation
	rev    []uint64   // by operation: of a write that took effect, as far as known
	writer owners     // who took which revision
	known  []evidence // by operation: what had been shown before its call
	keys   []keyHistory

	violations []error
}

// A keyHistory is what concerns one key.
type keyHistory struct {
	name    string
	ops     []int32 // all but Lists, by call
	marks   []mark  // by revision
	pending pending
}

func newChecker(ops []operation, last seq, startRevision uint64) *checker {
	c := &checker{
		ops: ops, last: last, startRevision: startRevision,
		keyIDs: make(map[string]int32),
		key:    make([]int32, len(ops)),
		effect: make([]effect, len(ops)),
		rev:    make([]uint64, len(ops)),
	}
	for i := range ops {
		o := &ops[i]
		c.effect[i] = effectOf(o)
		if c.effect[i] == changed {
			c.rev[i] = o.result.Revision
		}
		if o.Kind == List {
			c.key[i] = -1
			continue
		}
		id, ok := c.keyIDs[o.Key]
		if !ok {
			id = int32(len(c.keys))
			c.keyIDs[o.Key] = id
			c.keys = append(c.keys, keyHistory{name: o.Key})
		}
		c.key[i] = id
		c.keys[id].ops = append(c.keys[id].ops, int32(i))
	}
	return c
}

// sweep does all that needs no search. Each step relies on what the ones before
// it have made sure of, so the first that fails is the last.
func (c *checker) sweep() error {
	for _, step := range []func(){
		c.checkOutcomes,
		c.bindValues,
		c.orderRevisions,
		c.checkOrder,
		c.settleClaims,
		c.checkUnclaimed,
		c.checkKeys,
		c.checkLists,
	} {
		if step(); len(c.violations) > 0 {
			return c.failure()
		}
	}
	return nil
}

func (c *checker) failure() error {
	n := len(c.violations)
	if n > violationsMax {
		c.violations = append(c.violations[:violationsMax], fmt.Errorf("and %d more", n-violationsMax))
	}
	return errors.Join(c.violations...)
}

// violation adds a violation with the operations that show it.
func (c *checker) violation(ops []int32, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(c.violations) < violationsMax { // what is not printed need not be described
		for _, i := range ops {
			text += fmt.Sprintf("\n\t%v", &c.ops[i])
		}
	}
	c.violations = append(c.violations, errors.New(text))
}

// ret returns when an operation had surely happened if it happened at all.
func (c *checker) ret(i int32) seq {
	if c.effect[i] == uncertain {
		return never
	}
	return c.ops[i].ret
}

// checkOutcomes refuses results that no store may give, and histories that
// cannot be judged.
func (c *checker) checkOutcomes() {
	for i := range c.ops {
		o, at := &c.ops[i], []int32{int32(i)}
		switch outcome := o.result.Outcome; {
		case outcome == Mismatch && !o.Conditional:
			c.violation(at, "a mismatch without a condition")
		case outcome == NotFound && o.Kind != Get:
			c.violation(at, "not found, and it is no Get")
		case outcome == OK && o.Kind == Get && o.result.Revision == 0, c.effect[i] == changed && o.result.Revision == 0:
			c.violation(at, "revision 0")
		}
	}
}

func (c *checker) report() Report {
	r := Report{Keys: len(c.keys)}
	for i := range c.ops {
		o := &c.ops[i]
		if o.client == startClient || o.isCarried {
			continue
		}
		r.count[o.Kind][o.result.Outcome]++
	}
	return r
}

// sortOps sorts operations by a revision of theirs.
func sortOps(ops []int32, revision []uint64) {
	slices.SortFunc(ops, func(a, b int32) int {
		switch ra, rb := revision[a], revision[b]; {
		case ra < rb:
			return -1
		case ra > rb:
			return 1
		}
		return int(a - b)
	})
}
