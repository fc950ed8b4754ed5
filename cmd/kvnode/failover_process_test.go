package main

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

// kills is how many leaders TestKilledLeaders kills. The figure is for 30:
// go test ./cmd/kvnode -run KilledLeaders -kills 30 -v
var kills = flag.Int("kills", 3, "how many leaders to kill, one after another")

// failoverMedianMax is far above the few milliseconds that it takes, and far below
// the election timeout.
const failoverMedianMax = 300 * time.Millisecond

// TestKilledLeaders measures how long writes stand still when the leader's
// process dies, and checks that no acknowledged write is missing.
//
// The survivors do not wait for the election timeout: their dials to the dead
// process are refused at once. The median is held to its limit only where there
// are enough kills for one. Where a vote is split after all, a timeout has to pass.
func TestKilledLeaders(t *testing.T) {
	p := startMembers(t, 3)
	var gaps []time.Duration
	var keys []string
	for i := range *kills {
		leader := p.leader()
		before, after := fmt.Sprintf("before %d", i), fmt.Sprintf("after %d", i)
		survivor := p.others(leader)[i%2] // both find their way
		p.putThrough(leader, before)
		killed := time.Now()
		p.kill(leader)
		p.putThrough(survivor, after)
		gaps = append(gaps, time.Since(killed))
		keys = append(keys, before, after)
		p.start(leader) // a new process
		p.awaitReady(healingMax, p.ids()...)
		p.wantKeys(keys)
	}
	slices.Sort(gaps)
	median := gaps[len(gaps)/2]
	t.Logf("from kill to the next acknowledged write: median %v, all %v", median, gaps)
	if worst := gaps[len(gaps)-1]; worst > 2*election {
		t.Errorf("writes stood still for %v, want at most %v", worst, 2*election)
	}
	if len(gaps) >= 20 && median > failoverMedianMax {
		t.Errorf("the median is %v, want at most %v", median, failoverMedianMax)
	}
	p.wantSameState()
}
