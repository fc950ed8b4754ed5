package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/fault"
)

const origin = 1<<32 | 1

var (
	route      = Route{Leader: origin, Term: 1}
	other      = Route{Leader: 2<<32 | 2, Term: 2}
	roomy      = Limits{PendingBytesMax: 64 << 20, BatchBytesMax: 1 << 20, WindowMax: 4, RetryTicks: 10}
	errStopped = errors.New("stopped")
)

func newOutbox(change func(*Limits)) *Outbox {
	limits := roomy
	if change != nil {
		change(&limits)
	}
	o := New(limits)
	o.Become(origin)
	return o
}

func put(key string) *command.Command {
	return &command.Command{Op: command.Put, Key: []byte(key), Value: []byte("value of " + key)}
}

func add(t *testing.T, o *Outbox, key string) Ticket {
	t.Helper()
	ticket, _, err := o.Add(put(key))
	if err != nil {
		t.Fatalf("Add(%q): %v", key, err)
	}
	return ticket
}

// next takes a batch that must be there.
func next(t *testing.T, o *Outbox) Batch {
	t.Helper()
	b, ok := o.Next(route, 0)
	if !ok {
		t.Fatal("Next has no batch, want one")
	}
	return b
}

func wantNoNext(t *testing.T, o *Outbox) {
	t.Helper()
	if b, ok := o.Next(route, 0); ok {
		t.Fatalf("Next returned the batch from number %d, want none", b.First)
	}
}

func parse(t *testing.T, b Batch) command.Batch {
	t.Helper()
	p, err := command.Parse(b.Data)
	if err != nil {
		t.Fatalf("batch from number %d: %v", b.First, err)
	}
	if p.First != b.First {
		t.Errorf("the header's first number is %d, the batch's %d", p.First, b.First)
	}
	return p
}

func wantKeys(t *testing.T, b Batch, want ...string) {
	t.Helper()
	var got []string
	for _, c := range parse(t, b).All() {
		got = append(got, string(c.Key))
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("batch from number %d has keys %q, want %q", b.First, got, want)
	}
}

// answers returns results that name their number.
func answers(first uint64, n int) []dedup.Result {
	results := make([]dedup.Result, n)
	for i := range results {
		results[i].Revision = 1000 + first + uint64(i)
	}
	return results
}

func resolve(t *testing.T, o *Outbox, b Batch) {
	t.Helper()
	o.Resolve(b.First, answers(b.First, parse(t, b).Len()))
}

func wantRevision(t *testing.T, ticket Ticket, want uint64) {
	t.Helper()
	wantDone(t, ticket)
	if r, err := ticket.Result(); err != nil || r.Revision != want {
		t.Errorf("Result = %+v, %v, want revision %d", r, err, want)
	}
}

func wantDone(t *testing.T, ticket Ticket) {
	t.Helper()
	if !isDone(ticket) {
		t.Fatal("the command waits, want it answered")
	}
}

func wantWaits(t *testing.T, ticket Ticket) {
	t.Helper()
	if isDone(ticket) {
		t.Fatal("the command is answered, want it to wait")
	}
}

func isDone(ticket Ticket) bool {
	select {
	case <-ticket.Done():
		return true
	default:
		return false
	}
}

func wantEmpty(t *testing.T, o *Outbox) {
	t.Helper()
	if n, bytes := o.Waiting(), o.PendingBytes(); n != 0 || bytes != 0 {
		t.Errorf("Waiting = %d, PendingBytes = %d, want 0 and 0", n, bytes)
	}
	if len(o.queue)+len(o.flight) != 0 {
		t.Errorf("%d batches are queued and %d in flight, want none", len(o.queue), len(o.flight))
	}
}

func firsts(batches []Batch) []uint64 {
	var f []uint64
	for _, b := range batches {
		f = append(f, b.First)
	}
	return f
}

func wantDue(t *testing.T, o *Outbox, r Route, now uint64, local bool, want ...uint64) {
	t.Helper()
	if got := firsts(o.Due(r, now, local)); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Due(%+v, %d, local %v) = %v, want %v", r, now, local, got, want)
	}
}

func TestManyAddsMakeOneBatch(t *testing.T) {
	o := newOutbox(nil)
	var tickets []Ticket
	for i := range 100 {
		ticket, idle, err := o.Add(put(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if idle != (i == 0) {
			t.Errorf("command %d: idle = %v, want %v", i, idle, i == 0)
		}
		tickets = append(tickets, ticket)
	}
	b := next(t, o)
	p := parse(t, b)
	if p.Len() != 100 || p.Origin != origin || p.First != 1 || p.AnsweredTo != 0 {
		t.Errorf("batch of %d, header %+v, want 100 from 1, none answered", p.Len(), p.Header)
	}
	wantNoNext(t, o)
	for _, ticket := range tickets {
		wantWaits(t, ticket)
	}
	resolve(t, o, b)
	for i, ticket := range tickets {
		wantRevision(t, ticket, 1001+uint64(i))
	}
	wantEmpty(t, o)
}

func TestAddCopiesTheCommand(t *testing.T) {
	o := newOutbox(nil)
	c := put("key")
	if _, _, err := o.Add(c); err != nil {
		t.Fatal(err)
	}
	clear(c.Key)
	clear(c.Value)
	wantKeys(t, next(t, o), "key")
}

func TestBatchIsCappedByBytes(t *testing.T) {
	const bytesMax = 200
	o := newOutbox(func(l *Limits) { l.BatchBytesMax, l.WindowMax = bytesMax, 100 })
	for i := range 50 {
		add(t, o, fmt.Sprintf("key %d", i))
	}
	total, batches := 0, 0
	for b, ok := o.Next(route, 0); ok; b, ok = o.Next(route, 0) {
		resolve(t, o, b)
		n := parse(t, b).Len()
		if len(b.Data) > bytesMax || n < 2 {
			t.Errorf("batch of %d commands and %d bytes, want several and at most %d", n, len(b.Data), bytesMax)
		}
		total += n
		batches++
	}
	if total != 50 || batches < 5 {
		t.Errorf("%d commands in %d batches, want 50 in several", total, batches)
	}
}

func TestBatchIsCappedByCount(t *testing.T) {
	o := newOutbox(nil)
	for range command.BatchCommandsMax + 1 {
		add(t, o, "k")
	}
	if n := parse(t, next(t, o)).Len(); n != command.BatchCommandsMax {
		t.Errorf("the first batch has %d commands, want %d", n, command.BatchCommandsMax)
	}
	if n := parse(t, next(t, o)).Len(); n != 1 {
		t.Errorf("the second batch has %d commands, want 1", n)
	}
}

func TestBatchHoldsOneCommandWhateverItsSize(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 100 })
	large := &command.Command{Op: command.Put, Key: []byte("large"), Value: make([]byte, 1<<20)}
	add(t, o, "before")
	if _, _, err := o.Add(large); err != nil {
		t.Fatal(err)
	}
	add(t, o, "after")
	wantKeys(t, next(t, o), "before")
	wantKeys(t, next(t, o), "large")
	wantKeys(t, next(t, o), "after")
}

func TestNumbersAreConsecutiveAndNeverReused(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.WindowMax = 1 })
	want := uint64(1)
	for round := range 20 {
		var tickets []Ticket
		for i := range round%4 + 1 {
			tickets = append(tickets, add(t, o, fmt.Sprint(i)))
		}
		gone := 0
		if round%3 == 2 {
			o.Abandon(tickets[0])
			gone = 1
		}
		b, ok := o.Next(route, 0)
		if len(tickets) == gone {
			if ok {
				t.Fatalf("round %d: a batch came, want none", round)
			}
			continue
		}
		if !ok || b.First != want {
			t.Fatalf("round %d: Next = first %d, %v, want %d", round, b.First, ok, want)
		}
		if n := parse(t, b).Len(); n != len(tickets)-gone {
			t.Fatalf("round %d: %d commands, want %d", round, n, len(tickets)-gone)
		}
		want += uint64(len(tickets) - gone)
		if round%2 == 0 {
			resolve(t, o, b)
			continue
		}
		for _, ticket := range tickets[gone:] {
			o.Abandon(ticket) // sent: the numbers are gone with it
		}
	}
	wantEmpty(t, o)
}

func TestHeaderSaysUpToWhereAllIsAnswered(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax, l.WindowMax = 1, 10 })
	for i := range 6 {
		add(t, o, fmt.Sprint(i))
	}
	b1, b2, b3 := next(t, o), next(t, o), next(t, o)
	for _, b := range []Batch{b1, b2, b3} {
		if got := parse(t, b).AnsweredTo; got != 0 {
			t.Errorf("batch from number %d: answered to %d, want 0", b.First, got)
		}
	}
	resolve(t, o, b2) // 1 is not answered: the watermark stays
	if got := parse(t, next(t, o)).AnsweredTo; got != 0 {
		t.Errorf("number 1 waits: answered to %d, want 0", got)
	}
	resolve(t, o, b1)
	if got := parse(t, next(t, o)).AnsweredTo; got != 2 {
		t.Errorf("1 and 2 are answered, 3 waits: answered to %d, want 2", got)
	}
	resolve(t, o, b3)
	o.Resolve(4, answers(4, 1))
	o.Resolve(5, answers(5, 1))
	if got := parse(t, next(t, o)).AnsweredTo; got != 5 {
		t.Errorf("1 to 5 are answered: answered to %d, want 5", got)
	}
}

func TestWindowBoundsTheBatchesInFlight(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax, l.WindowMax = 1, 3 })
	for i := range 5 {
		add(t, o, fmt.Sprint(i))
	}
	b1, b2 := next(t, o), next(t, o)
	next(t, o)
	wantNoNext(t, o)
	resolve(t, o, b2)
	next(t, o)
	wantNoNext(t, o)
	resolve(t, o, b1)
	next(t, o)
	wantNoNext(t, o)
}

func TestThirdBatchAtOnceIsAsLargeAsTheSecond(t *testing.T) {
	o := newOutbox(nil)
	wantWake := func(key string, want bool) {
		t.Helper()
		if _, wake, err := o.Add(put(key)); wake != want || err != nil {
			t.Errorf("Add(%q) = wake %v, %v, want %v", key, wake, err, want)
		}
	}
	wantWake("a", true)
	first := next(t, o)
	wantWake("b", true)
	wantWake("c", false)
	wantWake("d", false)
	wantKeys(t, next(t, o), "b", "c", "d")
	wantWake("e", true)
	wantNoNext(t, o)
	wantWake("f", false)
	wantWake("g", true)
	wantKeys(t, next(t, o), "e", "f", "g")
	wantWake("h", true)
	wantNoNext(t, o)
	resolve(t, o, first)
	if o.IsDue() {
		t.Error("two batches of three are in flight, and one of one is due")
	}
	o.Resolve(2, answers(2, 3))
	if !o.IsDue() {
		t.Error("one batch is in flight, and another waits")
	}
	wantKeys(t, next(t, o), "h")
}

func TestCommandsGatherWhileTheWindowIsFull(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.WindowMax = 1 })
	add(t, o, "first")
	b := next(t, o)
	for _, key := range []string{"a", "b", "c"} {
		add(t, o, key)
		wantNoNext(t, o)
	}
	resolve(t, o, b)
	wantKeys(t, next(t, o), "a", "b", "c")
}

func TestTooManyBytesAreOverloaded(t *testing.T) {
	size := int64(put("k").Size())
	o := newOutbox(func(l *Limits) { l.PendingBytesMax = 3 * size })
	for range 3 {
		add(t, o, "k")
	}
	_, _, err := o.Add(put("k"))
	if !errors.Is(err, fault.ErrOverloaded) || !strings.Contains(err.Error(), fmt.Sprint(3*size)) {
		t.Errorf("Add = %v, want ErrOverloaded that names %d bytes", err, 3*size)
	}
	if got := o.PendingBytes(); got != 3*size {
		t.Errorf("PendingBytes = %d after a refusal, want %d", got, 3*size)
	}
	b := next(t, o)
	if _, _, err := o.Add(put("k")); !errors.Is(err, fault.ErrOverloaded) {
		t.Errorf("Add = %v while all are in flight, want ErrOverloaded", err)
	}
	resolve(t, o, b)
	add(t, o, "k")
}

func TestTooManyCommandsAreOverloaded(t *testing.T) {
	o := newOutbox(nil)
	c := &command.Command{Op: command.Delete, Key: []byte("k")}
	most := dedup.Window - command.BatchCommandsMax
	for i := range most {
		if _, _, err := o.Add(c); err != nil {
			t.Fatalf("Add number %d: %v", i, err)
		}
	}
	_, _, err := o.Add(c)
	if !errors.Is(err, fault.ErrOverloaded) || !strings.Contains(err.Error(), fmt.Sprint(most)) {
		t.Errorf("Add = %v, want ErrOverloaded that names %d writes", err, most)
	}
	if o.Waiting() != most {
		t.Errorf("Waiting = %d, want %d", o.Waiting(), most)
	}
}

func TestNumbersStayWithinTheWindowOfTheTable(t *testing.T) {
	o := newOutbox(nil)
	stuck := add(t, o, "stuck")
	oldest := next(t, o)
	c := &command.Command{Op: command.Delete, Key: []byte("k")}
	highest := oldest.First
	for stopped := false; !stopped; {
		for range command.BatchCommandsMax {
			if _, _, err := o.Add(c); err != nil {
				t.Fatal(err)
			}
		}
		b, ok := o.Next(route, 0)
		if stopped = !ok; stopped {
			break
		}
		p := parse(t, b)
		highest = b.First + uint64(p.Len()) - 1
		if highest-p.AnsweredTo > dedup.Window {
			t.Fatalf("number %d is sent with answered to %d, want at most %d above", highest, p.AnsweredTo, dedup.Window)
		}
		resolve(t, o, b)
	}
	if highest+command.BatchCommandsMax <= dedup.Window {
		t.Errorf("it stopped at number %d, want it to use the window of %d", highest, dedup.Window)
	}
	wantWaits(t, stuck)
	resolve(t, o, oldest)
	if b := next(t, o); b.First != highest+1 || parse(t, b).AnsweredTo != highest {
		t.Errorf("the next batch is from %d with answered to %d, want %d and %d", b.First, parse(t, b).AnsweredTo, highest+1, highest)
	}
}

func TestCommandAbandonedBeforeItsBatchWasTakenIsNeverSent(t *testing.T) {
	keys := []string{"a", "b", "c", "d", "e"}
	for gone := range 1<<len(keys) - 1 {
		o := newOutbox(nil)
		var tickets []Ticket
		for _, key := range keys {
			tickets = append(tickets, add(t, o, key))
		}
		var kept []string
		for i, key := range keys {
			if gone&(1<<i) == 0 {
				kept = append(kept, key)
			} else if o.Abandon(tickets[i]) {
				t.Errorf("gone %05b: Abandon says that %q was sent", gone, key)
			}
		}
		if o.Waiting() != len(kept) {
			t.Errorf("gone %05b: Waiting = %d, want %d", gone, o.Waiting(), len(kept))
		}
		b := next(t, o)
		wantKeys(t, b, kept...)
		if want := int64(len(b.Data) - command.HeaderBytes); o.PendingBytes() != want {
			t.Errorf("gone %05b: PendingBytes = %d, want those in flight: %d", gone, o.PendingBytes(), want)
		}
		resolve(t, o, b)
		want := uint64(1001)
		for i := range keys {
			if gone&(1<<i) == 0 {
				wantRevision(t, tickets[i], want)
				want++
			}
		}
		wantEmpty(t, o)
	}
}

// Without a leader nothing takes batches, and callers come, time out and come
// again: what they leave behind must not stay.
func TestAbandonedCommandsKeepNoMemory(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1000 })
	for range 100 {
		var tickets []Ticket
		for range 50 {
			tickets = append(tickets, add(t, o, "key"))
		}
		for _, ticket := range tickets {
			o.Abandon(ticket)
		}
	}
	if len(o.queue) > 1 {
		t.Errorf("%d batches of abandoned commands are queued, want none", len(o.queue))
	}
	wantNoNext(t, o)
	wantEmpty(t, o)
}

// One caller that stays must not let others, who come and go, gather more in
// its batch than is accounted for.
func TestPendingBytesCoverWhatIsHeld(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.PendingBytesMax = 4000 })
	add(t, o, "stays")
	for range 1000 {
		ticket, _, err := o.Add(put("goes"))
		if err == nil {
			o.Abandon(ticket)
		} else if !errors.Is(err, fault.ErrOverloaded) {
			t.Fatal(err)
		}
	}
	held := int64(0)
	for _, b := range o.queue {
		held += int64(len(b.data) - command.HeaderBytes)
	}
	if held > 4000 {
		t.Errorf("%d bytes are held with a limit of 4000", held)
	}
	b := next(t, o)
	wantKeys(t, b, "stays")
	if want := int64(put("stays").Size()); o.PendingBytes() != want {
		t.Errorf("PendingBytes = %d in flight, want %d", o.PendingBytes(), want)
	}
	resolve(t, o, b)
	wantEmpty(t, o)
}

func TestIdleIsToldAgainAfterAllWereAbandoned(t *testing.T) {
	o := newOutbox(nil)
	o.Abandon(add(t, o, "gone"))
	if _, idle, err := o.Add(put("k")); err != nil || !idle {
		t.Errorf("Add = idle %v, %v, want idle: nothing else waits", idle, err)
	}
}

func TestAbandonAfterSendingReportsSent(t *testing.T) {
	o := newOutbox(nil)
	gone, stays := add(t, o, "gone"), add(t, o, "stays")
	b := next(t, o)
	if !o.Abandon(gone) {
		t.Error("Abandon of a sent command = false, want true")
	}
	if got := firsts(o.Due(other, 0, false)); len(got) != 1 {
		t.Errorf("Due = %v, want the batch that somebody still waits for", got)
	}
	resolve(t, o, b)
	wantRevision(t, stays, 1002)
	if !o.Abandon(stays) {
		t.Error("Abandon of an answered command = false, want true")
	}
	wantEmpty(t, o)
}

func TestWatermarkMovesOverAnAbandonedBatch(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1 })
	first, second := add(t, o, "a"), add(t, o, "b")
	b1, b2 := next(t, o), next(t, o)
	o.Abandon(first)
	wantDue(t, o, other, 0, false, b2.First)
	add(t, o, "c")
	if got := parse(t, next(t, o)).AnsweredTo; got != b1.First {
		t.Errorf("answered to %d, want the abandoned %d", got, b1.First)
	}
	o.Resolve(b1.First, answers(b1.First, 1)) // it took effect after all: nobody waits
	o.Abandon(second)
	o.Resolve(3, answers(3, 1))
	wantEmpty(t, o)
}

func TestBatchesThatWentAnotherRouteAreDue(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1 })
	add(t, o, "a")
	add(t, o, "b")
	b1, b2 := next(t, o), next(t, o)
	for _, local := range []bool{false, true} {
		wantDue(t, o, route, 1, local)
		o.Due(other, 1, local)
		wantDue(t, o, Route{other.Leader, other.Term + 1}, 1, local, b1.First, b2.First)
		wantDue(t, o, Route{other.Leader, other.Term + 1}, 1, local)
		o.Due(route, 1, local)
	}
}

func TestDueBatchIsTheSameBytes(t *testing.T) {
	o := newOutbox(nil)
	o.Abandon(add(t, o, "gone"))
	add(t, o, "a")
	o.Abandon(add(t, o, "gone too"))
	b := next(t, o)
	sent := string(b.Data)
	add(t, o, "b")
	again := o.Due(other, 0, false)
	if len(again) != 1 || string(again[0].Data) != sent || again[0].First != b.First {
		t.Errorf("the batch was sent again as %x, want %x", again, sent)
	}
}

func TestRetryTakesTwiceAsLongEachTime(t *testing.T) {
	o := newOutbox(nil) // 10 ticks
	add(t, o, "a")
	b := next(t, o)
	now := uint64(0)
	for _, wait := range []uint64{10, 20, 40, 80, 160, 160, 160} {
		wantDue(t, o, route, now+wait-1, false)
		now += wait
		wantDue(t, o, route, now, false, b.First)
	}
}

func TestLocalLeaderHoldsTheBatchAlready(t *testing.T) {
	o := newOutbox(nil)
	add(t, o, "a")
	b := next(t, o)
	wantDue(t, o, route, 1_000_000, true)
	wantDue(t, o, route, 1_000_000, false, b.First)
}

func TestRefusedBatchIsDueAfterItsPause(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1 })
	add(t, o, "a")
	add(t, o, "b")
	next(t, o)
	b2 := next(t, o)
	o.Refused(b2.First, 5)
	o.Refused(99, 0) // not ours
	wantDue(t, o, route, 4, true)
	wantDue(t, o, route, 5, true, b2.First)
	wantDue(t, o, route, 6, true)
}

// Who hands leadership over refuses what comes meanwhile. The next leader is
// known long before the pause is over.
func TestRefusedBatchGoesToTheNextLeaderAtOnce(t *testing.T) {
	o := newOutbox(nil)
	add(t, o, "a")
	b := next(t, o)
	o.Refused(b.First, 5)
	wantDue(t, o, route, 1, false)
	other := Route{Leader: route.Leader + 1, Term: route.Term + 1}
	wantDue(t, o, other, 1, false, b.First)
	wantDue(t, o, other, 5, false) // it was not refused there
}

func TestCutOffMakesAllDue(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1 })
	add(t, o, "a")
	add(t, o, "b")
	b1, b2 := next(t, o), next(t, o)
	o.Refused(b2.First, 100)
	o.CutOff()
	wantDue(t, o, route, 0, false, b1.First, b2.First)
	wantDue(t, o, route, 0, false)
}

func TestResolveOfUnknownOrAnsweredBatchIsIgnored(t *testing.T) {
	o := newOutbox(nil)
	ticket := add(t, o, "a")
	o.Resolve(1, answers(1, 1)) // not taken yet
	b := next(t, o)
	o.Resolve(7, answers(7, 1))
	wantWaits(t, ticket)
	resolve(t, o, b)
	o.Resolve(b.First, []dedup.Result{{Revision: 5}})
	wantRevision(t, ticket, 1001)
	wantEmpty(t, o)
}

func TestResultCarriesTheMismatch(t *testing.T) {
	o := newOutbox(nil)
	a, b := add(t, o, "a"), add(t, o, "b")
	next(t, o)
	o.Resolve(1, []dedup.Result{{Revision: 3, Mismatch: true}, {Revision: 4}})
	if r, err := a.Result(); err != nil || !r.Mismatch || r.Revision != 3 {
		t.Errorf("Result = %+v, %v, want a mismatch at 3", r, err)
	}
	wantRevision(t, b, 4)
}

func TestResolveFromTable(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 2 * put("a").Size() })
	o.limits.BatchBytesMax += command.HeaderBytes
	var tickets []Ticket
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		tickets = append(tickets, add(t, o, key))
	}
	o.Abandon(tickets[1])
	for range 4 {
		next(t, o)
	}
	// Numbers: a 1 | c 2, d 3 | e 4, f 5 | g 6, h 7.
	table := dedup.New()
	table.Retain([]uint64{origin})
	for _, n := range []uint64{1, 2, 3, 4} {
		table.Record(origin, n, dedup.Result{Revision: 1000 + n})
	}
	o.ResolveFrom(table)
	wantRevision(t, tickets[0], 1001)
	wantRevision(t, tickets[2], 1002)
	wantRevision(t, tickets[3], 1003)
	for _, i := range []int{4, 5, 6} { // e, f in part, g not at all
		wantWaits(t, tickets[i])
	}
	wantDue(t, o, other, 0, false, 4, 6)
	table.Record(origin, 5, dedup.Result{Revision: 1005})
	o.ResolveFrom(table)
	wantRevision(t, tickets[4], 1004)
	wantRevision(t, tickets[5], 1005)
	wantWaits(t, tickets[6])
	o.Resolve(6, answers(6, 2))
	wantEmpty(t, o)
}

func TestResolveFromTableThatKnowsUsNotLeavesAll(t *testing.T) {
	o := newOutbox(nil)
	ticket := add(t, o, "a")
	next(t, o)
	o.ResolveFrom(dedup.New())
	wantWaits(t, ticket)
	wantDue(t, o, other, 0, false, 1)
}

func TestFailAnswersEverything(t *testing.T) {
	o := newOutbox(func(l *Limits) { l.BatchBytesMax = 1 })
	sent, unsent, gone := add(t, o, "sent"), add(t, o, "unsent"), add(t, o, "gone")
	next(t, o)
	o.Abandon(gone)
	o.Fail(errStopped)
	o.Fail(errors.New("later"))
	wantDone(t, sent)
	wantDone(t, unsent)
	_, err := sent.Result()
	if !errors.Is(err, errStopped) || !errors.Is(err, fault.ErrOutcomeUnknown) {
		t.Errorf("sent: %v, want the cause and ErrOutcomeUnknown", err)
	}
	if err != nil && (!strings.Contains(err.Error(), "stopped") || !strings.Contains(err.Error(), "outcome unknown")) {
		t.Errorf("sent: the text %q does not say what happened", err)
	}
	if _, err := unsent.Result(); !errors.Is(err, errStopped) || errors.Is(err, fault.ErrOutcomeUnknown) {
		t.Errorf("unsent: %v, want the cause alone", err)
	}
	if _, _, err := o.Add(put("late")); err != errStopped {
		t.Errorf("Add after Fail = %v, want the cause", err)
	}
	o.Resolve(1, answers(1, 1))
	o.Abandon(unsent)
	o.Abandon(sent)
	wantNoNext(t, o)
	wantEmpty(t, o)
}

// TestRoomOfABatchIsUsedAgain: of what was answered, unless others may still read it.
func TestRoomOfABatchIsUsedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		send func(t *testing.T, o *Outbox) Batch
		want bool
	}{
		"proposed here": {next, true},
		"sent to another member": {func(_ *testing.T, o *Outbox) Batch {
			b, _ := o.Next(other, 0)
			return b
		}, false},
		"proposed again after a refusal": {func(t *testing.T, o *Outbox) Batch {
			o.Refused(next(t, o).First, 1)
			return o.Due(route, 1, true)[0]
		}, false},
		"proposed again in another term": {func(t *testing.T, o *Outbox) Batch {
			next(t, o)
			return o.Due(Route{Leader: origin, Term: 2}, 1, true)[0]
		}, false},
		"first proposed, then sent": {func(t *testing.T, o *Outbox) Batch {
			next(t, o)
			return o.Due(other, 1, false)[0]
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(nil)
			add(t, o, "a")
			b := test.send(t, o)
			was := bytes.Clone(b.Data)
			add(t, o, "b")
			wantKeys(t, next(t, o), "b")
			if !bytes.Equal(b.Data, was) {
				t.Fatal("the bytes of a batch in flight have changed")
			}
			resolve(t, o, b)
			ticket := add(t, o, "c")
			if again := !bytes.Equal(b.Data, was); again != test.want {
				t.Errorf("its bytes were used again: %v, want %v", again, test.want)
			}
			last := next(t, o)
			wantKeys(t, last, "c")
			resolve(t, o, last)
			wantRevision(t, ticket, 1000+last.First)
		})
	}
}

// TestRoomOfAnAbandonedBatchIsNotUsedAgain: it may not have been proposed yet.
func TestRoomOfAnAbandonedBatchIsNotUsedAgain(t *testing.T) {
	o := newOutbox(nil)
	ticket := add(t, o, "a")
	b := next(t, o)
	o.Abandon(ticket)
	add(t, o, "b")
	wantKeys(t, b, "a")
}

// TestFewRoomsAreKept: as many as batches may be in flight, and none that is large.
func TestFewRoomsAreKept(t *testing.T) {
	o := newOutbox(nil)
	for range roomy.WindowMax + 1 {
		o.reuse(&batch{data: make([]byte, command.HeaderBytes)})
	}
	if len(o.rooms) != roomy.WindowMax {
		t.Errorf("%d rooms are kept, want %d", len(o.rooms), roomy.WindowMax)
	}
	o = newOutbox(nil)
	if o.reuse(&batch{data: make([]byte, roomBytesMax+1)}); len(o.rooms) > 0 {
		t.Error("a large room is kept")
	}
}
