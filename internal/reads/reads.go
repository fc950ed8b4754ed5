// Package reads gathers linearizable reads into rounds that share one
// confirmation of leadership (thesis §6.4, ReadIndex).
package reads

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// RoundsMax is how many rounds wait for their confirmation at once. Readers
	// that come later share the next one.
	RoundsMax = 8
	// ReachedMax is how many confirmed rounds wait for the applier. While it is
	// so far behind, readers share the next round.
	ReachedMax = 64
	// attemptsMax is how many contexts of a round are remembered. An answer to
	// an older one is ignored. A follower's question takes two round trips, and
	// raft keeps its leader with one of nearly an election timeout; so the
	// attempts of two election timeouts must be remembered, or on a slow network
	// each answer comes after it was forgotten. These are of more than three.
	attemptsMax = 16
	// GroupMax is how many readers of a round prepare their lookups together.
	GroupMax = 16
	// notesMax bounds the notes that a round keeps.
	notesMax = 1024
	// ContextBytes is the size of a context: raft ID and number.
	ContextBytes = 16
)

// A Round is a group of readers. They may read when the state machine has
// reached the index that a quorum confirmed after the last of them had joined.
type Round struct {
	done     chan struct{}   // closed when the readers may go on; nobody sends
	joined   atomic.Int64    // how many readers have
	notes    []atomic.Uint64 // of the first of them
	err      error           // written before done is closed
	index    uint64          // 0 until confirmed
	attempts []uint64        // the numbers of the contexts sent, oldest first
	askedAt  uint64          // the tick at which it was issued
	retryAt  uint64          // the tick at which to ask again
}

// newRound returns a round with room for so many notes.
func newRound(notes int) *Round {
	return &Round{done: make(chan struct{}), notes: make([]atomic.Uint64, notes)}
}

// successor returns the round that new readers join after this one, with room for
// the notes of about as many readers. Few of them do without.
func (r *Round) successor() *Round {
	const notesMin = 4
	notes := max(int(r.joined.Load()), len(r.notes)-len(r.notes)/8-1) // rounds of unlike size take turns
	if notes < notesMin {
		notes = 0
	}
	return newRound(min(notes, notesMax))
}

// end lets the readers go on, with an error if it is not nil.
func (r *Round) end(err error) {
	r.err = err
	close(r.done)
}

// Done is closed when the readers may read, or when Err says why not.
func (r *Round) Done() <-chan struct{} { return r.done }

// isWanted reports whether somebody has joined.
func (r *Round) isWanted() bool { return r.joined.Load() > 0 }

// Err returns why the readers may not read. Only after Done.
func (r *Round) Err() error { return r.err }

// A Seat is a reader's place in a round. The zero Seat is in none.
//
// Readers leave a note when they join. Go wakes those who wait for a channel in the
// reverse of the order in which they came, but the first one, who comes first. So
// they read in groups: the last to have joined reads first, and knows from the notes
// of the others what is looked up next. Nothing but speed depends on that order,
// which processors without work disturb, as they take half of those who are ready,
// and which more than some 256 of them do not keep. Who looks nothing up leaves 0.
type Seat struct {
	*Round
	number int
}

// IsFirst reports whether the reader is the one of its group who reads first. Only
// after Done.
func (s Seat) IsFirst() bool {
	if s.Round == nil || s.number >= len(s.notes) {
		return false
	}
	return s.number%GroupMax == GroupMax-1 || s.number == min(len(s.notes), int(s.joined.Load()))-1
}

// Group returns the notes of the group whose first reader this is, and how many
// they are: its own, then those of who comes next.
func (s Seat) Group(notes *[GroupMax]uint64) int {
	n := s.number%GroupMax + 1
	for i := range n {
		notes[i] = s.notes[s.number-i].Load()
	}
	return n
}

// A Reads is all rounds of a node. Callers join; the loop issues contexts and
// brings confirmations; the applier says how far it is.
//
// Requests vanish silently in raft: without a leader, with a change of leader,
// with a lost message. So every round asks again after a time, each time with
// a context of its own: a retried context once let a new leader's answer to an
// old question through (etcd-io/etcd#20418). Answers to earlier attempts of the
// round stay good, since all readers had joined before the first.
//
// A reader who joins takes no lock, since all callers of a node would share it:
// there always is a next round, and a reader who finds it came before it can be
// issued, or ended, because it is no longer the next one by then.
//
// All methods may be called from any goroutine, and none blocks.
type Reads struct {
	retryTicks uint64
	next       atomic.Pointer[Round] // whom new readers join; mu's holder alone replaces it

	mu      sync.Mutex
	err     error // why nobody can join any more
	self    uint64
	number  uint64   // of the latest context
	applied uint64   // how far the state machine is
	freed   bool     // it was so far behind that no round went, and no longer is
	asked   []*Round // issued, not confirmed
	reached []*Round // confirmed, waiting for the applier
}

// New returns a Reads that asks again after so many ticks.
func New(retryTicks uint64) *Reads {
	r := &Reads{retryTicks: retryTicks}
	r.next.Store(newRound(0))
	return r
}

// Become gives the contexts the raft ID which makes them unique in the cluster.
func (r *Reads) Become(raftID uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.self = raftID
}

// Join returns the seat of a new reader, who leaves a note there. If idle is true,
// the caller wakes the loop. When the node has stopped, the round has ended with the
// cause.
func (r *Reads) Join(note uint64) (seat Seat, idle bool) {
	round := r.next.Load()
	seat = Seat{round, int(round.joined.Add(1)) - 1}
	if seat.number < len(round.notes) {
		round.notes[seat.number].Store(note)
	}
	return seat, seat.number == 0
}

// Issue returns the context of a question that the loop shall ask, or nil if
// there is none: first of rounds that have to ask again, then of new readers.
func (r *Reads) Issue(now uint64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.asked {
		if round.retryAt <= now {
			return r.ask(round, now)
		}
	}
	if !r.isDue(now) {
		return nil
	}
	round := r.next.Swap(r.next.Load().successor())
	round.askedAt = now
	r.asked = append(r.asked, round)
	return r.ask(round, now)
}

func (r *Reads) ask(round *Round, now uint64) []byte {
	r.number++
	round.attempts = append(round.attempts, r.number)
	if n := len(round.attempts) - attemptsMax; n > 0 {
		round.attempts = round.attempts[n:]
	}
	round.retryAt = now + r.retryTicks
	context := binary.BigEndian.AppendUint64(make([]byte, 0, ContextBytes), r.self)
	return binary.BigEndian.AppendUint64(context, r.number)
}

// AskAgain makes all rounds due: the leader has changed or has become ready.
func (r *Reads) AskAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.asked {
		round.retryAt = 0
	}
}

// Confirm records that a context was confirmed at an index.
func (r *Reads) Confirm(context []byte, index uint64) {
	if len(context) != ContextBytes {
		return // not ours
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if binary.BigEndian.Uint64(context) != r.self {
		return
	}
	number := binary.BigEndian.Uint64(context[8:])
	i := slices.IndexFunc(r.asked, func(round *Round) bool { return slices.Contains(round.attempts, number) })
	if i < 0 {
		return // confirmed by another attempt
	}
	round := r.asked[i]
	r.asked = slices.Delete(r.asked, i, i+1)
	round.index = index
	r.reached = append(r.reached, round)
	r.release()
}

// Applied lets the readers go on whose index the state machine has reached.
func (r *Reads) Applied(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = index
	wasFull := len(r.reached) >= ReachedMax
	r.release()
	r.freed = r.freed || wasFull && len(r.reached) < ReachedMax
}

// Freed reports whether, since it was last called, the state machine has caught up
// so far that rounds may go again: then the loop has to look.
func (r *Reads) Freed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	freed := r.freed
	r.freed = false
	return freed
}

func (r *Reads) release() {
	r.reached = slices.DeleteFunc(r.reached, func(round *Round) bool {
		if round.index > r.applied {
			return false
		}
		round.end(nil)
		return true
	})
}

// Refuse answers all readers that wait with an error. Later ones may wait again.
func (r *Reads) Refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.refuse(newRound(0), err)
	}
}

// Fail answers all readers, now and later, with an error: the node stops.
func (r *Reads) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = err
	last := newRound(0)
	last.end(err)
	r.refuse(last, err)
}

// refuse also ends a next round that nobody seems to want: a reader may have
// found it a moment ago.
func (r *Reads) refuse(next *Round, err error) {
	r.next.Swap(next).end(err)
	for _, round := range slices.Concat(r.asked, r.reached) {
		round.end(err)
	}
	r.asked, r.reached = nil, nil
}

// IsDue reports whether new readers wait that Issue would let go at a tick.
func (r *Reads) IsDue(now uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isDue(now)
}

// smallRound is up to how many readers a round has that others may follow at once.
const smallRound = 32

// isDue lets two rounds go at once, so that one fills while the other is under
// way; the second, if the first is not small, only with half as many readers: each
// costs as much however few they are. More rounds cost time where many readers come
// again as soon as they are answered. They save it where a round takes long, so there
// is one more for every tick that goes by.
func (r *Reads) isDue(now uint64) bool {
	next, n := r.next.Load(), len(r.asked)
	if r.err != nil || !next.isWanted() || len(r.reached) >= ReachedMax {
		return false
	}
	if n == 0 || n < RoundsMax && r.asked[n-1].askedAt < now {
		return true
	}
	first := r.asked[0].joined.Load()
	return n == 1 && (first <= smallRound || 2*next.joined.Load() >= first)
}

// Waiting reports whether anybody waits for a confirmation.
func (r *Reads) Waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err == nil && r.next.Load().isWanted() || len(r.asked) > 0
}
