package raftkv

import (
	"context"
	"errors"
	"reflect"
	"time"

	"example.com/raftkv/internal/history"
	"example.com/raftkv/internal/keyspace"
)

// A judge looks at what clients are told while the run goes on. Every answer
// comes with a revision of the store, so the order of all operations is known
// and each is compared with the model at its place in it: real time must not
// contradict that order, and the model must have had what was shown. In the end
// the same is checked again by what knows neither the log nor the model, and
// believes only what clients were told.
type judge struct {
	w       *world
	told    history.Recorder
	floor   uint64 // the highest revision that any call has returned
	notDone map[string]bool
	unknown []*call // writes with that outcome
	closed  bool    // clients stop
	bursts  int     // callers of bursts, for their names
}

// begin records a call before it is made.
func (h *judge) begin(x *call) {
	op := history.Op{Key: x.key, Value: x.value, Conditional: x.conditional, IfRevision: x.revision}
	switch x.kind {
	case callPut:
		op.Kind = history.Put
	case callDelete:
		op.Kind = history.Delete
	case callGet:
		op.Kind = history.Get
	case callStale:
		op.Kind, op.Stale = history.Get, true
	case callList:
		op = history.Op{Kind: history.List}
	}
	x.id = h.told.Begin(x.c.id, op, int64(h.w.now))
}

// check has what clients were told checked on its own, when all is over. It is
// helped with writes of unknown outcome, of which the model knows by now what has
// become: with hundreds of them no search for an order would end.
func (h *judge) check() {
	for _, x := range h.unknown {
		h.told.End(x.id, h.w.facts.model.outcome(x), int64(h.w.now))
	}
	report, err := h.told.Check(time.Minute)
	if err != nil {
		h.w.fail("%v", err)
	}
	h.w.count.add("operations checked for linearizability", uint64(report.Total()))
}

// number returns the number under which a write was sent, 0 if it never was. It
// looks where nobody else may: a caller needs no numbers.
func (x *call) number() uint64 {
	ticket := reflect.ValueOf(x.ticket)
	batch, index := ticket.FieldByName("batch").Elem(), ticket.FieldByName("index").Int()
	first, kept := batch.FieldByName("first").Uint(), batch.FieldByName("kept")
	if first == 0 || kept.IsNil() {
		return first + uint64(boolInt(first != 0))*uint64(index)
	}
	for at := range kept.Len() {
		if kept.Index(at).Int() == index {
			return first + uint64(at)
		}
	}
	return 0
}

// record judges the outcome of a call.
func (h *judge) record(x *call, revision uint64, err error) {
	w := h.w
	switch {
	case !x.kind.isWrite() && err == nil:
		h.checkRead(x)
	case err == nil:
		h.checkWrite(x, revision)
	case errors.Is(err, ErrRevisionMismatch):
		h.checkMismatch(x, revision)
	case errors.Is(err, ErrOutcomeUnknown):
	case x.kind == callPut:
		h.notDone[x.value] = true
		if w.facts.model.values[x.value] != 0 {
			w.fail("a put took effect and returned %v", err)
		}
	}
	if !x.kind.isWrite() && err == nil {
		h.told.End(x.id, x.shown, int64(w.now))
	} else if x.kind.isWrite() && errors.Is(err, ErrOutcomeUnknown) {
		x.sent = [2]uint64{x.p.raftID(), x.number()}
		h.unknown = append(h.unknown, x) // open until the end
	} else {
		h.told.End(x.id, history.Result{Outcome: history.OutcomeOf(err), Revision: revision}, int64(w.now))
	}
	text := ""
	if err != nil && (w.trace.all || w.hist.closed) {
		text = err.Error()
	}
	w.noteText(x.p.place.id, "end", uint64(x.c.id), uint64(x.kind), revision, text)
	w.count.outcome(x.kind, err)
}

// checkWrite checks a write that was acknowledged.
func (h *judge) checkWrite(x *call, revision uint64) {
	w, m := h.w, h.w.facts.model
	h.advance(x, revision, x.kind == callPut)
	if revision > m.revision() {
		w.fail("%s of %q returned revision %d, the model has %d", callNames[x.kind], x.key, revision, m.revision())
	}
	value, at := m.at(x.key, revision)
	switch {
	case x.kind == callPut && (at != revision || value != x.value):
		w.fail("put of %q, client %d, returned revision %d, where the model has %.20q of revision %d", x.key, x.c.id, revision, value, at)
	case x.kind == callDelete && at != 0:
		w.fail("delete of %q returned revision %d, where the model has %.20q", x.key, revision, value)
	}
	if c := m.change(revision); x.conditional && c.key == x.key && revision > 0 {
		if _, was := m.at(x.key, revision-1); was != x.revision && (x.kind == callPut || x.revision != 0) {
			w.fail("%s of %q if revision %d took effect at %d, where it was %d", callNames[x.kind], x.key, x.revision, revision, was)
		}
	}
	x.c.known[x.key] = at
}

// advance checks that real time agrees with the order of revisions.
func (h *judge) advance(x *call, revision uint64, changed bool) {
	if revision < x.floor || changed && revision == x.floor {
		h.w.fail("%s of %q by client %d on member %d, begun at %v, is of revision %d; %d had been returned before it began",
			callNames[x.kind], x.key, x.c.id, x.p.place.id, x.began, revision, x.floor)
	}
	h.floor = max(h.floor, revision)
}

// checkMismatch checks a write whose condition was not met.
func (h *judge) checkMismatch(x *call, revision uint64) {
	h.advance(x, revision, false)
	_, at := h.w.facts.model.at(x.key, revision)
	if !x.conditional || at == x.revision {
		h.w.fail("%s of %q if revision %d refused at revision %d, where it is %d", callNames[x.kind], x.key, x.revision, revision, at)
	}
	x.c.known[x.key] = at
}

// checkRead reads, as the caller does that has been let go on.
func (h *judge) checkRead(x *call) {
	w, m, f := h.w, h.w.facts.model, x.p.n.fsm
	if x.kind == callList {
		h.checkList(x)
		return
	}
	_, revision, _ := f.status()
	if x.kind != callStale {
		h.advance(x, revision, false)
	}
	item, ok := f.get(x.key, keyspace.Hash([]byte(x.key)), x.seat)
	value, at := m.at(x.key, revision)
	if x.shown.Outcome = history.NotFound; ok {
		x.shown = history.Result{Outcome: history.OK, Value: string(item.Value), Revision: item.Revision}
	}
	if ok != (at != 0) || ok && (string(item.Value) != value || item.Revision != at) {
		w.fail("get of %q on member %d differs from the model at revision %d", x.key, x.p.place.id, revision)
	}
	x.c.known[x.key] = at
}

func (h *judge) checkList(x *call) {
	w, m := h.w, h.w.facts.model
	l, err := x.p.n.fsm.list(context.Background(), "", "", 0)
	if err != nil {
		w.fail("list on member %d: %v", x.p.place.id, err)
		return
	}
	h.advance(x, l.Revision, false)
	n := 0
	x.shown = history.Result{Outcome: history.OK, Revision: l.Revision}
	for kv := range l.All() {
		x.shown.Items = append(x.shown.Items, history.Item{Key: kv.Key, Value: string(kv.Value), Revision: kv.Revision})
		value, at := m.at(kv.Key, l.Revision)
		if at != kv.Revision || value != string(kv.Value) {
			w.fail("list on member %d: %q differs from the model at revision %d", x.p.place.id, kv.Key, l.Revision)
		}
		n++
	}
	for key := range m.keys {
		if _, at := m.at(key, l.Revision); at != 0 {
			n--
		}
	}
	if n != 0 {
		w.fail("list on member %d at revision %d has %d keys too many", x.p.place.id, l.Revision, n)
	}
}
