package raftkv

import (
	"context"
	"slices"
	"testing"
	"time"
)

// lostMajority founds three members, restarts both followers at once and returns
// the survivor when it has found out.
func (c *cluster) lostMajority() (survivor *Node) {
	c.t.Helper()
	c.found(3)
	survivor = c.leader()
	c.put(survivor, "k", "1")
	for _, n := range c.but(survivor) {
		c.kill(n)
	}
	for id := range uint64(3) {
		if c.nodes[id+1] == nil {
			c.restart(id + 1)
		}
	}
	c.pause(3 * time.Second)
	return survivor
}

// TestLostMajorityIsReportedOnProof: the survivor has met blank processes where
// its majority was, says so at once, and serves nothing but stale reads; the
// blank processes take part in nothing.
func TestLostMajorityIsReportedOnProof(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.lostMajority()
		if s := n.Status(); !s.QuorumLost || s.Ready || s.LastIndex < s.Commit || s.LastTerm == 0 {
			t.Errorf("status %+v", s)
		}
		begin := time.Now()
		for name, err := range c.everyCall(n, c.ctx()) {
			if name != "stale Get" {
				wantErr(t, name, err, ErrQuorumLost)
			}
		}
		wantErr(t, "Ready", n.Ready(c.ctx()), ErrQuorumLost)
		if took := time.Since(begin); took > 0 {
			t.Errorf("the calls waited for %v", took)
		}
		if kv, err := n.Get(c.ctx(), "k", Stale()); err != nil || string(kv.Value) != "1" {
			t.Errorf("stale read: %q, %v", kv.Value, err)
		}
		for _, other := range c.but(n) {
			if s := other.Status(); s.Role != Blank || s.Term != 0 {
				t.Errorf("a blank process took part: %+v", s)
			}
			err := other.Init(c.within(5*time.Second), c.list(3)...)
			wantErr(t, "Init of a blank process", err, ErrNotInitialized, context.DeadlineExceeded)
		}
	})
}

// Calls that wait when the proof comes are answered: what was not sent is not
// done, what was sent is never said to be.
func TestLostMajorityAnswersWhatWaits(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.leader()
		others := c.but(n)
		for _, o := range others {
			c.kill(o)
		}
		sent := make(chan error, 1)
		go func() {
			_, err := n.Put(c.within(20*time.Second), "sent", nil)
			sent <- err
		}()
		c.pause(5 * time.Second) // no leader any more, but no proof either
		waits := make(chan error, 2)
		begin := time.Now()
		go func() {
			_, err := n.Put(c.ctx(), "waits", nil)
			waits <- err
		}()
		go func() {
			_, err := n.Get(c.ctx(), "k")
			waits <- err
		}()
		c.pause(time.Second)
		for _, o := range others {
			c.restart(o.cfg.ID)
		}
		for range 2 {
			wantErr(t, "what waited", <-waits, ErrQuorumLost)
		}
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("answered after %v", took)
		}
		wantErr(t, "what was sent", <-sent, ErrOutcomeUnknown, ErrQuorumLost, context.DeadlineExceeded)
	})
}

// Silence proves nothing: a majority that is down may come back, for all that is
// known.
func TestSilenceIsNoProofOfALostMajority(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.leader()
		for _, other := range c.but(n) {
			c.net.Isolate(other.cfg.Addr)
		}
		c.pause(time.Minute)
		_, err := n.Get(c.within(time.Second), "k")
		wantErr(t, "Get", err, ErrNoLeader, context.DeadlineExceeded)
		_, err = n.Put(c.within(time.Second), "k", nil)
		wantErr(t, "Put", err, ErrNoLeader, context.DeadlineExceeded)
		if n.Status().QuorumLost {
			t.Error("the quorum is called lost")
		}
		for _, other := range c.but(n) {
			c.net.Rejoin(other.cfg.Addr)
		}
		c.put(n, "k", "v")
	})
}

// TestRecoverKeepsAllThatTheSurvivorHas: the log to its end, in a new cluster,
// with higher revisions; and the others can be added to it.
func TestRecoverKeepsAllThatTheSurvivorHas(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.leader()
		before := c.put(n, "k", "1")
		others := c.but(n)
		for _, o := range others {
			c.kill(o)
		}
		errc := make(chan error, 1)
		go func() { // into its log, and no further
			_, err := n.Put(c.ctx(), "tail", []byte("kept"))
			errc <- err
		}()
		c.pause(3 * time.Second)
		for _, o := range others {
			c.restart(o.cfg.ID)
		}
		c.pause(3 * time.Second)
		old := n.Status()
		m, err := n.Recover(c.ctx())
		c.wantVoters(m, err, n.cfg.ID)
		if err := <-errc; err != nil {
			t.Errorf("the write at the end of the log: %v", err)
		}
		if err := n.Ready(c.ctx()); err != nil {
			t.Fatal(err)
		}
		c.wantValue(n, "k", "1")
		c.wantValue(n, "tail", "kept")
		after := c.put(n, "k", "2", IfRevision(before))
		s := n.Status()
		if after < before+1<<32 || s.ClusterID == old.ClusterID || s.QuorumLost || !s.Ready || s.Role != Leader || s.SpareVoters != 0 {
			t.Errorf("revision %d after %d, cluster %s after %s: %+v", after, before, s.ClusterID, old.ClusterID, s)
		}
		for _, o := range others {
			if _, err := n.AddLearner(c.ctx(), o.cfg.ID, o.cfg.Addr); err != nil {
				t.Fatal(err)
			}
		}
		m, err = n.ChangeMembership(c.ctx(), []uint64{1, 2, 3})
		c.wantVoters(m, err, 1, 2, 3)
		c.ready()
		c.wantSameState()
		c.wantValue(c.but(n)[0], "k", "2")
	})
}

// Survivors of the old cluster that were not chosen are refused, and change
// nothing.
func TestRecoverLeavesTheOldClusterBehind(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		alive := c.but()[:2]
		for _, n := range c.but(alive...) {
			c.kill(n)
		}
		for _, id := range []uint64{3, 4, 5} {
			c.restart(id)
		}
		c.pause(5 * time.Second)
		chosen, other := alive[0], alive[1]
		for _, n := range alive {
			_, err := n.Get(c.ctx(), "k")
			wantErr(t, "Get on a survivor", err, ErrQuorumLost)
		}
		if _, err := chosen.Recover(c.ctx()); err != nil {
			t.Fatal(err)
		}
		c.put(chosen, "k", "v")
		_, err := chosen.AddLearner(c.ctx(), other.cfg.ID, other.cfg.Addr)
		wantErr(t, "AddLearner of a member of the old cluster", err, ErrMembershipRefused)
		c.pause(5 * time.Second)
		_, err = other.Get(c.within(time.Second), "k")
		wantErr(t, "Get on the other survivor", err, ErrNoLeader, context.DeadlineExceeded) // nobody is left who agrees
		if s := chosen.Status(); s.Term > 10 || len(s.Membership.Members) != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestRecoverIsRefusedWhileTheClusterWorks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for role, n := range c.roles() {
			_, err := n.Recover(c.ctx())
			wantErr(t, "Recover on the "+role, err, ErrMembershipRefused)
		}
		_, err := c.start(5).Recover(c.ctx())
		wantErr(t, "Recover of a blank process", err, ErrNotInitialized)
		delete(c.nodes, 5)
		c.put(c.leader(), "k", "v")
		c.wantSameState()
	})
}

// A learner may be the only one that is left, and a membership change may be at
// the end of its log.
func TestRecoverOnALearner(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.roles()["learner"]
		c.put(n, "k", "v")
		for _, other := range c.but(n) {
			c.kill(other)
		}
		c.pause(8 * time.Second)
		m, err := n.Recover(c.ctx())
		c.wantVoters(m, err, n.cfg.ID)
		c.wantValue(n, "k", "v")
		c.put(n, "k", "w")
		if s := n.Status(); s.Role != Leader || len(s.Membership.Members) != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// TestReadyOnlyWithTheVoteTakenOver: at no moment of its replacement is a member
// ready that could not be counted upon if the next one stopped.
func TestReadyOnlyWithTheVoteTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 20*time.Millisecond)
		c.ready()
		old := c.follower()
		id, leader := old.cfg.ID, c.leader()
		c.kill(old)
		n := c.restart(id)
		seen := false
		for range 1000 {
			s := n.Status()
			v := leader.view.Load()
			newest, _ := v.roster.Newest(id)
			if _, replaces := v.roster.Replaced(newest); s.Ready && (replaces || !v.roster.IsVoter(newest.RaftID)) {
				t.Fatalf("ready with the membership at %+v", v.roster)
			}
			seen = seen || s.Role == Learner
			if s.Ready {
				break
			}
			c.pause(5 * time.Millisecond)
		}
		if s := n.Status(); !s.Ready || !seen || !slices.Equal(voters(s.Membership), []uint64{1, 2, 3}) {
			t.Errorf("was a learner %v: %+v", seen, s)
		}
		c.net.Isolate(n.cfg.Addr)
		c.pause(4 * time.Second)
		if n.Status().Ready {
			t.Error("ready without a leader")
		}
		err := n.Ready(c.within(time.Second))
		wantErr(t, "Ready", err, ErrNoLeader, context.DeadlineExceeded)
	})
}

// SpareVoters is what an orderly stop looks at.
func TestSpareVoters(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		leader := c.leader()
		want := 2
		for _, n := range c.but(leader) {
			c.pause(3 * time.Second)
			if got := leader.Status().SpareVoters; got != want {
				t.Errorf("%d voters can be spared, want %d", got, want)
			}
			if got := n.Status().SpareVoters; got != -1 {
				t.Errorf("a follower says %d", got)
			}
			if want == 0 {
				break
			}
			c.kill(n)
			want--
		}
	})
}

// TestOutdatedMemberCallsNoMajorityLost: a member that has missed changes of the
// membership meets blank processes where voters were. They are none any more, and
// it has nobody to confirm what it thinks.
func TestOutdatedMemberCallsNoMajorityLost(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		outdated := c.nodes[5]
		if err := c.nodes[1].TransferLeadership(c.ctx(), 1); err != nil {
			t.Fatal(err)
		}
		c.net.Isolate(outdated.cfg.Addr)
		m, err := c.nodes[1].ChangeMembership(c.ctx(), []uint64{1, 2, 5})
		if err != nil || !slices.Equal(voters(m), []uint64{1, 2, 5}) {
			t.Fatalf("%+v, %v", m, err)
		}
		for _, id := range []uint64{3, 4} {
			c.wantRemoved(c.nodes[id])
			c.restart(id)
		}
		c.kill(c.nodes[2])
		c.restart(2)
		c.net.Cut("n1:1", "n5:1")
		c.net.Cut("n5:1", "n1:1")
		c.net.Rejoin(outdated.cfg.Addr)
		for range 100 {
			c.pause(200 * time.Millisecond)
			if s := outdated.Status(); s.QuorumLost {
				t.Fatalf("the outdated member: %+v", s)
			}
		}
		if met := outdated.do(func(l *loop) {
			if len(l.links.inPlace) < 3 {
				t.Errorf("it has met %d blank processes: the test tests nothing", len(l.links.inPlace))
			}
		}); met != nil {
			t.Fatal(met)
		}
		c.net.Heal("n1:1", "n5:1")
		c.net.Heal("n5:1", "n1:1")
		delete(c.nodes, 3)
		delete(c.nodes, 4)
		c.wantHealed(10*time.Second, 1, 2, 5)
	})
}

// Between two leaders there is none, and yet nothing is lost: a recovery then
// would take the majority from a cluster that is about to heal.
func TestRecoverIsRefusedBetweenTwoLeaders(t *testing.T) {
	sweep(t, 3*time.Second, 100*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
		c.found(3)
		leader := c.leader()
		c.kill(leader)
		c.pause(at)
		n := c.but()[0]
		_, err := n.Recover(c.ctx())
		wantErr(t, "Recover", err, ErrMembershipRefused)
		c.put(n, "k", "v")
		if now := c.agreed(c.but()...).Status(); len(now.Membership.Members) != 3 {
			t.Errorf("membership %+v", now.Membership)
		}
	})
}

// A member that was only just taken up has nothing to go on with.
func TestRecoverNeedsAState(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(4, 5*time.Millisecond)
		leader, n := c.leader(), c.start(4)
		go leader.AddLearner(c.within(time.Second), 4, n.cfg.Addr) // is cut short
		c.until("adoption", func() bool { return n.view.Load().raftID != 0 })
		for _, other := range c.but(n) {
			c.kill(other)
		}
		c.pause(10 * time.Second)
		if s := n.Status(); s.LastIndex != 0 {
			t.Fatalf("status %+v: the test tests nothing", s)
		}
		_, err := n.Recover(c.ctx())
		wantErr(t, "Recover", err, ErrNotInitialized)
	})
}
