// Package outbox gathers the writes of local callers into batches and keeps
// each batch until its effect is known, however often it has to be sent.
package outbox

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/fault"
)

// Limits bound an Outbox.
type Limits struct {
	PendingBytesMax int64 // of all writes that wait for their answer
	BatchBytesMax   int   // of a batch; a batch holds one command whatever its size
	WindowMax       int   // batches in flight
	RetryTicks      uint64
}

// A Route is where batches go: to the leader of a term. A batch that went
// another route may be lost.
type Route struct{ Leader, Term uint64 }

// An Outbox is the way of a node's own writes into the log. Callers add
// commands; the loop takes batches and sends them to the leader, itself or
// another; the applier resolves them when they come back through the log.
//
// A batch forms while the loop is busy or the window is full, without a timer:
// what gathers meanwhile goes together (raft-guide: natural batching). Its
// commands get consecutive sequence numbers when it is first taken. From then
// on it never changes, so that it may be sent again on every doubt: the state
// machine applies each number of an origin once (thesis §6.3).
//
// Invariants:
//
//  1. A number is given once. Batches in flight are ordered by number.
//  2. A group of a batch is answered once, by the applier, by Fail, or never if all
//     of the batch's callers have gone.
//  3. All numbers up to answeredTo are answered or abandoned, and no number is
//     more than dedup.Window above it: the replicated table stays bounded.
//  4. A command that was abandoned before its batch was taken is never sent.
//  5. The bytes of a batch are written again only after it was answered, and only if
//     nobody else can still read them: it went once, and not to another member.
//
// All methods may be called from any goroutine, and none blocks.
type Outbox struct {
	limits Limits

	mu     sync.Mutex
	err    error        // why nothing can be added any more
	origin uint64       // the raft ID; 0 while the node is blank
	next   uint64       // the sequence number of the next command
	bytes  atomic.Int64 // of all commands that are held; only mu's holder changes it
	count  int          // of all commands that wait
	queue  []*batch
	flight []*batch
	hungry bool                          // Next has found nothing to send
	grown  struct{ bytes, commands int } // how large the latest batch has become
	rooms  []room                        // of batches that are done, for the next ones
}

// A room is memory for a batch.
type room struct {
	data []byte
	ends []int
}

// roomBytesMax is up to how large a room is kept.
const roomBytesMax = 256 << 10

// New returns an outbox that sends nothing yet.
func New(limits Limits) *Outbox { return &Outbox{limits: limits, next: 1} }

// Become gives the outbox its origin.
func (o *Outbox) Become(origin uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.origin = origin
}

// Add queues a command and returns a ticket for its result. It copies the
// command. If wake is true there is something new to send: the caller wakes the
// loop. The error is ErrOverloaded, or why the node has stopped; then nothing is queued.
func (o *Outbox) Add(c *command.Command) (t Ticket, wake bool, err error) {
	size := c.Size()
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.err != nil:
		return Ticket{}, false, o.err
	case o.bytes.Load()+int64(size) > o.limits.PendingBytesMax:
		return Ticket{}, false, fmt.Errorf("%w: %d bytes of writes wait for their answer", fault.ErrOverloaded, o.bytes.Load())
	case o.count >= dedup.Window-command.BatchCommandsMax:
		return Ticket{}, false, fmt.Errorf("%w: %d writes wait for their answer", fault.ErrOverloaded, o.count)
	}
	b := o.open(size)
	g := b.add(c)
	o.bytes.Add(int64(size))
	o.count++
	wake = len(o.queue) == 1 && len(b.ends) == 1
	if o.hungry && o.isDue() {
		o.hungry, wake = false, true
	}
	return Ticket{b, g, len(b.ends) - 1}, wake, nil
}

// open returns the batch that takes the next command.
func (o *Outbox) open(size int) *batch {
	if n := len(o.queue); n > 0 {
		b := o.queue[n-1]
		if len(b.ends) < command.BatchCommandsMax && len(b.data)+size <= o.limits.BatchBytesMax {
			return b
		}
	}
	r := o.room(size)
	b := &batch{data: r.data, ends: r.ends}
	o.queue = append(o.queue, b)
	return b
}

// room returns the room of a batch that begins with a command of a size.
func (o *Outbox) room(size int) room {
	if n := len(o.rooms) - 1; n >= 0 {
		r := o.rooms[n]
		o.rooms[n] = room{}
		o.rooms = o.rooms[:n]
		return r
	}
	return room{
		data: make([]byte, command.HeaderBytes, command.HeaderBytes+max(size, 512, o.grown.bytes)),
		ends: make([]int, 0, max(4, o.grown.commands)),
	}
}

// reuse keeps the room of a batch that was answered, if nobody else has it. What went
// to another member may be in a frame that is not written yet, and what was returned
// by Due may be on its way to raft. Raft copies what is proposed to it.
func (o *Outbox) reuse(b *batch) {
	if !b.lent && cap(b.data) <= roomBytesMax && len(o.rooms) < o.limits.WindowMax {
		o.rooms = append(o.rooms, room{b.data[:command.HeaderBytes], b.ends[:0]})
		b.data, b.ends = nil, nil
	}
}

// Next takes the next batch that has never been sent: numbered, encoded and
// recorded as sent on the route. There is none if nothing waits, if as many as
// the window allows are in flight, or if the numbers would run too far ahead.
func (o *Outbox) Next(route Route, now uint64) (Batch, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.isDue() {
		o.hungry = true
		return Batch{}, false
	}
	b := o.queue[0]
	o.queue[0] = nil
	o.queue = o.queue[1:]
	o.seal(b)
	o.flight = append(o.flight, b)
	o.sent(b, route, now)
	b.lent = route.Leader != o.origin
	return Batch{b.first, b.data}, true
}

// IsDue reports whether commands wait that Next would let go.
func (o *Outbox) IsDue() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.isDue()
}

// isDue lets two batches go at once, so that one fills while the other is under
// way. Further ones save time where a round trip is long, and cost it where the
// callers come again as soon as they are answered: so each has to have as many
// commands as the one before it.
func (o *Outbox) isDue() bool {
	n := len(o.flight)
	return len(o.queue) > 0 && n < o.limits.WindowMax &&
		(n < 2 || len(o.queue) > 1 || o.queue[0].live >= o.flight[n-1].live) &&
		o.next-1+uint64(o.queue[0].live)-o.answeredTo() <= dedup.Window
}

// seal drops the abandoned commands and numbers the others.
func (o *Outbox) seal(b *batch) {
	if b.live < len(b.ends) {
		before := len(b.data)
		b.compact()
		o.bytes.Add(-int64(before - len(b.data)))
	}
	// The next one is likely to be as large.
	o.grown.bytes, o.grown.commands = min(len(b.data), o.limits.BatchBytesMax), b.live
	h := command.Header{Origin: o.origin, First: o.next, AnsweredTo: o.answeredTo()}
	h.Append(b.data[:0])
	b.first = o.next
	o.next += uint64(b.live)
}

// answeredTo returns the highest number up to which all are answered or
// abandoned.
func (o *Outbox) answeredTo() uint64 {
	if len(o.flight) > 0 {
		return o.flight[0].first - 1
	}
	return o.next - 1
}

func (o *Outbox) sent(b *batch, route Route, now uint64) {
	b.route, b.refused = route, false
	b.tries++
	// Twice as long after every try: a leader that is only slow must not be
	// buried under copies.
	b.retryAt = now + o.limits.RetryTicks<<min(b.tries-1, 4)
}

// Due returns the batches in flight that have to be sent again, oldest first,
// and records them as sent on the route: those that went another route, those
// that were refused or cut off, and, unless the leader is this node and so
// holds them in its own log, those that have waited for long.
func (o *Outbox) Due(route Route, now uint64, local bool) []Batch {
	o.mu.Lock()
	defer o.mu.Unlock()
	var due []Batch
	for _, b := range o.flight {
		if b.isDue(route, now, local) {
			o.sent(b, route, now)
			b.lent = true
			due = append(due, Batch{b.first, b.data})
		}
	}
	return due
}

// Refused says that a batch was not taken: send it again after a pause, or as
// soon as somebody else leads. Who hands leadership over refuses what comes
// meanwhile, and that is over in no time.
func (o *Outbox) Refused(first, retryAt uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.flight {
		if b.first == first {
			b.refused, b.retryAt, b.tries = true, retryAt, 0
		}
	}
}

// CutOff says that what was sent may be lost: send all again.
func (o *Outbox) CutOff() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.flight {
		b.route, b.tries = Route{}, 0
	}
}

// ResolveSome answers the groups of a batch in flight whose results are there: the
// first n of results, which is as long as the batch. The others follow with Resolve,
// in the same slice. In a batch that was sent without some of its commands nobody is
// answered before.
func (o *Outbox) ResolveSome(first uint64, results []dedup.Result, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.flight, func(b *batch) bool { return b.first == first })
	if i >= 0 && o.flight[i].kept == nil {
		o.flight[i].answer(n/GroupMax, results, nil)
	}
}

// Resolve answers the batch with a first number, if it is in flight. The
// results are in the order of the numbers.
func (o *Outbox) Resolve(first uint64, results []dedup.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.flight, func(b *batch) bool { return b.first == first })
	if i < 0 {
		return // answered before, or nobody waits for it
	}
	b := o.flight[i]
	o.flight = slices.Delete(o.flight, i, i+1)
	o.resolve(b, results, nil)
	o.reuse(b)
}

// ResolveFrom answers what a table knows: after a snapshot that jumped over
// entries with batches of ours.
func (o *Outbox) ResolveFrom(table *dedup.Table) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flight = slices.DeleteFunc(o.flight, func(b *batch) bool {
		results := make([]dedup.Result, b.sentLen())
		for i := range results {
			r, state := table.Lookup(o.origin, b.first+uint64(i))
			if state != dedup.Applied {
				return false
			}
			results[i] = r
		}
		o.resolve(b, results, nil)
		return true
	})
}

// resolve wakes the callers of a batch.
func (o *Outbox) resolve(b *batch, results []dedup.Result, err error) {
	o.bytes.Add(-int64(len(b.data) - command.HeaderBytes))
	o.count -= b.sentLen()
	if err == nil && b.kept != nil {
		sent := results
		results = make([]dedup.Result, len(b.ends))
		for at, index := range b.kept {
			results[index] = sent[at]
		}
	}
	b.answer(len(b.groups), results, err)
}

// Abandon says that nobody waits for a ticket any more. It reports whether the
// command may take effect; if not, it never will.
func (o *Outbox) Abandon(t Ticket) (sent bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := t.batch
	if b.first != 0 || b.isDone() {
		o.abandonSent(b)
		return true
	}
	if len(b.gone) <= t.index {
		b.gone = append(b.gone, make([]bool, len(b.ends)-len(b.gone))...)
	}
	b.gone[t.index] = true
	b.live--
	o.count--
	// Its bytes count until they are freed, with the batch or when it is taken:
	// without a leader nothing is taken, and callers come, give up and come
	// again for as long as that lasts.
	if b.live == 0 {
		i := slices.Index(o.queue, b)
		o.queue = slices.Delete(o.queue, i, i+1)
		o.bytes.Add(-int64(len(b.data) - command.HeaderBytes))
	}
	return false
}

// abandonSent forgets a batch in flight when the last of its callers has gone:
// the watermark may then move over its numbers.
func (o *Outbox) abandonSent(b *batch) {
	b.live--
	if b.live > 0 || b.isDone() {
		return
	}
	if i := slices.Index(o.flight, b); i >= 0 {
		o.flight = slices.Delete(o.flight, i, i+1)
		o.bytes.Add(-int64(len(b.data) - command.HeaderBytes))
		o.count -= b.sentLen()
	}
}

// Fail answers everything that waits, now and later, with an error: the node
// stops. What was sent gets ErrOutcomeUnknown too.
func (o *Outbox) Fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return
	}
	o.err = err
	o.failFlight(err)
	o.refuse(err)
	o.bytes.Store(0)
	o.count = 0
}

func (o *Outbox) failFlight(err error) {
	for _, b := range o.flight {
		o.resolve(b, nil, fault.New(err.Error()+"; "+fault.ErrOutcomeUnknown.Error(), err, fault.ErrOutcomeUnknown))
	}
	o.flight = nil
}

// Refuse answers what has never been sent with an error. Later writes may wait
// again, and what was sent goes on waiting.
func (o *Outbox) Refuse(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse(err)
}

func (o *Outbox) refuse(err error) {
	for _, b := range o.queue {
		o.bytes.Add(-int64(len(b.data) - command.HeaderBytes))
		o.count -= b.live
		b.answer(len(b.groups), nil, err)
	}
	o.queue = nil
}

// Reborn gives the outbox another origin, under which numbers begin again. What
// is in flight under the old one gets an error with ErrOutcomeUnknown.
func (o *Outbox) Reborn(origin uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failFlight(err)
	o.origin, o.next = origin, 1
}

// Waiting returns how many commands wait for their answer.
func (o *Outbox) Waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// PendingBytes returns how many bytes of commands are held: of those that wait
// for their answer, and of abandoned ones that share a batch with them.
func (o *Outbox) PendingBytes() int64 { return o.bytes.Load() }
