package roster

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// AddLearner returns the change that adds a new incarnation as a learner. Its
// number is the next one: the caller must have applied all of the log that a
// leader of its term can propose after, or Apply refuses it.
func (r *Roster) AddLearner(changeID string, id uint64, addr, nonce string) *pb.ConfChangeV2 {
	m := Member{RaftID: RaftID(id, r.Counter+1), Addr: addr, Nonce: nonce}
	return change(&kvpb.ConfContext{ChangeId: []byte(changeID), Add: m.Proto()},
		single(pb.ConfChangeAddLearnerNode, m.RaftID))
}

// Replace returns the change that puts a new process in the place of a member's
// newest incarnation, which is dead. A learner is swapped at once, so that there
// never are two learners of one member. A voter keeps its vote until the new
// incarnation, a learner for now, has caught up and Promote swaps them. It takes
// effect only if the roster is still this one.
func (r *Roster) Replace(changeID string, old Member, addr, nonce string) *pb.ConfChangeV2 {
	m := Member{RaftID: RaftID(old.ID(), r.Counter+1), Addr: addr, Nonce: nonce}
	changes := []*pb.ConfChangeSingle{single(pb.ConfChangeAddLearnerNode, m.RaftID)}
	if !r.IsVoter(old.RaftID) {
		changes = append(changes, single(pb.ConfChangeRemoveNode, old.RaftID))
	}
	return change(&kvpb.ConfContext{ChangeId: []byte(changeID), IfIndex: r.Index, Add: m.Proto()}, changes...)
}

// Promote returns the change that gives the vote of a member's old incarnation
// to its new one. It takes effect only if the roster is still this one.
func (r *Roster) Promote(old, newest Member) *pb.ConfChangeV2 {
	return change(&kvpb.ConfContext{IfIndex: r.Index},
		single(pb.ConfChangeAddNode, newest.RaftID), single(pb.ConfChangeRemoveNode, old.RaftID))
}

// Remove returns the change that removes one incarnation.
func (r *Roster) Remove(changeID string, raftID uint64) *pb.ConfChangeV2 {
	return change(&kvpb.ConfContext{ChangeId: []byte(changeID)}, single(pb.ConfChangeRemoveNode, raftID))
}

// SetVoters returns the change after which exactly the given raft IDs vote, or
// nil if they do already. Voters that are dropped are removed, or stay as
// learners. A member that is being replaced leaves with both of its incarnations
// or stays with the new one.
func (r *Roster) SetVoters(changeID string, voters []uint64, retain bool, ifIndex uint64) *pb.ConfChangeV2 {
	var changes []*pb.ConfChangeSingle
	for _, m := range r.Members {
		now, then := slices.Contains(r.Conf.GetVoters(), m.RaftID), slices.Contains(voters, m.RaftID)
		newest, _ := r.Newest(m.ID())
		_, replaces := r.Replaced(m)
		switch {
		case then && !now:
			changes = append(changes, single(pb.ConfChangeAddNode, m.RaftID))
		case now && !then && retain && newest == m:
			changes = append(changes, single(pb.ConfChangeAddLearnerNode, m.RaftID))
		case now && !then, replaces && !then && !retain:
			changes = append(changes, single(pb.ConfChangeRemoveNode, m.RaftID))
		}
	}
	if len(changes) == 0 {
		return nil
	}
	return change(&kvpb.ConfContext{ChangeId: []byte(changeID), IfIndex: ifIndex}, changes...)
}

func single(t pb.ConfChangeType, raftID uint64) *pb.ConfChangeSingle {
	return &pb.ConfChangeSingle{Type: t.Enum(), NodeId: proto.Uint64(raftID)}
}

func change(ctx *kvpb.ConfContext, changes ...*pb.ConfChangeSingle) *pb.ConfChangeV2 {
	context, err := proto.Marshal(ctx)
	if err != nil {
		panic(fmt.Sprintf("raftkv: BUG: marshal context: %v", err)) // addresses are checked to be UTF-8
	}
	return &pb.ConfChangeV2{
		Transition: pb.ConfChangeTransitionAuto.Enum(), Changes: changes, Context: context,
	}
}

func decodeContext(data []byte) (*kvpb.ConfContext, error) {
	ctx := new(kvpb.ConfContext)
	if err := proto.Unmarshal(data, ctx); err != nil {
		return nil, fmt.Errorf("malformed context: %w", fault.ErrMembershipRefused)
	}
	if n := len(ctx.GetChangeId()); n != 0 && n != NonceBytes {
		return nil, fmt.Errorf("malformed change ID: %w", fault.ErrMembershipRefused)
	}
	return ctx, nil
}

// ChangeID returns the ID of a change from the log, empty if it has none: a
// joint configuration is left by an entry of raft's own.
func ChangeID(cc *pb.ConfChangeV2) string {
	ctx, err := decodeContext(cc.GetContext())
	if err != nil {
		return ""
	}
	return string(ctx.GetChangeId())
}

// SameConf reports whether two configurations are the same.
func SameConf(a, b *pb.ConfState) bool {
	return sameIDs(a.GetVoters(), b.GetVoters()) && sameIDs(a.GetVotersOutgoing(), b.GetVotersOutgoing()) &&
		sameIDs(a.GetLearners(), b.GetLearners()) && sameIDs(a.GetLearnersNext(), b.GetLearnersNext()) &&
		a.GetAutoLeave() == b.GetAutoLeave()
}

func sameIDs(a, b []uint64) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// changed returns the configuration after a change, by the code that raft
// itself uses, but without its panic on an illegal change.
func (r *Roster) changed(cc *pb.ConfChangeV2) (*pb.ConfState, error) {
	cfg, progress, err := restore(r.Conf)
	if err != nil {
		return nil, fmt.Errorf("configuration in force: %w", err)
	}
	changer := confchange.Changer{
		Tracker:   tracker.ProgressTracker{Config: cfg, Progress: progress, MaxInflight: 1},
		LastIndex: 1,
	}
	var next tracker.Config
	if t := cc.GetTransition(); t != pb.ConfChangeTransitionAuto {
		return nil, fmt.Errorf("transition %v: %w", t, fault.ErrMembershipRefused)
	}
	if cc.LeaveJoint() {
		next, _, err = changer.LeaveJoint()
	} else if autoLeave, ok := cc.EnterJoint(); ok {
		next, _, err = changer.EnterJoint(autoLeave, cc.Changes...)
	} else {
		next, _, err = changer.Simple(cc.Changes...)
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, fault.ErrMembershipRefused)
	}
	t := tracker.ProgressTracker{Config: next}
	return t.ConfState(), nil
}

// CheckConf reports whether raft could take up a configuration and would come
// to the same one: it panics if not. That it compares more than SameConf does,
// fields that it does not know among them, is why it is asked itself.
func CheckConf(conf *pb.ConfState) error {
	cfg, _, err := restore(conf)
	if err != nil {
		return err
	}
	t := tracker.ProgressTracker{Config: cfg}
	if restored := t.ConfState(); restored.Equivalent(conf) != nil { // whose error is a page long
		return fmt.Errorf("configuration %v restores to %v", conf, restored)
	}
	return nil
}

func restore(conf *pb.ConfState) (tracker.Config, tracker.ProgressMap, error) {
	return confchange.Restore(confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: 1}, conf)
}

// confLen counts the IDs in all lists, those that occur twice as well.
func confLen(c *pb.ConfState) int {
	return len(c.GetVoters()) + len(c.GetVotersOutgoing()) + len(c.GetLearners()) + len(c.GetLearnersNext())
}

func confIDs(c *pb.ConfState) []uint64 {
	ids := slices.Concat(c.GetVoters(), c.GetVotersOutgoing(), c.GetLearners(), c.GetLearnersNext())
	slices.Sort(ids)
	return slices.Compact(ids)
}

func inConf(c *pb.ConfState, raftID uint64) bool {
	return slices.Contains(c.GetVoters(), raftID) || slices.Contains(c.GetVotersOutgoing(), raftID) ||
		slices.Contains(c.GetLearners(), raftID) || slices.Contains(c.GetLearnersNext(), raftID)
}
