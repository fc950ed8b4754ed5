package raftkv

import (
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/roster"
)

// entryOverheadBytes is what an entry costs beside its data.
const entryOverheadBytes = 128

// A storage is the raft log of one incarnation, in memory: raft.MemoryStorage
// with an account of its bytes, compaction by bytes, and snapshots on demand.
//
// All that raft calls stable goes through save, before any message that
// promises it is sent: a durable log can be put behind it.
//
// It belongs to the loop's goroutine, so the lock in MemoryStorage is never
// contended.
type storage struct {
	*raft.MemoryStorage
	maxBytes int64

	bytes int64
	sizes []int64 // of the entries after first, in order
	first uint64  // the index before that of sizes[0]

	handle *snapshotHandle // the newest frozen state, nil if there is none
	want   bool            // raft has asked for a newer one
	roster func() *roster.Roster
	pins   map[uint64]*pin // by raft ID of the receiver
}

// A snapshotHandle is a frozen state of the state machine, as of one index.
// It is immutable; whoever sends it holds it, and the garbage collector does
// the rest.
type snapshotHandle struct {
	index, term uint64
	roster      *roster.Roster
	revision    uint64
	view        *keyspace.View
	dedup       *dedup.Table
	hash        uint64
}

// A pin keeps the log behind a snapshot that is on its way, so that the
// receiver can go on from there, and then behind what the receiver has, until that
// is near the end of the log.
type pin struct {
	index uint64
	until uint64 // the tick at which it falls unless the receiver has gone on
	falls int    // how often the log outgrew it
}

func newStorage(maxBytes int64, current func() *roster.Roster) *storage {
	return &storage{
		MemoryStorage: raft.NewMemoryStorage(), maxBytes: maxBytes,
		roster: current, pins: make(map[uint64]*pin),
	}
}

// found makes the log begin behind a first snapshot that carries the first
// membership (raft-guide section 6.1).
func (s *storage) found(r *roster.Roster, term uint64) error {
	if r.Index == 0 {
		panic("raftkv: BUG: founding at index 0") // a joiner could elect itself alone
	}
	err := s.install(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: proto.Uint64(r.Index), Term: proto.Uint64(term), ConfState: r.Conf,
	}})
	if err != nil {
		return err
	}
	return s.SetHardState(&pb.HardState{Term: proto.Uint64(term), Commit: proto.Uint64(r.Index)})
}

// save makes stable what a Ready holds, in the order raft wants.
func (s *storage) save(rd raft.Ready) error {
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := s.install(rd.Snapshot); err != nil {
			return err
		}
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		if err := s.SetHardState(rd.HardState); err != nil {
			return fmt.Errorf("raftkv: save hard state: %w", err)
		}
	}
	return s.append(rd.Entries)
}

func (s *storage) install(snap *pb.Snapshot) error {
	if err := s.ApplySnapshot(snap); err != nil {
		return fmt.Errorf("raftkv: install snapshot %d: %w", snap.GetMetadata().GetIndex(), err)
	}
	s.first, s.sizes, s.bytes = snap.GetMetadata().GetIndex(), nil, 0
	s.handle = nil
	return nil
}

// append adds entries, in place of those that they conflict with.
func (s *storage) append(entries []*pb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := s.Append(entries); err != nil {
		return fmt.Errorf("raftkv: append entries: %w", err)
	}
	if at := entries[0].GetIndex() - s.first - 1; at < uint64(len(s.sizes)) {
		for _, n := range s.sizes[at:] {
			s.bytes -= n
		}
		s.sizes = s.sizes[:at]
	}
	for _, e := range entries {
		n := int64(len(e.GetData())) + entryOverheadBytes
		s.sizes = append(s.sizes, n)
		s.bytes += n
	}
	return nil
}

// compact drops the oldest entries once the log is larger than its limit: down
// to three quarters, so that the copy which MemoryStorage makes is rare. It
// keeps what has not been applied and, up to four times the limit, what a
// snapshot on its way needs. It returns the receivers that lost their pin.
func (s *storage) compact(applied, now uint64) (fallen []uint64) {
	if s.bytes <= s.maxBytes {
		return nil
	}
	upTo := applied
	for _, id := range slices.Sorted(maps.Keys(s.pins)) { // in order, so that a run can be replayed
		p := s.pins[id]
		switch {
		case p.index == 0: // fallen already
		case now > p.until || s.bytes > 4*s.maxBytes:
			p.index = 0
			p.falls++
			fallen = append(fallen, id)
		default:
			upTo = min(upTo, p.index)
		}
	}
	index, bytes := s.first, s.bytes
	for index < upTo && bytes > s.maxBytes/4*3 {
		bytes -= s.sizes[index-s.first]
		index++
	}
	if index == s.first {
		return fallen
	}
	if err := s.Compact(index); err != nil {
		panic(fmt.Sprintf("raftkv: BUG: compact to %d: %v", index, err))
	}
	s.sizes = append([]int64(nil), s.sizes[index-s.first:]...)
	s.first, s.bytes = index, bytes
	if s.handle != nil && !s.isUsable(s.handle) {
		s.handle = nil
	}
	return fallen
}

// pin keeps the log behind index for a receiver until a tick.
func (s *storage) pin(raftID, index, until uint64) {
	p := s.pins[raftID]
	if p == nil {
		p = new(pin)
		s.pins[raftID] = p
	}
	p.index, p.until = index, until
}

// unpin ends a receiver's pin: it has caught up, or it has gone.
func (s *storage) unpin(raftID uint64) {
	delete(s.pins, raftID)
	if len(s.pins) == 0 {
		s.handle = nil // frees the memory that it keeps
	}
}

// isNearEnd reports whether so little of the log is behind an index that a member
// which replicates from there will be gone on before a compaction takes it.
func (s *storage) isNearEnd(index uint64) bool {
	if index < s.first {
		return false
	}
	behind := int64(0)
	for _, n := range s.sizes[min(index-s.first, uint64(len(s.sizes))):] {
		if behind += n; behind > s.maxBytes/2 {
			return false // asked every tick, and the log may have a million entries
		}
	}
	return true
}

// isPinned reports whether a snapshot is on its way, or has just arrived.
func (s *storage) isPinned(now uint64) bool {
	for _, p := range s.pins {
		if p.index != 0 && now <= p.until {
			return true
		}
	}
	return false
}

// falls returns how often a receiver has lost its pin since it last had caught up.
func (s *storage) falls(raftID uint64) int {
	if p := s.pins[raftID]; p != nil {
		return p.falls
	}
	return 0
}

// Snapshot is called by raft for a member that needs entries which are gone.
// It returns a descriptor; the state itself never goes through raft, which
// would copy it again and again. Without a usable handle it asks for one: raft
// calls again with the next heartbeat response.
func (s *storage) Snapshot() (*pb.Snapshot, error) {
	if s.handle == nil || !s.isUsable(s.handle) {
		s.want = true
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: proto.Uint64(s.handle.index), Term: proto.Uint64(s.handle.term), ConfState: s.handle.roster.Conf,
	}}, nil
}

// isUsable reports whether a receiver can go on from a handle: the log still
// follows on it, and it knows the membership in force, since a member that is
// not in the snapshot's configuration ignores it for ever (etcd-io/etcd#13741).
func (s *storage) isUsable(h *snapshotHandle) bool {
	return h.index >= s.first && h.roster.Index == s.roster().Index
}
