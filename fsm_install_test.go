package raftkv

import (
	"bytes"
	"slices"
	"testing"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/snapshot"
)

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
	round, _ := late.reads.Join(0)
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
