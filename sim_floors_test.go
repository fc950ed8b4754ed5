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
	{"deduplicated commands", 150, false},
	{"forwarded again", 500, false},
	{"leader changes", 100, false},
	{"leader changes after a hint", 8, false},
	{"hints at a dead leader", 25, false},
	{"hints at a leader that lives", 20, false},
	{"membership changes", 200, false},
	{"snapshots installed", 60, false},
	{"snapshots interrupted", 15, false},
	{"snapshots over pending writes", 3, false},
	{"operations checked for linearizability", 10_000, false},
	{"replacements completed", 40, false},
	{"learners replaced", 8, false},
	{"rolling restarts", 3, false},
	{"processes that became ready", 100, false},
	{"crash while founding", 1, false},
	{"targeted at a replacement", 10, false},
	{"newcomer died when added", 3, false},
	{"newcomer died when adopted", 4, false},
	{"newcomer died when snapshotting", 8, false},
	{"newcomer died when caught up", 3, false},
	{"newcomer died when joint", 1, true},
	{"leader died when added", 1, true},
	{"leader died when adopted", 1, true},
	{"leader died when snapshotting", 2, true},
	{"leader died when caught up", 0.25, true},
	{"leader died when joint", 0.5, true},
	{"operator: add done", 5, false},
	{"operator: remove done", 2, false},
	{"operator: promote done", 4, false},
	{"operator: demote done", 2, true},
	{"operator: drop done", 2, true},
	{"operator: swap done", 2, false},
	{"operator: transfer done", 12, false},
}

const (
	floorsFrom    = 8 * time.Minute // less is a seed or two
	allFloorsFrom = 3 * time.Hour
	shortFloor    = 8 // what must be asked for at least in a shorter run, to be asked for at all
	faultsFrom    = time.Hour
)

// holdToFloors fails a test that exercised too little. A run has two faults in
// five only, so what is rare in a run of a few seeds may be missing by chance: it
// is asked for from some hours on, which have sixty seeds.
func (c *counts) holdToFloors(t *testing.T) {
	t.Helper()
	if c.simulated < floorsFrom {
		return
	}
	for _, f := range floors {
		want := f.hourly * c.simulated.Hours()
		if f.five && *simMembers < 5 || c.simulated < allFloorsFrom && want < shortFloor {
			continue
		}
		if have := float64(c.events[f.event] + c.faults[f.event]); have < want {
			t.Errorf("%s: %v in %v, want %.1f at least: the run has exercised too little", f.event, have, c.simulated, want)
		}
	}
	for _, f := range allFaults {
		if c.simulated >= faultsFrom && c.faults[f.name] == 0 {
			t.Errorf("no %s in %v", f.name, c.simulated)
		}
	}
}
