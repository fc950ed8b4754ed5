package main

import (
	"flag"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"
)

// restarts is how often a test kills a process and starts it again. The figure
// is for 100: go test ./cmd/kvnode -run TestRestarts -restarts 100 -v -timeout 1h
var restarts = flag.Int("restarts", 5, "how often to kill a process and start it again")

// rounds is how often the other tests of processes repeat their faults.
var rounds = flag.Int("rounds", 1, "how often to repeat faults of processes and networks")

const (
	// A process that restarts is a voter again within this time, with nobody's
	// help.
	healingMax = 10 * time.Second
	// How long a process stays away at most.
	absenceMax = 3 * time.Second
	// Writes go on within this time when a minority of the voters is gone: an
	// election takes up to two timeouts, and one more if a vote is split.
	outageMax = 4 * election
	// A leader that is told to stop hands over first, so nobody waits for an
	// election.
	handoverMax = election
	// A history is checked after this many restarts: what a check takes grows
	// with it.
	checkEvery = 20
)

// TestRestarts kills one process after another, under load, and starts each
// again with the same flags. It is half as often without --members: only the
// founding and what a blank process waits for differ.
func TestRestarts(t *testing.T) {
	t.Parallel()
	t.Run("members", func(t *testing.T) {
		t.Parallel()
		testRestarts(t, startMembers(t, 3), *restarts)
	})
	t.Run("init", func(t *testing.T) {
		t.Parallel()
		p := startProcesses(t, 3)
		p.on(1, "init")
		p.join(1, 2, 3)
		testRestarts(t, p, (*restarts+1)/2)
	})
}

func testRestarts(t *testing.T, p *processes, times int) {
	rng := chance(t)
	l := p.startLoad(rng)
	var healings []time.Duration
	var longest time.Duration
	for i := range times {
		id := p.pick(rng)
		p.kill(id)
		p.pass(time.Duration(rng.Int64N(int64(absenceMax))))
		healings = append(healings, p.restart(id))
		l.wantWrites(outageMax, "after a restart")
		longest = max(longest, l.pause())
		if i%checkEvery == checkEvery-1 {
			l.check()
			l.pause()
		}
	}
	l.finish()
	t.Log(distribution("from start to ready", healings))
	t.Logf("longest pause between acknowledged writes: %v", longest)
	if longest > outageMax {
		t.Errorf("writes stood still for %v, want at most %v", longest, outageMax)
	}
}

// pick chooses a process, more often the leader than any other.
func (p *processes) pick(rng *rand.Rand) uint64 {
	p.t.Helper()
	if rng.IntN(3) == 0 {
		return p.leader()
	}
	ids := p.ids()
	return ids[rng.IntN(len(ids))]
}

// restart starts processes again, and returns how long it took until the last
// was a voter.
func (p *processes) restart(ids ...uint64) time.Duration {
	p.t.Helper()
	begin := time.Now()
	for _, id := range ids {
		p.start(id)
	}
	p.awaitReady(healingMax, ids...)
	return time.Since(begin)
}

func distribution(what string, d []time.Duration) string {
	d = slices.Sorted(slices.Values(d))
	for i := range d {
		d[i] = d[i].Round(time.Millisecond)
	}
	return what + ": " + "min " + d[0].String() + ", median " + d[len(d)/2].String() + ", max " + d[len(d)-1].String()
}

// TestTwoOfFiveKilled kills the leader and another of five members at once, and
// starts both again.
func TestTwoOfFiveKilled(t *testing.T) {
	t.Parallel()
	p, rng := startMembers(t, 5), chance(t)
	l := p.startLoad(rng)
	var outages, healings []time.Duration
	for range *rounds {
		leader := p.leader()
		others := p.others(leader)
		ids := []uint64{leader, others[rng.IntN(len(others))]}
		p.kill(ids...)
		outages = append(outages, l.wantWrites(outageMax, "with two of five lost"))
		p.pass(absenceMax / 2)
		healings = append(healings, p.restart(ids...))
		l.check()
	}
	l.finish()
	t.Log(distribution("from kill to the next acknowledged write", outages))
	t.Log(distribution("from start to ready, of both", healings))
}

// TestRollingRestart restarts five members one after another, as who brings a
// new version does: each is told to stop, and is back before the next.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	p := startMembers(t, 5)
	l := p.startLoad(chance(t))
	var healings []time.Duration
	for range *rounds {
		for _, id := range p.ids() {
			p.terminate(id)
			healings = append(healings, p.restart(id))
		}
		l.check()
	}
	longest := l.pause()
	l.finish()
	t.Log(distribution("from start to ready", healings))
	t.Logf("longest pause between acknowledged writes: %v", longest)
	if longest > handoverMax {
		t.Errorf("writes stood still for %v, want at most %v", longest, handoverMax)
	}
}

// TestTerminatedLeader has the leader stop cleanly, again and again. No write
// waits for an election.
func TestTerminatedLeader(t *testing.T) {
	t.Parallel()
	p := startMembers(t, 3)
	l := p.startLoad(chance(t))
	var pauses, healings []time.Duration
	for range 2 * *rounds {
		leader := p.leader()
		l.wantWrites(outageMax, "before the leader stops")
		l.pause()
		p.terminate(leader)
		l.wantWrites(outageMax, "after the leader has stopped")
		pauses = append(pauses, l.pause())
		healings = append(healings, p.restart(leader))
		l.check()
	}
	l.finish()
	t.Log(distribution("pause between acknowledged writes", pauses))
	t.Log(distribution("from start to ready", healings))
	if longest := slices.Max(pauses); longest > handoverMax {
		t.Errorf("writes stood still for %v, want at most %v", longest, handoverMax)
	}
}

// terminate has a process stop cleanly.
func (p *processes) terminate(id uint64) {
	p.t.Helper()
	proc := p.procs[id]
	p.signal(syscall.SIGTERM, id)
	timer := time.AfterFunc(2*shutdownTimeout, func() { _ = proc.cmd.Process.Kill() }) // Wait tells
	defer timer.Stop()
	if err := proc.cmd.Wait(); err != nil {
		p.dump()
		p.t.Errorf("member %d, told to stop: %v", id, err)
	}
	p.forget(id)
}
