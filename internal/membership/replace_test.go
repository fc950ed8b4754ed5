package membership

import (
	"testing"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/roster"
)

// reborn has a member die and a blank process be met in its place.
func (f *fakeRaft) reborn(id uint64, nonce string) {
	f.t.Helper()
	f.inPlace = map[uint64]string{f.raftID(id): id16(nonce)}
	f.be(id, silent)
}

// decided lets the worker propose, and what it proposes take effect.
func (f *fakeRaft) decided(w *Worker, now uint64, proposals int) {
	f.t.Helper()
	w.Step(now)
	f.wantProposals(proposals)
	if err := f.decide(); err != nil {
		f.t.Fatal(err)
	}
	if f.roster.IsJoint() {
		f.leave()
	}
}

func TestBlankProcessReplacesAVoter(t *testing.T) {
	f, w := setUp(t)
	old := f.raftID(2)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	newest := f.raftID(2)
	if newest == old || f.roster.IsVoter(newest) || !f.roster.IsVoter(old) {
		t.Fatalf("newest %d, old %d: want a learner beside the voter", newest, old)
	}
	f.be(2, Progress{Answers: true})
	w.Step(2)
	f.wantProposals(1) // it has not caught up
	f.be(2, f.well())
	f.decided(w, 3, 2)
	if f.roster.IsReplacing() || !f.roster.IsVoter(newest) || !f.roster.IsRemoved(old) {
		t.Errorf("membership %v", f.roster.Conf)
	}
	w.Step(4)
	f.wantProposals(2)
}

func TestNewcomerIsRefusedWhileTheMemberAnswers(t *testing.T) {
	for name, p := range map[string]Progress{"answers": {Answers: true}, "too early to say": {}} {
		t.Run(name, func(t *testing.T) {
			f, w := setUp(t)
			f.reborn(2, "second")
			f.be(2, p)
			w.Step(1)
			f.wantProposals(0)
		})
	}
}

func TestNewcomerThatDiesIsReplacedItself(t *testing.T) {
	f, w := setUp(t)
	first := f.raftID(2)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	second := f.raftID(2)
	f.inPlace[second] = id16("third")
	f.be(2, silent)
	f.decided(w, 2, 2)
	third := f.raftID(2)
	if third == second || !f.roster.IsRemoved(second) || !f.roster.IsVoter(first) {
		t.Errorf("third %d; second removed %v, first votes %v", third, f.roster.IsRemoved(second), f.roster.IsVoter(first))
	}
}

func TestNewLeaderGoesOnWithAReplacement(t *testing.T) {
	f, w := setUp(t)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	f.follows = true
	w.Step(2)
	f.follows, f.inPlace = false, nil
	other := New(f, electionTicks)
	f.be(2, f.well())
	f.decided(other, 3, 2)
	if f.roster.IsReplacing() {
		t.Error("the replacement was not finished")
	}
}

// The old incarnation answers after all: the newcomer is a clone.
func TestCloneIsRemoved(t *testing.T) {
	f, w := setUp(t)
	old := f.raftID(2)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	clone := f.raftID(2)
	f.be(2, f.well())
	f.progress[old] = Progress{Answers: true}
	for now := uint64(2); now <= 2+2*electionTicks; now++ {
		w.Step(now)
		f.wantProposals(1) // it may be what the old one had sent before it died
	}
	f.decided(w, 3+2*electionTicks, 2)
	if !f.roster.IsRemoved(clone) || !f.roster.IsVoter(old) {
		t.Error("the clone stays, or the old one went")
	}
}

func TestOperatorGoesFirst(t *testing.T) {
	f, w := setUp(t, 4)
	f.reborn(2, "second")
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 3, 4}})
	f.decided(w, 1, 1)
	w.Step(2)
	c.wantSuccess(f)
	f.wantProposals(1)
	if _, ok := f.roster.Newest(2); ok {
		t.Error("member 2 is still there")
	}
}

// ChangeMembership that names a member in replacement means its new incarnation,
// and waits for it, without being in the way of its replacement.
func TestChangeMembershipWaitsForTheNewIncarnation(t *testing.T) {
	f, w := setUp(t, 4)
	f.reborn(4, "second")
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	f.decided(w, 1, 1) // the learner is swapped
	c.wantWaits()
	f.be(4, f.well())
	f.decided(w, 2, 2)
	w.Step(3)
	c.wantSuccess(f)
	if !f.roster.IsVoter(f.raftID(4)) {
		t.Error("the new incarnation does not vote")
	}
}

func TestRemoveLearnerOfAMemberInReplacementIsRefused(t *testing.T) {
	f, w := setUp(t)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 2})
	w.Step(2)
	c.wantError(fault.ErrMembershipRefused, "member 2 is a voter")
}

// AddLearner where the member no longer answers moves it, and returns when it has
// its role again.
func TestAddLearnerMovesAMemberThatDied(t *testing.T) {
	f, w := setUp(t)
	old := f.raftID(2)
	f.be(2, silent)
	m := roster.Member{RaftID: roster.RaftID(2, 0), Addr: "elsewhere:1", Nonce: id16("second")}
	c := submit(t, w, Request{Kind: AddLearner, Member: m})
	f.decided(w, 1, 1)
	f.be(2, f.well())
	f.decided(w, 2, 2)
	w.Step(3)
	c.wantSuccess(f)
	newest, _ := f.roster.Newest(2)
	if newest.Addr != "elsewhere:1" || !f.roster.IsVoter(newest.RaftID) || !f.roster.IsRemoved(old) {
		t.Errorf("member 2 is %+v, votes %v", newest, f.roster.IsVoter(newest.RaftID))
	}
}

// Two members in replacement whose old incarnations both answer: neither hides the
// other.
func TestTwoClonesAreRemoved(t *testing.T) {
	f, w := setUp(t, 4, 5)
	olds := []uint64{f.raftID(2), f.raftID(3)}
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	f.be(2, Progress{Answers: true})
	f.reborn(3, "third")
	f.decided(w, 2, 2)
	f.be(3, Progress{Answers: true})
	clones := []uint64{f.raftID(2), f.raftID(3)}
	for _, old := range olds {
		f.progress[old] = Progress{Answers: true}
	}
	for now := uint64(3); now <= 3+2*electionTicks; now++ {
		w.Step(now)
	}
	f.decided(w, 4+2*electionTicks, 3)
	f.decided(w, 5+2*electionTicks, 4)
	for i, clone := range clones {
		if !f.roster.IsRemoved(clone) || !f.roster.IsVoter(olds[i]) {
			t.Errorf("clone %d stays, or the old one went", clone)
		}
	}
}

// No newcomer is added to a member whose old incarnation answers.
func TestNoFurtherNewcomerWhileTheOldOneAnswers(t *testing.T) {
	f, w := setUp(t)
	old := f.raftID(2)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	f.inPlace[f.raftID(2)] = id16("third")
	f.be(2, silent)
	f.progress[old] = Progress{Answers: true}
	w.Step(2)
	f.wantProposals(1)
}

// A process that was removed stays so, though it is still there: else it would be
// added, and refused by the roster, for ever.
func TestProcessThatWasRemovedIsNotAddedAgain(t *testing.T) {
	f, w := setUp(t)
	f.reborn(2, "second")
	f.decided(w, 1, 1)
	f.pending = f.roster.Remove(id16("remove"), f.raftID(2))
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	f.wantProposals(1)
}

// The process that was asked has been replaced by the next before AddLearner came
// to it: it must be asked anew, not waited for.
func TestAddLearnerAsksAnewWhoAnswers(t *testing.T) {
	f, w := setUp(t)
	m := process(2)
	m.Nonce = id16("between")
	c := submit(t, w, Request{Kind: AddLearner, Member: m})
	w.Step(1)
	c.wantError(ErrNotLeader)
	f.wantProposals(0)
}
