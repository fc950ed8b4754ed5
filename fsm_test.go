package raftkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/encoding/protowire"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
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

// A logMaker makes seeded random logs of all that can be in one.
type logMaker struct {
	rng    *rand.Rand
	roster *roster.Roster
	index  uint64
	next   map[uint64]uint64 // by origin: the next number
	batch  [][]byte          // all so far, to be retried
}

func randomLog(seed uint64, n int) []task {
	m := &logMaker{rng: rand.New(rand.NewPCG(seed, 1)), roster: testRoster(3), index: 1, next: make(map[uint64]uint64)}
	var log []task
	for range n {
		m.index++
		log = append(log, m.task())
	}
	return log
}

func (m *logMaker) task() task {
	t := task{index: m.index, term: 1 + m.index/20}
	switch n := m.rng.IntN(20); {
	case n == 0: // empty: a new leader's
	case n == 1:
		t.roster = m.change()
	case n < 6 && len(m.batch) > 0:
		t.data = m.batch[m.rng.IntN(len(m.batch))]
	default:
		t.data = m.newBatch()
	}
	return t
}

// change adds a learner or removes the last one.
func (m *logMaker) change() *roster.Roster {
	id := fmt.Sprintf("%016d", m.index)
	cc := m.roster.AddLearner(id, 4, "n4:1", testNonce)
	if l, ok := m.roster.Newest(4); ok {
		cc = m.roster.Remove(id, l.RaftID)
	}
	next, err := m.roster.Apply(cc, m.index)
	if err != nil {
		panic(err)
	}
	m.roster = next
	return next
}

func (m *logMaker) newBatch() []byte {
	origins := append(m.roster.RaftIDs(), 9<<32|9) // one who is no member
	origin := origins[m.rng.IntN(len(origins))]
	first := m.next[origin] + 1
	h := command.Header{Origin: origin, First: first, AnsweredTo: m.rng.Uint64N(first)}
	if m.rng.IntN(30) == 0 {
		h.First += dedup.Window // beyond what an origin may send
	}
	var cs []command.Command
	for range 1 + m.rng.IntN(5) {
		cs = append(cs, m.command())
	}
	if h.First == first {
		m.next[origin] += uint64(len(cs))
	}
	data := batchOf(h, cs...)
	m.batch = append(m.batch, data)
	return data
}

func (m *logMaker) command() command.Command {
	key := fmt.Sprint("key", m.rng.IntN(12))
	c := putOf(key, strings.Repeat("v", m.rng.IntN(30)))
	if m.rng.IntN(3) == 0 {
		c = deleteOf(key)
	}
	if m.rng.IntN(3) == 0 {
		c = onlyIf(m.rng.Uint64N(m.index), c)
	}
	return c
}

// A naiveFSM says in the fewest words what a log means.
type naiveFSM struct {
	revision uint64
	keys     map[string]KeyValue
	seen     map[uint64]map[uint64]bool // by origin and number
	answered map[uint64]uint64          // by origin
}

func newNaiveFSM() *naiveFSM {
	n := &naiveFSM{keys: make(map[string]KeyValue), seen: make(map[uint64]map[uint64]bool), answered: make(map[uint64]uint64)}
	n.retain(testRoster(3))
	return n
}

func (n *naiveFSM) retain(r *roster.Roster) {
	for _, id := range r.RaftIDs() {
		if n.seen[id] == nil {
			n.seen[id] = make(map[uint64]bool)
		}
	}
	maps.DeleteFunc(n.seen, func(id uint64, _ map[uint64]bool) bool { return !slices.Contains(r.RaftIDs(), id) })
}

func (n *naiveFSM) apply(t task) {
	if t.roster != nil {
		n.retain(t.roster)
	}
	if len(t.data) == 0 {
		return
	}
	b, err := command.Parse(t.data)
	if err != nil {
		panic(err)
	}
	seen := n.seen[b.Origin]
	if seen == nil {
		return
	}
	n.answered[b.Origin] = max(n.answered[b.Origin], b.AnsweredTo)
	for number, c := range b.All() {
		if answered := n.answered[b.Origin]; number <= answered || number > answered+dedup.Window || seen[number] {
			continue
		}
		seen[number] = true
		current := n.keys[string(c.Key)]
		switch {
		case c.Conditional && c.IfRevision != current.Revision:
		case c.Op == command.Put:
			n.revision++
			n.keys[string(c.Key)] = KeyValue{string(c.Key), bytes.Clone(c.Value), n.revision}
		case current.Revision != 0:
			n.revision++
			delete(n.keys, string(c.Key))
		}
	}
}

func TestStateAgreesWithTheNaiveOne(t *testing.T) {
	for seed := range uint64(30) {
		f, n := newTestFSM(testOrigins[0]), newNaiveFSM()
		for _, entry := range randomLog(seed, 200) {
			applyAll(t, f, entry)
			n.apply(entry)
			if f.revision != n.revision || f.keys.Len() != len(n.keys) {
				t.Fatalf("seed %d, entry %d: revision %d with %d keys, want %d with %d", seed, entry.index, f.revision, f.keys.Len(), n.revision, len(n.keys))
			}
		}
		for key, want := range n.keys {
			item, ok := f.get(key)
			if !ok || item.Revision != want.Revision || !bytes.Equal(item.Value, want.Value) {
				t.Fatalf("seed %d: key %q is %+v, %v, want %+v", seed, key, item, ok, want)
			}
		}
	}
}

func TestSameLogSameBytes(t *testing.T) {
	for seed := range uint64(30) {
		log := randomLog(seed, 200)
		one := newTestFSM(testOrigins[0])
		applyAll(t, one, log...)
		rng := rand.New(rand.NewPCG(seed, 2))
		other := newTestFSM(testOrigins[1]) // on another member
		for rest := log; len(rest) > 0; {
			n := 1 + rng.IntN(min(len(rest), 10))
			chunk := slices.Clone(rest[:n])
			rest = rest[n:]
			if rng.IntN(3) == 0 { // snapshots leave no trace
				chunk = slices.Insert(chunk, rng.IntN(n+1), task{freeze: true})
			}
			applyAll(t, other, chunk...)
		}
		i, revision, hash := one.status()
		j, otherRevision, otherHash := other.status()
		if i != j || revision != otherRevision || hash != otherHash {
			t.Fatalf("seed %d: index %d, revision %d, hash %x, and in other chunks %d, %d, %x", seed, i, revision, hash, j, otherRevision, otherHash)
		}
		if !bytes.Equal(stateBytes(one), stateBytes(other)) {
			t.Fatalf("seed %d: the same log made other snapshots", seed)
		}
		if one.applied.Load() != i || one.stateBytes.Load() != one.keys.Bytes() {
			t.Errorf("seed %d: applied %d and %d bytes are shown, want %d and %d", seed, one.applied.Load(), one.stateBytes.Load(), i, one.keys.Bytes())
		}
	}
}

func TestHashCoversEverything(t *testing.T) {
	base := func() *fsm {
		f := newTestFSM(testOrigins[0])
		applyAll(t, f, task{index: 2, term: 1, data: batchOf(command.Header{Origin: testOrigins[0], First: 1}, putOf("k", "v"))})
		return f
	}
	want := base().hash()
	if got := base().hash(); got != want {
		t.Fatalf("hash %x and %x of equal states", got, want)
	}
	for name, edit := range map[string]func(f *fsm){
		"value":     func(f *fsm) { f.keys.Put([]byte("k"), []byte("w"), 1) },
		"key":       func(f *fsm) { f.keys.Put([]byte("l"), []byte("v"), 1) },
		"revision":  func(f *fsm) { f.revision++ },
		"watermark": func(f *fsm) { f.dedup.Advance(testOrigins[1], 1) },
		"result":    func(f *fsm) { f.dedup.Record(testOrigins[1], 1, dedup.Result{}) },
		"member":    func(f *fsm) { f.roster = testRoster(2) },
	} {
		f := base()
		if edit(f); f.hash() == want {
			t.Errorf("another %s does not change the hash", name)
		}
	}
}

func TestRevisionCountsWritesThatChangeState(t *testing.T) {
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
	item, ok := f.get("a")
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
	if item, _ := f.get("a"); string(item.Value) != "x" {
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
	round, _, _ := f.reads.Join()
	f.reads.Confirm(f.reads.Issue(0), 2)
	seen := make(chan string)
	go func() {
		<-ticket.Done()
		<-round.Done()
		item, _ := f.get("k")
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

func TestFreezeIsOfItsPlaceInTheLog(t *testing.T) {
	log := randomLog(3, 50)
	f := newTestFSM(testOrigins[0])
	tasks := slices.Insert(slices.Clone(log), 20, task{freeze: true})
	frozen := applyAll(t, f, append(tasks, task{freeze: true})...)
	if len(frozen) != 2 {
		t.Fatalf("%d frozen states, want 2", len(frozen))
	}
	for i, n := range []int{20, 50} {
		want := newTestFSM(testOrigins[0])
		applyAll(t, want, log[:n]...)
		h := frozen[i]
		if h.index != want.index || h.term != want.term || h.revision != want.revision || h.hash != want.hash() || !h.roster.Equal(want.roster) {
			t.Errorf("frozen at %d, revision %d, hash %x, want %d, %d, %x", h.index, h.revision, h.hash, want.index, want.revision, want.hash())
		}
		if h.view.Hash() != want.keys.Hash() || h.dedup.Hash() != want.dedup.Hash() {
			t.Errorf("the state frozen at %d changed later", h.index)
		}
	}
}

// staged returns a state as a receiver stages it.
func staged(t *testing.T, h *snapshotHandle) *stagedSnapshot {
	t.Helper()
	b := snapshot.NewBuilder(uint64(h.view.Len()), uint64(h.view.DataBytes()))
	for part := range snapshot.Parts(h.view, h.dedup, 512) {
		if err := b.Add(part); err != nil {
			t.Fatal(err)
		}
	}
	keys, table, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return &stagedSnapshot{index: h.index, term: h.term, roster: h.roster, revision: h.revision, keys: keys, dedup: table}
}

func TestInstallReplacesEverything(t *testing.T) {
	for seed := range uint64(10) {
		log := randomLog(seed, 150)
		ahead := newTestFSM(testOrigins[0])
		frozen := applyAll(t, ahead, append(slices.Clone(log[:100]), task{freeze: true})...)[0]
		late := newTestFSM(testOrigins[1])
		applyAll(t, late, log[:10]...)
		applyAll(t, late, task{index: 11, term: 1, data: batchOf(command.Header{Origin: testOrigins[2], First: 60_000}, putOf("only here", "v"))})
		s := staged(t, frozen)
		applyAll(t, late, append([]task{{index: s.index, term: s.term, install: s}}, log[100:]...)...)
		applyAll(t, ahead, log[100:]...)
		if !bytes.Equal(stateBytes(late), stateBytes(ahead)) {
			t.Fatalf("seed %d: the member that got a snapshot has another state", seed)
		}
		if late.applied.Load() != ahead.applied.Load() || late.stateBytes.Load() != ahead.stateBytes.Load() {
			t.Errorf("seed %d: applied %d and %d bytes are shown, want %d and %d",
				seed, late.applied.Load(), late.stateBytes.Load(), ahead.applied.Load(), ahead.stateBytes.Load())
		}
	}
}

func TestInstallAnswersPendingWritesFromTheTable(t *testing.T) {
	ahead, late := newTestFSM(testOrigins[0]), newTestFSM(testOrigins[1])
	var tickets []outbox.Ticket
	var batches []outbox.Batch
	for _, key := range []string{"a", "b", "c"} {
		c := onlyIf(0, putOf("same", key))
		ticket, _, err := late.out.Add(&c)
		if err != nil {
			t.Fatal(err)
		}
		b, ok := late.out.Next(outbox.Route{Leader: 1, Term: 1}, 0)
		if !ok {
			t.Fatal("no batch")
		}
		tickets, batches = append(tickets, ticket), append(batches, b)
	}
	round, _, _ := late.reads.Join()
	late.reads.Confirm(late.reads.Issue(0), 3)
	h := applyAll(t, ahead, task{index: 2, term: 1, data: batches[0].Data}, task{index: 3, term: 1, data: batches[1].Data}, task{freeze: true})[0]
	s := staged(t, h)
	applyAll(t, late, task{index: s.index, term: s.term, install: s})
	for i, want := range []dedup.Result{{Revision: 1}, {Revision: 1, Mismatch: true}} {
		select {
		case <-tickets[i].Done():
		default:
			t.Fatalf("write %d is in the snapshot and not answered", i)
		}
		if r, err := tickets[i].Result(); err != nil || r != want {
			t.Errorf("write %d: %+v, %v, want %+v", i, r, err, want)
		}
	}
	select {
	case <-tickets[2].Done():
		t.Error("a write that is not in the snapshot is answered")
	default:
	}
	select {
	case <-round.Done():
	default:
		t.Error("a read at an index that the snapshot has reached waits")
	}
	applyAll(t, late, task{index: 4, term: 1, data: batches[2].Data})
	if r, err := tickets[2].Result(); err != nil || !r.Mismatch {
		t.Errorf("write 2: %+v, %v, want a mismatch", r, err)
	}
}

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

func TestListingNeverChanges(t *testing.T) {
	for _, n := range []int{0, 1, collectMax, collectMax + 1, 3 * collectMax} {
		t.Run(fmt.Sprint(n, " keys"), func(t *testing.T) {
			f := newTestFSM(testOrigins[0])
			var want []KeyValue
			for i := range n {
				key := fmt.Sprintf("p/%05d", i)
				f.revision++
				f.keys.Put([]byte(key), []byte("old"), f.revision)
				want = append(want, KeyValue{key, []byte("old"), f.revision})
			}
			f.keys.Put([]byte("other"), nil, 1)
			l := f.list("p/", "", 0)
			for i, kv := range want {
				if i%2 == 0 {
					f.keys.Delete([]byte(kv.Key))
				} else {
					f.keys.Put([]byte(kv.Key), []byte("new"), f.revision+1)
				}
			}
			f.keys.Put([]byte("p/new"), nil, f.revision+2)
			f.revision += 2
			if l.Revision != uint64(n) {
				t.Errorf("listing at revision %d, want %d", l.Revision, n)
			}
			for range 2 { // it can be read again
				got := slices.Collect(l.All())
				if !slices.EqualFunc(got, want, func(a, b KeyValue) bool {
					return a.Key == b.Key && a.Revision == b.Revision && bytes.Equal(a.Value, b.Value)
				}) {
					t.Fatalf("%d keys, want the %d as they were", len(got), len(want))
				}
			}
		})
	}
}

func TestListKeepsToPrefixLimitAndAfter(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	for i := range 3 * collectMax {
		f.keys.Put(fmt.Appendf(nil, "k%05d", i), nil, 1)
	}
	f.keys.Put([]byte("a"), nil, 1)
	for _, c := range []struct {
		prefix, after string
		limit, want   int
		first         string
	}{
		{"", "", 0, 3*collectMax + 1, "a"},
		{"k", "", 0, 3 * collectMax, "k00000"},
		{"k", "k00009", 5, 5, "k00010"},
		{"k", "k00009", collectMax, collectMax, "k00010"},
		{"k", "k00009", collectMax + 1, collectMax + 1, "k00010"},
		{"k0001", "", 0, 10, "k00010"},
		{"k", "z", 0, 0, ""},
		{"none", "", 0, 0, ""},
	} {
		got := slices.Collect(f.list(c.prefix, c.after, c.limit).All())
		if len(got) != c.want || len(got) > 0 && got[0].Key != c.first {
			t.Errorf("list %+v: %d keys", c, len(got))
		}
		if !slices.IsSortedFunc(got, func(a, b KeyValue) int { return strings.Compare(a.Key, b.Key) }) {
			t.Errorf("list %+v is not in order", c)
		}
	}
}

// Readers and the applier at once: for the race detector, and no reader sees
// half an entry.
func TestReadersRunBesideTheApplier(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	donec := make(chan struct{})
	go func() {
		defer close(donec)
		for i := range uint64(300) {
			data := batchOf(command.Header{Origin: testOrigins[1], First: 1 + 2*i, AnsweredTo: 2 * i}, putOf("x", fmt.Sprint(i)), putOf("y", fmt.Sprint(i)))
			if _, err := f.apply([]task{{index: 2 + i, term: 1, data: data}}); err != nil {
				t.Error(err)
			}
		}
	}()
	for running := true; running; {
		select {
		case <-donec:
			running = false
		default:
		}
		got := slices.Collect(f.list("", "", 0).All())
		if len(got) == 2 && !bytes.Equal(got[0].Value, got[1].Value) {
			t.Fatalf("x = %q and y = %q of one entry", got[0].Value, got[1].Value)
		}
		f.status()
	}
}
