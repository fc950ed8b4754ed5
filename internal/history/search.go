package history

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// The bound on the search of a key. A legal history takes a few steps an
// operation, and each keeps a set of all operations of the key in memory. It is
// known to be too low for 50 clients that write one key all the time.
const (
	stepsPerOperation = 100
	stepsMin          = 20_000_000
)

// search has porcupine look for an order of each key's operations.
func (c *checker) search(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for id, steps := range c.steps() {
		k := &c.keys[id]
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("the search took more than %v, with %d of %d keys done", timeout, id, len(c.keys))
		}
		if err := c.searchKey(k, steps, max(stepsMin, stepsPerOperation*len(steps)), left); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) searchKey(k *keyHistory, steps []step, countMax int, timeout time.Duration) error {
	events := eventsOf(steps)
	m := &model{&k.pending, &c.writer}
	start := c.startOf(k)
	count := 0
	pm := porcupine.Model{
		Init: func() any { return start },
		Step: func(s, input, _ any) (bool, any) {
			if count++; count > countMax {
				return false, s
			}
			next := m.next(s.(state), &steps[input.(int32)])
			return next.isPossible(), next
		},
	}
	switch result := porcupine.CheckEventsTimeout(pm, events, timeout); {
	case result == porcupine.Unknown:
		return fmt.Errorf("key %.64q: the search was not done in time, with %d operations", k.name, len(steps))
	case result == porcupine.Ok:
		return nil
	case count > countMax:
		return fmt.Errorf("key %.64q: the search was not done after %d steps, with %d operations", k.name, countMax, len(steps))
	}
	count = 0
	_, info := porcupine.CheckEventsVerbose(pm, events, timeout)
	return fmt.Errorf("key %.64q is not linearizable: %s", k.name, c.explain(info, steps, events))
}

// startOf is the state of a key before the first step: the puts that stand for
// it are none.
func (c *checker) startOf(k *keyHistory) state {
	there := condition{ok: true, store: c.startRevision}
	for _, i := range k.ops {
		if c.ops[i].client == startClient {
			return state{known: there, revision: c.ops[i].result.Revision}
		}
	}
	return state{absent: there}
}

// explain names the operations around the place where the longest order that
// porcupine found cannot go on.
func (c *checker) explain(info porcupine.LinearizationInfo, steps []step, events []porcupine.Event) string {
	var longest []int
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	var byCall []int // porcupine numbers the operations so
	for _, e := range events {
		if e.Kind == porcupine.CallEvent {
			byCall = append(byCall, e.Id)
		}
	}
	isPlaced := make([]bool, len(steps))
	for _, at := range longest {
		isPlaced[at] = true
	}
	var b strings.Builder
	fmt.Fprintf(&b, "an order was found for %d of %d operations; the last of them", len(longest), len(steps))
	for _, at := range longest[max(0, len(longest)-3):] {
		fmt.Fprintf(&b, "\n\t%v", &c.ops[steps[byCall[at]].op])
	}
	b.WriteString("\n  and what cannot follow")
	const showMax = 5
	shown := 0
	for at, placed := range isPlaced {
		if !placed && shown < showMax {
			shown++
			fmt.Fprintf(&b, "\n\t%v", &c.ops[steps[byCall[at]].op])
		}
	}
	return b.String()
}

// steps returns the steps of every key. A List is one for each key that it
// covers, as all it shows is of one revision.
func (c *checker) steps() [][]step {
	steps := make([][]step, len(c.keys))
	call, ret, place := c.tighten()
	for id := range c.keys {
		for _, i := range c.keys[id].ops {
			if s, ok := c.stepOf(i); ok {
				s.op, s.call, s.ret, s.place = i, call[i], ret[i], place[i]
				steps[id] = append(steps[id], s)
			}
		}
	}
	shows := make([]int, len(c.keys))
	for i := range c.ops {
		o := &c.ops[i]
		if o.Kind != List || c.effect[i] != read {
			continue
		}
		s := step{op: int32(i), call: call[i], ret: ret[i], place: place[i], stored: o.result.Revision}
		for _, item := range o.result.Items {
			id := c.keyIDs[item.Key]
			shows[id] = i + 1
			s.kind, s.revision = stepSet, item.Revision
			steps[id] = append(steps[id], s)
		}
		s.kind, s.revision = stepAbsent, 0
		for id := range c.keys {
			if shows[id] != i+1 && o.covers(c.keys[id].name) {
				steps[id] = append(steps[id], s)
			}
		}
	}
	return steps
}

// stepOf returns the step that an operation is for its key, if it is one.
func (c *checker) stepOf(i int32) (step, bool) {
	o := &c.ops[i]
	s := step{revision: o.result.Revision, conditional: o.Conditional, condition: o.IfRevision}
	switch c.effect[i] {
	case changed:
		s.kind = stepPut
		if o.Kind == Delete {
			s.kind = stepDelete
		}
		return s, o.client != startClient
	case uncertain:
		s.revision = c.rev[i]
		return s, s.revision != 0
	case removed:
		s.kind, s.isClaim = stepRemove, c.isClaim(i)
		return s, true
	case absent:
		s.kind, s.stored = stepAbsent, o.result.Revision
		return s, true
	case refused:
		s.kind = stepMismatch
		return s, o.result.Outcome == Mismatch
	case read:
		s.kind = stepSet
		if o.result.Outcome == NotFound {
			s.kind = stepAbsent
		}
		return s, true
	}
	return s, false
}

// eventsOf brings the calls and returns of a key in order. Where tightening
// made a call and a return the same, the call comes first: they overlap.
//
// The order of calls between two returns means nothing, but it is the order in
// which the search tries them: it is the likely one here.
func eventsOf(steps []step) []porcupine.Event {
	calls, returns := make([]int32, len(steps)), make([]int32, len(steps))
	for at := range steps {
		calls[at], returns[at] = int32(at), int32(at)
	}
	slices.SortStableFunc(calls, func(a, b int32) int { return int(steps[a].call) - int(steps[b].call) })
	slices.SortStableFunc(returns, func(a, b int32) int { return int(steps[a].ret) - int(steps[b].ret) })
	events := make([]porcupine.Event, 0, 2*len(steps))
	for _, r := range returns {
		n := 0
		for n < len(calls) && steps[calls[n]].call <= steps[r].ret {
			n++
		}
		slices.SortFunc(calls[:n], func(a, b int32) int { return steps[a].compare(&steps[b]) })
		for _, i := range calls[:n] {
			events = append(events, porcupine.Event{Kind: porcupine.CallEvent, Id: int(i), Value: i})
		}
		calls = calls[n:]
		events = append(events, porcupine.Event{Kind: porcupine.ReturnEvent, Id: int(r)})
	}
	return events
}
