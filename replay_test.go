package raftkv

import (
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/frame"
)

// logged returns what a node's log holds.
func (c *cluster) logged(n *Node) []*pb.Entry {
	c.t.Helper()
	var entries []*pb.Entry
	err := n.doErr(func(l *loop) (err error) {
		first, _ := l.log.FirstIndex() // never fails
		entries, err = l.log.Entries(first, l.Last()+1, 1<<40)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return entries
}

// TestReplayedTrafficIsAppliedOnce (W7): every batch that a follower has ever
// forwarded, and every append that its leader has sent, come again, in the
// names of the members, on streams of their own, more than once.
func TestReplayedTrafficIsAppliedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 2*time.Millisecond)
		leader := c.leader()
		n := c.but(leader)[0]
		y := newTally(c)
		y.writeUntilStopped(n, 3)
		c.pause(500 * time.Millisecond)
		entries := c.logged(leader)
		batches, appends := new(frame.Frame), new(frame.Frame)
		from, to := leader.view.Load().raftID, n.view.Load().raftID
		for i, e := range entries {
			if i == 0 {
				continue
			}
			before := entries[i-1]
			appends.Messages = append(appends.Messages, &pb.Message{
				Type: pb.MsgApp.Enum(), From: &from, To: &to, Term: proto.Uint64(e.GetTerm()),
				LogTerm: proto.Uint64(before.GetTerm()), Index: proto.Uint64(before.GetIndex()),
				Entries: []*pb.Entry{e}, Commit: proto.Uint64(before.GetIndex()),
			})
			if b, err := checkBatch(e.GetData(), to); err == nil {
				batches.Proposals = append(batches.Proposals, b.Data)
			}
		}
		if len(batches.Proposals) < 20 {
			t.Fatalf("%d batches: the test tests nothing", len(batches.Proposals))
		}
		lastBefore := leader.Status().LastIndex
		for round := range 3 {
			for _, replay := range []struct {
				from, to *Node
				frame    *frame.Frame
			}{{n, leader, batches}, {leader, n, appends}} {
				s, err := c.openAs(replay.to, c.helloOf(replay.from, replay.to))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SendMsg(replay.frame); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				c.pause(300 * time.Millisecond)
			}
		}
		if grown := leader.Status().LastIndex - lastBefore; grown < 3*uint64(len(batches.Proposals)) {
			t.Errorf("the log grew by %d; %d batches were replayed: the test tests nothing", grown, 3*len(batches.Proposals))
		}
		for _, n := range c.nodes {
			if n.Err() != nil {
				t.Errorf("member %d stopped: %v", n.cfg.ID, n.Err())
			}
			if refused := n.Status().RefusedMessages; refused != 0 {
				t.Errorf("member %d refused %d: the test tests nothing", n.cfg.ID, refused)
			}
		}
		y.check()
		before := leader.Status()
		c.pause(time.Second)
		if after := leader.Status(); after.Term != before.Term || after.StateHash != before.StateHash {
			t.Errorf("before %+v, after %+v", before, after)
		}
	})
}

// TestReplayedOldTermsChangeNothing: what a leader of an earlier term sent comes
// when another leads, whose log has something else there.
func TestReplayedOldTermsChangeNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.delay(3, 2*time.Millisecond)
		old := c.leader()
		n := c.but(old)[0]
		for i := range 20 {
			c.put(old, fmt.Sprint(i), "old")
		}
		c.wantSameState()
		entries := c.logged(old)
		if err := n.TransferLeadership(c.ctx(), c.but(old, n)[0].cfg.ID); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			c.put(n, fmt.Sprint(i), "new")
		}
		c.wantSameState()
		before := n.Status()
		from, to := old.view.Load().raftID, n.view.Load().raftID
		s, err := c.openAs(n, c.helloOf(old, n))
		if err != nil {
			t.Fatal(err)
		}
		replay := new(frame.Frame)
		last := entries[len(entries)-1]
		for _, m := range []*pb.Message{
			{Type: pb.MsgApp.Enum(), Term: proto.Uint64(last.GetTerm()), LogTerm: proto.Uint64(entries[0].GetTerm()), Index: proto.Uint64(entries[0].GetIndex()), Entries: entries[1:], Commit: proto.Uint64(last.GetIndex())},
			{Type: pb.MsgHeartbeat.Enum(), Term: proto.Uint64(last.GetTerm()), Commit: proto.Uint64(last.GetIndex())},
			{Type: pb.MsgVote.Enum(), Term: proto.Uint64(last.GetTerm()), LogTerm: proto.Uint64(last.GetTerm() - 1), Index: proto.Uint64(entries[0].GetIndex() - 1)},
		} {
			m.From, m.To = &from, &to
			replay.Messages = append(replay.Messages, m)
		}
		if err := s.SendMsg(replay); err != nil {
			t.Fatal(err)
		}
		c.pause(3 * time.Second)
		if after := n.Status(); after.Term != before.Term || after.StateHash != before.StateHash || after.Leader != before.Leader {
			t.Errorf("before %+v, after %+v", before, after)
		} else if after.RefusedMessages != 0 {
			t.Errorf("%d messages were refused: the test tests nothing", after.RefusedMessages)
		}
		c.wantSameState()
	})
}
