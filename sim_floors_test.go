package raftkv

import (
	"testing"
	"time"
)

// A run that exercised nothing finds nothing. So each thing that the simulator
// is for has to have happened so often in every simulated hour: a third of what
// it does with five members, or less where it is rare.

// A floor is how often something must happen in an hour.
type floor struct {
	event  string
	hourly float64
	five   bool // only with five founders or more: three survive one loss, which a replacement is
}

var floors = []floor{
	{"deduplicated commands", 200, false},
	{"forwarded again", 500, false},
	{"leader changes", 100, false},
	{"membership changes", 200, false},
	{"snapshots installed", 80, false},
	{"snapshots interrupted", 15, false},
	{"snapshots over pending writes", 2, false},
	{"operations checked for linearizability", 10_000, false},
	{"replacements completed", 50, false},
	{"learners replaced", 5, false},
	{"rolling restarts", 2, false},
	{"newcomer died when added", 1, false},
	{"newcomer died when adopted", 5, false},
	{"newcomer died when snapshotting", 5, false},
	{"newcomer died when caught up", 1, false},
	{"newcomer died when joint", 1, true},
	{"leader died when added", 1, true},
	{"leader died when adopted", 2, true},
	{"leader died when snapshotting", 2, true},
	{"leader died when caught up", 0.5, true},
	{"leader died when joint", 0.5, true},
	{"operator: add done", 5, false},
	{"operator: remove done", 2, false},
	{"operator: promote done", 5, false},
	{"operator: demote done", 2, true},
	{"operator: drop done", 2, true},
	{"operator: swap done", 1, false},
	{"operator: transfer done", 15, false},
}

// holdToFloors fails a test that exercised too little. What is rare is only asked
// for where the time was long enough for chance not to matter.
func (c *counts) holdToFloors(t *testing.T) {
	t.Helper()
	if c.simulated < 20*time.Minute {
		return // under the race detector
	}
	for _, f := range floors {
		want := f.hourly * c.simulated.Hours()
		if f.five && *simMembers < 5 || c.simulated < 5*time.Hour && want < 20 {
			continue
		}
		if have := float64(c.events[f.event]); have < want {
			t.Errorf("%s: %v in %v, want %.0f at least: the run has exercised too little", f.event, have, c.simulated, want)
		}
	}
	for _, f := range allFaults {
		if c.simulated >= 5*time.Hour && c.faults[f.name] == 0 {
			t.Errorf("no %s in %v", f.name, c.simulated)
		}
	}
}
