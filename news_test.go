package raftkv

import (
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/roster"
)

// TestNewsOfACommitTravelsSoon: a leader holds it back for the next append, but
// not for long, and not at all from a member that has sent writes itself.
func TestNewsOfACommitTravelsSoon(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		follower := c.but(leader)[0]
		c.pause(time.Second) // after which nobody is known to write
		for range 10 {
			revision := c.put(leader, "a", "1")
			begin := time.Now()
			if _, err := follower.Get(c.ctx(), "a", MinRevision(revision)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > restAfter {
				t.Errorf("a follower showed a write %v after it was acknowledged, want %v at most", took, restAfter)
			}
		}
		c.put(follower, "b", "0")
		for range 10 {
			begin := time.Now()
			c.put(follower, "b", "1")
			if took := time.Since(begin); took > 0 {
				t.Errorf("a write through a follower took %v on a network without delay", took)
			}
		}
	})
}

// TestLeaderAsksAsManyAsAreEnough, whichever of the voters it is.
func TestLeaderAsksAsManyAsAreEnough(t *testing.T) {
	for voters := uint64(1); voters <= 7; voters++ {
		for leader := uint64(1); leader <= voters+1; leader++ { // the last one has no vote
			conf := &pb.ConfState{}
			for v := uint64(1); v <= voters; v++ {
				conf.Voters = append(conf.Voters, v)
			}
			l := &loop{raftID: leader, roster: &roster.Roster{Conf: conf}, links: newLinks(links{})}
			asked := 0
			if leader <= voters {
				asked++
			}
			for v := uint64(1); v <= voters; v++ {
				m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), To: &v, Context: make([]byte, 8)}
				if v != leader && !l.isSpare(m, l.toward(v)) {
					asked++
				}
			}
			if asked != quorum(int(voters)) {
				t.Errorf("leader %d of %d voters counts on %d, want %d", leader, voters, asked, quorum(int(voters)))
			}
		}
	}
}

// TestReadsAskOthersWhenOneDoesNotAnswer: a leader first asks as many as are
// enough for a quorum.
func TestReadsAskOthersWhenOneDoesNotAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		c.put(leader, "a", "1")
		get := func() time.Duration {
			begin := time.Now()
			c.wantValue(leader, "a", "1")
			return time.Since(begin)
		}
		for _, silent := range c.but(leader) {
			c.net.Cut(leader.cfg.Addr, silent.cfg.Addr)
			late := 0
			const reads = 200
			for range reads {
				took := get()
				if took > 2*restAfter {
					t.Errorf("with member %d silent a read took %v, want %v at most", silent.cfg.ID, took, 2*restAfter)
				}
				if took > 0 {
					late++
				}
				c.pause(time.Millisecond)
			}
			if late > reads/10 {
				t.Errorf("with member %d silent %d of %d reads waited for it", silent.cfg.ID, late, reads)
			}
			c.net.Heal(leader.cfg.Addr, silent.cfg.Addr)
			c.pause(2 * leader.cfg.Timing.Election)
		}
	})
}
