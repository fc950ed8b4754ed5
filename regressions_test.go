package raftkv

import (
	"errors"
	"testing"
	"time"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// A member that stops because it was removed must not answer others in a way
// that makes them believe it of themselves.
func TestRemovedMemberDoesNotTellOthersThatTheyAre(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		n.stopFor(ErrRemoved)
		_, err := n.transport.Hello(c.ctx(), &kvpb.HelloRequest{})
		if told, ours := wire.FromStatus(err); !ours || errors.Is(told, ErrRemoved) || !errors.Is(told, ErrClosed) {
			t.Errorf("hello to a member that stops = %v, want ErrClosed", err)
		}
	})
}

func TestPanicInTheApplierStopsTheNodeAndNothingHangs(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		n.tasks.push([]task{{index: 9, install: &stagedSnapshot{}}}) // without a state: a bug
		select {
		case <-n.Done():
		case <-c.within(time.Second).Done():
			t.Fatal("the node goes on, or hangs")
		}
		if n.Err() == nil {
			t.Error("Err() = nil after a panic")
		}
		if _, err := n.Put(c.ctx(), "k", nil); err == nil {
			t.Error("Put succeeds on a stopped node")
		}
		n.Close()
	})
}

// A follower asks a process for a change that it takes for the leader, but that
// has restarted: it must wait for the next leader, not report the refusal.
func TestChangeWaitsForTheNextLeaderWhenTheOldOneHasRestarted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		others := c.but(leader)
		id := leader.cfg.ID
		c.kill(leader)
		c.restart(id)
		c.pause(50 * time.Millisecond) // the followers' links find it, blank
		m, err := others[0].ChangeMembership(c.ctx(), []uint64{others[0].cfg.ID, others[1].cfg.ID})
		if err != nil || len(m.Members) != 2 {
			t.Errorf("ChangeMembership = %+v, %v", m, err)
		}
	})
}

func TestBatchThatNoFrameCouldCarryIsRefused(t *testing.T) {
	c := command.Command{Op: command.Put, Key: make([]byte, command.KeyBytesMax), Value: make([]byte, command.ValueBytesMax), Conditional: true}
	data := c.Append(command.Header{Origin: 7, First: 1}.Append(nil))
	if _, err := checkBatch(data, 7); err != nil {
		t.Errorf("the largest command of the protocol is refused: %v", err)
	}
	for range 20 { // each of a legal size
		small := command.Command{Op: command.Put, Key: []byte("k"), Value: make([]byte, 1<<20)}
		data = small.Append(data)
	}
	if _, err := checkBatch(data, 7); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a batch of %d bytes: %v, want ErrTooLarge", len(data), err)
	}
}

// Adding a learner has a part that the roster does not show: that it catches up.
func TestAddLearnerIsNotDoneByTheRosterAlone(t *testing.T) {
	now := &roster.Roster{Changes: []string{"x"}, Conf: roster.Blank("").Conf}
	if isInForce(now, &membership.Request{ID: "x", Kind: membership.AddLearner}) {
		t.Error("AddLearner counts as done before the learner has caught up")
	}
	if !isInForce(now, &membership.Request{ID: "x", Kind: membership.RemoveLearner}) {
		t.Error("RemoveLearner does not count as done although it is in force")
	}
}

func TestRefusedHelloIsCounted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		to := c.nodes[2]
		h := c.helloOf(c.nodes[1], to)
		h.From.ClusterId = []byte(randomID())
		for range 3 {
			if _, err := c.openAs(to, h); err == nil {
				t.Error("the hello of another cluster is welcome")
			}
		}
		if n := to.Status().RefusedMessages; n != 3 {
			t.Errorf("%d were counted as refused, want 3", n)
		}
	})
}
