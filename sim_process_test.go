package raftkv

import (
	"fmt"
	"time"

	"example.com/raftkv/internal/roster"
)

// A place is where a process runs: a member ID and an address, over all of its
// lives.
type place struct {
	w     *world
	at    int    // its index
	id    uint64 // the member ID
	addr  string
	rate  float64       // of its clock
	lives int           // processes that have run here
	slow  time.Duration // how long its applier dawdles
	lag   time.Duration // how long its loop takes to wake
	died  time.Duration // when its latest process did
	dark  bool          // its machine is gone with the process, until the next one starts
}

// A process is one life of a member: a Node as Start would make it, without
// goroutines, sockets and clock. The world does what they do: a round of the
// loop when the inbox wakes it or the ticker fires, and one of the applier, at once
// or when the task queue wakes it. See Node.run, Node.haveApplied and Node.applyTasks,
// which this mirrors.
type process struct {
	w     *world
	place *place
	n     *Node
	net   *simTransport

	alive    bool
	paused   bool
	draining bool     // arrivals are being taken
	timers   []func() // what fell due while paused: runs first on resume
	arrivals []func() // what came over the network while paused: runs then
	tick     bool     // the ticker's channel holds a tick
	rounds   struct{ loop, applier, rest bool }
	calls    []*call          // of clients, under way here
	seen     processSeen      // for the invariants
	inbound  map[*stream]bool // unordered; only ever deleted from and counted
	receives int              // snapshots being received
	stopped  error            // why it ended by itself
	onDeath  func()
}

// launch starts a blank process at a place.
func (w *world) launch(pl *place) *process {
	pl.lives++
	pl.dark = false
	cfg, err := Config{ID: pl.id, Addr: pl.addr, Timing: w.plan.timing, Limits: w.plan.limits}.withDefaults()
	if err != nil {
		w.fail("config: %v", err)
	}
	p := &process{w: w, place: pl, alive: true, n: newNode(cfg), inbound: make(map[*stream]bool)}
	p.net = &simTransport{p: p, links: make(map[uint64]*simLink)}
	p.n.loop.net = p.net
	w.procs[pl.at] = p
	w.noteText(pl.id, "start", uint64(pl.lives), 0, 0, fmt.Sprintf("%x", p.n.loop.nonce[:4]))
	p.timer(w.between(0, p.tickEvery()), p.ticker)
	p.wakeLinks()
	return p
}

// tickEvery is the time between ticks by the world's clock.
func (p *process) tickEvery() time.Duration {
	return time.Duration(float64(p.n.cfg.Timing.Tick) / p.place.rate)
}

// ticker is the process's time.Ticker, whose channel holds one tick: those that
// come while the loop is late are dropped.
func (p *process) ticker() {
	p.tick = true
	p.wakeLoop()
	p.timer(p.tickEvery(), p.ticker)
}

// timer has the process do something of its own after a time. While it is
// paused, what falls due waits.
func (p *process) timer(d time.Duration, do func()) {
	p.w.after(d, func() {
		switch {
		case !p.alive:
		case p.paused:
			p.timers = append(p.timers, do)
		default:
			do()
			p.settle()
		}
	})
}

// arrive has the process take something from the network, now.
func (p *process) arrive(do func()) {
	switch {
	case !p.alive:
	case p.paused || p.draining:
		p.arrivals = append(p.arrivals, do)
	default:
		do()
		p.settle()
	}
}

// drain takes what came while the process was paused, in order.
func (p *process) drain(apart time.Duration) {
	if !p.alive || p.paused || len(p.arrivals) == 0 {
		p.draining = false
		return
	}
	for range 1 + len(p.arrivals)/32 { // faster than more comes
		if !p.alive || len(p.arrivals) == 0 {
			break
		}
		do := p.arrivals[0]
		p.arrivals = p.arrivals[1:]
		do()
		p.settle()
	}
	p.w.after(apart, func() { p.drain(apart) })
}

// settle starts what a step has woken, and lets the callers go on that it has
// answered.
func (p *process) settle() {
	if !p.alive {
		return
	}
	if len(p.n.inbox.wakec) > 0 {
		p.wakeLoop()
	}
	if len(p.n.tasks.wakec) > 0 && !p.rounds.applier {
		p.rounds.applier = true
		p.timer(p.w.between(0, 100*time.Microsecond)+p.dawdle(), p.applyTasks)
	}
	p.lookAtCalls()
}

func (p *process) dawdle() time.Duration {
	if p.place.slow == 0 {
		return 0
	}
	return p.w.about(p.place.slow)
}

func (p *process) wakeLoop() {
	if p.rounds.loop || !p.alive {
		return
	}
	p.rounds.loop = true
	p.timer(p.w.between(0, 50*time.Microsecond)+p.place.lag, p.round)
}

// round is one pass of Node.run.
func (p *process) round() {
	p.rounds.loop = false
	tick := p.tick
	if tick {
		p.tick = false
		p.w.note(p.place.id, "tick", 0, 0, 0)
	} else {
		select {
		case <-p.n.inbox.wakec:
		default:
			return
		}
	}
	p.n.loop.takeIn(p.n.inbox.take(), tick)
	again, err := p.n.loop.carryOut()
	p.w.facts.afterRound(p)
	p.haveApplied()
	if !p.alive {
		return
	}
	if err != nil {
		p.end(err)
		return
	}
	if again {
		p.n.inbox.wake()
	}
	if p.n.loop.holds() && !p.rounds.rest {
		p.rounds.rest = true
		p.timer(p.w.about(restAfter), p.rest)
	}
}

// haveApplied is Node.haveApplied. In half of the cases its applier is not idle.
func (p *process) haveApplied() {
	switch some, little := p.n.tasks.waits(); {
	case !some:
	case little && p.place.slow == 0 && p.w.chance(0.5):
		p.apply()
	default:
		p.n.tasks.wake()
	}
}

// rest is what Node.run does when its timer fires.
func (p *process) rest() {
	p.rounds.rest = false
	p.n.loop.rest()
}

// applyTasks is one pass of Node.applyTasks.
func (p *process) applyTasks() {
	p.rounds.applier = false
	select {
	case <-p.n.tasks.wakec:
	default:
		return
	}
	p.apply()
}

// apply is Node.apply.
func (p *process) apply() {
	tasks, bytes := p.n.tasks.take()
	p.w.facts.beforeApply(p, tasks)
	frozen, err := p.n.fsm.apply(tasks)
	room := p.n.tasks.finish(bytes)
	p.w.facts.afterApply(p, tasks)
	if err != nil {
		p.end(err)
		return
	}
	for _, h := range frozen {
		p.n.post(func(l *loop) { l.frozen(h) })
	}
	if freed := p.n.reads.Freed(); room || freed || p.n.out.IsDue() {
		p.n.inbox.wake()
	}
}

// end is what Node.supervise does when the node stops by itself.
func (p *process) end(cause error) {
	p.w.noteText(p.place.id, "stopped", 0, 0, 0, cause.Error())
	p.w.facts.ended(p, cause)
	p.stopped = cause
	p.n.stopFor(cause)
	p.n.calls.refuse()
	p.n.out.Fail(cause)
	p.n.reads.Fail(cause)
	p.n.fsm.fail(cause)
	p.n.loop.change.worker.Fail(cause)
	p.finishCallsNow()
	p.drop(false)
	p.w.ops.gone(p)
}

// crash ends the process without a word: its memory is gone, what it has sent
// may still arrive. If silent, its machine is gone too, and nobody is told that
// its connections are.
func (p *process) crash(silent bool) {
	p.w.note(p.place.id, "crash", p.n.loop.raftID, 0, 0)
	p.loseCalls()
	p.place.dark = silent
	p.drop(silent)
}

func (p *process) drop(silent bool) {
	led := p.w.leader() == p
	p.alive = false
	p.w.procs[p.place.at] = nil
	p.place.died = p.w.now
	p.w.facts.died(p, led)
	p.net.die(silent)
	p.timers, p.arrivals, p.calls = nil, nil, nil
	if p.onDeath != nil {
		p.w.after(p.w.about(time.Millisecond), p.onDeath)
	}
}

// pause stops the process as SIGSTOP does.
func (p *process) pause() {
	p.paused = true
	p.w.note(p.place.id, "pause", 0, 0, 0)
	p.net.doubt()
}

// resume continues it: first its own timers, then what has come meanwhile, at
// once or one by one.
func (p *process) resume() {
	if !p.alive || !p.paused {
		return
	}
	w := p.w
	w.note(p.place.id, "resume", uint64(len(p.timers)), uint64(len(p.arrivals)), 0)
	p.paused = false
	timers := p.timers
	p.timers = nil
	for _, do := range timers {
		p.timer(0, do)
	}
	apart := time.Duration(0)
	if w.chance(0.7) {
		apart = w.between(0, 2*time.Millisecond)
	}
	if !p.draining {
		p.draining = true
		w.after(time.Microsecond+apart, func() { p.drain(apart) })
	}
}

// raftID returns the raft ID, 0 while blank.
func (p *process) raftID() uint64 { return p.n.loop.raftID }

// leads reports whether the process leads and has committed in its term.
func (p *process) leads() bool { return p.alive && p.raftID() != 0 && p.n.loop.Leads() }

// leader returns the leader of the highest term that runs, nil if nobody leads.
func (w *world) leader() *process {
	var best *process
	for _, p := range w.procs {
		if p != nil && p.leads() && (best == nil || p.n.loop.lead.term > best.n.loop.lead.term) {
			best = p
		}
	}
	return best
}

// runs returns the process that has a raft ID and a nonce, nil if it is dead.
func (w *world) runs(m roster.Member) *process {
	for _, p := range w.procs {
		if p != nil && p.place.id == m.ID() && p.n.loop.nonce == m.Nonce {
			return p
		}
	}
	return nil
}

// placeOf returns the place with an address.
func (w *world) placeOf(addr string) *place {
	for _, pl := range w.places {
		if pl.addr == addr {
			return pl
		}
	}
	return nil
}
