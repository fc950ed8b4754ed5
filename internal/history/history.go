// Package history records what the clients of a raftkv store did, and checks
// that this was linearizable and that every write took effect exactly once. It
// is for tests.
//
// A test makes a [Recorder] for a store that is empty, tells it of every call
// and every return, and in the end of one List of everything, which shows
// whether acknowledged writes were lost:
//
//	var r history.Recorder
//	id := r.Begin(client, history.Op{Kind: history.Put, Key: k, Value: v}, now)
//	revision, err := node.Put(ctx, k, []byte(v))
//	r.End(id, history.Result{Outcome: history.OutcomeOf(err), Revision: revision}, now)
//	...
//	report, err := r.Check(time.Minute)
//
// The values of puts must be unique, in the recorder and in those that continue
// it; that is how a read names its write. What Begin has seen and End has not
// counts as unknown: it may have taken effect, or may yet.
//
// Tests that run for long check in windows: when the clients are quiet and that
// last List has returned, Check, and go on with the recorder that Next returns.
//
// # How it checks
//
// Everything but "not found" shows a revision, of a key or of the store, and
// revisions are one order for all keys. So sweeps over the revisions find most
// violations in O(n log n) and name the operations involved. Only if they find
// none does porcupine search for an order of each key's operations. It would
// find most of the same, but in a long time and without a reason; the sweeps
// cannot judge what depends on the order of operations that overlap.
package history

import (
	"errors"
	"fmt"
	"strings"

	"example.com/raftkv/internal/fault"
)

// A Kind is what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Put Kind = iota
	Delete
	Get
	List
	kinds
)

// String returns the kind's name.
func (k Kind) String() string {
	return [...]string{"put", "delete", "get", "list"}[k]
}

// An Op is what a client asks for.
type Op struct {
	Kind  Kind
	Key   string // of a List: the prefix
	Value string // of a Put; no other has the same

	// Conditional is for writes that have the option IfRevision, whose argument
	// may be zero.
	Conditional bool
	IfRevision  uint64

	// Stale and MinRevision are for reads, and make them not linearizable.
	Stale       bool
	MinRevision uint64

	// After and Limit are for a List that is one page.
	After string
	Limit int
}

func (o *Op) isRead() bool { return o.Kind == Get || o.Kind == List }

// isStale reports whether a read may show something older than what had been
// acknowledged before it.
func (o *Op) isStale() bool { return o.Stale || o.MinRevision != 0 }

// An Outcome is how an operation ended.
type Outcome uint8

// The outcomes.
const (
	// Unknown: a write may have taken effect at any time after its call, or may
	// yet, or never will. A read that failed proves nothing and is not checked.
	Unknown Outcome = iota
	// OK is success.
	OK
	// NotFound is for a Get.
	NotFound
	// Mismatch: the condition of a write did not hold; it has no effect, ever.
	Mismatch
	// NotDone: it has no effect, ever.
	NotDone
	outcomes
)

// String returns the outcome's name.
func (o Outcome) String() string {
	return [...]string{"unknown", "ok", "not found", "mismatch", "not done"}[o]
}

// definite lists the errors that say, unless they come with ErrOutcomeUnknown,
// that nothing was done.
var definite = []error{
	fault.ErrNoLeader, fault.ErrOverloaded, fault.ErrTooLarge, fault.ErrInvalid,
	fault.ErrClosed, fault.ErrRemoved, fault.ErrNotInitialized, fault.ErrQuorumLost,
}

// OutcomeOf returns what the error of a call says about its outcome. An error
// that is none of raftkv's says nothing: the outcome is unknown.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, fault.ErrOutcomeUnknown):
		return Unknown
	case errors.Is(err, fault.ErrNotFound):
		return NotFound
	case errors.Is(err, fault.ErrRevisionMismatch):
		return Mismatch
	}
	for _, d := range definite {
		if errors.Is(err, d) {
			return NotDone
		}
	}
	return Unknown
}

// A Result is what a client was told.
type Result struct {
	Outcome  Outcome
	Value    string // of a Get
	Revision uint64 // of a Get: the key's; else what the store returned with it
	Items    []Item // of a List, in order; the recorder keeps the slice
}

// An Item is a key in the result of a List.
type Item struct {
	Key, Value string
	Revision   uint64
}

// String describes the operation, without the result.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %.64q", o.Kind, o.Key)
	if o.Kind == Put {
		fmt.Fprintf(&b, "=%.64q", o.Value)
	}
	if o.Conditional {
		fmt.Fprintf(&b, " if revision %d", o.IfRevision)
	}
	if o.Stale {
		b.WriteString(" stale")
	}
	if o.MinRevision != 0 {
		fmt.Fprintf(&b, " min revision %d", o.MinRevision)
	}
	if o.After != "" {
		fmt.Fprintf(&b, " after %.64q", o.After)
	}
	if o.Limit != 0 {
		fmt.Fprintf(&b, " limit %d", o.Limit)
	}
	return b.String()
}
