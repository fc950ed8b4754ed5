package main

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/history"
)

// readLateDelay is how long it takes at most until a request that is made is in
// the buffers of the network.
const readLateDelay = 50 * time.Millisecond

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
	l.readLate(ids)
	p.signal(syscall.SIGCONT, ids...)
	l.wantWrites(outageMax, "when all run again")
	p.t.Logf("stopped %v for %v: leader %d, then %d; longest pause between acknowledged writes %v", ids, length, leader, now, l.pause())
	p.awaitReady(healingMax, p.ids()...)
	l.check()
}

// readLate leaves reads with members that are stopped. They find them when they
// go on, before what tells them that others have written meanwhile, and these
// reads began after it.
func (l *load) readLate(ids []uint64) {
	for _, id := range ids {
		conns := []*grpc.ClientConn{l.p.conn(id)}
		for key := range loadKeys {
			c := &loadClient{load: l, n: 100 + int(id), conns: conns}
			l.wg.Go(func() {
				l.turn.RLock()
				defer l.turn.RUnlock()
				c.do(context.Background(), history.Op{Kind: history.Get, Key: fmt.Sprint("key ", key)})
			})
		}
	}
	l.p.pass(readLateDelay)
}
