package raftkv

import (
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/peer"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// TestDamagedFrameIsCutOffAndCounted though it is one that raft would believe.
func TestDamagedFrameIsCutOffAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.nodes[1], "k", "v")
		c.wantSameState()
		leader := c.leader()
		to := c.but(leader)[0]
		before := to.Status()
		heartbeat := func(term uint64) []byte {
			m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &leader.loop.raftID, To: &to.loop.raftID, Term: &term}
			data, _ := proto.Marshal(m) // cannot fail
			return data
		}
		frame := &kvpb.MessagesRequest{Messages: [][]byte{heartbeat(before.Term)}}
		checksum.Seal(frame)
		for term, want := range map[uint64]codes.Code{before.Term: codes.OK, before.Term ^ 4: codes.InvalidArgument} {
			s, err := c.openAs(to, c.helloOf(leader, to))
			if err != nil {
				t.Fatal(err)
			}
			frame.Messages[0] = heartbeat(term)
			if err := s.Send(frame); err != nil {
				t.Fatal(err)
			}
			_ = s.CloseSend() // always nil
			if _, err = s.Recv(); want == codes.InvalidArgument && status.Code(err) != want {
				t.Errorf("term %d: the stream ends with %v, want %v", term, err, want)
			}
		}
		after := to.Status()
		if after.RefusedMessages != before.RefusedMessages+1 || after.Term != before.Term || after.Leader != before.Leader {
			t.Errorf("status before %+v, after %+v", before, after)
		}
		c.wantSameState()
	})
}

// TestDamagedHelloTellsNobodyThatItWasRemoved: with one bit of its raft ID
// flipped a member is one that was there before.
func TestDamagedHelloTellsNobodyThatItWasRemoved(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		to, from := c.nodes[1], c.nodes[3]
		damaged := func() *kvpb.Hello {
			h := c.helloOf(from, to)
			h.From.RaftId = roster.RaftID(3, 2) // was (3, 3)
			return h
		}
		if _, err := c.openAs(to, damaged()); !errors.Is(told(err), ErrRemoved) {
			t.Fatalf("such a member is told %v: the test tests nothing", err)
		}
		client := c.dialPeer(to)
		for name, call := range map[string]func(h *kvpb.Hello) error{
			"messages": func(h *kvpb.Hello) error {
				s, err := client.Messages(c.ctx(), frame.Option())
				if err != nil {
					return err
				}
				req := &kvpb.MessagesRequest{Hello: c.helloOf(from, to)}
				checksum.Seal(req)
				req.Hello = h
				if err := s.Send(req); err != nil {
					return err
				}
				_, err = s.Recv()
				return err
			},
			"hello": func(h *kvpb.Hello) error {
				_, err := client.Hello(c.ctx(), &kvpb.HelloRequest{Hello: h})
				return err
			},
			"forward": func(h *kvpb.Hello) error {
				_, err := client.Forward(c.ctx(), &kvpb.ForwardRequest{Hello: h, ChangeId: []byte(randomID())})
				return err
			},
			"found": func(h *kvpb.Hello) error {
				s, err := client.Found(c.ctx())
				if err != nil {
					return err
				}
				if err := s.Send(&kvpb.FoundRequest{Hello: h}); err != nil {
					return err
				}
				_, err = s.Recv()
				return err
			},
			"snapshot": func(h *kvpb.Hello) error {
				return c.snapshotAs(to, &kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Header{Header: &kvpb.SnapshotHeader{Hello: h}}})
			},
		} {
			before := to.Status().RefusedMessages
			err := call(damaged())
			if err == nil || errors.Is(told(err), ErrRemoved) || errors.Is(told(err), ErrMembershipRefused) {
				t.Errorf("%s: a damaged hello is told %v", name, err)
			}
			if n := to.Status().RefusedMessages - before; n != 1 {
				t.Errorf("%s: %d were counted as refused, want 1", name, n)
			}
		}
	})
}

// told returns the error that a status stands for.
func told(err error) error {
	e, _ := wire.FromStatus(err) // another server's stays what it is
	return e
}

// TestSilentStreamIsCutOff: gRPC may hold back what comes for a frame that it
// takes to be longer. The streams between members are never silent for so long.
func TestSilentStreamIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		leader := c.leader()
		from, to := c.but(leader)[0], c.but(leader)[1] // which have nothing to say to each other
		s, err := c.dialPeer(to).Messages(c.within(2*peer.SilenceMax), frame.Option())
		if err != nil {
			t.Fatal(err)
		}
		hello := &kvpb.MessagesRequest{Hello: c.helloOf(from, to)}
		checksum.Seal(hello)
		if err := s.Send(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a silent stream ends with %v, want InvalidArgument", err)
		}
		if took := time.Since(began); took < peer.SilenceMax || took > peer.SilenceMax+silenceCheck {
			t.Errorf("it ends after %v, want %v to %v", took, peer.SilenceMax, peer.SilenceMax+silenceCheck)
		}
		c.pause(10 * peer.SilenceMax)
		for id, n := range c.nodes {
			want := uint64(0)
			if n == to {
				want = 1
			}
			if got := n.Status().RefusedMessages; got != want {
				t.Errorf("member %d has counted %d as refused, want %d", id, got, want)
			}
		}
	})
}
