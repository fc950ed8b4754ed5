package membership

import (
	"errors"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/roster"
)

var errProbe = errors.New("nobody answers at n4:1")

func TestAddLearnerIsDoneWhenCaughtUp(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: AddLearner, Member: process(4)})
	w.Step(1)
	f.wantProposals(1)
	w.Step(2)
	f.wantProposals(1) // one is pending
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []Progress{
		{}, {Answers: true, Match: f.last},
		{Replicates: true, Match: f.last},
		{Answers: true, Replicates: true, Match: f.last - lagEntriesMax - 1},
	} {
		f.be(4, p)
		w.Step(3)
		c.wantWaits()
	}
	f.be(4, Progress{Answers: true, Replicates: true, Match: f.last - lagEntriesMax})
	w.Step(4)
	c.wantSuccess(f)
	f.wantProposals(1)
	if m, _ := f.roster.Newest(4); m.Addr != "n4:1" || m.Nonce != process(4).Nonce {
		t.Errorf("the learner is %+v, want address and nonce of the request", m)
	}
	if !w.IsIdle() {
		t.Error("the worker is not idle")
	}
}

func TestAddLearnerOfAMemberThatIsThereChangesNothing(t *testing.T) {
	f, w := setUp(t)
	for _, id := range []uint64{1, 2} {
		c := submit(t, w, Request{Kind: AddLearner, Member: process(id)})
		w.Step(1)
		c.wantSuccess(f)
	}
	f.wantProposals(0)
}

func TestAddLearnerRefusals(t *testing.T) {
	elsewhere := process(4)
	elsewhere.Addr = "other:1"
	for _, c := range []struct {
		name     string
		learners []uint64
		request  Request
		progress Progress
		kind     error
		texts    []string
	}{
		{"no process answers there", nil, Request{Member: process(4), Probe: errProbe}, Progress{}, errProbe, []string{"n4:1"}},
		{"another address, and it answers", []uint64{4}, Request{Member: elsewhere}, Progress{Answers: true}, fault.ErrMemberAlive, []string{"member 4", "n4:1"}},
		{"another process, and nobody answers at the new place", []uint64{4}, Request{Member: elsewhere, Probe: errProbe}, silent, errProbe, nil},
		{"cannot keep up", []uint64{4}, Request{Member: process(4)}, Progress{Answers: true, TooSlow: true}, fault.ErrLearnerTooSlow, []string{"member 4", "n4:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, w := setUp(t, c.learners...)
			if _, ok := f.roster.Newest(c.request.Member.ID()); ok {
				f.be(c.request.Member.ID(), c.progress)
			}
			c.request.Kind = AddLearner
			got := submit(t, w, c.request)
			w.Step(1)
			got.wantError(c.kind, c.texts...)
			f.wantProposals(0)
		})
	}
}

func TestNewLeaderDoesNotJudgeWhomItHasNotHeardYet(t *testing.T) {
	f, w := setUp(t, 4)
	reborn := process(4)
	reborn.Nonce = id16("another life")
	f.be(4, Progress{}) // neither heard nor silent for long enough
	add := submit(t, w, Request{Kind: AddLearner, Member: reborn})
	f.be(2, Progress{})
	f.be(3, Progress{})
	set := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	w.Step(1)
	add.wantWaits()
	set.wantWaits()
	f.wantProposals(0)
	f.be(4, silent)
	w.Step(2)
	add.wantWaits()
	f.wantProposals(1) // the new process in the place of the old one
}

func TestQuorumOfVotersToBeMustAnswerBeforeAChange(t *testing.T) {
	f, w := setUp(t)
	f.be(2, Progress{}) // neither heard nor silent for long enough
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2}})
	w.Step(1)
	c.wantWaits()
	f.wantProposals(0)
	f.be(2, f.well())
	w.Step(2)
	f.wantProposals(1)
}

func TestRemoveLearner(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 4})
	w.Step(1)
	c.wantWaits()
	f.wantProposals(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	c.wantSuccess(f)
	if _, ok := f.roster.Newest(4); ok {
		t.Error("the learner is still there")
	}
}

func TestRemoveLearnerRefusals(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 9})
	w.Step(1)
	c.wantError(fault.ErrLearnerNotFound, "member 9")
	c = submit(t, w, Request{Kind: RemoveLearner, Target: 2})
	w.Step(2)
	c.wantError(fault.ErrMembershipRefused, "member 2", "voter")
	f.wantProposals(0)
}

func TestSetVotersIsDoneWhenTheJointPhaseIs(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 4}})
	w.Step(1)
	f.wantProposals(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	if !f.roster.IsJoint() {
		t.Fatal("the change is not joint")
	}
	w.Step(2)
	c.wantWaits()
	f.leave()
	w.Step(3)
	c.wantSuccess(f)
	f.wantProposals(1)
	if _, ok := f.roster.Newest(3); ok {
		t.Error("the dropped voter is still there")
	}
}

func TestSetVotersRetainsDroppedVotersIfAsked(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2}, Retain: true})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	if f.roster.IsJoint() {
		f.leave()
	}
	w.Step(2)
	c.wantSuccess(f)
	if raftID := f.raftID(3); f.roster.IsVoter(raftID) {
		t.Error("the dropped voter still votes")
	}
}

func TestSetVotersInForceIsDoneAtOnce(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3}})
	w.Step(1)
	c.wantSuccess(f)
	f.wantProposals(0)
}

func TestSetVotersRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		request Request
		silent  []uint64
		kind    error
		texts   []string
	}{
		{"unknown member", Request{Voters: []uint64{1, 2, 8}}, nil, fault.ErrLearnerNotFound, []string{"member 8", "learner first"}},
		{"unknown members", Request{Voters: []uint64{1, 8, 9}}, nil, fault.ErrLearnerNotFound, []string{"8, 9"}},
		{"another index", Request{Voters: []uint64{1, 2}, IfIndex: 1}, nil, fault.ErrMembershipChanged, []string{"1001, not 1"}},
		{"quorum would not answer", Request{Voters: []uint64{1, 2, 3, 4}}, []uint64{3, 4}, fault.ErrQuorumAtRisk, []string{"member 3, 4", "3 of 4"}},
		{"quorum of two", Request{Voters: []uint64{1, 3}}, []uint64{3}, fault.ErrQuorumAtRisk, []string{"member 3", "2 of 2"}},
		{"none", Request{}, nil, fault.ErrQuorumAtRisk, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, w := setUp(t, 4)
			for _, id := range c.silent {
				f.be(id, silent)
			}
			c.request.Kind = SetVoters
			got := submit(t, w, c.request)
			w.Step(1)
			got.wantError(c.kind, c.texts...)
			f.wantProposals(0)
		})
	}
}

func TestSetVotersGoesOnWhileAMinorityIsSilent(t *testing.T) {
	f, w := setUp(t, 4)
	f.be(3, silent)
	submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}, IfIndex: f.roster.Index})
	w.Step(1)
	f.wantProposals(1)
	if err := f.decide(); err != nil {
		t.Errorf("the change with the right index was refused: %v", err)
	}
}

func TestSetVotersWaitsUntilNewVotersHaveCaughtUp(t *testing.T) {
	f, w := setUp(t, 4, 5)
	f.be(4, Progress{Answers: true, Replicates: true, Match: f.last - lagEntriesMax - 1})
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4, 5}})
	w.Step(1)
	c.wantWaits()
	f.wantProposals(0)
	f.be(4, f.well())
	f.be(5, silent)
	w.Step(2)
	f.wantProposals(0)
	f.be(5, f.well())
	f.be(3, Progress{Answers: true}) // an old voter may lag
	w.Step(3)
	f.wantProposals(1)
}

func TestWaitingForALearnerHoldsUpNoOtherRequest(t *testing.T) {
	f, w := setUp(t, 4, 5)
	f.be(4, Progress{Answers: true})
	slow := submit(t, w, Request{ID: id16("slow"), Kind: AddLearner, Member: process(4)})
	set := submit(t, w, Request{ID: id16("set"), Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	remove := submit(t, w, Request{ID: id16("remove"), Kind: RemoveLearner, Target: 5})
	w.Step(1)
	f.wantProposals(1)
	if got := roster.ChangeID(f.proposed[0]); got != id16("remove") {
		t.Errorf("the change proposed is %q, want the one that can be", got)
	}
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	remove.wantSuccess(f)
	slow.wantWaits()
	set.wantWaits()
}

func TestOneChangeAtATime(t *testing.T) {
	f, w := setUp(t, 4, 5)
	first := submit(t, w, Request{ID: id16("first"), Kind: RemoveLearner, Target: 4})
	second := submit(t, w, Request{ID: id16("second"), Kind: RemoveLearner, Target: 5})
	w.Step(1)
	f.wantProposals(1) // fakeRaft complains about a second while one is pending
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	first.wantSuccess(f)
	second.wantWaits()
	f.wantProposals(2)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(3)
	second.wantSuccess(f)
}

func TestNothingIsProposedInTheJointPhase(t *testing.T) {
	f, w := setUp(t, 4, 5)
	submit(t, w, Request{ID: id16("set"), Kind: SetVoters, Voters: []uint64{1, 2, 4}})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	submit(t, w, Request{ID: id16("remove"), Kind: RemoveLearner, Target: 5})
	submit(t, w, Request{ID: id16("add"), Kind: AddLearner, Member: process(6)})
	w.Step(2)
	f.wantProposals(1)
	f.leave()
	w.Step(3)
	f.wantProposals(2)
}

func TestProposalThatVanishedIsMadeAgain(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 4})
	for i := range 3 {
		w.Step(uint64(i))
		f.wantProposals(i + 1)
		f.vanish()
	}
	f.refuses = errors.New("proposal dropped") // during a transfer
	w.Step(4)
	c.wantWaits()
	f.refuses = nil
	w.Step(5)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(6)
	c.wantSuccess(f)
}

func TestRefusedChangeEndsItsRequest(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 4})
	w.Step(1)
	cause := errors.New("refused by all")
	f.vanish()
	w.Refused(id16("another"), cause)
	c.wantWaits()
	w.Refused(c.ID, cause)
	c.wantError(cause)
	if !w.IsIdle() {
		t.Error("the refused request is still there")
	}
}

func TestRefusedCopyOfAChangeInForceIsNoFailure(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: RemoveLearner, Target: 4})
	w.Step(1)
	copied := f.pending
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.pending = copied // by the leader before, say
	w.Refused(c.ID, f.decide())
	w.Step(2)
	c.wantSuccess(f)
}

func TestDroppedLeaderHandsOverToTheBestVoterThatStays(t *testing.T) {
	f, w := setUp(t, 4)
	f.be(2, Progress{Answers: true, Match: f.last - 5})
	f.be(3, Progress{Answers: true, Match: f.last - 1})
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{2, 3, 4}})
	w.Step(1)
	f.wantTransfers(3) // not 4, which has more of the log and does not vote yet
	f.wantProposals(0)
	c.wantWaits()
	f.follows = true
	w.Step(2)
	c.wantError(ErrNotLeader)
}

func TestDroppedLeaderIgnoresSuccessorsThatDoNotAnswer(t *testing.T) {
	f, w := setUp(t, 4)
	f.be(3, Progress{Match: f.last, Silent: true})
	f.be(2, Progress{Answers: true, Match: 1})
	submit(t, w, Request{Kind: SetVoters, Voters: []uint64{2, 3, 4}})
	w.Step(1)
	f.wantTransfers(2)
}

func TestDroppedLeaderWithoutASuccessorMakesTheChangeItself(t *testing.T) {
	f, w := setUp(t, 4, 5, 6)
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{4, 5, 6}})
	w.Step(1)
	f.wantTransfers()
	f.wantProposals(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.leave()
	f.follows = true // raft steps down
	w.Step(2)
	c.wantSuccess(f)
}

func TestSecondSetVotersIsRefusedWhileOneRuns(t *testing.T) {
	f, w := setUp(t, 4)
	f.be(4, Progress{Answers: true})
	first := submit(t, w, Request{ID: id16("first"), Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	second := submit(t, w, Request{ID: id16("second"), Kind: SetVoters, Voters: []uint64{1, 2}})
	w.Step(1)
	second.wantError(fault.ErrMembershipRefused, "1, 2, 3, 4", "under way")
	first.wantWaits()
	f.be(4, f.well())
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	first.wantSuccess(f)
	third := submit(t, w, Request{ID: id16("third"), Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	w.Step(3)
	third.wantSuccess(f)
}

func TestRetriedRequestTakesThePlaceOfTheFirst(t *testing.T) {
	f, w := setUp(t, 4)
	first := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	w.Step(1)
	again := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	first.wantError(ErrNotLeader)
	again.wantWaits()
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(2)
	again.wantSuccess(f)
	f.wantProposals(1)
}

func TestRetryOnAnotherLeaderFindsTheChangeInForce(t *testing.T) {
	f, w := setUp(t, 4)
	id := id16("retried")
	f.pending = f.roster.SetVoters(id, []uint64{f.raftID(1), f.raftID(2), f.raftID(4)}, false, 0)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	c := submit(t, w, Request{ID: id, Kind: SetVoters, Voters: []uint64{1, 2, 4}, IfIndex: 1})
	w.Step(1)
	c.wantWaits() // joint
	f.leave()
	w.Step(2)
	c.wantSuccess(f)
	f.wantProposals(0)
}

func TestFollowerHandsBackWhatIsNotInForce(t *testing.T) {
	f, w := setUp(t, 4, 5)
	removed := submit(t, w, Request{ID: id16("removed"), Kind: RemoveLearner, Target: 4})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	var open []*call
	for _, r := range []Request{
		{ID: id16("a"), Kind: RemoveLearner, Target: 5},
		{ID: id16("b"), Kind: AddLearner, Member: process(6)},
		{ID: id16("c"), Kind: SetVoters, Voters: []uint64{1, 2}},
		{ID: id16("d"), Kind: Transfer, Target: 2},
	} {
		open = append(open, submit(t, w, r))
	}
	f.follows = true
	w.Step(2)
	removed.wantSuccess(f)
	for _, c := range open {
		c.wantError(ErrNotLeader)
	}
	f.wantProposals(1)
	f.wantTransfers()
}

func TestFollowerHandsBackAChangeThatIsHalfWay(t *testing.T) {
	f, w := setUp(t, 4)
	c := submit(t, w, Request{Kind: SetVoters, Voters: []uint64{1, 2, 4}})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.follows = true
	w.Step(2)
	c.wantError(ErrNotLeader)
}

func TestAddedLearnerThatHasNotCaughtUpIsHandedBack(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: AddLearner, Member: process(4)})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.follows = true
	w.Step(2)
	c.wantError(ErrNotLeader)
}

func TestTransfer(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: Transfer, Target: 2})
	for tick := range uint64(5) {
		w.Step(tick)
	}
	c.wantWaits()
	f.wantTransfers(2) // raft was asked once
	f.follows = true
	w.Step(6)
	c.wantError(ErrNotLeader) // the caller asks the new leader, which is the target
	c = submit(t, w, Request{Kind: Transfer, Target: 1})
	f.follows = false
	w.Step(7)
	c.wantSuccess(f)
	f.wantTransfers(2)
}

func TestTransferEndsAfterAnElectionTimeout(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: Transfer, Target: 2})
	w.Step(100)
	w.Step(100 + electionTicks)
	c.wantWaits()
	w.Step(100 + electionTicks + 1)
	c.wantError(fault.ErrMembershipRefused, "member 2", "n2:1", "election timeout")
	f.wantTransfers(2)
}

func TestTransferRefusals(t *testing.T) {
	f, w := setUp(t, 4)
	f.be(3, silent)
	for _, c := range []struct {
		target uint64
		kind   error
		texts  []string
	}{
		{9, fault.ErrNotMember, []string{"member 9"}},
		{4, fault.ErrMembershipRefused, []string{"member 4", "learner"}},
		{3, fault.ErrMembershipRefused, []string{"member 3", "n3:1", "does not answer"}},
	} {
		got := submit(t, w, Request{Kind: Transfer, Target: c.target})
		w.Step(1)
		got.wantError(c.kind, c.texts...)
	}
	f.wantTransfers()
}

func TestUnknownKindIsInvalid(t *testing.T) {
	_, w := setUp(t)
	c := submit(t, w, Request{Kind: 99})
	w.Step(1)
	c.wantError(fault.ErrInvalid)
}

func TestAbandonForgetsOneRequest(t *testing.T) {
	f, w := setUp(t, 4, 5)
	f.pending = new(pb.ConfChangeV2) // nothing can be proposed
	a := submit(t, w, Request{ID: id16("a"), Kind: RemoveLearner, Target: 4})
	b := submit(t, w, Request{ID: id16("b"), Kind: RemoveLearner, Target: 5})
	w.Abandon(&a.Request)
	w.Abandon(new(Request))
	w.Step(1)
	b.wantWaits()
	if len(w.queue) != 1 || w.queue[0] != &b.Request {
		t.Errorf("%d requests are left, want the one that was not abandoned", len(w.queue))
	}
}

// What is refused while a proposal is undecided could be that very proposal,
// and take effect after the caller was told that nothing was done.
func TestNothingIsRefusedWhileAProposalIsUndecided(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{ID: id16("a"), Kind: SetVoters, Voters: []uint64{1, 2}})
	w.Step(1)
	f.wantProposals(1)
	f.be(2, silent) // of the voters-to-be, one does not answer any more
	f.be(3, silent)
	w.Step(2)
	c.wantWaits()
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(3)
	c.wantSuccess(f)
}

// An AddLearner that waits for its learner must not add it again when somebody
// has removed it meanwhile.
func TestLearnerRemovedMeanwhileIsNotAddedAgain(t *testing.T) {
	f, w := setUp(t)
	m := process(4)
	c := submit(t, w, Request{ID: id16("a"), Kind: AddLearner, Member: m})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.be(4, silent)
	w.Step(2)
	c.wantWaits()
	f.pending = f.roster.Remove(id16("b"), f.raftID(4))
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(3)
	c.wantError(fault.ErrLearnerNotFound, "member 4", "removed")
	f.wantProposals(1)
}

func TestFailEndsAllRequests(t *testing.T) {
	_, w := setUp(t, 4)
	calls := []*call{
		submit(t, w, Request{ID: id16("a"), Kind: RemoveLearner, Target: 4}),
		submit(t, w, Request{ID: id16("b"), Kind: Transfer, Target: 2}),
	}
	stopped := errors.New("stopped")
	w.Fail(stopped)
	for _, c := range calls {
		c.wantError(stopped)
	}
	if !w.IsIdle() {
		t.Error("requests are left")
	}
}

// A change that is asked for again, because its answer was lost, is recognised
// even if another has come in meanwhile.
func TestRetryOfAChangeInForceIsNotRefusedForAnother(t *testing.T) {
	f, w := setUp(t, 4)
	submit(t, w, Request{ID: id16("first"), Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	w.Step(1)
	second := submit(t, w, Request{ID: id16("second"), Kind: SetVoters, Voters: []uint64{1, 2}})
	again := submit(t, w, Request{ID: id16("first"), Kind: SetVoters, Voters: []uint64{1, 2, 3, 4}})
	w.Step(2)
	again.wantWaits()
	second.wantWaits()
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	w.Step(3)
	again.wantSuccess(f)
}

// What an AddLearner has put into the log it does not deny afterwards, although
// nobody answers at the address any more.
func TestRetryOfAnAddedLearnerWaitsForIt(t *testing.T) {
	f, w := setUp(t)
	submit(t, w, Request{ID: id16("a"), Kind: AddLearner, Member: process(4)})
	w.Step(1)
	if err := f.decide(); err != nil {
		t.Fatal(err)
	}
	f.be(4, silent)
	m := process(4)
	m.Nonce = ""
	again := submit(t, w, Request{ID: id16("a"), Kind: AddLearner, Member: m, Probe: fault.ErrMembershipRefused})
	w.Step(2)
	again.wantWaits()
}

func TestTransferThatWasBegunIsNotCalledUndone(t *testing.T) {
	f, w := setUp(t)
	c := submit(t, w, Request{Kind: Transfer, Target: 2})
	w.Step(1)
	f.be(2, silent)
	w.Step(2)
	c.wantWaits()
	w.Step(2 + 2*electionTicks)
	c.wantError(fault.ErrOutcomeUnknown, "member 2")
}
