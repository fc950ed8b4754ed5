package main

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestPausedProcesses stops processes for shorter and for longer than an
// election, and lets them go on. One that led does not know that it no longer
// does, and finds calls that have waited for it; nobody may read from it what is
// no longer true.
func TestPausedProcesses(t *testing.T) {
	t.Parallel()
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprintf("%d processes", size), func(t *testing.T) {
			t.Parallel()
			testPauses(t, size)
		})
	}
}

func testPauses(t *testing.T, size int) {
	p, rng := startMembers(t, size), chance(t)
	l := p.startLoad(rng)
	lengths := []time.Duration{300 * time.Millisecond, 2 * time.Second}
	if *rounds > 1 {
		lengths = append(lengths, 5*time.Second)
	}
	for range *rounds {
		for _, length := range lengths {
			for _, pausesLeader := range []bool{true, false} {
				leader := p.leader()
				ids := p.others(leader)
				rng.Shuffle(len(ids), func(i, k int) { ids[i], ids[k] = ids[k], ids[i] })
				if pausesLeader {
					ids = append([]uint64{leader}, ids...)
				}
				l.pauseMembers(length, leader, ids[:size/2])
			}
		}
	}
	l.finish()
}

// pauseMembers stops a minority for a while.
func (l *load) pauseMembers(length time.Duration, leader uint64, ids []uint64) {
	p := l.p
	p.t.Helper()
	l.pause()
	p.signal(syscall.SIGSTOP, ids...)
	stopped := time.Now()
	outage := time.Duration(0)
	if length >= 2*election {
		outage = l.wantWrites(outageMax, "while a minority is stopped")
	}
	p.pass(length - time.Since(stopped))
	now := leader
	if outage > 0 {
		now = p.leader(p.others(ids...)...)
	}
	p.signal(syscall.SIGCONT, ids...)
	l.wantWrites(outageMax, "when all run again")
	p.t.Logf("stopped %v for %v: leader %d, then %d; longest pause between acknowledged writes %v", ids, length, leader, now, l.pause())
	p.awaitReady(healingMax, p.ids()...)
	l.check()
}
