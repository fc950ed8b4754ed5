package raftkv

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// heavy founds members whose log is far smaller than their state of 3 MiB, so
// that a learner needs a snapshot of several chunks.
func (c *cluster) heavy(size int, j *journal) (leader *Node) {
	c.t.Helper()
	c.found(size, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 }, j.record)
	leader = c.leader()
	for i := range 6 {
		c.put(leader, fmt.Sprint(i), strings.Repeat(fmt.Sprint(i), 1<<19))
	}
	c.delay(size+2, 5*time.Millisecond)
	for id := size + 1; id <= size+2; id++ { // so that the state takes its time
		c.net.Slow(leader.cfg.Addr, fmt.Sprintf("n%d:1", id), 16<<20)
	}
	return leader
}

// wantHeavy checks that a node has all of heavy's state.
func (c *cluster) wantHeavy(n *Node) {
	c.t.Helper()
	for i := range 6 {
		kv, err := n.Get(c.ctx(), fmt.Sprint(i))
		if err != nil || string(kv.Value) != strings.Repeat(fmt.Sprint(i), 1<<19) {
			c.t.Errorf("member %d: key %d has %d bytes, %v", n.cfg.ID, i, len(kv.Value), err)
		}
	}
}

// TestSnapshotThatIsInterruptedArrivesAllTheSame (D8): its connection breaks at
// every moment of the transfer, or one of its ends dies, and comes back blank.
func TestSnapshotThatIsInterruptedArrivesAllTheSame(t *testing.T) {
	for _, what := range []string{"connection", "receiver", "sender"} {
		t.Run(what, func(t *testing.T) {
			sent, installed := 0, 0
			sweep(t, 310*time.Millisecond, 18*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
				var j journal
				leader := c.heavy(3, &j)
				on := c.but(leader)[0]
				c.start(4, j.record)
				errc := make(chan error, 1)
				go func() {
					_, err := on.AddLearner(c.ctx(), 4, "n4:1")
					errc <- err
				}()
				c.pause(at)
				switch what {
				case "connection":
					c.net.Reset(leader.cfg.Addr, "n4:1")
				case "receiver":
					c.kill(c.nodes[4])
					c.restart(4, j.record)
				case "sender":
					c.kill(leader)
					c.restart(leader.cfg.ID, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 }, j.record)
				}
				if err := <-errc; err != nil {
					wantErr(t, "AddLearner", err, ErrMembershipRefused) // asked just then who is there
					if _, err := on.AddLearner(c.ctx(), 4, "n4:1"); err != nil {
						t.Error(err)
					}
				}
				c.wantHealed(15*time.Second, 1, 2, 3)
				c.wantHeavy(c.nodes[4])
				sent += j.of("sending snapshot")
				installed += j.of("installing snapshot")
			})
			if sent <= installed || installed == 0 {
				t.Errorf("%d snapshots were sent, %d arrived: the test tests nothing", sent, installed)
			}
		})
	}
}

// TestTwoSnapshotsAtOnceAndAgain (D8): two learners need the state at the same
// time, lose their connections again and again, and writes go on that outgrow
// the log.
func TestTwoSnapshotsAtOnceAndAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		var j journal
		leader := c.heavy(3, &j)
		errc := make(chan error, 2)
		for _, id := range []uint64{4, 5} {
			c.start(id)
			go func() {
				_, err := leader.AddLearner(c.ctx(), id, fmt.Sprintf("n%d:1", id))
				errc <- err
			}()
		}
		c.until("both are members", func() bool { return len(leader.Status().Membership.Members) == 5 })
		for i := range 80 {
			c.pause(50 * time.Millisecond)
			c.net.Reset(leader.cfg.Addr, fmt.Sprintf("n%d:1", 4+i%2))
			c.put(leader, fmt.Sprint("meanwhile ", i), strings.Repeat("v", 10<<10))
		}
		for range 2 {
			if err := <-errc; err != nil {
				t.Error(err)
			}
		}
		c.wantHealed(15*time.Second, 1, 2, 3)
		c.wantHeavy(c.nodes[4])
		c.wantHeavy(c.nodes[5])
		if j.of("snapshot not sent") < 2 {
			t.Errorf("%d snapshots were broken off: the test tests nothing", j.of("snapshot not sent"))
		}
	})
}

// TestForgedSnapshotIsRefusedBeforeAnythingIsReplaced (D9): one that is whole and
// right but for one thing. That the right one is taken shows that it is this
// thing.
func TestForgedSnapshotIsRefusedBeforeAnythingIsReplaced(t *testing.T) {
	for what, forge := range map[string]func(h *kvpb.SnapshotHeader, m *pb.Message, chunk *kvpb.SnapshotChunk, tail *kvpb.SnapshotTrailer){
		"nothing": func(*kvpb.SnapshotHeader, *pb.Message, *kvpb.SnapshotChunk, *kvpb.SnapshotTrailer) {},
		"a bit of a chunk": func(_ *kvpb.SnapshotHeader, _ *pb.Message, chunk *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			chunk.Data[len(chunk.Data)/2] ^= 1
		},
		"a bit of a chunk, and its checksum": func(_ *kvpb.SnapshotHeader, _ *pb.Message, chunk *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			i := bytes.Index(chunk.Data, []byte("vvvv"))
			chunk.Data[i] ^= 1
			chunk.Crc = checksum.Of(chunk.Data)
		},
		"the number of keys": func(h *kvpb.SnapshotHeader, _ *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) { h.Keys++ },
		"the size": func(h *kvpb.SnapshotHeader, _ *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			h.SizeBytes--
		},
		"the revision": func(h *kvpb.SnapshotHeader, _ *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			h.Revision++
		},
		"the configuration": func(_ *kvpb.SnapshotHeader, m *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			conf := m.Snapshot.Metadata.ConfState
			conf.Voters = conf.Voters[:2]
		},
		"both configurations": func(h *kvpb.SnapshotHeader, m *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			conf := m.Snapshot.Metadata.ConfState
			conf.Voters = append(conf.Voters[:2:2], roster.RaftID(9, 2))
			h.Roster.ConfState, _ = proto.Marshal(conf) // cannot fail
		},
		"the cluster": func(h *kvpb.SnapshotHeader, _ *pb.Message, _ *kvpb.SnapshotChunk, _ *kvpb.SnapshotTrailer) {
			h.Roster.ClusterId = []byte(randomID())
			h.Hello.From.ClusterId = h.Roster.ClusterId
		},
		"the hash": func(_ *kvpb.SnapshotHeader, _ *pb.Message, _ *kvpb.SnapshotChunk, tail *kvpb.SnapshotTrailer) {
			tail.StateHash++
		},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.found(3)
				from := c.leader()
				c.put(from, "k", strings.Repeat("v", 100))
				c.wantSameState()
				to := c.follower()
				before := to.Status()
				from.fsm.mu.Lock()
				h := from.fsm.freeze()
				from.fsm.mu.Unlock()
				parts := c.snapshotOf(from, to, h, before.Term, forge)
				err := c.snapshotAs(to, parts...)
				if (err == nil) != (what == "nothing") {
					t.Errorf("%v", err)
				}
				if after := to.Status(); after.StateHash != before.StateHash || after.Applied != before.Applied || to.Err() != nil {
					t.Errorf("before %+v, after %+v, %v", before, after, to.Err())
				}
				c.put(to, "k", "w")
				c.wantSameState()
			})
		})
	}
}

// snapshotOf returns what would be sent of a frozen state that is as new as its
// receiver's own: raft has no need of it, whatever else may be wrong.
func (c *cluster) snapshotOf(from, to *Node, h *snapshotHandle, term uint64,
	forge func(h *kvpb.SnapshotHeader, m *pb.Message, chunk *kvpb.SnapshotChunk, tail *kvpb.SnapshotTrailer),
) []*kvpb.SnapshotRequest {
	c.t.Helper()
	fromID, toID := from.view.Load().raftID, to.view.Load().raftID
	m := &pb.Message{
		Type: pb.MsgSnap.Enum(), From: &fromID, To: &toID, Term: &term,
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
			Index: &h.index, Term: &term, ConfState: proto.CloneOf(h.roster.Conf),
		}},
	}
	head := &kvpb.SnapshotHeader{
		Hello: c.helloOf(from, to), Roster: h.roster.Proto(), Revision: h.revision,
		Keys: uint64(h.view.Len()), SizeBytes: uint64(h.view.DataBytes()),
	}
	var requests []*kvpb.SnapshotRequest
	tail := &kvpb.SnapshotTrailer{StateHash: h.hash}
	first := true
	from.transport.sendParts(h, func(part *kvpb.SnapshotRequest) bool {
		part = proto.CloneOf(part)
		if chunk := part.GetChunk(); chunk != nil && first {
			forge(head, m, chunk, tail)
			first = false
		} else if part.GetTrailer() != nil {
			part.Part = &kvpb.SnapshotRequest_Trailer{Trailer: tail}
		}
		requests = append(requests, part)
		return true
	})
	if first {
		c.t.Fatal("a snapshot without chunks")
	}
	var err error
	if head.Message, err = proto.Marshal(m); err != nil {
		c.t.Fatal(errors.Join(errors.New("marshal"), err))
	}
	checksum.Seal(head)
	return append([]*kvpb.SnapshotRequest{{Part: &kvpb.SnapshotRequest_Header{Header: head}}}, requests...)
}
