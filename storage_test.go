package raftkv

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

const testNonce = "0123456789abcdef"

// testRoster returns the founding membership of members 1 to size.
func testRoster(size int) *roster.Roster {
	var members []roster.Member
	for id := 1; id <= size; id++ {
		members = append(members, roster.Member{RaftID: roster.RaftID(uint64(id), 0), Addr: fmt.Sprintf("n%d:1", id), Nonce: testNonce})
	}
	return roster.Found(testNonce, members)
}

// foundedStorage returns the log of a member that has just been founded, and
// the membership in force, which the test may change.
func foundedStorage(t *testing.T, maxBytes int64) (*storage, **roster.Roster) {
	t.Helper()
	current := testRoster(3)
	s := newStorage(maxBytes, func() *roster.Roster { return current })
	if err := s.found(current, 1); err != nil {
		t.Fatal(err)
	}
	return s, &current
}

func entries(first, term uint64, sizes ...int) []*pb.Entry {
	var es []*pb.Entry
	for i, size := range sizes {
		es = append(es, &pb.Entry{Index: proto.Uint64(first + uint64(i)), Term: proto.Uint64(term), Data: make([]byte, size)})
	}
	return es
}

func sizes(n, each int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = each
	}
	return s
}

func appendEntries(t *testing.T, s *storage, es []*pb.Entry) {
	t.Helper()
	if err := s.save(raft.Ready{Entries: es}); err != nil {
		t.Fatal(err)
	}
}

// recount counts the bytes of all entries that are there.
func recount(t *testing.T, s raft.Storage) (bytes int64) {
	t.Helper()
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	if first > last {
		return 0
	}
	es, err := s.Entries(first, last+1, math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		bytes += int64(len(e.GetData())) + entryOverheadBytes
	}
	return bytes
}

// wantSameLog compares two logs from outside.
func wantSameLog(t *testing.T, got, want raft.Storage) {
	t.Helper()
	gotFirst, _ := got.FirstIndex()
	wantFirst, _ := want.FirstIndex()
	gotLast, _ := got.LastIndex()
	wantLast, _ := want.LastIndex()
	if gotFirst != wantFirst || gotLast != wantLast {
		t.Fatalf("log from %d to %d, want %d to %d", gotFirst, gotLast, wantFirst, wantLast)
	}
	for i := wantFirst - min(wantFirst, 2); i <= wantLast+1; i++ {
		gotTerm, gotErr := got.Term(i)
		wantTerm, wantErr := want.Term(i)
		if gotTerm != wantTerm || gotErr != wantErr {
			t.Fatalf("Term(%d) = %d, %v, want %d, %v", i, gotTerm, gotErr, wantTerm, wantErr)
		}
	}
	for _, lo := range []uint64{wantFirst - 1, wantFirst, (wantFirst + wantLast) / 2, wantLast} {
		for _, maxSize := range []uint64{0, 500, math.MaxUint64} {
			gotEntries, gotErr := got.Entries(lo, wantLast+1, maxSize)
			wantEntries, wantErr := want.Entries(lo, wantLast+1, maxSize)
			if gotErr != wantErr || !slices.EqualFunc(gotEntries, wantEntries, func(a, b *pb.Entry) bool { return proto.Equal(a, b) }) {
				t.Fatalf("Entries(%d, %d, %d): %d entries, %v, want %d, %v", lo, wantLast+1, maxSize, len(gotEntries), gotErr, len(wantEntries), wantErr)
			}
		}
	}
	gotHard, gotConf, _ := got.InitialState()
	wantHard, wantConf, _ := want.InitialState()
	if !proto.Equal(gotHard, wantHard) || !proto.Equal(gotConf, wantConf) {
		t.Fatalf("initial state %v, %v, want %v, %v", gotHard, gotConf, wantHard, wantConf)
	}
}

// A logDriver does to a storage and to its model what a raft would.
type logDriver struct {
	t       *testing.T
	rng     *rand.Rand
	s       *storage
	model   *raft.MemoryStorage
	term    uint64
	applied uint64
	now     uint64
}

func (d *logDriver) last() uint64 {
	last, _ := d.model.LastIndex()
	return last
}

// step does one random thing and returns its name.
func (d *logDriver) step() string {
	d.t.Helper()
	d.now++
	switch n := d.rng.IntN(20); {
	case n < 9:
		return d.append(d.last() + 1)
	case n < 12: // a new leader overwrites what is not committed
		d.term++
		return d.append(d.applied + 1 + d.rng.Uint64N(d.last()-d.applied+1))
	case n < 14:
		d.applied += d.rng.Uint64N(d.last() - d.applied + 1)
		return fmt.Sprintf("applied %d", d.applied)
	case n < 17:
		return d.compact()
	case n < 18:
		index := d.applied - d.rng.Uint64N(min(d.applied, 20))
		d.s.pin(uint64(d.rng.IntN(3)), index, d.now+d.rng.Uint64N(30))
		return fmt.Sprintf("pin %d", index)
	case n < 19:
		d.s.unpin(uint64(d.rng.IntN(3)))
		return "unpin"
	}
	return d.install()
}

func (d *logDriver) append(at uint64) string {
	var lens []int
	for range 1 + d.rng.IntN(5) {
		lens = append(lens, d.rng.IntN(300))
	}
	es := entries(at, d.term, lens...)
	hard := &pb.HardState{Term: proto.Uint64(d.term), Commit: proto.Uint64(d.applied)}
	if err := errors.Join(d.s.save(raft.Ready{Entries: es, HardState: hard}), d.model.Append(es), d.model.SetHardState(hard)); err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprintf("append %d entries at %d in term %d", len(es), at, d.term)
}

// compact checks what compaction may do, and has the model do the same.
func (d *logDriver) compact() string {
	d.t.Helper()
	first, before := d.s.first, d.s.bytes
	fallen := d.s.compact(d.applied, d.now)
	name := fmt.Sprintf("compact %d bytes from %d to %d, applied %d", before, first, d.s.first, d.applied)
	if len(fallen) > 0 && before <= d.s.maxBytes {
		d.t.Fatalf("%s: pins %v fell within the limit", name, fallen)
	}
	if d.s.first > d.applied {
		d.t.Fatalf("%s: beyond what is applied", name)
	}
	for id, p := range d.s.pins {
		if p.index != 0 && d.s.first > p.index && first <= p.index {
			d.t.Fatalf("%s: beyond the pin of %d at %d", name, id, p.index)
		}
	}
	if d.s.first == first {
		return name
	}
	if err := d.model.Compact(d.s.first); err != nil {
		d.t.Fatalf("%s: %v", name, err)
	}
	return name
}

func (d *logDriver) install() string {
	index := d.last() + 1 + d.rng.Uint64N(10)
	d.term++
	snap := &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: proto.Uint64(index), Term: proto.Uint64(d.term), ConfState: testRoster(1 + d.rng.IntN(5)).Conf,
	}}
	es := entries(index+1, d.term, sizes(d.rng.IntN(3), 100)...)
	hard := &pb.HardState{Term: proto.Uint64(d.term), Commit: proto.Uint64(index)}
	err := errors.Join(d.s.save(raft.Ready{Snapshot: snap, HardState: hard, Entries: es}),
		d.model.ApplySnapshot(snap), d.model.SetHardState(hard), d.model.Append(es))
	if err != nil {
		d.t.Fatal(err)
	}
	d.applied = index
	return fmt.Sprintf("install at %d with %d entries", index, len(es))
}

func TestStorageIsAMemoryStorageThatCounts(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s, _ := foundedStorage(t, 3000)
			model := raft.NewMemoryStorage()
			err := model.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: testRoster(3).Conf}})
			if err := errors.Join(err, model.SetHardState(&pb.HardState{Term: proto.Uint64(1), Commit: proto.Uint64(1)})); err != nil {
				t.Fatal(err)
			}
			d := &logDriver{t: t, rng: rand.New(rand.NewPCG(seed, 1)), s: s, model: model, term: 1, applied: 1}
			var names []string
			for range 150 {
				names = append(names, d.step())
				wantSameLog(t, s, model)
				if got, want := s.bytes, recount(t, s); got != want {
					t.Fatalf("the log counts %d bytes and has %d after %q", got, want, names)
				}
			}
		})
	}
}

func TestFoundedLogBeginsBehindASnapshot(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	hard, conf, _ := s.InitialState()
	if first != 2 || last != 1 || hard.GetCommit() != 1 || hard.GetTerm() != 1 || !roster.SameConf(conf, (*current).Conf) {
		t.Errorf("log from %d to %d, hard state %v, configuration %v, want 2 to 1, term and commit 1, the founders", first, last, hard, conf)
	}
}

func TestCompactionGoesDownToThreeQuarters(t *testing.T) {
	const each, maxBytes = 1000, 20_000
	s, _ := foundedStorage(t, maxBytes)
	appendEntries(t, s, entries(2, 1, sizes(maxBytes/each, each-entryOverheadBytes)...))
	if s.compact(1_000_000, 0); s.first != 1 {
		t.Fatalf("compacted to %d with %d bytes of %d, want nothing before the limit", s.first, s.bytes, maxBytes)
	}
	appendEntries(t, s, entries(22, 1, each-entryOverheadBytes))
	s.compact(22, 0)
	if s.bytes != maxBytes*3/4 || s.first != 7 {
		t.Errorf("%d bytes after %d, want three quarters of %d, after 7", s.bytes, s.first, maxBytes)
	}
}

func TestCompactionKeepsWhatIsNotApplied(t *testing.T) {
	s, _ := foundedStorage(t, 1000)
	appendEntries(t, s, entries(2, 1, sizes(50, 1000)...))
	s.compact(1, 0)
	if s.first != 1 {
		t.Errorf("compacted to %d, but only 1 is applied", s.first)
	}
	s.compact(10, 0)
	if s.first != 10 {
		t.Errorf("compacted to %d, want up to the applied 10", s.first)
	}
	if _, err := s.Entries(11, 52, math.MaxUint64); err != nil {
		t.Errorf("entries that are not applied: %v", err)
	}
}

func TestPinKeepsTheLogUpToFourTimesTheLimit(t *testing.T) {
	const each, maxBytes, receiver = 1000, 10_000, 77
	s, _ := foundedStorage(t, maxBytes)
	appendEntries(t, s, entries(2, 1, sizes(20, each-entryOverheadBytes)...))
	s.pin(receiver, 5, 100)
	if fallen := s.compact(21, 1); len(fallen) != 0 || s.first != 5 {
		t.Fatalf("compacted to %d, fallen %v, want up to the pin at 5", s.first, fallen)
	}
	appendEntries(t, s, entries(22, 1, sizes(24, each-entryOverheadBytes)...)) // 40,000 bytes
	if fallen := s.compact(45, 2); len(fallen) != 0 || s.first != 5 || s.falls(receiver) != 0 {
		t.Fatalf("compacted to %d, fallen %v at four times the limit, want the pin to hold", s.first, fallen)
	}
	appendEntries(t, s, entries(46, 1, 0))
	if fallen := s.compact(46, 3); !slices.Equal(fallen, []uint64{receiver}) || s.bytes > maxBytes || s.falls(receiver) != 1 {
		t.Fatalf("%d bytes, fallen %v, %d falls beyond four times the limit, want the pin to fall once", s.bytes, fallen, s.falls(receiver))
	}
	appendEntries(t, s, entries(47, 1, sizes(50, each)...))
	if fallen := s.compact(96, 4); len(fallen) != 0 || s.falls(receiver) != 1 {
		t.Errorf("fallen %v, %d falls: a pin that fell falls again", fallen, s.falls(receiver))
	}
	s.pin(receiver, 96, 100) // the next snapshot
	appendEntries(t, s, entries(97, 1, sizes(50, each)...))
	if s.compact(146, 5); s.falls(receiver) != 2 {
		t.Errorf("%d falls after the second, want 2", s.falls(receiver))
	}
	s.unpin(receiver)
	if s.falls(receiver) != 0 {
		t.Errorf("%d falls of a receiver that has gone, want 0", s.falls(receiver))
	}
}

func TestPinFallsWhenItsTimeIsOver(t *testing.T) {
	s, _ := foundedStorage(t, 1000)
	appendEntries(t, s, entries(2, 1, sizes(3, 300)...))
	s.pin(7, 2, 10)
	if fallen := s.compact(4, 10); len(fallen) != 0 || s.first != 2 {
		t.Errorf("fallen %v, log after %d at the pin's last tick, want it to hold", fallen, s.first)
	}
	appendEntries(t, s, entries(5, 1, 500))
	if fallen := s.compact(5, 11); len(fallen) != 1 || s.first == 2 {
		t.Errorf("fallen %v, log after %d past the pin's time, want it to fall", fallen, s.first)
	}
}

func TestLowestOfSeveralPinsCounts(t *testing.T) {
	s, _ := foundedStorage(t, 2000)
	appendEntries(t, s, entries(2, 1, sizes(10, 300)...))
	s.pin(7, 6, 100)
	s.pin(8, 3, 100)
	if s.compact(11, 1); s.first != 3 {
		t.Errorf("compacted to %d, want the lower pin, 3", s.first)
	}
	s.unpin(8)
	if s.compact(11, 2); s.first != 6 {
		t.Errorf("compacted to %d, want the pin that is left, 6", s.first)
	}
}

func TestTheEndOfTheLogIsHalfOfItsLimit(t *testing.T) {
	const each, maxBytes = 1000, 10_000
	s, _ := foundedStorage(t, maxBytes)
	if !s.isNearEnd(1) {
		t.Error("the end of an empty log is far from it")
	}
	appendEntries(t, s, entries(2, 1, sizes(20, each-entryOverheadBytes)...)) // up to 21
	s.compact(18, 0)                                                          // up to 14
	for index, want := range map[uint64]bool{21: true, 17: true, 16: true, 15: false, 14: false, 13: false} {
		if got := s.isNearEnd(index); got != want {
			t.Errorf("log from %d to 21: %d is near its end: %v, want %v", s.first+1, index, got, want)
		}
	}
	s.maxBytes = 1 << 20
	if s.isNearEnd(13) {
		t.Error("an index is near the end of a log that no longer follows on it")
	}
}

func TestSnapshotAsksForAHandleFirst(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	if snap, err := s.Snapshot(); snap != nil || err != raft.ErrSnapshotTemporarilyUnavailable {
		t.Errorf("Snapshot = %v, %v, want it to be unavailable for now", snap, err)
	}
	if !s.want {
		t.Error("no handle was asked for")
	}
	s.handle = &snapshotHandle{index: 1, term: 1, roster: *current}
	s.want = false
	snap, err := s.Snapshot()
	if err != nil || s.want {
		t.Fatalf("Snapshot = %v, wants another %v; a good handle is there", err, s.want)
	}
	meta := snap.GetMetadata()
	if meta.GetIndex() != 1 || meta.GetTerm() != 1 || !roster.SameConf(meta.GetConfState(), (*current).Conf) || len(snap.GetData()) != 0 {
		t.Errorf("snapshot %v, want a descriptor of the handle without data", snap)
	}
}

func TestHandleOlderThanTheMembershipIsRefused(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	s.handle = &snapshotHandle{index: 1, term: 1, roster: *current}
	next, err := (*current).Apply((*current).AddLearner(testNonce, 4, "n4:1", testNonce), 2)
	if err != nil {
		t.Fatal(err)
	}
	*current = next
	if snap, err := s.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable || !s.want {
		t.Errorf("Snapshot = %v, %v: the receiver is not in it and would ignore it for ever", snap, err)
	}
}

func TestHandleOlderThanTheLogIsRefusedAndFreed(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	appendEntries(t, s, entries(2, 1, sizes(10, 300)...))
	s.handle = &snapshotHandle{index: 8, term: 1, roster: *current}
	s.compact(8, 0)
	if _, err := s.Snapshot(); err != nil {
		t.Fatalf("log after %d, handle at 8: %v", s.first, err)
	}
	appendEntries(t, s, entries(12, 1, sizes(10, 300)...))
	s.compact(21, 0)
	if s.handle != nil {
		t.Error("the log no longer follows on the handle, which keeps its memory")
	}
	if _, err := s.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable || !s.want {
		t.Errorf("Snapshot = %v, asks %v, want to ask for another handle", err, s.want)
	}
}

func TestHandleGoesWithTheLastPin(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	s.handle = &snapshotHandle{index: 1, term: 1, roster: *current}
	s.pin(7, 1, 100)
	s.pin(8, 1, 100)
	if s.unpin(7); s.handle == nil {
		t.Error("the handle went while a receiver needs it")
	}
	if s.unpin(8); s.handle != nil {
		t.Error("the handle stays when nobody needs it")
	}
}

func TestInstallForgetsTheLogAndTheHandle(t *testing.T) {
	s, current := foundedStorage(t, 1000)
	appendEntries(t, s, entries(2, 1, 100, 100))
	s.handle = &snapshotHandle{index: 2, term: 1, roster: *current}
	snap := &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: proto.Uint64(50), Term: proto.Uint64(3), ConfState: (*current).Conf}}
	if err := s.save(raft.Ready{Snapshot: snap}); err != nil {
		t.Fatal(err)
	}
	if s.handle != nil || s.bytes != 0 || s.first != 50 {
		t.Errorf("handle %v, %d bytes after %d, want none after 50", s.handle, s.bytes, s.first)
	}
	err := s.save(raft.Ready{Snapshot: snap})
	if !errors.Is(err, raft.ErrSnapOutOfDate) || !strings.Contains(err.Error(), "50") {
		t.Errorf("install of the same again = %v, want ErrSnapOutOfDate that names it", err)
	}
}
