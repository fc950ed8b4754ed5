package raftkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/raftkv/internal/command"
)

// A waiter calls awaitRevision inside a bubble.
type waiter struct {
	errc        chan error // capacity 1: the one result
	told, ended int
}

func awaitIn(ctx context.Context, f *fsm, revision uint64) *waiter {
	w := &waiter{errc: make(chan error, 1)}
	go func() {
		w.errc <- f.awaitRevision(ctx, revision, func() func() bool {
			w.told++
			return func() bool { w.ended++; return true }
		})
	}()
	synctest.Wait()
	return w
}

func (w *waiter) waits() bool { return len(w.errc) == 0 }

func putTask(f *fsm, key string) task {
	return task{index: f.index + 1, term: 1, data: batchOf(command.Header{Origin: testOrigins[2], First: f.index}, putOf(key, "v"))}
}

func TestAwaitRevisionReturnsOnceItIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFSM(testOrigins[0])
		applyAll(t, f, putTask(f, "a"))
		for _, revision := range []uint64{0, 1} {
			w := awaitIn(t.Context(), f, revision)
			if w.waits() || <-w.errc != nil || w.told != 0 {
				t.Errorf("revision %d of 1: it waits, fails or says that it does", revision)
			}
		}
		two, three := awaitIn(t.Context(), f, 2), awaitIn(t.Context(), f, 3)
		applyAll(t, f, putTask(f, "b"))
		synctest.Wait()
		if two.waits() || !three.waits() {
			t.Fatalf("at revision 2: a reader of 2 waits %v, of 3 %v, want false and true", two.waits(), three.waits())
		}
		if err := <-two.errc; err != nil || two.told != 1 || two.ended != 1 {
			t.Errorf("revision 2: %v, told %d, ended %d, want no error, once, once", err, two.told, two.ended)
		}
		applyAll(t, f, putTask(f, "c"))
		if err := <-three.errc; err != nil {
			t.Errorf("revision 3: %v", err)
		}
		if len(f.waits) != 0 {
			t.Errorf("%d waits are left", len(f.waits))
		}
	})
}

func TestAwaitRevisionIsReleasedByASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead, late := newTestFSM(testOrigins[0]), newTestFSM(testOrigins[1])
		applyAll(t, ahead, putTask(ahead, "a"))
		w := awaitIn(t.Context(), late, 1)
		s := staged(t, ahead.freeze())
		applyAll(t, late, task{index: s.index, term: s.term, install: s})
		if err := <-w.errc; err != nil {
			t.Errorf("awaitRevision = %v, want nil", err)
		}
	})
}

func TestAwaitRevisionEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFSM(testOrigins[0])
		cause := errors.New("cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		w, other := awaitIn(ctx, f, 7), awaitIn(t.Context(), f, 1)
		cancel(cause)
		if err := <-w.errc; !errors.Is(err, cause) || !strings.Contains(err.Error(), "revision 7; this node has 0") {
			t.Errorf("awaitRevision = %v, want the cause and both revisions", err)
		}
		if w.ended != 1 || len(f.waits) != 1 || !other.waits() {
			t.Errorf("ended %d, %d waits left, want 1 and the other one", w.ended, len(f.waits))
		}
		applyAll(t, f, putTask(f, "a"))
		if err := <-other.errc; err != nil {
			t.Error(err)
		}
	})
}

// A result that is known wins over a context that has ended.
func TestAwaitRevisionPrefersTheRevisionToTheContext(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			f := newTestFSM(testOrigins[0])
			ctx, cancel := context.WithCancel(t.Context())
			w := awaitIn(ctx, f, 1)
			f.mu.Lock() // both come before it can look
			cancel()
			f.revision = 1
			f.publish()
			f.mu.Unlock()
			if err := <-w.errc; err != nil {
				t.Errorf("awaitRevision = %v, want nil", err)
			}
		})
	}
}

func TestAwaitRevisionEndsWhenTheNodeDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFSM(testOrigins[0])
		w := awaitIn(t.Context(), f, 1)
		f.fail(ErrClosed)
		f.fail(ErrRemoved)
		for _, w := range []*waiter{w, awaitIn(t.Context(), f, 1)} {
			if err := <-w.errc; err != ErrClosed {
				t.Errorf("awaitRevision = %v, want ErrClosed", err)
			}
		}
		if w := awaitIn(t.Context(), f, 0); <-w.errc != nil {
			t.Error("a revision that is there cannot be read when the node has stopped")
		}
	})
}

func TestWaitsForARevisionAreBounded(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	f.waits = make([]revisionWait, revisionWaitsMax)
	err := f.awaitRevision(t.Context(), 1, nil)
	if !errors.Is(err, ErrOverloaded) || !strings.Contains(err.Error(), fmt.Sprint(revisionWaitsMax)) {
		t.Errorf("awaitRevision = %v, want ErrOverloaded that names %d", err, revisionWaitsMax)
	}
}
