package raftkv

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"
)

// The simulator's entry: which seeds to run, and what has to come of them.
//
//	go test -run '^TestSimulator$' -timeout 0 . -sim.hours 4
//	go test -run '^TestSimulator$' . -sim.seed 17 -sim.trace

var (
	simHours   = flag.Float64("sim.hours", 0, "simulate so many hours instead of a few seeds")
	simMembers = flag.Int("sim.members", 5, "founders of a simulated cluster")
	simBase    = flag.Uint64("sim.base", 1, "from which seeds are derived")
	simSeed    = flag.Uint64("sim.seed", 0, "replay one seed")
	simTrace   = flag.Bool("sim.trace", false, "print everything that happens")
	simWall    = flag.Duration("sim.wall", 0, "stop after so much real time")
)

// counts is what happened in all runs together.
type counts struct {
	seeds       int
	simulated   time.Duration
	slowestHeal time.Duration
	frames      uint64
	messages    uint64
	failed      uint64 // calls without an answer
	violations  int
	faults      map[string]uint64
	events      map[string]uint64
	outcomes    [callKinds]map[string]uint64
}

func newCounts() *counts {
	c := &counts{faults: make(map[string]uint64), events: make(map[string]uint64)}
	for i := range c.outcomes {
		c.outcomes[i] = make(map[string]uint64)
	}
	return c
}

func (c *counts) add(what string, n uint64) { c.events[what] += n }

func (c *counts) outcome(kind callKind, err error) {
	name := "not done"
	switch {
	case err == nil:
		name = "ok"
	case errors.Is(err, ErrRevisionMismatch):
		name = "mismatch"
	case errors.Is(err, ErrOutcomeUnknown):
		name = "unknown"
	}
	if err != nil && name != "mismatch" {
		c.failed++
	}
	c.outcomes[kind][name]++
}

// runSeed runs a seed and returns the hash of its trace.
func runSeed(t *testing.T, seed uint64, c *counts, options ...func(*plan)) uint64 {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	began := time.Now()
	w := newWorld(seed, *simMembers, c)
	for _, o := range options {
		o(&w.plan)
	}
	w.trace.all = *simTrace
	broken := w.guarded(w.run)
	hash := w.close()
	c.seeds++
	c.simulated += w.now
	if testing.Verbose() || broken != "" || *simHours > 0 {
		fmt.Printf("seed %d: %v in %v, %d entries, hash %016x\n",
			seed, w.now.Round(time.Second), time.Since(began).Round(time.Millisecond), w.facts.model.index, hash)
	}
	if broken != "" {
		c.violations++
		t.Fatalf("at %v: %s\n%s\nreplay: go test -run '^TestSimulator$' . -sim.members %d -sim.seed %d -sim.trace",
			w.now, broken, w.trace.tail(50), *simMembers, seed)
	}
	return hash
}

func TestSimulator(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // a run keeps little, and makes much garbage
	c := newCounts()
	began := time.Now()
	run := func(seed uint64) bool {
		return t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runSeed(t, seed, c) })
	}
	switch {
	case *simSeed != 0:
		run(*simSeed)
		return
	case *simHours == 0:
		n := uint64(10)
		if raceEnabled {
			n = 1
		}
		for seed := range n {
			run(*simBase + seed)
		}
	default:
		seeds := rand.New(rand.NewPCG(*simBase, 0))
		for c.simulated.Hours() < *simHours && (*simWall == 0 || time.Since(began) < *simWall) {
			if !run(seeds.Uint64() >> 16) {
				break
			}
		}
	}
	c.report(time.Since(began))
	if !t.Failed() {
		c.holdToFloors(t)
	}
}

// report prints what was done.
func (c *counts) report(wall time.Duration) {
	fmt.Printf("simulated %.2f h with %d members in %d seeds and %v: %.0f times real time; slowest heal %v\n",
		c.simulated.Hours(), *simMembers, c.seeds, wall.Round(time.Millisecond), c.simulated.Seconds()/wall.Seconds(), c.slowestHeal)
	fmt.Printf("%d frames, %d messages, %d violations\n", c.frames, c.messages, c.violations)
	for kind, outcomes := range c.outcomes {
		fmt.Printf("%-8s %s\n", callNames[kind], table(outcomes))
	}
	for _, list := range []map[string]uint64{c.faults, c.events} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			fmt.Printf("  %-40s %10d %10.1f an hour\n", name, list[name], float64(list[name])/c.simulated.Hours())
		}
	}
}

func table(m map[string]uint64) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		words = append(words, fmt.Sprintf("%s %d", name, m[name]))
	}
	return strings.Join(words, ", ")
}

func TestSimulatorReplaysIdentically(t *testing.T) {
	var hashes [2]uint64
	for i := range hashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) { hashes[i] = runSeed(t, *simBase, newCounts(), func(p *plan) { p.safety /= 4 }) })
	}
	if hashes[0] != hashes[1] {
		t.Errorf("the same seed has traces %016x and %016x", hashes[0], hashes[1])
	}
}

// TestSimulatedLossOfMajority runs seeds in which a majority loses its memory, and
// then a survivor is recovered.
func TestSimulatedLossOfMajority(t *testing.T) {
	n := uint64(3)
	if raceEnabled {
		n = 1
	}
	if *simHours > 0 {
		n = uint64(*simHours * 20)
	}
	c, began := newCounts(), time.Now()
	for seed := range n {
		t.Run(fmt.Sprintf("seed=%d", *simBase+seed), func(t *testing.T) {
			runSeed(t, *simBase+seed, c, func(p *plan) { p.loseMajority, p.safety = true, p.safety/4 })
		})
	}
	if *simHours > 0 {
		c.report(time.Since(began))
	}
	if have := c.events["recoveries"]; !t.Failed() && have < n*2/3 {
		t.Errorf("%d recoveries in %d seeds", have, n)
	}
}
