package raftkv

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/roster"
)

// backOffMax bounds the pause, two to the power of it in election timeouts, before
// a member that cannot keep up is sent the state again. It must not be long: what
// kept it back may have ended.
const backOffMax = 3

// pinElections is how many election timeouts the log is kept for a receiver
// after its snapshot has arrived: until then it has sent its first answer.
const pinElections = 5

// The life of a snapshot, as the loop sees it. Raft asks the storage for one;
// the applier freezes the state at its index; raft sends MsgSnap; the transport
// streams the frozen state and says when the receiver's raft has it. At the
// receiver the whole state arrives and is checked before raft hears of it.

// sendSnapshot starts to send a state to a member.
func (l *loop) sendSnapshot(m *pb.Message) {
	to, h := m.GetTo(), l.log.handle
	if h == nil || h.index != m.GetSnapshot().GetMetadata().GetIndex() || l.links.sending[to] ||
		l.now < l.snaps.again[to] || !l.net.sendSnapshot(m, h) {
		l.raw.ReportSnapshot(to, raft.SnapshotFailure) // raft asks again with the next heartbeat
		return
	}
	l.log.pin(to, h.index, l.pinUntil())
	l.links.sending[to] = true
	if over := l.log.falls(to) - snapshotFallsMax; over >= 0 { // it cannot keep up: not the whole state all the time
		l.snaps.again[to] = l.now + uint64(l.cfg.Timing.electionTicks())<<min(over+1, backOffMax)
	}
	l.logger.Info("sending snapshot", "to", roster.MemberID(to), "index", h.index, "keys", h.view.Len(), "bytes", h.view.DataBytes())
}

func (l *loop) pinUntil() uint64 { return l.now + pinElections*uint64(l.cfg.Timing.electionTicks()) }

// snapshotSent takes the outcome of sendSnapshot.
func (l *loop) snapshotSent(to uint64, err error) {
	delete(l.links.sending, to)
	status := raft.SnapshotFinish
	if err != nil {
		status = raft.SnapshotFailure
		again := l.now + uint64(l.cfg.Timing.electionTicks()) // it may be receiving another's
		l.snaps.again[to] = max(l.snaps.again[to], again)
		l.logger.Warn("snapshot not sent", "to", roster.MemberID(to), "err", err)
	}
	if _, ok := l.roster.Lookup(to); ok {
		l.raw.ReportSnapshot(to, status)
	}
}

// frozen takes the state that the applier has frozen.
func (l *loop) frozen(h *snapshotHandle) {
	if l.recover != nil {
		if h.index >= l.recover.last {
			l.goOnRecovering()
		}
		return
	}
	l.log.handle, l.log.want, l.snaps.freezing = h, false, false
	l.snaps.until = l.pinUntil()
	for _, m := range l.roster.Members {
		l.retrySnapshot(m.RaftID)
	}
}

// retrySnapshot has raft send the snapshot that it could not send before. By
// itself it would wait for the member's next answer to a heartbeat; so it is
// given a copy of the last one.
func (l *loop) retrySnapshot(raftID uint64) {
	p := l.Progress(raftID)
	if !l.Leads() || raftID == l.raftID || p.Replicates || !p.Answers || p.Match >= l.log.first {
		return
	}
	_ = l.raw.Step(&pb.Message{ // fails only for messages that no member sends
		Type: pb.MsgHeartbeatResp.Enum(), From: &raftID, To: &l.raftID, Term: &l.lead.term,
	})
}

// tendSnapshots renews the pins of snapshots on their way and ends those that
// have done their work. A receiver that has its snapshot needs the log behind it
// until it has caught up: while much was written meanwhile, a compaction would take
// that away under its hands and it would need the next snapshot. Called every tick.
func (l *loop) tendSnapshots() {
	if l.now > l.snaps.until && !l.log.isPinned(l.now) {
		l.log.handle = nil // whoever asked for it has gone, and it keeps memory
	}
	for id, p := range l.log.pins {
		switch progress := l.Progress(id); {
		case l.lead.raftID != l.raftID:
			l.log.unpin(id)
		case l.links.sending[id]:
			p.until = l.pinUntil()
		case !progress.Replicates:
		case l.log.isNearEnd(progress.Match):
			l.log.unpin(id)
		case p.index != 0 && progress.Match > p.index:
			p.index, p.until = progress.Match, l.pinUntil()
		}
	}
}

// receiveSnapshot takes a state that has arrived whole and correct, and reports
// whether raft took it or had no need of it. An error says that the sender
// broke the protocol.
func (l *loop) receiveSnapshot(m *pb.Message, s *stagedSnapshot) error {
	if !l.runs() || m.GetTo() != l.raftID { // a recovery has made it another
		return fmt.Errorf("%w: this process", ErrNotInitialized)
	}
	l.heard(m.GetFrom())
	l.hear(m)
	if err := firewall.CheckSnapshot(m, l.firewallView()); errors.Is(err, firewall.ErrDrop) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	l.snaps.staged = s
	defer func() { l.snaps.staged = nil }()
	if err := l.raw.Step(m); err != nil {
		return fmt.Errorf("raftkv: step snapshot: %w", err)
	}
	l.process()
	return nil
}

// install puts a received state in the place of ours.
func (l *loop) install(snap *pb.Snapshot) error {
	s, meta := l.snaps.staged, snap.GetMetadata()
	if s == nil || s.index != meta.GetIndex() || s.term != meta.GetTerm() {
		return fmt.Errorf("raftkv: BUG: raft installs a snapshot at %d that was not received", meta.GetIndex())
	}
	l.logger.Info("installing snapshot", "index", s.index, "keys", s.keys.Len())
	l.tasks.push([]task{{index: s.index, term: s.term, install: s}})
	l.change.decided = s.index
	l.setRoster(s.roster)
	return nil
}
