package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// isLinearizable tries every order. It knows nothing of revisions but what the
// store returns, so it judges the sweeps and the model alike. Stale reads are
// not for it.
func isLinearizable(r *Recorder) bool {
	return canGoOn(r.ops, make([]bool, len(r.ops)), store{})
}

func canGoOn(ops []operation, done []bool, s store) bool {
	firstRet, isEnd := never, true
	for i := range ops {
		if !done[i] && isDefinite(&ops[i]) {
			isEnd = false
			firstRet = min(firstRet, ops[i].ret)
		}
	}
	if isEnd { // what is unknown need not happen
		return true
	}
	for i := range ops {
		o := &ops[i]
		if done[i] || o.call > firstRet || !isDefinite(o) && (o.isRead() || o.result.Outcome != Unknown) {
			continue
		}
		next := store{s.revision, maps.Clone(s.keys)}
		result := next.do(o.Op)
		if isDefinite(o) && !reflect.DeepEqual(result, o.result) {
			continue
		}
		done[i] = true
		if canGoOn(ops, done, next) {
			return true
		}
		done[i] = false
	}
	return false
}

func isDefinite(o *operation) bool {
	return o.result.Outcome != Unknown && o.result.Outcome != NotDone
}

// distort changes one thing about one result, as a broken store might.
func distort(rng *rand.Rand, r *Recorder) {
	o := &r.ops[rng.IntN(len(r.ops))]
	result := &o.result
	other := r.ops[rng.IntN(len(r.ops))]
	switch rng.IntN(7) {
	case 0:
		result.Revision += rng.Uint64N(3)
	case 1:
		result.Revision -= min(result.Revision, rng.Uint64N(3))
	case 2:
		result.Outcome = Outcome(rng.IntN(int(outcomes)))
		if result.Outcome == Mismatch && result.Revision == 0 {
			result.Revision = rng.Uint64N(5)
		}
	case 3:
		result.Value, result.Revision = other.Value, other.result.Revision
	case 4:
		if n := len(result.Items); n > 0 {
			at := rng.IntN(n)
			result.Items = slices.Delete(slices.Clone(result.Items), at, at+1)
		}
	case 5:
		if n := len(result.Items); n > 0 && other.Kind == Put {
			result.Items = slices.Clone(result.Items)
			item := &result.Items[rng.IntN(n)]
			item.Value, item.Revision = other.Value, other.result.Revision
		}
	case 6: // later, so that it must have seen more
		r.last += 2
		o.call, o.ret = r.last-1, r.last
	}
	switch {
	case o.Kind == Get && result.Outcome == NotFound, result.Outcome == NotDone, result.Outcome == Unknown:
		*result = Result{Outcome: result.Outcome}
	case result.Outcome == Mismatch:
		*result = Result{Outcome: Mismatch, Revision: result.Revision}
	case o.Kind != Get:
		result.Value = ""
	}
	if o.Kind != List || len(result.Items) == 0 {
		result.Items = nil
	}
}

// TestCheckAgreesWithTryingEveryOrder holds Check to the definition, on small
// histories that are legal, or nearly. It must never refuse what has an order.
// What has none it may miss only where it is open who took a revision: it looks
// at the revisions of all keys, and at the order in each, but not at both at once.
func TestCheckAgreesWithTryingEveryOrder(t *testing.T) {
	histories := uint64(40_000)
	if testing.Short() {
		histories /= 10
	}
	var legal, illegal, missed int
	for seed := range histories {
		w := newTraffic(seed, 2+int(seed%3), 1+int(seed%2))
		w.stale, w.lists, w.unknown = 0, 0.1, float64(seed%4)/10
		r := w.run(3 + int(seed%5))
		for range seed % 3 {
			distort(w.rng, r)
		}
		want := isLinearizable(r)
		_, err := r.Check(time.Minute)
		switch {
		case want && err != nil:
			t.Fatalf("seed %d: refused, but there is an order: %v\n%s", seed, err, text(r))
		case want:
			legal++
		case err != nil:
			illegal++
		default:
			if missed++; !isAmbiguous(r) {
				t.Fatalf("seed %d: no order, but accepted:\n%s", seed, text(r))
			}
		}
	}
	t.Logf("%d legal, %d illegal, %d missed", legal, illegal, missed)
	if illegal < int(histories)/4 || missed > illegal/50 {
		t.Errorf("%d of %d illegal histories were accepted", missed, illegal+missed)
	}
}

// isAmbiguous reports whether it is open who took some revision: a write of
// unknown outcome, or one of several deletes that returned it.
func isAmbiguous(r *Recorder) bool {
	returned := make(map[uint64]bool)
	return slices.ContainsFunc(r.ops, func(o operation) bool {
		isDelete := o.Kind == Delete && o.result.Outcome == OK
		again := isDelete && returned[o.result.Revision]
		returned[o.result.Revision] = returned[o.result.Revision] || isDelete
		return again || !o.isRead() && o.result.Outcome == Unknown
	})
}

func text(r *Recorder) string {
	var s string
	for i := range r.ops {
		s += fmt.Sprintf("\t%v..%v %v %v\n", r.ops[i].call, r.ops[i].ret, &r.ops[i], r.ops[i].result.Items)
	}
	return s
}
