package raftkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/history"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/reads"
)

// Clients of the simulator: programs that embed a node, so they live, pause and
// die with its process and come back elsewhere. They do what Node.write and
// Node.read do, without waiting: they look after every step of their process
// whether the channel that they would wait on is closed.

// A client makes one call after the other.
type client struct {
	w     *world
	id    int
	place int
	n     int               // values written
	known map[string]uint64 // by key, the revision that it last saw
	again string            // a key whose conditional write has an unknown outcome
	once  bool              // makes one call and ends
}

type callKind uint8

const (
	callPut callKind = iota
	callDelete
	callGet
	callList
	callStale // a get that asks nobody
	callKinds
)

var callNames = [...]string{"put", "delete", "get", "list", "stale"}

// A call is one call of a client that has not returned.
type call struct {
	c           *client
	p           *process
	kind        callKind
	key, value  string
	conditional bool
	revision    uint64 // of the condition
	began       time.Duration
	floor       uint64 // a revision that was shown to somebody before
	ticket      outbox.Ticket
	seat        reads.Seat
	id          history.ID
	shown       history.Result // of a read
	sent        [2]uint64      // origin and number of a write of unknown outcome
	woken       bool           // its channel is closed; it goes on in a moment
	over        bool
}

// ended is a context whose deadline has passed.
var ended = func() context.Context {
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	cancel()
	return ctx
}()

func (k callKind) isWrite() bool { return k <= callDelete }

// next makes the client's next call, or has it look for another process.
func (c *client) next() {
	w := c.w
	if w.hist.closed {
		return
	}
	p := w.procs[c.place]
	if p == nil || p.paused || p.n.usable() != nil {
		if p == nil || !p.paused {
			c.place = w.rnd.IntN(len(w.procs))
		}
		w.after(w.between(20*time.Millisecond, 500*time.Millisecond), c.next)
		return
	}
	c.begin(p, c.choose())
	p.settle()
}

// choose says what to call.
func (c *client) choose() *call {
	w := c.w
	x := &call{c: c, key: fmt.Sprintf("k%d", w.rnd.IntN(w.plan.keys))}
	switch r := w.rnd.Float64(); {
	case c.again != "":
		x.key, x.kind, c.again = c.again, callGet, "" // what has become of it?
	case r < w.plan.reads/10:
		x.kind = callStale
	case r < w.plan.reads:
		x.kind = callGet
	case r < w.plan.reads+w.plan.lists:
		x.kind = callList
	case r < w.plan.reads+w.plan.lists+w.plan.deletes:
		x.kind = callDelete
	}
	if !x.kind.isWrite() {
		return x
	}
	if w.chance(w.plan.conditional) {
		x.conditional, x.revision = true, c.known[x.key]
	}
	if x.kind == callPut {
		c.n++
		x.value = fmt.Sprintf("%d.%d.", c.id, c.n)
		x.value += strings.Repeat("x", w.rnd.IntN(w.plan.valueBytes))
	}
	return x
}

// begin is the first part of Node.write or Node.read.
func (c *client) begin(p *process, x *call) {
	w := c.w
	x.p, x.began, x.floor = p, w.now, w.hist.floor
	w.hist.begin(x)
	w.note(p.place.id, "begin", uint64(c.id), uint64(x.kind), x.revision)
	if err := p.n.enter(context.Background()); err != nil {
		w.fail("member %d: a usable node takes no call: %v", p.place.id, err)
	}
	if x.kind == callStale {
		p.n.calls.leave()
		x.finished(0, nil)
		return
	}
	if err := x.submit(); err != nil {
		p.n.calls.leave()
		x.finished(0, err)
		return
	}
	p.calls = append(p.calls, x)
	deadline := w.plan.deadline(w)
	p.timer(deadline, x.expire)
}

// submit hands a call to the outbox or to reads.
func (x *call) submit() (err error) {
	n := x.p.n
	var idle bool
	if !x.kind.isWrite() {
		x.seat, idle = n.reads.Join(keyspace.Hash([]byte(x.key)))
	} else {
		c := command.Command{
			Op: command.Put, Key: []byte(x.key), Value: []byte(x.value), Conditional: x.conditional, IfRevision: x.revision,
		}
		if x.kind == callDelete {
			c.Op, c.Value = command.Delete, nil
		}
		if err = n.admits(&c); err == nil {
			x.ticket, idle, err = n.out.Add(&c)
		}
	}
	if err == nil && idle {
		n.inbox.wake()
	}
	return err
}

func (x *call) done() <-chan struct{} {
	if x.seat.Round != nil {
		return x.seat.Done()
	}
	return x.ticket.Done()
}

func (x *call) isDone() bool {
	select {
	case <-x.done():
		return true
	default:
		return false
	}
}

// lookAtCalls lets calls go on whose channel has been closed.
func (p *process) lookAtCalls() {
	for _, x := range p.calls {
		if !x.woken && x.isDone() {
			x.woken = true
			p.timer(p.w.between(0, 50*time.Microsecond), x.resume)
		}
	}
}

// writesPending returns how many writes have not been answered.
func (p *process) writesPending() (n int) {
	for _, x := range p.calls {
		if x.kind.isWrite() && !x.isDone() {
			n++
		}
	}
	return n
}

// resume is the rest of Node.write or Node.read, once the channel is closed.
func (x *call) resume() {
	if x.over {
		return
	}
	if x.seat.Round != nil {
		x.leave()
		x.finished(0, x.seat.Err())
		return
	}
	r, err := x.ticket.Result()
	if err == nil && r.Mismatch {
		err = ErrRevisionMismatch
	}
	x.leave()
	x.finished(r.Revision, err)
}

// expire is what happens when the context ends.
func (x *call) expire() {
	if x.over || x.woken {
		return
	}
	n := x.p.n
	var err error
	switch {
	case x.isDone():
	case x.seat.Round != nil:
		err = n.noLeader(ended)
	default:
		err = n.abandon(ended, x.ticket)
	}
	if err == nil {
		x.resume()
		return
	}
	x.leave()
	x.finished(0, err)
}

// leave ends the call's stay on its process.
func (x *call) leave() {
	x.over = true
	x.p.n.calls.leave()
	for i, o := range x.p.calls {
		if o == x {
			x.p.calls = append(x.p.calls[:i], x.p.calls[i+1:]...)
			return
		}
	}
}

// finishCallsNow ends all calls on a process that has stopped by itself.
func (p *process) finishCallsNow() {
	for len(p.calls) > 0 {
		p.calls[0].resume()
	}
}

// loseCalls ends all calls on a process that has died: their client, a part of
// it, knows nothing; the one that begins in its place starts afresh.
func (p *process) loseCalls() {
	for len(p.calls) > 0 {
		x := p.calls[0]
		x.leave()
		x.finished(0, errDied)
	}
}

var errDied = fmt.Errorf("the process died: %w", ErrOutcomeUnknown)

// finished records the outcome and has the client go on after a while.
func (x *call) finished(revision uint64, err error) {
	c, w := x.c, x.c.w
	w.hist.record(x, revision, err)
	if x.kind.isWrite() && x.conditional && errors.Is(err, ErrOutcomeUnknown) && w.chance(0.7) {
		c.again = x.key
	}
	if errors.Is(err, errDied) || w.chance(w.plan.wander) {
		c.place = w.rnd.IntN(len(w.procs))
	}
	if !c.once {
		w.after(w.plan.think(w), c.next)
	}
}
