package raftkv

import (
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
)

// The loop's part in a membership change: what is committed is applied here,
// and the worker in internal/membership looks at the loop from here.

// changeRoster applies a membership change to raft and to the roster. It
// returns nil if the change is refused; then raft must not hear of it.
func (l *loop) changeRoster(e *pb.Entry) *roster.Roster {
	cc := new(pb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		l.logger.Error("malformed membership change in the log", "index", e.GetIndex(), "err", err)
		return nil
	}
	next, err := l.roster.Apply(cc, e.GetIndex())
	if err != nil {
		l.logger.Debug("membership change refused", "index", e.GetIndex(), "err", err)
		l.change.worker.Refused(roster.ChangeID(cc), err)
		return nil
	}
	l.rest() // to who goes, too: links end with the membership
	conf := l.raw.ApplyConfChange(cc)
	if !roster.SameConf(conf, next.Conf) {
		panic(fmt.Sprintf("raftkv: BUG: raft has configuration %v, the roster %v", conf, next.Conf))
	}
	l.setRoster(next)
	l.leaveInGoodHands()
	l.logger.Info("membership changed", "index", next.Index, "members", membershipText(next))
	return next
}

// leaveInGoodHands hands leadership over if this leader is one of the old voters
// of a joint configuration and none of the new ones. If it led the cluster out
// of the joint phase, it would step down the moment that is committed, before
// the others know; and they could not elect anybody without its vote, which it
// refuses them because its log is longer (a case of etcd-io/etcd#12359). While
// a transfer is under way raft does not leave the joint configuration, so this
// is called before it could, and again on every tick in case the transfer fails.
func (l *loop) leaveInGoodHands() {
	incoming := l.roster.Conf.GetVoters()
	if !l.roster.IsJoint() || l.lead.raftID != l.raftID || slices.Contains(incoming, l.raftID) {
		return
	}
	if to := l.change.worker.Successor(incoming); to != 0 {
		l.Transfer(to)
	}
}

// setRoster takes up a membership.
func (l *loop) setRoster(next *roster.Roster) {
	_, was := l.roster.Lookup(l.raftID)
	l.roster = next
	if _, is := next.Lookup(l.raftID); was && !is {
		l.removed()
	}
	for id := range l.links.guests {
		if _, known := next.Lookup(id); known || next.IsRemoved(id) {
			delete(l.links.guests, id)
		}
	}
	for id := range l.log.pins {
		if _, ok := next.Lookup(id); !ok {
			l.log.unpin(id)
		}
	}
	forgetRemoved(next, l.links.contact)
	forgetRemoved(next, l.links.inPlace)
	forgetRemoved(next, l.links.standing)
	forgetRemoved(next, l.links.lost)
	forgetRemoved(next, l.links.toward)
	forgetRemoved(next, l.snaps.again)
	l.connect()
	l.publish()
}

// removed notes that this node is no member any more. It goes on for an
// election timeout, so that whoever removed it hears of the success, and so
// that others can learn from it what it knows.
func (l *loop) removed() {
	if l.change.gone == 0 {
		l.change.gone = max(l.now, 1)
		l.logger.Info("removed from the cluster")
	}
}

// forgetRemoved deletes what is kept about raft IDs that never come back.
func forgetRemoved[T any](r *roster.Roster, kept map[uint64]T) {
	maps.DeleteFunc(kept, func(raftID uint64, _ T) bool { return r.IsRemoved(raftID) })
}

// connect tells the transport whom to be linked with: not with an earlier
// incarnation of this member, at whose address this process answers.
func (l *loop) connect() {
	members := slices.DeleteFunc(slices.Clone(l.roster.Members), func(m roster.Member) bool { return m.ID() == l.cfg.ID })
	for _, g := range l.links.guests {
		members = append(members, g)
	}
	l.net.connect(l.identity(), members)
}

// successor returns the member ID of the best voter to lead after this leader,
// or 0 if this node does not lead or nobody can.
func (l *loop) successor() uint64 {
	if l.raw == nil || !l.Leads() {
		return 0
	}
	return roster.MemberID(l.change.worker.Successor(l.roster.Conf.GetVoters()))
}

// The following methods are what the membership worker sees of the loop.

// Roster returns the membership in force.
func (l *loop) Roster() *roster.Roster { return l.roster }

// Leads reports whether this node leads and has committed in its term.
func (l *loop) Leads() bool { return l.lead.raftID == l.raftID && l.lead.ready }

// Self returns this node's raft ID.
func (l *loop) Self() uint64 { return l.raftID }

// Transfer is for the leader only: a follower would ask the leader in the name
// of the member that shall lead.
func (l *loop) Transfer(raftID uint64) {
	if l.raw.BasicStatus().RaftState == raft.StateLeader {
		l.raw.TransferLeader(raftID)
	}
}

// Last returns the last index of the log.
func (l *loop) Last() uint64 {
	last, _ := l.log.LastIndex() // never fails
	return last
}

// Progress returns what is known of a member.
func (l *loop) Progress(raftID uint64) membership.Progress {
	p := membership.Progress{Answers: l.answers(raftID), TooSlow: l.log.falls(raftID) >= snapshotFallsMax}
	p.Silent = !p.Answers && l.now-l.lead.since > uint64(l.cfg.Timing.electionTicks())
	if raftID == l.raftID {
		p.Match, p.Replicates = l.Last(), true
		return p
	}
	l.raw.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == raftID {
			p.Match, p.Replicates = pr.Match, pr.State == tracker.StateReplicate
		}
	})
	return p
}

// InPlace returns the nonce of the process that answers where an incarnation
// did, empty if none was met.
func (l *loop) InPlace(raftID uint64) string { return l.links.inPlace[raftID] }

// Propose puts a change into the log.
func (l *loop) Propose(cc *pb.ConfChangeV2) error {
	err := l.raw.ProposeConfChange(cc)
	l.change.proposed = l.change.proposed || err == nil
	return err
}

// IsPending reports whether a proposed change has not been decided yet.
func (l *loop) IsPending() bool { return l.change.proposed || l.change.index > l.change.decided }
