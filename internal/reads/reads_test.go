package reads

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

const (
	self       = 3<<32 | 7
	retryTicks = 10
)

var errStopped = errors.New("stopped")

func newReads() *Reads {
	r := New(retryTicks)
	r.Become(self)
	return r
}

func join(t *testing.T, r *Reads) *Round {
	t.Helper()
	seat, _ := r.Join(0)
	return seat.Round
}

// issue returns a context that must be there.
func issue(t *testing.T, r *Reads, now uint64) []byte {
	t.Helper()
	context := r.Issue(now)
	if context == nil {
		t.Fatalf("Issue(%d) has no context, want one", now)
	}
	return context
}

func wantNoIssue(t *testing.T, r *Reads, now uint64) {
	t.Helper()
	if context := r.Issue(now); context != nil {
		t.Fatalf("Issue(%d) = %x, want none", now, context)
	}
}

func isDone(round *Round) bool {
	select {
	case <-round.Done():
		return true
	default:
		return false
	}
}

func wantDone(t *testing.T, rounds ...*Round) {
	t.Helper()
	for i, round := range rounds {
		if !isDone(round) {
			t.Fatalf("round %d of %d waits, want it done", i, len(rounds))
		}
		if err := round.Err(); err != nil {
			t.Errorf("round %d of %d: %v, want no error", i, len(rounds), err)
		}
	}
}

func wantWaits(t *testing.T, rounds ...*Round) {
	t.Helper()
	for i, round := range rounds {
		if isDone(round) {
			t.Fatalf("round %d of %d is done, want it to wait", i, len(rounds))
		}
	}
}

func TestReadersShareTheNextRound(t *testing.T) {
	r := newReads()
	first, idle := r.Join(0)
	if !idle {
		t.Errorf("first Join = idle %v, want idle", idle)
	}
	second, idle := r.Join(0)
	if same := second.Round == first.Round; idle || !same {
		t.Errorf("second Join = same round %v, idle %v, want the same round and not idle", same, idle)
	}
	context := issue(t, r, 0)
	wantNoIssue(t, r, 0)
	r.Applied(5)
	r.Confirm(context, 5)
	wantDone(t, first.Round)
}

// A quorum that was asked before a reader came says nothing about writes that
// returned in between.
func TestReaderNeverJoinsARoundThatWasIssued(t *testing.T) {
	r := newReads()
	early := join(t, r)
	context := issue(t, r, 0)
	late, idle := r.Join(0)
	if late.Round == early || !idle {
		t.Fatalf("a reader joined a round that was asked already, or nobody wakes the loop (idle %v)", idle)
	}
	r.Applied(9)
	r.Confirm(context, 9)
	wantDone(t, early)
	wantWaits(t, late.Round)
	r.Confirm(issue(t, r, 1), 9)
	wantDone(t, late.Round)
}

func TestRoundsInFlightAreBounded(t *testing.T) {
	r := newReads()
	var contexts [][]byte
	for now := range uint64(RoundsMax) {
		join(t, r)
		contexts = append(contexts, issue(t, r, now))
		join(t, r)
		if now > 0 {
			wantNoIssue(t, r, now) // two at once, and then one a tick
		}
	}
	last := join(t, r)
	wantNoIssue(t, r, RoundsMax)
	if join(t, r) != last {
		t.Error("readers who come while all rounds are taken do not share the next one")
	}
	r.Confirm(contexts[3], 1)
	r.Confirm(issue(t, r, RoundsMax), 1)
	r.Applied(1)
	wantDone(t, last)
}

// The second round waits for half as many readers as the first has, unless that is
// small or takes longer than a tick, and not when the first is confirmed.
func TestSecondRoundIsWorthIt(t *testing.T) {
	for _, test := range []struct {
		first, second int
		now           uint64
		want          bool
	}{
		{first: smallRound, second: 1, want: true},
		{first: 100, second: 49, want: false},
		{first: 100, second: 49, now: 1, want: true},
		{first: 100, second: 50, want: true},
	} {
		r := newReads()
		for range test.first {
			join(t, r)
		}
		context := issue(t, r, 0)
		for range test.second {
			join(t, r)
		}
		if due := r.IsDue(test.now); due != test.want {
			t.Errorf("%d readers after %d at tick %d may go: %v, want %v", test.second, test.first, test.now, due, test.want)
		}
		if r.Confirm(context, 1); !r.IsDue(0) {
			t.Errorf("%d readers after %d that are confirmed may not go", test.second, test.first)
		}
	}
}

func TestContextNamesNodeAndAttempt(t *testing.T) {
	r := newReads()
	seen := make(map[string]bool)
	join(t, r)
	for now := uint64(0); now < 10*retryTicks; now += retryTicks {
		context := issue(t, r, now)
		if len(context) != ContextBytes || binary.BigEndian.Uint64(context) != self {
			t.Fatalf("context %x, want %d bytes that begin with %x", context, ContextBytes, self)
		}
		if seen[string(context)] {
			t.Fatalf("context %x was used before", context)
		}
		seen[string(context)] = true
	}
}

func TestRoundAsksAgainAfterATime(t *testing.T) {
	r := newReads()
	round := join(t, r)
	first := issue(t, r, 100)
	wantNoIssue(t, r, 100+retryTicks-1)
	second := issue(t, r, 100+retryTicks)
	if bytes.Equal(first, second) {
		t.Errorf("the round asked again with the same context %x", first)
	}
	wantNoIssue(t, r, 100+2*retryTicks-1)
	r.Applied(1)
	r.Confirm(second, 1)
	wantDone(t, round)
	wantNoIssue(t, r, 1000)
}

func TestRetriesGoAheadOfNewRounds(t *testing.T) {
	r := newReads()
	old := join(t, r)
	issue(t, r, 0)
	fresh := join(t, r)
	r.Applied(1)
	r.Confirm(issue(t, r, retryTicks), 1)
	wantDone(t, old)
	wantWaits(t, fresh)
}

func TestAnswersToRememberedAttemptsCount(t *testing.T) {
	for attempts := 1; attempts <= attemptsMax+2; attempts++ {
		for answer := range attempts {
			r := newReads()
			round := join(t, r)
			var contexts [][]byte
			for i := range attempts {
				contexts = append(contexts, issue(t, r, uint64(i)*retryTicks))
			}
			r.Applied(1)
			r.Confirm(contexts[answer], 1)
			if want := attempts-answer <= attemptsMax; isDone(round) != want {
				t.Errorf("answer to attempt %d of %d: done = %v, want %v", answer+1, attempts, isDone(round), want)
			}
		}
	}
}

func TestForeignContextsAreIgnored(t *testing.T) {
	r := newReads()
	round := join(t, r)
	context := issue(t, r, 0)
	r.Applied(10)
	foreign := bytes.Clone(context)
	foreign[7]++ // another node's
	unknown := bytes.Clone(context)
	unknown[15]++ // a number that was not issued
	for _, c := range [][]byte{nil, {}, context[:15], append(bytes.Clone(context), 0), foreign, unknown, make([]byte, ContextBytes)} {
		r.Confirm(c, 1)
		if isDone(round) {
			t.Fatalf("context %x was taken for %x", c, context)
		}
	}
	r.Confirm(context, 1)
	wantDone(t, round)
	r.Confirm(context, 1) // twice: ignored
	if r.Waiting() {
		t.Error("Waiting after the only round was confirmed")
	}
}

func TestAskAgainMakesAllRoundsDue(t *testing.T) {
	r := newReads()
	for now := range uint64(3) {
		join(t, r)
		issue(t, r, now)
	}
	wantNoIssue(t, r, 3)
	r.AskAgain()
	for range 3 {
		issue(t, r, 3)
	}
	wantNoIssue(t, r, 3)
}

func TestReadersWaitForConfirmationAndIndexInEitherOrder(t *testing.T) {
	for _, confirmFirst := range []bool{true, false} {
		r := newReads()
		round := join(t, r)
		context := issue(t, r, 0)
		if confirmFirst {
			r.Confirm(context, 7)
			r.Applied(6)
			wantWaits(t, round)
			r.Applied(7)
		} else {
			r.Applied(7)
			wantWaits(t, round)
			r.Confirm(context, 7)
		}
		wantDone(t, round)
	}
}

func TestOnlyReachedRoundsAreReleased(t *testing.T) {
	r := newReads()
	var rounds []*Round
	for i := range 4 {
		rounds = append(rounds, join(t, r))
		r.Confirm(issue(t, r, 0), uint64(10*(i+1)))
	}
	r.Applied(25)
	wantDone(t, rounds[:2]...)
	wantWaits(t, rounds[2:]...)
	r.Applied(40)
	wantDone(t, rounds...)
}

func TestFailAnswersEverybody(t *testing.T) {
	r := newReads()
	reached := join(t, r)
	r.Confirm(issue(t, r, 0), 100)
	asked := join(t, r)
	context := issue(t, r, 0)
	next := join(t, r)
	r.Fail(errStopped)
	r.Fail(errors.New("later"))
	for i, round := range []*Round{reached, asked, next} {
		if !isDone(round) || round.Err() != errStopped {
			t.Errorf("round %d: done %v, want the cause", i, isDone(round))
		}
	}
	if late := join(t, r); !isDone(late) || late.Err() != errStopped {
		t.Error("a reader who comes after Fail waits, want the cause")
	}
	r.Refuse(errors.New("later"))
	r.Confirm(context, 1)
	r.Applied(200)
	wantNoIssue(t, r, 1000)
	if r.Waiting() {
		t.Error("Waiting after Fail")
	}
}

func TestWaitingUntilConfirmed(t *testing.T) {
	r := newReads()
	if r.Waiting() {
		t.Error("Waiting with no reader")
	}
	join(t, r)
	if !r.Waiting() {
		t.Error("not Waiting with a reader who has not asked")
	}
	context := issue(t, r, 0)
	if !r.Waiting() {
		t.Error("not Waiting with a round that was asked")
	}
	r.Confirm(context, 100)
	if r.Waiting() {
		t.Error("Waiting for a confirmation that is there")
	}
}

// Every reader sees at least the index that was committed when it came.
func TestConcurrentReadersSeeWhatWasCommittedBefore(t *testing.T) {
	const readers, each, seed = 8, 200, 7
	t.Logf("seed %d", seed)
	r := newReads()
	var mu sync.Mutex
	var committed, applied uint64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for range each {
				mu.Lock()
				before := committed
				mu.Unlock()
				round, _ := r.Join(0)
				<-round.Done()
				mu.Lock()
				if applied < before {
					t.Errorf("a reader who came at index %d read at %d", before, applied)
				}
				mu.Unlock()
			}
		})
	}
	donec := make(chan struct{})
	go func() {
		wg.Wait()
		close(donec)
	}()
	rng := rand.New(rand.NewPCG(seed, 1))
	for now := uint64(0); ; now++ {
		select {
		case <-donec:
			return
		default:
		}
		mu.Lock()
		committed++
		index := committed
		mu.Unlock()
		for context := r.Issue(now); context != nil; context = r.Issue(now) {
			if rng.IntN(3) > 0 {
				r.Confirm(context, index)
			}
		}
		if rng.IntN(2) == 0 {
			mu.Lock()
			applied = index
			mu.Unlock()
			r.Applied(index)
		}
	}
}

func TestReadersWaitWhileTheApplierIsFarBehind(t *testing.T) {
	r := New(4)
	r.Become(7)
	for range ReachedMax {
		join(t, r)
		r.Confirm(r.Issue(0), 10)
	}
	join(t, r)
	if r.IsDue(0) || r.Issue(0) != nil {
		t.Errorf("a round is issued although %d wait for the applier", ReachedMax)
	}
	if r.Freed() {
		t.Error("Freed before the applier has caught up")
	}
	r.Applied(10)
	if !r.Freed() || r.Freed() {
		t.Error("not Freed once after the applier has caught up")
	}
	if !r.IsDue(0) || r.Issue(0) == nil {
		t.Error("no round is issued after the applier has caught up")
	}
}

// A seat belongs to one group, whose first reader finds the notes of all of it.
func TestReadersAreInGroups(t *testing.T) {
	r := newReads()
	for _, room := range []int{notesMax, 0, 5, GroupMax, GroupMax + 1, 3*GroupMax - 2} { // that the round before asked for
		for _, readers := range []int{1, 2, 15, 16, 17, 40, 48} {
			r.next.Store(newRound(room))
			seats := make([]Seat, readers)
			for i := range seats {
				seats[i], _ = r.Join(uint64(i) + 1)
			}
			next := min(room, readers) // Go wakes all but the first in reverse
			for i := next - 1; i >= 0; i-- {
				if !seats[i].IsFirst() {
					continue
				}
				var notes [GroupMax]uint64
				n := seats[i].Group(&notes)
				for _, note := range notes[:n] {
					if note != uint64(next) {
						t.Fatalf("%d readers, room for %d: seat %d has a group with notes %v, want %d next", readers, room, i, notes[:n], next)
					}
					next--
				}
			}
			if next != 0 {
				t.Errorf("%d readers, room for %d: %d of them are in no group", readers, room, next)
			}
			for _, s := range seats[min(room, readers):] {
				if s.IsFirst() {
					t.Errorf("%d readers, room for %d: seat %d, without a note, is first of a group", readers, room, s.number)
				}
			}
		}
	}
	if (Seat{}).IsFirst() {
		t.Error("a reader without a round is first of a group")
	}
}

// A round has room for the notes of as many readers as came of late, and no more.
func TestRoomForNotesFollowsTheReaders(t *testing.T) {
	round := newRound(0)
	for _, test := range []struct{ readers, want int }{
		{1, 0}, {3, 0}, {4, 4}, {64, 64}, {40, 55}, {40, 48}, {40, 41}, {40, 40}, {1, 34}, {5000, notesMax}, {1, 895},
	} {
		round.joined.Store(int64(test.readers))
		if round = round.successor(); len(round.notes) != test.want {
			t.Errorf("after a round of %d readers there is room for %d notes, want %d", test.readers, len(round.notes), test.want)
		}
	}
	for range 100 {
		round = round.successor()
	}
	if n := len(round.notes); n != 0 {
		t.Errorf("there is room for %d notes that nobody leaves", n)
	}
}
