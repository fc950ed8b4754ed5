package history

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/raftkv/internal/fault"
)

func TestConcurrentClientsShareARecorder(t *testing.T) {
	const clients, each = 8, 200
	var (
		r  Recorder
		s  store
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for client := range clients {
		wg.Go(func() {
			for n := range each {
				op := Op{Kind: Put, Key: fmt.Sprint("k", n%7), Value: fmt.Sprintf("%d/%d", client, n)}
				if n%3 == 0 {
					op = Op{Kind: Get, Key: op.Key}
				}
				id := r.Begin(client, op, int64(n))
				mu.Lock()
				result := s.do(op)
				mu.Unlock()
				r.End(id, result, int64(n))
			}
		})
	}
	wg.Wait()
	report, err := r.Check(time.Minute)
	if err != nil || report.Total() != clients*each || r.Len() != clients*each {
		t.Errorf("Check() = %v, %v", report, err)
	}
}

func TestNextGoesOnFromTheLastList(t *testing.T) {
	var r Recorder
	all := Op{Kind: List}
	put := func(r *Recorder, key, value string, result Result) {
		r.End(r.Begin(1, Op{Kind: Put, Key: key, Value: value}, 0), result, 0)
	}
	put(&r, "a", "1", Result{Outcome: OK, Revision: 1})
	put(&r, "b", "2", Result{Outcome: Unknown}) // seen in the List
	put(&r, "b", "3", Result{Outcome: Unknown}) // not seen
	items := []Item{{"a", "1", 1}, {"b", "2", 2}}
	r.End(r.Begin(1, all, 0), Result{Outcome: OK, Revision: 2, Items: items}, 0)
	next, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	get := func(key, value string, revision uint64) {
		next.End(next.Begin(2, Op{Kind: Get, Key: key}, 0), Result{Outcome: OK, Value: value, Revision: revision}, 0)
	}
	get("a", "1", 1)
	get("b", "2", 2)
	put(next, "a", "4", Result{Outcome: OK, Revision: 3})
	get("b", "3", 4) // takes effect in the second window
	report, err := next.Check(time.Minute)
	if err != nil || report.Total() != 4 {
		t.Errorf("Check() = %v, %v", report, err)
	}
	get("a", "1", 1)
	if _, err := next.Check(time.Minute); err == nil {
		t.Error("a stale read in the second window was not noticed")
	}
}

func TestNextWantsAQuietList(t *testing.T) {
	all := Op{Kind: List}
	for _, test := range []struct {
		want string
		make func(r *Recorder)
	}{
		{"no operation", func(*Recorder) {}},
		{"not a List of everything", func(r *Recorder) { r.Begin(1, Op{Kind: Get}, 0) }},
		{"not a List of everything", func(r *Recorder) { r.Begin(1, all, 0) }},
		{"not a List of everything", func(r *Recorder) {
			r.End(r.Begin(1, Op{Kind: List, Stale: true}, 0), Result{Outcome: OK}, 0)
		}},
		{"called before this returned", func(r *Recorder) {
			get := r.Begin(1, Op{Kind: Get}, 0)
			list := r.Begin(2, all, 0)
			r.End(get, Result{Outcome: NotFound}, 0)
			r.End(list, Result{Outcome: OK}, 0)
		}},
	} {
		var r Recorder
		test.make(&r)
		if _, err := r.Next(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Next() = %v, want %q", err, test.want)
		}
	}
}

func TestOperationEndsOnce(t *testing.T) {
	var r Recorder
	id := r.Begin(1, Op{Kind: Get, Key: "a"}, 0)
	r.End(id, Result{Outcome: NotFound}, 0)
	defer func() {
		if recover() == nil {
			t.Error("a second End went unnoticed")
		}
	}()
	r.End(id, Result{Outcome: NotFound}, 0)
}

func TestOutcomeOf(t *testing.T) {
	for _, test := range []struct {
		err  error
		want Outcome
	}{
		{nil, OK},
		{fault.ErrNotFound, NotFound},
		{fmt.Errorf("put: %w", fault.ErrRevisionMismatch), Mismatch},
		{fault.New("text", fault.ErrNoLeader, context.DeadlineExceeded), NotDone},
		{fault.ErrClosed, NotDone},
		{fault.New("text", fault.ErrClosed, fault.ErrOutcomeUnknown), Unknown},
		{context.DeadlineExceeded, Unknown},
		{errors.New("of somebody else"), Unknown},
	} {
		if got := OutcomeOf(test.err); got != test.want {
			t.Errorf("OutcomeOf(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}

func TestReportCountsByKindAndOutcome(t *testing.T) {
	var r Recorder
	r.End(r.Begin(1, Op{Kind: Put, Key: "a", Value: "1"}, 0), Result{Outcome: OK, Revision: 1}, 0)
	r.End(r.Begin(1, Op{Kind: Get, Key: "b"}, 0), Result{Outcome: NotFound}, 0)
	r.Begin(1, Op{Kind: Delete, Key: "a"}, 0)
	report, err := r.Check(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if n := report.Count(Delete, Unknown); n != 1 {
		t.Errorf("%d deletes are unknown, want 1", n)
	}
	_, got, _ := strings.Cut(report.String(), "; ")
	if want := "put: 1 ok; delete: 1 unknown; get: 1 not found"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}
