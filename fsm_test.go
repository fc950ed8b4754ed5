package raftkv

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/reads"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/snapshot"
)

var testOrigins = testRoster(3).RaftIDs()

// newTestFSM returns the state machine of a founder that has applied nothing.
func newTestFSM(origin uint64) *fsm {
	out := outbox.New(outbox.Limits{PendingBytesMax: 1 << 20, BatchBytesMax: 1 << 16, WindowMax: 4, RetryTicks: 10})
	out.Become(origin)
	rounds := reads.New(10)
	rounds.Become(origin)
	f := newFSM(out, rounds)
	f.become(origin, 1, 1, testRoster(3))
	return f
}

func putOf(key, value string) command.Command {
	return command.Command{Op: command.Put, Key: []byte(key), Value: []byte(value)}
}

func deleteOf(key string) command.Command {
	return command.Command{Op: command.Delete, Key: []byte(key)}
}

func onlyIf(revision uint64, c command.Command) command.Command {
	c.Conditional, c.IfRevision = true, revision
	return c
}

func batchOf(h command.Header, cs ...command.Command) []byte {
	data := h.Append(nil)
	for _, c := range cs {
		data = c.Append(data)
	}
	return data
}

func applyAll(t testing.TB, f *fsm, tasks ...task) []*snapshotHandle {
	t.Helper()
	frozen, err := f.apply(tasks)
	if err != nil {
		t.Fatal(err)
	}
	return frozen
}

// applyOwn applies a batch of one command of f's own and returns its result.
func applyOwn(t testing.TB, f *fsm, number uint64, c command.Command) dedup.Result {
	t.Helper()
	a, err := f.applyBatch(batchOf(command.Header{Origin: f.origin, First: number}, c))
	if err != nil || len(a.results) != 1 || a.first != number {
		t.Fatalf("batch from number %d: %+v, %v, want one result", number, a, err)
	}
	return a.results[0]
}

// stateBytes returns all of a state as a snapshot carries it.
func stateBytes(f *fsm) []byte {
	h := f.freeze()
	var all []byte
	for part := range snapshot.Parts(h.view, h.dedup, 1<<20) {
		all = append(all, part...)
	}
	return append(h.roster.Append(all), fmt.Sprintf("%d/%d/%d/%x", h.index, h.term, h.revision, h.hash)...)
}

// itemOf returns a key with its value.
func itemOf(f *fsm, key string) (KeyValue, bool) {
	return f.get(key, keyspace.Hash([]byte(key)), reads.Seat{})
}

func TestOnlyCommandsWithAnEffectRaiseTheRevision(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	for i, c := range []struct {
		name    string
		command command.Command
		want    dedup.Result
	}{
		{"put", putOf("a", "1"), dedup.Result{Revision: 1}},
		{"put of the same value", putOf("a", "1"), dedup.Result{Revision: 2}},
		{"delete of a missing key", deleteOf("x"), dedup.Result{Revision: 2}},
		{"condition that holds", onlyIf(2, putOf("a", "2")), dedup.Result{Revision: 3}},
		{"condition that does not", onlyIf(2, putOf("a", "3")), dedup.Result{Revision: 3, Mismatch: true}},
		{"must not exist, exists", onlyIf(0, putOf("a", "3")), dedup.Result{Revision: 3, Mismatch: true}},
		{"must not exist, does not", onlyIf(0, putOf("b", "1")), dedup.Result{Revision: 4}},
		{"delete with a wrong condition", onlyIf(3, deleteOf("b")), dedup.Result{Revision: 4, Mismatch: true}},
		{"delete of a missing key that must exist", onlyIf(3, deleteOf("x")), dedup.Result{Revision: 4, Mismatch: true}},
		{"delete of a missing key that must not exist", onlyIf(0, deleteOf("x")), dedup.Result{Revision: 4}},
		{"delete with the condition", onlyIf(4, deleteOf("b")), dedup.Result{Revision: 5}},
		{"put after the delete", onlyIf(0, putOf("b", "2")), dedup.Result{Revision: 6}},
		{"delete", deleteOf("b"), dedup.Result{Revision: 7}},
	} {
		if got := applyOwn(t, f, uint64(i+1), c.command); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	item, ok := itemOf(f, "a")
	if !ok || string(item.Value) != "2" || item.Revision != 3 || f.revision != 7 || f.keys.Len() != 1 {
		t.Errorf("a = %+v, %v; revision %d, %d keys, want 2 at 3, 7, 1", item, ok, f.revision, f.keys.Len())
	}
}

func TestEntriesWithoutCommandsOnlyMoveTheIndex(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	hash := f.hash()
	applyAll(t, f, task{index: 2, term: 5})
	if f.index != 2 || f.term != 5 || f.revision != 0 || f.hash() != hash {
		t.Errorf("index %d, term %d, revision %d, want 2, 5, 0 and the same state", f.index, f.term, f.revision)
	}
}

func TestBatchAppliedTwiceHasOneEffect(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	data := batchOf(command.Header{Origin: testOrigins[1], First: 1}, putOf("a", "1"), onlyIf(0, putOf("b", "1")), deleteOf("c"))
	applyAll(t, f, task{index: 2, term: 1, data: data})
	hash := f.hash()
	other := batchOf(command.Header{Origin: testOrigins[2], First: 1}, deleteOf("x"))
	applyAll(t, f, task{index: 3, term: 1, data: data}, task{index: 4, term: 1, data: other}, task{index: 5, term: 2, data: data})
	if f.revision != 2 || f.index != 5 {
		t.Errorf("revision %d at index %d, want 2 at 5", f.revision, f.index)
	}
	if f.hash() == hash {
		t.Error("the other origin's batch left no trace")
	}
}

func TestRepeatedNumbersGetTheirFirstResult(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	data := batchOf(command.Header{Origin: f.origin, First: 1}, putOf("a", "1"), onlyIf(9, putOf("a", "2")))
	want := []dedup.Result{{Revision: 1}, {Revision: 1, Mismatch: true}}
	for range 2 {
		a, err := f.applyBatch(data)
		if err != nil || a.first != 1 || !slices.Equal(a.results, want) {
			t.Fatalf("results %+v, %v, want %+v", a, err, want)
		}
		applyAll(t, f, task{index: f.index + 1, term: 1, data: batchOf(command.Header{Origin: testOrigins[1], First: f.index}, putOf("a", "x"))})
	}
	// Once the origin says that they are answered, a late copy has no answer.
	for answered := range uint64(2) {
		h := command.Header{Origin: f.origin, First: 3 + answered, AnsweredTo: 1 + answered}
		applyAll(t, f, task{index: 9 + answered, term: 1, data: batchOf(h, deleteOf("x"))})
		if a, err := f.applyBatch(data); err != nil || a.results != nil {
			t.Errorf("a late copy of what was answered up to %d: %+v, %v, want no results", h.AnsweredTo, a, err)
		}
	}
	if item, _ := itemOf(f, "a"); string(item.Value) != "x" {
		t.Errorf("a = %q, want x: the late copy took effect", item.Value)
	}
}

func TestStrangersCommandsHaveNoEffect(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	hash := f.hash()
	for _, origin := range []uint64{9<<32 | 9, roster.RaftID(1, 2), 1} {
		applyAll(t, f, task{index: f.index + 1, term: 1, data: batchOf(command.Header{Origin: origin, First: 1}, putOf("a", "1"))})
	}
	if f.hash() != hash || f.index != 4 {
		t.Errorf("state changed, or index %d, want 4", f.index)
	}
	r := testRoster(3)
	next, err := r.Apply(r.Remove(testNonce, testOrigins[2]), 5)
	if err != nil {
		t.Fatal(err)
	}
	data := batchOf(command.Header{Origin: testOrigins[2], First: 1}, putOf("late", "1"))
	applyAll(t, f, task{index: 5, term: 1, roster: next}, task{index: 6, term: 1, data: data})
	if f.revision != 0 || f.roster != next || f.dedup.Knows(testOrigins[2]) {
		t.Errorf("revision %d: a removed member's command took effect", f.revision)
	}
}

func TestCallersAreAnsweredWhenTheirWriteCanBeRead(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	c := putOf("k", "v")
	ticket, _, err := f.out.Add(&c)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := f.out.Next(outbox.Route{Leader: 1, Term: 1}, 0)
	round, _ := f.reads.Join(0)
	f.reads.Confirm(f.reads.Issue(0), 2)
	seen := make(chan string)
	go func() {
		<-ticket.Done()
		<-round.Done()
		item, _ := itemOf(f, "k")
		seen <- string(item.Value)
	}()
	applyAll(t, f, task{index: 2, term: 1, data: b.Data})
	for name, donec := range map[string]<-chan struct{}{"writer": ticket.Done(), "reader": round.Done()} {
		select {
		case <-donec:
		default:
			t.Fatalf("the %s is not answered", name)
		}
	}
	if got := <-seen; got != "v" {
		t.Errorf("the caller reads %q, want v", got)
	}
	if r, err := ticket.Result(); err != nil || r.Revision != 1 {
		t.Errorf("Result = %+v, %v, want revision 1", r, err)
	}
}

// TestCallersOfABatchAreAnsweredAsItIsApplied: in groups, so that those of the first
// go on while the rest is applied. Only the last group waits for the end of the batch.
func TestCallersOfABatchAreAnsweredAsItIsApplied(t *testing.T) {
	const groups = 3
	f := newTestFSM(testOrigins[0])
	var tickets []outbox.Ticket
	for i := range groups * outbox.GroupMax {
		c := putOf(fmt.Sprint("key ", i), "v")
		ticket, _, err := f.out.Add(&c)
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, ticket)
	}
	b, _ := f.out.Next(outbox.Route{Leader: 1, Term: 1}, 0)
	a, err := f.applyBatch(b.Data) // what apply does before it answers the batch
	if err != nil {
		t.Fatal(err)
	}
	for i, ticket := range tickets {
		answered := false
		select {
		case <-ticket.Done():
			answered = true
		default:
		}
		if want := i < (groups-1)*outbox.GroupMax; answered != want {
			t.Fatalf("before the batch is answered, the caller of command %d is: %v, want %v", i, answered, want)
		}
	}
	f.out.Resolve(a.first, a.results)
	for i, ticket := range tickets {
		<-ticket.Done()
		if r, err := ticket.Result(); err != nil || r.Revision != uint64(i)+1 {
			t.Errorf("Result of command %d = %+v, %v, want revision %d", i, r, err, i+1)
		}
	}
}

func TestUnreadableEntryStopsTheApplier(t *testing.T) {
	good := func(first uint64) []byte {
		return batchOf(command.Header{Origin: testOrigins[0], First: first}, putOf(fmt.Sprint(first), "v"))
	}
	version := protowire.AppendVarint([]byte{1 << 3}, command.Version+1)
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"newer format", version, command.ErrVersion},
		{"unknown command", append(batchOf(command.Header{Origin: testOrigins[0], First: 2}), 15<<3|2, 2, 9<<3|2, 0), command.ErrVersion},
		{"garbage", []byte("garbage"), command.ErrMalformed},
		{"cut off", good(2)[:40], command.ErrMalformed},
		{"no commands", batchOf(command.Header{Origin: testOrigins[0], First: 2}), command.ErrMalformed},
	} {
		f := newTestFSM(testOrigins[0])
		k := putOf("1", "v")
		ticket, _, err := f.out.Add(&k)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := f.out.Next(outbox.Route{Leader: 1, Term: 1}, 0)
		_, err = f.apply([]task{{index: 2, term: 1, data: b.Data}, {index: 3, term: 1, data: c.data}, {index: 4, term: 1, data: good(3)}})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "entry 3") {
			t.Errorf("%s: %v, want %v of entry 3", c.name, err, c.want)
		}
		if f.index != 2 || f.applied.Load() != 2 || f.revision != 1 {
			t.Errorf("%s: index %d, shown %d, revision %d, want those before it", c.name, f.index, f.applied.Load(), f.revision)
		}
		select {
		case <-ticket.Done():
		default:
			t.Errorf("%s: the write before it is not answered", c.name)
		}
	}
}

func FuzzApplyEntry(f *testing.F) {
	for _, entry := range randomLog(1, 20) {
		f.Add(entry.data)
	}
	f.Add(protowire.AppendVarint([]byte{1 << 3}, command.Version+1))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newTestFSM(testOrigins[0])
		before := m.hash()
		_, err := m.apply([]task{{index: 2, term: 1, data: data}})
		if err != nil && (m.hash() != before || m.index != 1) {
			t.Errorf("%v, and the state changed", err)
		}
		if err != nil {
			return
		}
		revision := m.revision
		if _, err := m.apply([]task{{index: 3, term: 1, data: data}}); err != nil || m.revision != revision {
			t.Errorf("applied again: %v, revision %d, want none and %d", err, m.revision, revision)
		}
		h := m.freeze()
		b := snapshot.NewBuilder(uint64(h.view.Len()), uint64(h.view.DataBytes()))
		for part := range snapshot.Parts(h.view, h.dedup, 512) {
			if err := b.Add(part); err != nil {
				t.Fatalf("the state does not go through a snapshot: %v", err)
			}
		}
		keys, table, err := b.Finish()
		if err != nil || snapshot.StateHash(keys.Hash(), table.Hash(), h.roster.Hash(), h.revision) != h.hash {
			t.Errorf("the state came through a snapshot as another: %v", err)
		}
	})
}
