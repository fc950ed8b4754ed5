package raftkv

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"example.com/raftkv/internal/mix"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// One run of the simulator: founding, a time with faults in which nothing may go
// wrong, and a time without in which everything must come right.

const (
	simHealBound   = 60 * time.Second // after the last fault until all members are whole
	simLateBound   = 6 * time.Second  // for what was on its way then to take effect
	simAnswerBound = 5 * time.Second  // of a call on a healthy cluster
)

func newWorld(seed uint64, members int, c *counts) *world {
	w := &world{seed: seed, rnd: rand.New(rand.NewPCG(seed, 0x5eed)), count: c}
	w.plan = newPlan(w, members)
	w.facts = newFacts(w)
	w.hist = &judge{w: w, notDone: make(map[string]bool)}
	w.ops.w = w
	w.faults.w = w
	n := w.plan.members + w.plan.spares
	w.procs = make([]*process, n)
	for i := range n {
		w.places = append(w.places, &place{w: w, at: i, id: uint64(i + 1), addr: fmt.Sprintf("m%d:1", i+1), rate: 1})
		row := make([]*path, n)
		for j := range row {
			row[j] = &path{from: i, to: j, delay: w.plan.delay}
		}
		w.paths = append(w.paths, row)
	}
	w.setClocks()
	for _, pl := range w.places {
		w.launch(pl)
	}
	return w
}

// run is a whole run.
func (w *world) run() {
	w.found()
	for i := range w.plan.clients {
		c := &client{w: w, id: i, place: w.rnd.IntN(len(w.procs)), known: make(map[string]uint64)}
		w.after(w.about(time.Second), c.next)
	}
	w.faults.begin()
	w.runUntil(w.now + w.plan.safety)
	w.note(0, "heal", 0, 0, 0)
	w.faults.stop()
	if w.plan.loseMajority {
		w.loseMajority()
		return
	}
	w.recover()
}

// loseMajority kills so many voters at once that the cluster cannot survive, and
// lets them come back blank. Nothing is promised then, but that nothing wrong is
// said: the invariants go on to be checked, and with them all answers.
func (w *world) loseMajority() {
	voters := w.facts.newest.Conf.GetVoters()
	for _, i := range w.rnd.Perm(len(voters))[:len(voters)/2+1] {
		m, _ := w.facts.newest.Lookup(voters[i])
		if p := w.runs(m); p != nil {
			p.crash(false)
			w.restart(p.place, w.between(0, 3*time.Second))
		}
	}
	w.note(0, "majority lost", 0, 0, 0)
	w.runUntil(w.now + 30*time.Second)
	w.wantLostEverywhere()
	w.hist.closed = true
	w.runUntil(w.now + w.plan.deadlineMax + time.Second)
	for _, p := range w.procs {
		if p != nil && len(p.calls) > 0 {
			w.fail("calls hang on member %d", p.place.id)
		}
	}
	w.checkNotDone()
	w.hist.check()
	w.revive()
}

// found founds the cluster, as Node.coordinate does, until it is there.
func (w *world) found() {
	for w.facts.newest == nil || !slices.ContainsFunc(w.procs, func(p *process) bool { return p != nil && p.raftID() != 0 }) {
		w.facts = newFacts(w)
		w.coordinate()
		w.runUntil(w.now + 5*time.Second)
		for _, pl := range w.places {
			w.restart(pl, 0)
		}
		w.plan.foundingFault = 0
	}
}

// coordinate makes one attempt: all founders accept, then all are told. A fault
// of the plan may come between any two steps.
func (w *world) coordinate() {
	members := make([]roster.Member, w.plan.members)
	for i := range members {
		pl := w.places[i]
		if w.procs[i] == nil {
			return
		}
		members[i] = roster.Member{RaftID: roster.RaftID(pl.id, 0), Addr: pl.addr, Nonce: w.procs[i].n.loop.nonce}
	}
	r := roster.Found(randomID(), members)
	at, all := w.bindAll(r)
	w.tellFounded(r, at, all)
}

// bindAll has all founders accept. What it returns says whether all have.
func (w *world) bindAll(r *roster.Roster) (until time.Duration, all func() bool) {
	hello := &kvpb.Hello{From: w.procs[0].n.loop.identity()}
	bound, at := 0, w.now
	for _, p := range w.procs[:w.plan.members] {
		at += w.about(10 * time.Millisecond)
		w.at(at, func() {
			p.arrive(func() {
				p.n.post(func(l *loop) {
					if l.bind(hello, r) == nil {
						bound++
					}
				})
			})
		})
	}
	return at, func() bool { return bound == len(r.Members) }
}

// tellFounded tells all founders, once all have accepted, and frees them in the
// end or when the coordinator dies.
func (w *world) tellFounded(r *roster.Roster, at time.Duration, all func() bool) {
	first := w.procs[0]
	w.foundingFault(at)
	at += w.between(20*time.Millisecond, 100*time.Millisecond)
	for _, p := range w.procs[:w.plan.members] {
		w.at(at, func() {
			if first.alive && all() {
				p.arrive(func() { p.n.post(func(l *loop) { w.must(l.found(r)) }) })
			}
		})
		at += w.about(10 * time.Millisecond)
	}
	unbind := func() {
		for _, p := range w.procs {
			if p != nil {
				p.arrive(func() { p.n.post(func(l *loop) { l.unbind(r) }) })
			}
		}
	}
	w.at(at, unbind)
	first.onDeath = unbind
}

// foundingFault kills the coordinator, or has another founder restart, in the
// midst of a founding.
func (w *world) foundingFault(at time.Duration) {
	var victim *process
	switch w.plan.foundingFault {
	case 1:
		victim = w.procs[0]
	case 2:
		victim = w.procs[1+w.rnd.IntN(w.plan.members-1)]
	default:
		return
	}
	w.at(at+w.between(-20*time.Millisecond, 150*time.Millisecond), func() {
		if victim.alive && w.canLose(victim) {
			w.count.faults["crash while founding"]++
			victim.crash(false)
			w.restart(victim.place, w.between(0, time.Second))
		}
	})
}

func (w *world) must(err error) {
	if err != nil {
		w.fail("%v", err)
	}
}

// wantLostEverywhere checks that survivors say that the majority is lost.
func (w *world) wantLostEverywhere() {
	now := w.facts.newest
	for _, p := range w.procs {
		switch {
		case p == nil || p.raftID() == 0 || p.n.loop.roster.Index != now.Index || p.n.view.Load().lost != nil:
		case now.IsVoter(p.raftID()):
			w.fail("member %d does not say that the majority is lost; membership %s", p.place.id, membershipText(now))
		default: // a learner believes in its last leader for as long as that one says anything
			w.count.add("learners that do not say that a majority is lost", 1)
		}
	}
}

// recover checks that a cluster without faults comes right by itself.
func (w *world) recover() {
	healed := w.now
	w.ops.deadline = min(w.ops.deadline, w.now)
	if !w.runWhile(healed+simHealBound, 100*time.Millisecond, func() bool { return !w.isSettled() }) {
		w.fail("%v after the last fault: leader %v, operator waits %v", simHealBound, w.leader() != nil, w.ops.request != nil)
	}
	w.runUntil(w.now + simLateBound) // a request of unknown outcome may take effect now
	members := membershipOf(w.facts.newest).Members
	if !w.runWhile(healed+simHealBound, 100*time.Millisecond, func() bool { return w.leader() == nil || !w.isWhole() }) {
		w.fail("%v after the last fault: leader %v, membership %s", simHealBound, w.leader() != nil, membershipText(w.facts.newest))
	}
	if now := membershipOf(w.facts.newest).Members; !slices.Equal(now, members) {
		w.fail("members came back as %v, not as the %v that they were", now, members)
	}
	w.count.slowestHeal = max(w.count.slowestHeal, w.now-healed)
	w.converge()
	w.serveEverywhere()
	w.checkNotDone()
	w.hist.check()
}

// isSettled reports whether somebody leads and nothing that the operator asked for
// is still under way.
func (w *world) isSettled() bool {
	p := w.leader()
	return p != nil && w.ops.request == nil && !p.n.loop.IsPending() && !p.n.loop.change.worker.HasRequests() && !w.facts.newest.IsJoint()
}

// converge has clients stop and waits until all calls are answered and all members
// have applied the same.
func (w *world) converge() {
	w.hist.closed = true
	callsOpen := func() bool {
		return slices.ContainsFunc(w.procs, func(p *process) bool { return p != nil && len(p.calls) > 0 })
	}
	if !w.runWhile(w.now+w.plan.deadlineMax+time.Second, 200*time.Millisecond, callsOpen) {
		w.fail("calls hang")
	}
	why := ""
	differ := func() (open bool) {
		var same bool
		why, same = w.facts.sameEverywhere()
		return !same
	}
	if !w.runWhile(w.now+simHealBound, 200*time.Millisecond, differ) {
		w.fail("members have not applied the same: %s", why)
	}
}

// serveEverywhere has every member answer a write and a read.
func (w *world) serveEverywhere() {
	before := w.count.failed
	w.plan.deadlineMin, w.plan.deadlineMax, w.plan.conditional = simAnswerBound, simAnswerBound+1, 0
	for _, m := range w.facts.newest.Members {
		for _, kind := range []callKind{callPut, callGet, callDelete, callList} {
			w.callOn(w.runs(m), kind, int(m.RaftID))
		}
	}
	w.runUntil(w.now + simAnswerBound + time.Second)
	if w.count.failed != before {
		w.fail("calls on a healthy cluster fail")
	}
	w.callOn(w.leader(), callList, 9)
	w.runUntil(w.now + simAnswerBound)
	if w.count.failed != before {
		w.fail("calls on a healthy cluster fail")
	}
	if why, same := w.facts.sameEverywhere(); !same {
		w.fail("members have not applied the same in the end: %s", why)
	}
}

// callOn makes one call on a process, for all to see whether it is answered.
func (w *world) callOn(p *process, kind callKind, id int) {
	c := &client{w: w, id: id, place: p.place.at, known: make(map[string]uint64), once: true}
	x := &call{c: c, kind: kind, key: "k0"}
	if kind == callPut {
		x.value = fmt.Sprintf("last %x %v", id, w.now)
	}
	c.begin(p, x)
	p.settle()
}

// checkNotDone checks that what was said not to be done never was.
func (w *world) checkNotDone() {
	for value := range w.hist.notDone {
		if w.facts.model.values[value] != 0 {
			w.fail("a put that returned as not done took effect: %.20q", value)
		}
	}
}

// close frees what a run holds and returns its hash.
func (w *world) close() uint64 {
	for _, x := range slices.Clone(w.nets.open) {
		x.close()
	}
	for _, p := range w.procs {
		if p != nil {
			p.n.transport.stop()
		}
	}
	return mix.Uint64(w.trace.hash, w.facts.model.revision())
}
