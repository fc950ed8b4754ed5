package raftkv

import (
	"math"
	"time"
)

// A plan is what a seed makes of a run: which faults there are and how strong,
// how the network behaves and what clients do. Every run has only some of the
// faults (swarm testing): all at once hide each other.
type plan struct {
	members, spares int
	timing          Timing
	limits          Limits
	safety          time.Duration

	delay                    time.Duration // of a packet, about
	datagrams                bool          // frames may come twice, in another order, or not at all
	drop, duplicate, reorder float64
	lateFrames               bool // what is on its way when a stream breaks still arrives
	chunkBytes               int
	chunkEvery               time.Duration

	clients                                    int
	keys, valueBytes                           int
	reads, lists, deletes, conditional, wander float64
	pauseShort, pauseLong                      time.Duration // of a client between calls
	deadlineMin, deadlineMax                   time.Duration
	targeted                                   float64 // how often a step of a replacement is hit
	skew                                       float64 // of clocks
	foundingFault                              int
	faults                                     []simFault
	loseMajority                               bool
}

// newPlan draws a plan. Everything comes from the world's randomness.
func newPlan(w *world, members int) plan {
	r := w.rnd
	p := plan{
		members: members, spares: 2, safety: w.between(2*time.Minute, 5*time.Minute),
		delay: w.between(200*time.Microsecond, 5*time.Millisecond), lateFrames: w.chance(0.5),
		chunkBytes: 256 << r.IntN(5), chunkEvery: w.between(time.Millisecond, 100*time.Millisecond),
		clients: 8 + r.IntN(9), keys: 4 + r.IntN(7), valueBytes: 64 << r.IntN(6),
		reads: 0.2 + 0.3*r.Float64(), lists: 0.02, deletes: 0.1 * r.Float64(), conditional: r.Float64(), wander: 0.05,
		pauseShort: w.between(20*time.Millisecond, time.Second), pauseLong: w.between(time.Second, 10*time.Second),
		deadlineMin: 200 * time.Millisecond, deadlineMax: 10 * time.Second,
		foundingFault: r.IntN(6),
	}
	p.limits.MaxLogBytes = 64 << 10 << (r.IntN(3) * 2)
	if w.chance(0.3) {
		p.delay = w.between(5*time.Millisecond, 40*time.Millisecond)
	}
	if w.chance(0.3) {
		p.timing = Timing{Tick: 20 * time.Millisecond, Heartbeat: 40 * time.Millisecond, Election: 300 * time.Millisecond}
	}
	if p.datagrams = w.chance(0.5); p.datagrams {
		p.drop, p.duplicate, p.reorder = 0.05*r.Float64(), 0.1*r.Float64(), 0.1*r.Float64()
	}
	if w.chance(0.5) {
		p.skew = 0.1
	} else if w.chance(0.2) {
		p.skew = 0.5
	}
	if w.chance(0.5) {
		p.targeted = 0.3
	}
	for _, f := range allFaults {
		if w.chance(0.4) {
			f.every = time.Duration(float64(f.every) * math.Exp2(2*r.Float64()-1))
			p.faults = append(p.faults, f)
		}
	}
	return p
}

// think returns how long a client pauses between two calls: mostly short, then
// long.
func (p *plan) think(w *world) time.Duration {
	if w.chance(0.1) {
		return w.about(p.pauseLong)
	}
	return w.about(p.pauseShort)
}

// deadline returns a deadline: short ones are as frequent as long ones.
func (p *plan) deadline(w *world) time.Duration {
	span := math.Log(float64(p.deadlineMax) / float64(p.deadlineMin))
	return time.Duration(float64(p.deadlineMin) * math.Exp(span*w.rnd.Float64()))
}
