package roster

import (
	"fmt"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
)

// replaced returns three voters and learner 4, of which one member has got a new
// incarnation with number 5.
func replaced(t *testing.T, id uint64) (r *Roster, old, newest Member) {
	t.Helper()
	r = addLearner(t, three(), 4)
	old, _ = r.Newest(id)
	r = apply(t, r, r.Replace(id16("another life"), old, old.Addr, id16("another life")))
	newest, _ = r.Newest(id)
	if newest.RaftID != RaftID(id, 5) || newest.Nonce != id16("another life") {
		t.Fatalf("the newest incarnation is %+v, want number 5 with the new nonce", newest)
	}
	return r, old, newest
}

func TestReplacedVoterKeepsItsVoteUntilTheNewOneIsPromoted(t *testing.T) {
	r, old, newest := replaced(t, 2)
	if got, ok := r.Replaced(newest); !ok || got != old || !r.IsReplacing() || !r.IsVoter(old.RaftID) || r.IsVoter(newest.RaftID) {
		t.Fatalf("Replaced = %+v, %v; replacing %v, the old votes %v, the new %v", got, ok, r.IsReplacing(), r.IsVoter(old.RaftID), r.IsVoter(newest.RaftID))
	}
	voters := r.Conf.GetVoters()
	joint := apply(t, r, r.Promote(old, newest))
	wantConf(t, joint, &pb.ConfState{
		Voters: []uint64{voters[0], voters[2], newest.RaftID}, VotersOutgoing: voters,
		Learners: []uint64{RaftID(4, 4)}, AutoLeave: proto.Bool(true),
	})
	r = leave(t, joint)
	if r.IsReplacing() || !r.IsVoter(newest.RaftID) || !r.IsRemoved(old.RaftID) {
		t.Errorf("after the change: replacing %v, the new votes %v, the old is removed %v", r.IsReplacing(), r.IsVoter(newest.RaftID), r.IsRemoved(old.RaftID))
	}
}

func TestReplacedLearnerIsSwappedAtOnce(t *testing.T) {
	r, old, newest := replaced(t, 4)
	if r = leave(t, r); r.IsReplacing() || !r.IsRemoved(old.RaftID) || r.IsVoter(newest.RaftID) {
		t.Errorf("replacing %v, the old is removed %v, the new votes %v", r.IsReplacing(), r.IsRemoved(old.RaftID), r.IsVoter(newest.RaftID))
	}
}

func TestNeverTwoLearnersOfOneMember(t *testing.T) {
	r, old, second := replaced(t, 2)
	r = apply(t, r, r.Replace(id16("third"), second, second.Addr, id16("third")))
	r = leave(t, r)
	third, _ := r.Newest(2)
	if got, _ := r.Replaced(third); got != old || !r.IsRemoved(second.RaftID) || Number(third.RaftID) != 6 {
		t.Errorf("%+v replaces %+v, second removed %v; want number 6 beside the first", third, got, r.IsRemoved(second.RaftID))
	}
}

// What was decided about a member that an operator changed meanwhile must not
// take effect, and the operator means the newest incarnation.
func TestOperatorsChangeWinsOverAReplacement(t *testing.T) {
	for _, c := range []struct {
		name           string
		voters         []uint64
		retain         bool
		newest, voting bool
	}{
		{"dropped", []uint64{RaftID(1, 1), RaftID(3, 3)}, false, false, false},
		{"retained", []uint64{RaftID(1, 1), RaftID(3, 3)}, true, true, false},
		{"named", []uint64{RaftID(1, 1), RaftID(2, 5), RaftID(3, 3)}, false, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, old, newest := replaced(t, 2)
			stale := r.Promote(old, newest)
			r = apply(t, r, r.SetVoters(id16("set"), c.voters, c.retain, 0))
			wantRefusal(t, r, stale, fault.ErrMembershipChanged, "")
			if r.IsJoint() {
				r = leave(t, r)
			}
			if _, ok := r.Lookup(newest.RaftID); ok != c.newest || r.IsVoter(newest.RaftID) != c.voting || !r.IsRemoved(old.RaftID) {
				t.Errorf("the new is there %v, votes %v, the old is removed %v", ok, r.IsVoter(newest.RaftID), r.IsRemoved(old.RaftID))
			}
			if _, ok := r.Newest(4); !ok {
				t.Error("a learner that nobody named is gone")
			}
		})
	}
}

// A process is added once, whoever leads.
func TestReplacementIsNamedByItsNonce(t *testing.T) {
	r, _, newest := replaced(t, 4)
	r = leave(t, r)
	again := r.Replace(newest.Nonce, newest, newest.Addr, newest.Nonce)
	wantRefusal(t, r, again, fault.ErrMembershipRefused, "already")
}

// A cluster of as many members as there may be heals, too.
func TestFullClusterReplacesItsMembers(t *testing.T) {
	var founders []Member
	for id := uint64(1); id < MembersMax; id++ {
		founders = append(founders, founder(id))
	}
	r := addLearner(t, Found(id16("cluster"), founders), MembersMax)
	for _, id := range []uint64{1, MembersMax} {
		old, _ := r.Newest(id)
		r = apply(t, r, r.Replace(id16(fmt.Sprint("life ", id)), old, old.Addr, id16("another life")))
		if r.IsJoint() {
			r = leave(t, r)
		}
		if err := r.check(); err != nil {
			t.Error(err)
		}
	}
}
