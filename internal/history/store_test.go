package history

import (
	"maps"
	"slices"
)

// A store is what raftkv promises to be: one copy that does one thing at a time.
type store struct {
	revision uint64
	keys     map[string]Item
}

func (s *store) do(op Op) Result {
	item, ok := s.keys[op.Key]
	switch op.Kind {
	case Get:
		if !ok {
			return Result{Outcome: NotFound}
		}
		return Result{Outcome: OK, Value: item.Value, Revision: item.Revision}
	case List:
		return s.list(op)
	}
	if op.Conditional && op.IfRevision != item.Revision {
		return Result{Outcome: Mismatch, Revision: s.revision}
	}
	switch {
	case op.Kind == Put:
		s.revision++
		if s.keys == nil {
			s.keys = make(map[string]Item)
		}
		s.keys[op.Key] = Item{op.Key, op.Value, s.revision}
	case ok:
		s.revision++
		delete(s.keys, op.Key)
	}
	return Result{Outcome: OK, Revision: s.revision}
}

func (s *store) list(op Op) Result {
	r := Result{Outcome: OK, Revision: s.revision}
	o := operation{Op: op}
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		o.result.Items = r.Items
		if o.covers(key) {
			r.Items = append(r.Items, s.keys[key])
		}
	}
	return r
}
