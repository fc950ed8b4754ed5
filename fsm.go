package raftkv

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/reads"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/snapshot"
)

const (
	// collectMax is the largest List that is gathered under the lock. A larger
	// one freezes the keyspace instead, which costs later writes a copy.
	collectMax = 1024
	// revisionWaitsMax bounds the reads that wait for a revision.
	revisionWaitsMax = 1 << 16
	// warmMin is the least number of lookups for which keyspace.Warm pays.
	warmMin = 4
	// recoveryLeap is what a recovery adds to the revision (DESIGN.md section 7).
	recoveryLeap = 1 << 32
)

// An fsm is the state machine: what the log says up to an index. It applies
// entries in the order of the log and in nothing else: no clock, no randomness,
// no map order, so that all members compute the same.
//
// Invariants:
//
//  1. keys, dedup, roster and revision are a function of the log up to index.
//  2. revision counts the writes that changed a key.
//  3. A number of an origin is applied at most once, and only while the origin
//     is a member.
//  4. When a caller is answered, the state that answers it can be read here.
//
// Who applies alone writes, one at a time; readers share mu for as long as it takes to
// find an item and to copy it, unless it is large.
type fsm struct {
	out   *outbox.Outbox
	reads *reads.Reads

	applied    atomic.Uint64 // a copy of index
	stateBytes atomic.Int64  // a copy of keys.Bytes()

	mu       sync.RWMutex // guards what follows
	origin   uint64       // the raft ID of this node
	index    uint64
	term     uint64 // of the entry at index
	revision uint64
	keys     *keyspace.Keyspace
	dedup    *dedup.Table
	roster   *roster.Roster
	waits    []revisionWait
	err      error // why nobody can wait any more

	// Kept from one batch to the next.
	commands []command.Command
	results  []dedup.Result // of batches of others
}

// A task is one step of the applier.
type task struct {
	index, term uint64
	data        []byte          // a batch of commands, or
	roster      *roster.Roster  // the membership that the entry made, or
	install     *stagedSnapshot // a state in place of ours, or
	freeze      bool            // keep the state as it is for a snapshot
}

// A stagedSnapshot is a received state that raft has not accepted yet.
type stagedSnapshot struct {
	index, term uint64
	roster      *roster.Roster
	revision    uint64
	keys        *keyspace.Keyspace
	dedup       *dedup.Table
}

type revisionWait struct {
	revision uint64
	donec    chan struct{} // closed when the revision is there, or on stop
}

// An answer is the result of a batch of our own.
type answer struct {
	first   uint64
	results []dedup.Result
}

func newFSM(out *outbox.Outbox, rounds *reads.Reads) *fsm {
	return &fsm{out: out, reads: rounds, keys: keyspace.New(), dedup: new(dedup.Table), roster: new(roster.Roster)}
}

// become makes the state that of a member before its first entry.
func (f *fsm) become(raftID, index, term uint64, r *roster.Roster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.origin, f.index, f.term = raftID, index, term
	f.setRoster(r)
	f.applied.Store(index)
}

// recovered makes the state that of a new cluster, which begins with it at an
// index. Fencing tokens of the old one must never come back, whatever of it was
// lost here, so the revision takes a leap that no cluster can write.
func (f *fsm) recovered(raftID, index, term uint64, r *roster.Roster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.origin, f.index, f.term = raftID, index, term
	f.revision += recoveryLeap
	f.setRoster(r)
	f.publish()
}

// apply carries out tasks in order and answers the callers whose writes or
// reads they complete. It returns the frozen states that were asked for. An
// error means that this node cannot go on; the tasks from there on are not done.
func (f *fsm) apply(tasks []task) (frozen []*snapshotHandle, err error) {
	f.mu.Lock()
	return f.applyHeld(tasks)
}

// applyHeld is apply for a caller who holds mu, and no longer does afterwards.
func (f *fsm) applyHeld(tasks []task) (frozen []*snapshotHandle, err error) {
	answers, table, frozen, err := f.applyLocked(tasks)
	for _, a := range answers {
		f.out.Resolve(a.first, a.results)
	}
	if table != nil {
		f.out.ResolveFrom(table)
	}
	f.reads.Applied(f.applied.Load())
	return frozen, err
}

// applyLocked is the part of apply that changes the state, and ends with releasing mu.
// If a snapshot was installed it returns a copy of its table. A panic must not leave
// the lock behind: those who stop the node need it.
func (f *fsm) applyLocked(tasks []task) (answers []answer, installed *dedup.Table, frozen []*snapshotHandle, err error) {
	defer f.mu.Unlock()
	defer f.publish()
	for _, t := range tasks {
		switch {
		case t.freeze:
			frozen = append(frozen, f.freeze())
			continue
		case t.install != nil:
			f.install(t.install)
			installed = t.install.dedup.Clone() // as it is now: later entries answer for themselves
			continue
		case t.roster != nil:
			f.setRoster(t.roster)
		case len(t.data) > 0:
			var a answer
			if a, err = f.applyBatch(t.data); a.results != nil {
				answers = append(answers, a)
			}
		}
		if err != nil {
			return answers, installed, frozen, fmt.Errorf("raftkv: apply entry %d: %w", t.index, err)
		}
		f.index, f.term = t.index, t.term
	}
	return answers, installed, frozen, nil
}

// publish shows what was applied to those who do not take the lock.
func (f *fsm) publish() {
	f.applied.Store(f.index)
	f.stateBytes.Store(f.keys.Bytes())
	f.waits = slices.DeleteFunc(f.waits, func(w revisionWait) bool {
		if w.revision > f.revision {
			return false
		}
		close(w.donec)
		return true
	})
}

// applyBatch applies the commands that have not been applied before. For a
// batch of our own it returns the results.
func (f *fsm) applyBatch(data []byte) (answer, error) {
	b, commands, err := command.ParseInto(f.commands[:0], data)
	f.commands = commands
	defer clear(commands) // they would keep the entry
	if err != nil {
		return answer{}, err
	}
	a := answer{first: b.First}
	if !f.dedup.Knows(b.Origin) {
		return a, nil // removed for good
	}
	f.dedup.Advance(b.Origin, b.AnsweredTo)
	switch fresh, own := f.dedup.IsFresh(b.Origin, b.First, b.Len()), b.Origin == f.origin; {
	case !fresh:
		a.results = f.applyRest(b.Header, commands, own)
	case own:
		a.results = f.applyFresh(b.Header, commands, make([]dedup.Result, 0, b.Len()), own)
	default:
		f.results = f.applyFresh(b.Header, commands, f.results[:0], own)
	}
	return a, nil
}

// applyFresh applies a batch of which nothing has been applied: nearly all are.
// It appends the results. Of a batch of our own, callers are answered as it goes, so
// that they do not wait for the last of it; whoever reads waits for the lock.
func (f *fsm) applyFresh(h command.Header, commands []command.Command, results []dedup.Result, own bool) []dedup.Result {
	var hashes [keyspace.WarmMax]uint64
	for group := range slices.Chunk(commands, keyspace.WarmMax) {
		for i := range group {
			hashes[i] = keyspace.Hash(group[i].Key)
		}
		if len(group) >= warmMin {
			f.keys.Warm(hashes[:len(group)], false)
		}
		for i := range group {
			results = append(results, f.applyCommand(&group[i], hashes[i]))
		}
		if own && len(results) < len(commands) {
			f.out.ResolveSome(h.First, results[:len(commands)], len(results))
		}
	}
	f.dedup.Record(h.Origin, h.First, results...)
	return results
}

// applyRest applies what of a batch has not been applied. It returns the results
// if they are wanted and known.
func (f *fsm) applyRest(h command.Header, commands []command.Command, own bool) (results []dedup.Result) {
	for i := range commands {
		number := h.First + uint64(i)
		r, state := f.dedup.Lookup(h.Origin, number)
		if state == dedup.Fresh {
			r, state = f.applyCommand(&commands[i], keyspace.Hash(commands[i].Key)), dedup.Applied
			f.dedup.Record(h.Origin, number, r)
		}
		if own && state == dedup.Applied {
			results = append(results, r)
		}
	}
	if len(results) < len(commands) {
		return nil // a late copy: answered or abandoned long ago
	}
	return results
}

func (f *fsm) applyCommand(c *command.Command, hash uint64) dedup.Result {
	place := f.keys.Find(c.Key, hash)
	if c.Conditional && c.IfRevision != place.Revision {
		return dedup.Result{Revision: f.revision, Mismatch: true}
	}
	if c.Op == command.Delete && !place.Exists() {
		return dedup.Result{Revision: f.revision}
	}
	f.revision++
	if c.Op == command.Delete {
		f.keys.Remove(place)
	} else {
		f.keys.Set(place, c.Key, c.Value, f.revision)
	}
	return dedup.Result{Revision: f.revision}
}

func (f *fsm) setRoster(r *roster.Roster) {
	f.roster = r
	f.dedup.Retain(r.RaftIDs())
}

func (f *fsm) install(s *stagedSnapshot) {
	f.index, f.term, f.revision = s.index, s.term, s.revision
	f.keys, f.dedup, f.roster = s.keys, s.dedup, s.roster
}

func (f *fsm) freeze() *snapshotHandle {
	return &snapshotHandle{
		index: f.index, term: f.term, roster: f.roster, revision: f.revision,
		view: f.keys.Freeze(), dedup: f.dedup.Clone(), hash: f.hash(),
	}
}

// hash covers all of the state: equal on all members at the same index.
func (f *fsm) hash() uint64 {
	return snapshot.StateHash(f.keys.Hash(), f.dedup.Hash(), f.roster.Hash(), f.revision)
}

// status returns the index, the revision and the hash at that index.
func (f *fsm) status() (index, revision, hash uint64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.index, f.revision, f.hash()
}

// get returns a key with a hash and its value, to a reader who had a seat in a round or
// none. If others of the round come next, it prepares their lookups with its own.
func (f *fsm) get(key string, hash uint64, seat reads.Seat) (KeyValue, bool) {
	kv, large, ok := f.lookup(key, hash, seat)
	if large != "" {
		kv.Value = []byte(large)
	}
	return kv, ok
}

// lookup is get, but that it returns a large value as it is. A small one may be
// overwritten as soon as the lock is free.
func (f *fsm) lookup(key string, hash uint64, seat reads.Seat) (kv KeyValue, large string, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if seat.IsFirst() {
		f.warm(seat)
	}
	item, ok := f.keys.Lookup(key, hash)
	if !ok {
		return KeyValue{}, "", false
	}
	kv = KeyValue{Key: key, Revision: item.Revision}
	if len(item.Value) > keyspace.SharedMax {
		return kv, item.Value, true
	}
	kv.Value = []byte(item.Value)
	return kv, "", true
}

func (f *fsm) warm(seat reads.Seat) {
	var hashes [reads.GroupMax]uint64
	if n := seat.Group(&hashes); n >= warmMin {
		f.keys.Warm(hashes[:n], true)
	}
}

// list returns the keys in a range as of now. The first one in a state has its keys
// put in order, while others read and write between the steps; what is done of that
// when the context ends stays done.
func (f *fsm) list(ctx context.Context, prefix, after string, limit int) (*Listing, error) {
	if l := f.collect(prefix, after, limit); l != nil {
		return l, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.keys.Order() {
		f.mu.Unlock()
		runtime.Gosched()
		f.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("put the keys in order: %w", fault.Ended(ctx))
		}
	}
	return &Listing{Revision: f.revision, items: f.keys.Freeze().Ascend(prefix, after, limit)}, nil
}

// collect is list for a range that is small, nil if it is not, or if the keys are not
// in order yet.
func (f *fsm) collect(prefix, after string, limit int) *Listing {
	f.mu.RLock()
	defer f.mu.RUnlock()
	items, complete := f.keys.Collect(prefix, after, limit, collectMax)
	if !complete {
		return nil
	}
	return &Listing{Revision: f.revision, items: slices.Values(items)}
}

// awaitRevision returns when a revision has been applied here. If it has to
// wait, it calls tell, and what that returns when it no longer does.
func (f *fsm) awaitRevision(ctx context.Context, revision uint64, tell func() func() bool) error {
	f.mu.Lock()
	switch {
	case f.revision >= revision:
		f.mu.Unlock()
		return nil
	case f.err != nil:
		defer f.mu.Unlock()
		return f.err
	case len(f.waits) >= revisionWaitsMax:
		f.mu.Unlock()
		return fmt.Errorf("%w: %d reads wait for a revision", ErrOverloaded, revisionWaitsMax)
	}
	w := revisionWait{revision, make(chan struct{})}
	f.waits = append(f.waits, w)
	f.mu.Unlock()
	defer tell()()
	select {
	case <-w.donec:
		f.mu.RLock()
		defer f.mu.RUnlock()
		if f.revision < revision {
			return f.err
		}
		return nil
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.revision >= revision {
			return nil // a result that is known wins over the context
		}
		f.waits = slices.DeleteFunc(f.waits, func(o revisionWait) bool { return o.donec == w.donec })
		text := fmt.Sprintf("%v while waiting for revision %d; this node has %d", fault.Ended(ctx), revision, f.revision)
		return fault.New(text, ErrNoLeader, fault.Ended(ctx))
	}
}

// fail ends all waits for a revision: the node stops.
func (f *fsm) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	for _, w := range f.waits {
		close(w.donec)
	}
	f.waits = nil
}
