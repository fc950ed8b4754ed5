package fault

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestErrorShowsItsTextAlone(t *testing.T) {
	err := New("the write may still take effect", ErrOutcomeUnknown, ErrClosed)
	if got, want := err.Error(), "the write may still take effect"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}

func TestErrorIsEachOfItsKindsAndNoOther(t *testing.T) {
	err := fmt.Errorf("put: %w", New("text", ErrOutcomeUnknown, fmt.Errorf("wrapped: %w", ErrClosed)))
	for _, kind := range []error{ErrOutcomeUnknown, ErrClosed} {
		if !errors.Is(err, kind) {
			t.Errorf("errors.Is(%v, %v) = false, want true", err, kind)
		}
	}
	for _, kind := range []error{ErrNoLeader, ErrRemoved} {
		if errors.Is(err, kind) {
			t.Errorf("errors.Is(%v, %v) = true, want false", err, kind)
		}
	}
	if errors.Is(New("text"), ErrClosed) {
		t.Error("an error without kinds is ErrClosed")
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Text != "text" {
		t.Errorf("AsType found %v, %v, want the error itself", e, ok)
	}
}

func TestSentinelsAreDistinctPhrasesOfTheLibrary(t *testing.T) {
	all := []error{
		ErrNotFound, ErrRevisionMismatch, ErrOutcomeUnknown, ErrNoLeader, ErrOverloaded, ErrTooLarge,
		ErrInvalid, ErrClosed, ErrRemoved, ErrNotInitialized, ErrAlreadyInitialized, ErrNotMember,
		ErrMemberAlive, ErrLearnerNotFound, ErrLearnerTooSlow, ErrQuorumAtRisk, ErrMembershipChanged,
		ErrMembershipRefused,
	}
	seen := make(map[string]bool)
	for _, err := range all {
		text := err.Error()
		if !strings.HasPrefix(text, "raftkv: ") || strings.HasSuffix(text, ".") || seen[text] {
			t.Errorf("%q does not begin with the library's name, ends with a period or comes twice", text)
		}
		seen[text] = true
	}
}
