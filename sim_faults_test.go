package raftkv

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/raftkv/internal/roster"
)

// The faults of the simulator. What they may kill, see canLose.

// A simFault is one that comes again and again.
type simFault struct {
	name  string
	every time.Duration // about
	do    func(w *world)
}

var allFaults = []simFault{
	{"one-way cut", 10 * time.Second, func(w *world) { w.cutFor(w.aPath()) }},
	{"two-way cut", 10 * time.Second, func(w *world) { a := w.aPath()[0]; w.cutFor([]*path{a, w.paths[a.to][a.from]}) }},
	{"isolated member", 20 * time.Second, func(w *world) { w.isolate(w.somePlace(), true, true) }},
	{"isolated leader", 15 * time.Second, func(w *world) { w.isolate(w.leaderPlace(), true, true) }},
	{"deaf member", 20 * time.Second, func(w *world) { w.isolate(w.somePlace(), true, false) }},
	{"mute member", 20 * time.Second, func(w *world) { w.isolate(w.somePlace(), false, true) }},
	{"partition", 20 * time.Second, (*world).partition},
	{"bridge", 30 * time.Second, (*world).bridge},
	{"chain", 30 * time.Second, (*world).chain},
	{"broken stream", 3 * time.Second, func(w *world) { a := w.aPath()[0]; w.breakStreams(a.from, a.to) }},
	{"false evidence", 5 * time.Second, (*world).falseEvidence},
	{"slow link", 10 * time.Second, (*world).slowLink},
	{"paused member", 10 * time.Second, func(w *world) { w.pauseFor(w.someProcess()) }},
	{"paused leader", 8 * time.Second, func(w *world) { w.pauseFor(w.leader()) }},
	{"crash", 10 * time.Second, func(w *world) { w.strike(w.someProcess()) }},
	{"crash of the leader", 15 * time.Second, func(w *world) { w.strike(w.leader()) }},
	{"crash of a learner", 10 * time.Second, func(w *world) { w.strike(w.aLearner()) }},
	{"quick restarts", 40 * time.Second, (*world).quickRestarts},
	{"rolling restart", 60 * time.Second, (*world).rollingRestart},
	{"slow applier", 15 * time.Second, (*world).slowApplier},
	{"slow loop", 20 * time.Second, (*world).slowLoop},
	{"clock skew", 30 * time.Second, func(w *world) { w.setClocks() }},
	{"interrupted snapshot", 2 * time.Second, (*world).interruptSnapshot},
	{"burst of writes", 10 * time.Second, func(w *world) { w.burst(w.someProcess(), 64) }},
	{"overtaken writer", 12 * time.Second, (*world).overtake},
	{"operator", 4 * time.Second, func(w *world) { w.ops.act() }},
}

// nemesis injects faults until it is stopped.
type nemesis struct {
	w       *world
	active  bool
	rolling bool
}

func (f *nemesis) begin() {
	f.active = true
	for _, k := range f.w.plan.faults {
		f.w.after(f.w.about(k.every), func() { f.again(k) })
	}
}

func (f *nemesis) again(k simFault) {
	if !f.active {
		return
	}
	f.w.note(0, k.name, 0, 0, 0)
	f.w.count.faults[k.name]++
	k.do(f.w)
	f.w.after(f.w.about(k.every), func() { f.again(k) })
}

// strike hits a replacement at its present step: the newcomer or the leader.
func (f *nemesis) strike(r *replacement) {
	w, at := f.w, r.step
	if !f.active || !w.chance(w.plan.targeted) {
		return
	}
	soon := time.Millisecond // some steps are short
	if w.chance(0.3) {
		soon = 50 * time.Millisecond
	}
	w.after(w.between(0, soon), func() {
		if !f.active || r.step != at {
			return
		}
		p := w.leader()
		if w.chance(0.5) {
			m, _ := w.facts.newest.Lookup(r.raftID)
			p = w.runs(m)
		}
		if w.strike(p) {
			w.count.faults["targeted at a replacement"]++
		}
	})
}

// stop ends all faults and heals what they did.
func (f *nemesis) stop() {
	w := f.w
	f.active = false
	for _, row := range w.paths {
		for _, p := range row {
			p.cuts, p.refuses = 0, 0
			w.heal(p)
			p.delay = w.plan.delay
		}
	}
	w.plan.drop, w.plan.duplicate, w.plan.reorder = 0, 0, 0
	for _, pl := range w.places {
		pl.slow, pl.lag = 0, 0
		if p := w.procs[pl.at]; p != nil {
			p.resume()
		} else {
			w.restart(pl, 0)
		}
	}
}

func (w *world) somePlace() *place { return w.places[w.rnd.IntN(len(w.places))] }

// someProcess returns what runs at a place, nil if nothing does.
func (w *world) someProcess() *process { return w.procs[w.somePlace().at] }

func (w *world) leaderPlace() *place {
	if p := w.leader(); p != nil {
		return p.place
	}
	return w.somePlace()
}

// aLearner returns a process that is a member without a vote.
func (w *world) aLearner() *process {
	for _, i := range w.rnd.Perm(len(w.procs)) {
		if p := w.procs[i]; p != nil && p.raftID() != 0 && !w.facts.newest.IsVoter(p.raftID()) {
			return p
		}
	}
	return nil
}

func (w *world) aPath() []*path {
	for {
		if p := w.paths[w.rnd.IntN(len(w.places))][w.rnd.IntN(len(w.places))]; p.from != p.to {
			return []*path{p}
		}
	}
}

// aWhile is how long a fault lasts.
func (w *world) aWhile() time.Duration {
	switch r := w.rnd.Float64(); {
	case r < 0.4:
		return w.between(20*time.Millisecond, time.Second)
	case r < 0.9:
		return w.between(time.Second, 8*time.Second)
	}
	return w.between(8*time.Second, 30*time.Second)
}

// cutFor cuts paths for a while.
func (w *world) cutFor(paths []*path) { w.cutPaths(w.aWhile(), paths) }

func (w *world) cutPaths(d time.Duration, paths []*path) {
	for _, p := range paths {
		w.cut(p)
	}
	w.after(d, func() {
		for _, p := range paths {
			w.heal(p)
		}
	})
}

// cutBetween cuts all paths between places for which apart says so.
func (w *world) cutBetween(apart func(a, b int) bool) { w.cutFor(w.pathsBetween(apart)) }

func (w *world) pathsBetween(apart func(a, b int) bool) (paths []*path) {
	for a, row := range w.paths {
		for b, p := range row {
			if a != b && apart(a, b) {
				paths = append(paths, p)
			}
		}
	}
	return paths
}

func (w *world) isolate(pl *place, in, out bool) { w.isolateFor(w.aWhile(), pl, in, out) }

func (w *world) isolateFor(d time.Duration, pl *place, in, out bool) {
	w.cutPaths(d, w.pathsBetween(func(a, b int) bool { return in && b == pl.at || out && a == pl.at }))
}

// partition splits the places in two.
func (w *world) partition() {
	order := w.rnd.Perm(len(w.places))
	half := 1 + w.rnd.IntN(len(order)-1)
	w.cutBetween(func(a, b int) bool { return order[a] < half != (order[b] < half) })
}

// bridge splits the places in two with one that both halves reach.
func (w *world) bridge() {
	order := w.rnd.Perm(len(w.places))
	half := len(order) / 2
	w.cutBetween(func(a, b int) bool {
		return order[a] != half && order[b] != half && order[a] < half != (order[b] < half)
	})
}

// chain lets each place reach only two others.
func (w *world) chain() {
	order := w.rnd.Perm(len(w.places))
	w.cutBetween(func(a, b int) bool {
		d := order[a] - order[b]
		return d != 1 && d != -1
	})
}

func (w *world) slowLink() {
	p := w.aPath()[0]
	p.delay = w.between(20*time.Millisecond, time.Second)
	w.after(w.aWhile(), func() { p.delay = w.plan.delay })
}

// falseEvidence has some members believe that the leader's process is gone, while
// it lives: their streams break, and their dials are refused.
func (w *world) falseEvidence() {
	leader := w.leaderPlace()
	some := w.rnd.Float64()
	for at := range w.places {
		if at == leader.at || !w.chance(some) {
			continue
		}
		w.paths[at][leader.at].refuses = w.now + w.between(0, 3*time.Second)
		w.after(w.about(5*time.Millisecond), func() {
			w.breakStreams(leader.at, at)
			w.breakStreams(at, leader.at)
		})
	}
}

func (w *world) pauseFor(p *process) {
	if p == nil || p.paused {
		return
	}
	p.pause()
	w.after(w.aWhile(), p.resume)
}

func (w *world) slowApplier() {
	pl := w.somePlace()
	pl.slow = w.between(5*time.Millisecond, 3*time.Second)
	w.after(w.aWhile(), func() { pl.slow = 0 })
}

func (w *world) slowLoop() {
	pl := w.somePlace()
	pl.lag = w.between(time.Millisecond, 200*time.Millisecond)
	w.after(w.aWhile(), func() { pl.lag = 0 })
}

// setClocks gives every clock a rate of its own.
func (w *world) setClocks() {
	for _, pl := range w.places {
		pl.rate = 1 + w.plan.skew*(2*w.rnd.Float64()-1)
	}
}

func (w *world) interruptSnapshot() {
	if n := len(w.nets.open); n > 0 {
		w.nets.open[w.rnd.IntN(n)].interrupt()
	}
}

// strike kills a process, if the budget allows it, and starts a blank one in its
// place a little later. It reports whether it did.
func (w *world) strike(p *process) bool {
	if p == nil || !p.alive || !w.canLose(p) {
		return false
	}
	w.crashAndRestart(p)
	return true
}

func (w *world) crashAndRestart(p *process) {
	w.count.faults["crashes"]++
	p.crash(w.chance(0.2))
	w.restart(p.place, w.between(0, 3*time.Second))
}

func (w *world) restart(pl *place, d time.Duration) {
	w.after(d, func() {
		if w.procs[pl.at] == nil {
			w.launch(pl)
		}
	})
}

// quickRestarts kills one member several times, each time before it has been
// taken in again.
func (w *world) quickRestarts() {
	pl := w.somePlace()
	at := w.now
	for range 2 + w.rnd.IntN(4) {
		w.at(at, func() {
			if w.faults.active {
				w.strike(w.procs[pl.at])
			}
		})
		at += w.between(100*time.Millisecond, 4*time.Second)
	}
}

// isWhole reports whether every member runs and none is being replaced.
func (w *world) isWhole() bool {
	r := w.facts.newest
	return !r.IsJoint() && !r.IsReplacing() && !slices.ContainsFunc(r.Members, func(m roster.Member) bool { return w.runs(m) == nil })
}

// burst has many writes called at once on one process.
func (w *world) burst(p *process, valueBytes int) {
	if p == nil || p.paused || p.n.usable() != nil || w.hist.closed {
		return
	}
	for range 20 + w.rnd.IntN(80) {
		c := &client{w: w, id: 1000 + w.hist.bursts, place: p.place.at, known: make(map[string]uint64), once: true}
		w.hist.bursts++
		x := c.choose()
		for !x.kind.isWrite() {
			x = c.choose()
		}
		x.key = fmt.Sprintf("b%d", w.rnd.IntN(50)) // hundreds of calls at once on one key have too many orders to be searched
		if x.kind == callPut {
			x.value += strings.Repeat("y", w.rnd.IntN(valueBytes))
		}
		c.begin(p, x)
	}
	p.settle()
}

// overtake has a member's writes reach the leader, and the log outgrow what is
// kept before the member hears of them: only a snapshot can answer them.
func (w *world) overtake() {
	leader := w.leader()
	p := w.someProcess()
	if leader == nil || p == nil || p == leader || p.paused || p.raftID() == 0 || p.net.links[leader.raftID()] == nil {
		return
	}
	w.burst(p, 64)
	w.after(w.between(time.Millisecond, 20*time.Millisecond), func() {
		w.isolateFor(w.between(300*time.Millisecond, 3*time.Second), p.place, true, false)
		for at := range w.procs {
			w.breakStreams(at, p.place.at) // or what was sent would come after all
		}
		for i := range 8 {
			w.after(time.Duration(i)*w.between(10*time.Millisecond, 200*time.Millisecond), func() { w.burst(w.leader(), 8<<10) })
		}
	})
}
