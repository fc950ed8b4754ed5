package raftkv

import (
	"context"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/roster"
)

// Recover makes this member, alone, a new cluster with all that it has: its
// whole log, the end that was never known to be committed included. It is a
// person's last resort after a majority of the voters was lost (ErrQuorumLost),
// or is gone for good without a trace. What only the lost members had is lost,
// acknowledged or not. Choose the survivor whose Status has the highest LastTerm
// and, among those, the highest LastIndex: it has all that can be had.
//
// The new cluster has another ID, so that members of the old one that appear
// later are refused. Revisions go on 2^32 higher: a fencing token never repeats.
// Restart the other members blank and add them, with AddLearner and
// ChangeMembership. Writes under way on this node return ErrOutcomeUnknown with
// ErrQuorumLost if they were not in its log.
//
// Start the others without a list, or go on when their Init returns ErrNotMember:
// the new cluster does not have them until AddLearner.
//
// Not done: ErrMembershipRefused (the loss is not proven, and a leader was heard of
// within five election timeouts: the cluster may only be between two leaders),
// ErrNotInitialized (also of a member that has not received the state),
// ErrRemoved, ErrClosed and the context's error. May be done: ErrOutcomeUnknown.
func (n *Node) Recover(ctx context.Context) (Membership, error) {
	if err := n.enter(ctx); err != nil {
		return Membership{}, wrap("recover", err)
	}
	defer n.calls.leave()
	c := make(chan changeResult, 1)
	r := &recovery{done: func(now *roster.Roster, err error) { c <- changeResult{now, err} }}
	n.post(func(l *loop) { l.beginRecovering(r) })
	select {
	case res := <-c:
		if res.err != nil {
			return Membership{}, wrap("recover", res.err)
		}
		return membershipOf(res.now), nil
	case <-ctx.Done():
	case <-n.stop.c:
	}
	return Membership{}, wrap("recover", n.unfinished(ctx, true))
}

// patience is for how many election timeouts a leader must not have been heard of
// before a recovery without proof: several elections may fail in a row.
const patience = 5

// A recovery is the end of one raft and the beginning of the next. Between the
// two the applier takes up the end of the log, and raft stands still.
type recovery struct {
	last uint64 // of the old log
	term uint64 // of the new one
	done func(*roster.Roster, error)
}

// beginRecovering has the applier take up all that is in the log.
func (l *loop) beginRecovering(r *recovery) {
	l.process() // what was received in this round is in the log only now
	switch {
	case l.failed != nil:
		r.done(nil, l.failed)
		return
	case l.recover != nil:
		r.done(nil, fmt.Errorf("%w: another recovery is under way", ErrMembershipRefused))
		return
	case l.roster.Index == 0:
		r.done(nil, fmt.Errorf("%w: member %d has been taken up, but has not received the state", ErrNotInitialized, l.cfg.ID))
		return
	case l.health.lost == nil && l.hearsLeader():
		r.done(nil, fmt.Errorf("%w: member %d leads and answers, so no majority is lost", ErrMembershipRefused, roster.MemberID(l.lead.raftID)))
		return
	case l.health.lost == nil && l.now-l.health.served <= patience*uint64(l.cfg.Timing.electionTicks()):
		r.done(nil, fmt.Errorf("%w: there was a leader within %d election timeouts, and there may soon be another; wait", ErrMembershipRefused, patience))
		return
	case l.change.gone != 0:
		r.done(nil, ErrRemoved)
		return
	}
	status := l.raw.BasicStatus()
	r.last, r.term = l.Last(), status.GetTerm()+1
	if r.last > l.change.decided {
		entries, err := l.log.Entries(l.change.decided+1, r.last+1, 1<<62)
		if err != nil {
			r.done(nil, fmt.Errorf("raftkv: read the end of the log: %w", err))
			return
		}
		l.tasks.push(l.tail(entries))
	}
	l.tasks.push([]task{{freeze: true}}) // comes back when all before it is applied, and answered
	l.logger.Warn("recovering: this member alone becomes a new cluster", "last_index", r.last, "uncommitted", r.last-status.GetCommit())
	l.recover = r
	l.lead = leadership{since: l.now}
	l.net.connect(l.identity(), nil)
}

// tail returns the tasks that apply entries which were never known to be
// committed. Of membership changes only the roster matters: raft has ended.
func (l *loop) tail(entries []*pb.Entry) []task {
	var tasks []task
	for _, e := range entries {
		t := task{index: e.GetIndex(), term: e.GetTerm()}
		switch e.GetType() {
		case pb.EntryNormal:
			t.data = e.GetData()
		default:
			cc := new(pb.ConfChangeV2)
			if proto.Unmarshal(e.GetData(), cc) != nil {
				break // refused by everybody
			}
			if next, err := l.roster.Apply(cc, t.index); err == nil {
				l.roster, t.roster = next, next
			}
		}
		tasks = append(tasks, t)
	}
	return tasks
}

// goOnRecovering founds the new cluster once the applier has answered for all of
// the log.
func (l *loop) goOnRecovering() {
	r := l.recover
	l.recover = nil
	self := roster.Member{RaftID: roster.RaftID(l.cfg.ID, 0), Addr: l.cfg.Addr, Nonce: l.nonce}
	now := l.roster.Recovered(randomID(), self, r.last+1)
	raftID := now.Members[0].RaftID
	l.fsm.recovered(raftID, now.Index, r.term, now)
	l.out.Reborn(raftID, fault.New("this member was made a new cluster; the write was not in its log", ErrQuorumLost))
	l.change = change{worker: l.change.worker}
	l.links, l.snaps, l.health = newLinks(l.links), newSnaps(), condition{}
	l.founded = now
	if err := l.begin(raftID, now, r.term); err != nil {
		r.done(nil, err)
		return
	}
	if l.failed = l.raw.Campaign(); l.failed != nil {
		r.done(nil, l.failed)
		return
	}
	r.done(now, nil)
}
