package raftkv

import (
	"strings"
	"testing"

	"example.com/raftkv/internal/command"
)

// undriven returns the only member of a cluster, without a goroutine, with nothing
// in its log but its founding.
func undriven(t *testing.T) *Node {
	t.Helper()
	cfg, err := Config{ID: 1, Addr: "n1:1"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(cfg)
	r := testRoster(1)
	n.fsm.become(r.Members[0].RaftID, r.Index, 1, r)
	return n
}

// TestWhatIsLittleIsAppliedByTheLoop: if it need not wait for anybody, and only then.
func TestWhatIsLittleIsAppliedByTheLoop(t *testing.T) {
	write := func(value string) []byte {
		return batchOf(command.Header{Origin: testOrigins[0], First: 1}, putOf("k", value))
	}
	one, large := write(""), write(strings.Repeat("v", littleBytes))
	for name, test := range map[string]struct {
		tasks []task
		busy  func(*Node) (done func())
		loop  bool
	}{
		"one write":      {tasks: []task{{index: 2, data: one}}, loop: true},
		"an empty entry": {tasks: []task{{index: 2}}, loop: true},
		"a large write":  {tasks: []task{{index: 2, data: large}}},
		"a state":        {tasks: []task{{index: 2, install: new(stagedSnapshot)}}},
		"a freeze":       {tasks: []task{{index: 2, data: one}, {freeze: true}}},
		"a membership":   {tasks: []task{{index: 2, roster: testRoster(1)}}},
		"while another applies": {tasks: []task{{index: 2, data: one}}, busy: func(n *Node) func() {
			n.applier.mu.Lock()
			return n.applier.mu.Unlock
		}},
		"while somebody reads": {tasks: []task{{index: 2, data: one}}, busy: func(n *Node) func() {
			n.fsm.mu.RLock()
			return n.fsm.mu.RUnlock
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := undriven(t)
			n.haveApplied()
			if len(n.tasks.wakec) > 0 {
				t.Error("the applier is woken for nothing")
			}
			if test.busy != nil {
				defer test.busy(n)()
			}
			n.tasks.push(test.tasks)
			n.haveApplied()
			if applied := n.fsm.applied.Load() == 2; applied != test.loop {
				t.Errorf("the loop has applied it: %v, want %v", applied, test.loop)
			}
			if woken := len(n.tasks.wakec) > 0; woken == test.loop {
				t.Errorf("the applier is woken: %v", woken)
			}
		})
	}
}

// TestNothingIsAppliedAfterAFailure: what follows would be applied to a state that it
// was not made for, and its callers would be told that it was.
func TestNothingIsAppliedAfterAFailure(t *testing.T) {
	fails := map[string]task{
		"malformed": {index: 2, data: []byte("no batch")},
		"panic":     {index: 2, install: new(stagedSnapshot)},
	}
	for name, broken := range fails {
		t.Run(name, func(t *testing.T) {
			n := undriven(t)
			apply := func() {
				defer n.guard()
				n.applyNext()
			}
			n.tasks.push([]task{broken})
			apply()
			if n.stopped() == nil {
				t.Fatal("the node goes on")
			}
			n.tasks.push([]task{{index: 3, data: batchOf(command.Header{Origin: testOrigins[0], First: 1}, putOf("k", "v"))}})
			apply()
			n.haveApplied()
			if n.fsm.applied.Load() == 3 {
				t.Error("the next entry was applied")
			}
		})
	}
}

// TestRaftCopiesWhatIsProposed: the outbox writes the next batch where one was that
// has been answered, and the log may still have the entry.
func TestRaftCopiesWhatIsProposed(t *testing.T) {
	cfg, err := Config{ID: 1, Addr: "n1:1"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l := newNode(cfg).loop
	l.net = new(nowhere)
	if err := l.found(testRoster(1)); err != nil {
		t.Fatal(err)
	}
	l.process() // it is the leader
	data := []byte("as it was")
	if err := l.raw.Propose(data); err != nil {
		t.Fatal(err)
	}
	copy(data, "different")
	l.process()
	entries, err := l.log.Entries(l.Last(), l.Last()+1, 1<<20)
	if err != nil || string(entries[0].GetData()) != "as it was" {
		t.Errorf("the log has %q, %v", entries[0].GetData(), err)
	}
}

// TestApplierSleepsWhenItHasMuchToDo: for a moment after each millisecond, and not
// because of many short pieces of work with pauses in between.
func TestApplierSleepsWhenItHasMuchToDo(t *testing.T) {
	const step = applyStretch / 4
	var s stretch
	for i := range 12 {
		if got, want := s.isOver(step, true), i%4 == 3; got != want {
			t.Errorf("after %d steps: %v, want %v", i+1, got, want)
		}
	}
	for range 12 {
		if s.isOver(step, true) || s.isOver(2*step, false) {
			t.Error("it sleeps although it has just had nothing to do")
		}
	}
	if s.isOver(2*applyStretch, false) {
		t.Error("it sleeps although nothing waits")
	}
}
