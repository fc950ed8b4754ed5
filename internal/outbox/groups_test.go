package outbox

import (
	"errors"
	"fmt"
	"testing"

	"example.com/raftkv/internal/fault"
)

// addMany adds so many commands, which go into one batch.
func addMany(t *testing.T, o *Outbox, n int) []Ticket {
	t.Helper()
	tickets := make([]Ticket, n)
	for i := range tickets {
		tickets[i] = add(t, o, fmt.Sprint("key ", i))
	}
	return tickets
}

// TestGroupsAreAnsweredOneAfterTheOther: whole groups of what is done, and the rest
// with the batch.
func TestGroupsAreAnsweredOneAfterTheOther(t *testing.T) {
	for _, n := range []int{1, GroupMax - 1, GroupMax, GroupMax + 1, 3*GroupMax + 5} {
		o := newOutbox(nil)
		tickets := addMany(t, o, n)
		b := next(t, o)
		results := answers(b.First, n)
		for done := range n {
			o.ResolveSome(b.First, results, done)
			for i, ticket := range tickets {
				if want := i < done/GroupMax*GroupMax; isDone(ticket) != want {
					t.Fatalf("%d of %d commands are done, and of number %d that is %v", done, n, i, !want)
				} else if want {
					wantRevision(t, ticket, results[i].Revision)
				}
			}
		}
		if o.Waiting() != n {
			t.Errorf("%d commands wait before the end of the batch, want %d", o.Waiting(), n)
		}
		o.Resolve(b.First, results)
		for i, ticket := range tickets {
			wantRevision(t, ticket, results[i].Revision)
		}
		wantEmpty(t, o)
	}
}

// TestAnsweredGroupsKeepTheirResults though the node stops before the rest is done.
func TestAnsweredGroupsKeepTheirResults(t *testing.T) {
	o := newOutbox(nil)
	tickets := addMany(t, o, 2*GroupMax)
	b := next(t, o)
	results := answers(b.First, 2*GroupMax)
	o.ResolveSome(b.First, results, GroupMax)
	o.Fail(errStopped)
	for i, ticket := range tickets[:GroupMax] {
		wantRevision(t, ticket, results[i].Revision)
	}
	for _, ticket := range tickets[GroupMax:] {
		wantDone(t, ticket)
		if _, err := ticket.Result(); !errors.Is(err, errStopped) || !errors.Is(err, fault.ErrOutcomeUnknown) {
			t.Errorf("the error of a command in flight is %v", err)
		}
	}
}

// TestBatchWithoutSomeOfItsCommandsIsAnsweredAsAWhole: results are not at the places
// of the commands.
func TestBatchWithoutSomeOfItsCommandsIsAnsweredAsAWhole(t *testing.T) {
	o := newOutbox(nil)
	tickets := addMany(t, o, 2*GroupMax+1)
	o.Abandon(tickets[3])
	b := next(t, o)
	results := answers(b.First, 2*GroupMax)
	o.ResolveSome(b.First, results, GroupMax)
	wantWaits(t, tickets[0])
	o.Resolve(b.First, results)
	for i, ticket := range tickets {
		switch {
		case i < 3:
			wantRevision(t, ticket, results[i].Revision)
		case i > 3:
			wantRevision(t, ticket, results[i-1].Revision)
		}
	}
	wantEmpty(t, o)
}

// TestAbandonedGroupsAreNoOnesAffair: the last of the callers who go forgets the
// batch, however many were answered.
func TestAbandonedGroupsAreNoOnesAffair(t *testing.T) {
	o := newOutbox(nil)
	tickets := addMany(t, o, GroupMax+1)
	b := next(t, o)
	results := answers(b.First, GroupMax+1)
	o.ResolveSome(b.First, results, GroupMax)
	o.Abandon(tickets[GroupMax])
	o.ResolveSome(b.First+100, results, GroupMax) // of a batch that is not there
	o.Resolve(b.First, results)
	wantRevision(t, tickets[GroupMax-1], results[GroupMax-1].Revision)
	wantEmpty(t, o)
}
