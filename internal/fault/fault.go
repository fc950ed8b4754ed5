// Package fault holds the sentinel errors of raftkv, so that internal packages
// can return them and the wire can name them. The root package exports each
// under the same name and documents it there.
package fault

import (
	"context"
	"errors"
)

// The sentinels. Their texts are complete phrases: an error that a caller sees
// is "what failed: sentinel" or "what failed: reason: sentinel".
var (
	ErrNotFound           = errors.New("raftkv: key not found")
	ErrRevisionMismatch   = errors.New("raftkv: the key has another revision")
	ErrOutcomeUnknown     = errors.New("raftkv: outcome unknown")
	ErrNoLeader           = errors.New("raftkv: no leader")
	ErrQuorumLost         = errors.New("raftkv: a majority of the voters is lost")
	ErrOverloaded         = errors.New("raftkv: overloaded")
	ErrTooLarge           = errors.New("raftkv: too large")
	ErrInvalid            = errors.New("raftkv: invalid argument")
	ErrClosed             = errors.New("raftkv: node closed")
	ErrRemoved            = errors.New("raftkv: node removed from the cluster")
	ErrNotInitialized     = errors.New("raftkv: not initialized")
	ErrAlreadyInitialized = errors.New("raftkv: already initialized")
	ErrNotMember          = errors.New("raftkv: not a member")
	ErrMemberAlive        = errors.New("raftkv: the member is alive")
	ErrLearnerNotFound    = errors.New("raftkv: no such learner")
	ErrLearnerTooSlow     = errors.New("raftkv: the learner cannot keep up")
	ErrQuorumAtRisk       = errors.New("raftkv: the quorum would be lost")
	ErrMembershipChanged  = errors.New("raftkv: the membership has changed")
	ErrMembershipRefused  = errors.New("raftkv: membership change refused")
)

// An Error carries a text of its own and satisfies errors.Is for its kinds.
// Unlike fmt.Errorf with several %w verbs it can keep the sentinels out of the
// text, which would only repeat it.
type Error struct {
	Text  string
	Kinds []error
}

// New returns an error with a text that satisfies errors.Is for each kind.
func New(text string, kinds ...error) *Error { return &Error{Text: text, Kinds: kinds} }

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the kinds.
func (e *Error) Unwrap() []error { return e.Kinds }

// Ended returns the error of a context that has ended. Its text is the cause
// that the context's owner gave; it satisfies errors.Is for that and for the
// context's own error, which tells a deadline from a cancellation.
func Ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return New(cause.Error(), err, cause)
}
