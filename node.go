package raftkv

import (
	"errors"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/raftslog"
	"example.com/raftkv/internal/reads"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	messageBytesMax     = 256 << 10 // of entries in one message, unless one entry is larger
	inflightMessagesMax = 256       // appends on their way to one follower
	inflightBytesMax    = 16 << 20  // likewise; far less than a queue to a member holds
	committedBytesMax   = 16 << 20  // of entries in one Ready
	uncommittedBytesMax = 256 << 20 // backstop: the outboxes' windows bound it before
	batchesMax          = 4         // of one member in flight; more makes batches smaller
	snapshotFallsMax    = 3         // before a learner is called too slow
	eagerTicks          = 2         // for which a member that has sent writes is told everything at once

	// The largest batch that a member makes: full, or one command that is larger.
	// Larger ones must not get into the log, because no frame could carry them.
	batchBytesLegal = command.HeaderBytes + max(batchBytesMax, command.KeyBytesMax+command.ValueBytesMax+command.OverheadMax)
)

// A loop owns the raft state of one node: the RawNode, the log and everything
// tied to their order. One goroutine at a time calls its methods; none of them
// blocks, does I/O or looks at a clock. What it is given, it answers through
// the transport, the task queue and the callbacks of requests, all of which
// return at once.
//
// A round of the loop is takeIn and carryOut: take what has come (messages,
// proposals, hellos, events), tick if it is time, flush, process. Writes go last,
// so that what gathered meanwhile travels in one entry.
//
// Ordering rules, each from raft-guide section 2.1:
//
//  1. What a Ready makes stable is saved before its messages are sent.
//  2. A membership change is applied before Advance of the Ready that commits
//     it; else a joint configuration is never left (etcd-io/etcd#12133).
//  3. Tasks reach the applier in the order of the log.
type loop struct {
	cfg    Config
	logger *slog.Logger
	nonce  string // of this process
	net    transport
	fsm    *fsm
	tasks  *taskQueue
	out    *outbox.Outbox
	reads  *reads.Reads
	show   func(*view) // publishes what callers may see

	now     uint64 // ticks since the start
	raw     *raft.RawNode
	raftID  uint64 // 0 while blank
	log     *storage
	roster  *roster.Roster // as of the last entry that was committed
	founded *roster.Roster // that of the founding, nil if this process was adopted
	change  change
	lead    leadership
	links   links
	snaps   snaps
	health  condition
	recover *recovery // under way, nil if none is
	failed  error     // why the node must stop
}

// A transport carries messages to other members. Its methods return at once;
// what cannot be sent is dropped, and raft sends it again.
type transport interface {
	// connect makes the members given the ones to be linked with, under the
	// identity that this node has from now on.
	connect(self *kvpb.Identity, members []roster.Member)
	// send sends a raft message.
	send(m *pb.Message)
	// forward sends a batch to the leader.
	forward(to uint64, batch outbox.Batch)
	// refuse tells a member that its batch was not taken.
	refuse(to uint64, first uint64)
	// stand tells a member how this one sees the cluster.
	stand(to uint64, s *kvpb.Standing)
	// room says that so many bytes of frames no longer wait for the loop.
	room(bytes int64)
	// redial tries to reach a member at once, unless there is a stream to it.
	redial(raftID uint64)
	// sendSnapshot begins to send a state, and has snapshotSent called in the
	// end. It returns false if as many as allowed are on their way.
	sendSnapshot(m *pb.Message, h *snapshotHandle) bool
}

// become makes a blank node a member: a founder in the term given, or with term
// 0 one that waits for a leader to send it the state.
func (l *loop) become(raftID uint64, r *roster.Roster, term uint64) error {
	if term != 0 {
		l.founded = r
	}
	l.fsm.become(raftID, r.Index, term, r)
	l.out.Become(raftID)
	return l.begin(raftID, r, term)
}

// begin starts raft under a new raft ID: behind a first snapshot at the roster's
// index, which is applied, or with term 0 with nothing.
func (l *loop) begin(raftID uint64, r *roster.Roster, term uint64) (err error) {
	defer func() { l.failed = err }()
	l.raftID, l.roster = raftID, r
	l.log = newStorage(l.cfg.Limits.MaxLogBytes, func() *roster.Roster { return l.roster })
	if term != 0 {
		if err := l.log.found(r, term); err != nil {
			return err
		}
	}
	l.raw, err = raft.NewRawNode(&raft.Config{
		ID: raftID, Storage: l.log, Applied: r.Index,
		ElectionTick: l.cfg.Timing.electionTicks(), HeartbeatTick: l.cfg.Timing.heartbeatTicks(),
		PreVote: true, CheckQuorum: true, StepDownOnRemoval: true, DisableProposalForwarding: true,
		ReadOnlyOption: raft.ReadOnlySafe,
		MaxSizePerMsg:  messageBytesMax, MaxInflightMsgs: inflightMessagesMax, MaxInflightBytes: inflightBytesMax,
		MaxCommittedSizePerReady: committedBytesMax, MaxUncommittedEntriesSize: uncommittedBytesMax,
		Logger: raftslog.New(l.logger),
	})
	if err != nil {
		return fmt.Errorf("raftkv: start raft: %w", err)
	}
	l.change.decided = r.Index
	l.reads.Become(raftID)
	l.connect()
	l.logger.Info("joined", "cluster", clusterIDText(r.ClusterID), "founder", term != 0)
	l.publish()
	return nil
}

// takeIn begins a round: it takes what has come and, if it is time, ticks.
func (l *loop) takeIn(items []func(*loop), tick bool) {
	for _, f := range items {
		f(l)
	}
	if tick {
		l.tick()
	}
}

// carryOut ends a round: it does all that follows from what was taken in. If
// again is true, the next round must not wait for something to come. An error
// says why the node must stop.
func (l *loop) carryOut() (again bool, err error) {
	l.flush()
	l.process()
	switch {
	case l.failed != nil:
		return false, l.failed
	case l.isOver():
		return false, ErrRemoved
	}
	return l.isDue(), nil
}

// runs reports whether there is a raft that may go on: not in a blank process,
// and not while a recovery ends the old one.
func (l *loop) runs() bool { return l.raw != nil && l.recover == nil }

// receive takes messages that a peer has sent and the firewall's first part has
// passed. An error says that the peer broke the protocol, or that it was removed:
// its stream is to be cut.
func (l *loop) receive(from uint64, messages []*pb.Message) error {
	if l.roster.IsRemoved(from) {
		return fmt.Errorf("%w: member %d", ErrRemoved, roster.MemberID(from)) // so it learns of it
	}
	if !l.runs() {
		return nil
	}
	l.heard(from)
	for _, m := range messages {
		if err := l.step(m); err != nil {
			return err
		}
	}
	return nil
}

// receiveAs is receive for a stream that was opened to the raft ID given. After a
// recovery that is another one, of another cluster.
func (l *loop) receiveAs(raftID, from uint64, messages []*pb.Message, s *kvpb.Standing) error {
	if raftID != l.raftID {
		return fmt.Errorf("%w: member %d was made another cluster", ErrMembershipRefused, l.cfg.ID)
	}
	err := l.receive(from, messages)
	if err == nil && s != nil {
		l.standsFor(from, s)
	}
	return err
}

// step lets a message through the firewall and hands it to raft.
func (l *loop) step(m *pb.Message) error {
	v := l.firewallView()
	if err := firewall.Check(m, v); errors.Is(err, firewall.ErrDrop) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if m.GetType() == pb.MsgReadIndex && l.lead.raftID == l.raftID && !l.lead.ready {
		return nil // with one voter raft would answer too early (etcd-io/raft#105); they ask again
	}
	l.hear(m)
	l.answered(m)
	rewrites := firewall.Rewrites(m, v)
	if err := l.raw.Step(m); err != nil {
		l.logger.Debug("message not taken", "type", m.GetType().String(), "from", roster.MemberID(m.GetFrom()), "err", err)
	}
	if rewrites {
		l.process() // the firewall must see the log as it is before the next message
	}
	return nil
}

// firewallView returns what the firewall may know, until the next call.
func (l *loop) firewallView() *firewall.View {
	status, v := l.raw.BasicStatus(), &l.links.view
	v.Self, v.Term, v.Lead, v.Last, v.Commit = l.raftID, status.GetTerm(), status.Lead, l.Last(), status.GetCommit()
	v.ReadsMax = l.links.asked.Max(v.Term)
	if v.TermAt == nil {
		v.TermAt, v.IsVoter = l.termAt, func(raftID uint64) bool { return l.roster.IsVoter(raftID) }
	}
	return v
}

func (l *loop) termAt(index uint64) (uint64, bool) {
	term, err := l.log.Term(index)
	return term, err == nil
}

// proposal takes a batch that another member wants in the log. Batches that are
// not taken are refused, so that the sender tries again.
func (l *loop) proposal(from uint64, batch outbox.Batch) {
	if !l.runs() {
		return
	}
	l.toward(from).eager = l.now + eagerTicks
	if l.lead.raftID != l.raftID || l.tasks.isFull() || l.raw.Propose(batch.Data) != nil {
		l.net.refuse(from, batch.First)
	}
}

// refusedBatch takes a peer's answer that it did not take a batch of ours.
func (l *loop) refusedBatch(first uint64) {
	l.out.Refused(first, l.now+uint64(l.cfg.Timing.heartbeatTicks()))
}

// unreachable takes the news that a link has lost messages.
func (l *loop) unreachable(raftID uint64) {
	l.logger.Debug("messages lost", "to", roster.MemberID(raftID))
	if !l.runs() {
		return
	}
	l.forgetSaid(raftID)
	if _, ok := l.roster.Lookup(raftID); ok {
		l.raw.ReportUnreachable(raftID)
	}
	if raftID == l.lead.raftID {
		l.out.CutOff()
	}
}

// flush hands raft everything of ours that waits: membership changes, read
// confirmations, and last the writes.
func (l *loop) flush() {
	if !l.runs() {
		return
	}
	l.change.stepped = l.change.decided
	l.change.worker.Step(l.now)
	if l.lead.raftID == 0 || l.lead.raftID == l.raftID && !l.lead.ready {
		return
	}
	for context := l.reads.Issue(l.now); context != nil; context = l.reads.Issue(l.now) {
		l.raw.ReadIndex(context)
	}
	l.sendWrites()
}

// sendWrites puts batches into the log, or sends them to the member that can.
func (l *loop) sendWrites() {
	local := l.lead.raftID == l.raftID
	if local && l.tasks.isFull() {
		return
	}
	route := outbox.Route{Leader: l.lead.raftID, Term: l.lead.term}
	for _, batch := range l.out.Due(route, l.now, local) {
		l.sendBatch(batch, local)
	}
	for batch, ok := l.out.Next(route, l.now); ok; batch, ok = l.out.Next(route, l.now) {
		l.sendBatch(batch, local)
	}
}

func (l *loop) sendBatch(batch outbox.Batch, local bool) {
	if !local {
		l.net.forward(l.lead.raftID, batch)
		return
	}
	if err := l.raw.Propose(batch.Data); err != nil {
		l.refusedBatch(batch.First) // dropped, during a transfer of leadership: certainly not in the log
	}
}

// process carries out all that raft has ready. When something fails that must
// not, the loop has failed, and nothing is processed any more.
func (l *loop) process() {
	if !l.runs() || l.failed != nil {
		return
	}
	for l.raw.HasReady() {
		rd := l.raw.Ready()
		if l.failed = l.handle(rd); l.failed != nil {
			return
		}
		l.raw.Advance(rd)
	}
	l.release()
	if l.log.want && !l.snaps.freezing {
		l.snaps.freezing = true
		l.tasks.push([]task{{freeze: true}})
	}
	for _, raftID := range l.log.compact(l.fsm.applied.Load(), l.now) {
		l.logger.Warn("log outgrew the snapshot on its way", "to", roster.MemberID(raftID), "times", l.log.falls(raftID))
	}
}

// handle carries out one Ready. See the rules at loop.
func (l *loop) handle(rd raft.Ready) error {
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := l.install(rd.Snapshot); err != nil {
			return err
		}
	}
	if err := l.log.save(rd); err != nil {
		return err
	}
	if l.change.proposed {
		l.change.proposed, l.change.index = false, l.Last()
	}
	l.observe(rd)
	for _, m := range rd.Messages {
		l.send(m)
	}
	for _, rs := range rd.ReadStates {
		l.reads.Confirm(rs.RequestCtx, rs.Index)
	}
	return l.commit(rd.CommittedEntries)
}

// observe follows leader, state and term.
func (l *loop) observe(rd raft.Ready) {
	changed := false
	if rd.HardState != nil && rd.HardState.GetTerm() != l.lead.term {
		l.lead.term = rd.HardState.GetTerm()
		l.lead.ready, l.lead.begun, changed = false, false, true
	}
	if s := rd.SoftState; s != nil {
		if s.Lead != l.lead.raftID {
			l.logger.Info("leader changed", "leader", roster.MemberID(s.Lead), "term", l.lead.term)
		}
		l.lead.raftID, l.lead.state, changed = s.Lead, s.RaftState, true
		l.lead.ready, l.lead.begun = false, false
	}
	if changed {
		l.change.proposed, l.change.index = false, 0
		l.lead.since, l.lead.told = l.now, false
		l.reads.AskAgain()
		l.forgetTold()
		l.health.doubt()
		l.publish()
	}
}

// commit hands committed entries to the applier. Membership changes are decided
// here, from replicated state alone: all members refuse the same ones.
func (l *loop) commit(entries []*pb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	tasks := make([]task, 0, len(entries))
	for _, e := range entries {
		t := task{index: e.GetIndex(), term: e.GetTerm()}
		switch e.GetType() {
		case pb.EntryNormal:
			t.data = e.GetData()
		case pb.EntryConfChangeV2:
			t.roster = l.changeRoster(e)
		default:
			return fmt.Errorf("raftkv: entry %d has unknown type %v", t.index, e.GetType())
		}
		l.change.decided = t.index
		tasks = append(tasks, t)
	}
	l.tasks.push(tasks)
	if last := entries[len(entries)-1]; !l.lead.begun && last.GetTerm() == l.lead.term {
		l.lead.begun = true
		l.reads.AskAgain() // what came before this is not answered; see step
		if l.lead.raftID == l.raftID {
			l.lead.ready = true
			l.publish()
		}
	}
	return nil
}

// checkBatch checks a batch from a peer before it may be proposed: what is in
// the log must be readable for everybody.
func checkBatch(data []byte, origin uint64) (outbox.Batch, error) {
	if len(data) > batchBytesLegal {
		return outbox.Batch{}, fmt.Errorf("%w: batch of %d bytes", ErrTooLarge, len(data))
	}
	b, err := command.Parse(data)
	if err != nil {
		return outbox.Batch{}, err
	}
	if b.Origin != origin {
		return outbox.Batch{}, fmt.Errorf("%w: batch of raft ID %d from %d", ErrInvalid, b.Origin, origin)
	}
	return outbox.Batch{First: b.First, Data: data}, nil
}
