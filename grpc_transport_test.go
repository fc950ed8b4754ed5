package raftkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// A lockedBuffer collects a node's log.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// dialPeer returns a peer's client of a node.
func (c *cluster) dialPeer(n *Node) kvpb.PeerServiceClient {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.cfg.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(c.net.Dialer("stranger:1")))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return kvpb.NewPeerServiceClient(conn)
}

// helloOf returns what a member would say to another: the best forgery there is.
func (c *cluster) helloOf(from, to *Node) *kvpb.Hello {
	h := &kvpb.Hello{}
	// An error says that a node has stopped: then the hello lacks its part, and is
	// refused.
	_ = from.do(func(l *loop) { h.From = l.identity() })
	_ = to.do(func(l *loop) { h.ToId, h.ToRaftId, h.ToNonce = l.cfg.ID, l.raftID, []byte(l.nonce) })
	return h
}

// openAs opens a message stream with a hello and returns the answer.
func (c *cluster) openAs(n *Node, h *kvpb.Hello) (grpc.BidiStreamingClient[kvpb.MessagesRequest, kvpb.MessagesResponse], error) {
	s, err := c.dialPeer(n).Messages(c.ctx(), frame.Option())
	if err != nil {
		return nil, err
	}
	hello := &kvpb.MessagesRequest{Hello: h}
	checksum.Seal(hello)
	if err := s.Send(hello); err != nil {
		return nil, err
	}
	resp, err := s.Recv()
	if err == nil && !bytes.Equal(resp.GetIdentity().GetNonce(), h.GetToNonce()) || resp.GetIdentity().GetRaftId() != h.GetToRaftId() {
		_, err = s.Recv() // another process says who it is, and then why it refuses
	}
	return s, err
}

func TestHelloOfStrangerIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		from, to := c.nodes[1], c.nodes[2]
		for what, forge := range map[string]func(h *kvpb.Hello){
			"another protocol":     func(h *kvpb.Hello) { h.From.Protocol++ },
			"another cluster name": func(h *kvpb.Hello) { h.From.ClusterName = "other" },
			"another cluster":      func(h *kvpb.Hello) { h.From.ClusterId = []byte(randomID()) },
			"no cluster":           func(h *kvpb.Hello) { h.From.ClusterId = nil },
			"another nonce":        func(h *kvpb.Hello) { h.From.Nonce = []byte(randomID()) },
			"no nonce":             func(h *kvpb.Hello) { h.From.Nonce = nil },
			"no raft ID":           func(h *kvpb.Hello) { h.From.RaftId = 0 },
			"a raft ID of another": func(h *kvpb.Hello) { h.From.RaftId = roster.RaftID(3, 3) },
			"a member ID of ours":  func(h *kvpb.Hello) { h.From.Id = 0 },
			"for another member":   func(h *kvpb.Hello) { h.ToId = 3 },
			"for another process":  func(h *kvpb.Hello) { h.ToNonce = []byte(randomID()) },
			"for another raft ID":  func(h *kvpb.Hello) { h.ToRaftId++ },
			"nothing":              func(h *kvpb.Hello) { proto.Reset(h) },
		} {
			h := c.helloOf(from, to)
			forge(h)
			if _, err := c.openAs(to, h); status.Code(err) == codes.OK || wire.Detail(err) == nil {
				t.Errorf("%s: the stream opens with %v", what, err)
			}
		}
		c.put(to, "k", "v")
		c.wantSameState()
	})
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

func TestPeerThatBreaksTheProtocolIsCutOffCountedAndLoggedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		log := new(lockedBuffer)
		c.found(3, func(cfg *Config) {
			if cfg.ID == 2 {
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			}
		})
		c.put(c.nodes[1], "k", "v")
		c.wantSameState()
		to := c.nodes[2]
		before := to.Status()
		self, from := uint64(0), uint64(0)
		// An error says that a node has stopped: then the streams below do not open.
		_ = to.do(func(l *loop) { self = l.raftID })
		_ = c.nodes[1].do(func(l *loop) { from = l.raftID })
		for i, hostile := range hostileFrames(from, self) {
			s, err := c.openAs(to, c.helloOf(c.nodes[1], to))
			if err != nil {
				t.Fatal(err)
			}
			checksum.Seal(hostile) // as generated code writes it, it is a frame
			if err := s.Send(hostile); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 { // some are found by the loop, and cut with the next frame
				c.pause(10 * time.Millisecond)
				_ = s.SendMsg(&frame.Frame{}) // fails if the stream is cut already
			}
			if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("frame %d: the stream ends with %v", i, err)
			}
		}
		after := to.Status()
		if n := after.RefusedMessages - before.RefusedMessages; n != uint64(len(hostileFrames(0, 0))) {
			t.Errorf("%d messages were counted as refused, want %d", n, len(hostileFrames(0, 0)))
		}
		if n := strings.Count(log.String(), "turned a peer away"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, log)
		}
		if after.Term != before.Term || after.StateHash != before.StateHash || after.Leader != before.Leader {
			t.Errorf("status before %+v, after %+v", before, after)
		}
		c.put(to, "k", "w")
		c.wantSameState()
	})
}

// hostileFrames returns frames that no member sends. Those with odd numbers pass
// all checks that need no state.
func hostileFrames(from, to uint64) []*kvpb.MessagesRequest {
	heartbeat := func(change func(m *pb.Message)) *kvpb.MessagesRequest {
		m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &from, To: &to, Term: proto.Uint64(2), Commit: proto.Uint64(1)}
		change(m)
		data, _ := proto.Marshal(m) // cannot fail
		return &kvpb.MessagesRequest{Messages: [][]byte{data}}
	}
	unknown := command.Header{Origin: from, First: 1}.Append(nil)
	return []*kvpb.MessagesRequest{
		{Messages: [][]byte{[]byte("garbage")}},
		heartbeat(func(m *pb.Message) { m.Commit = proto.Uint64(1 << 40) }), // kills bare raft
		heartbeat(func(m *pb.Message) { m.Type = pb.MsgProp.Enum() }),
		heartbeat(func(m *pb.Message) { m.Term = proto.Uint64(1 << 60) }),
		heartbeat(func(m *pb.Message) { m.From = proto.Uint64(roster.RaftID(3, 3)) }),
		heartbeat(func(m *pb.Message) { m.Commit = proto.Uint64(1 << 41) }),
		{Proposals: [][]byte{unknown}}, // a batch without a command
	}
}

// TestStreamWithoutTheCodecIsRefused, and in order: the hello of another version
// may come without it.
func TestStreamWithoutTheCodecIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		from, to := c.nodes[1], c.nodes[2]
		for protocol, want := range map[uint32]error{protocolVersion - 1: ErrMembershipRefused, protocolVersion: ErrInvalid} {
			s, err := c.dialPeer(to).Messages(c.ctx())
			if err != nil {
				t.Fatal(err)
			}
			hello := &kvpb.MessagesRequest{Hello: c.helloOf(from, to)}
			hello.Hello.From.Protocol = protocol
			checksum.Seal(hello)
			if err := s.Send(hello); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = s.Recv()
			}
			if !errors.Is(told(err), want) {
				t.Errorf("protocol %d: the stream ends with %v, want %v", protocol, err, want)
			}
		}
		if n := to.Status().RefusedMessages; n != 2 {
			t.Errorf("%d were counted as refused, want 2", n)
		}
	})
}

func TestStreamWithoutHelloIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		s, err := c.dialPeer(n).Messages(c.ctx(), frame.Option())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("the stream ends with %v", err)
		}
		if waited := time.Since(began); waited > 2*firstMessageMax {
			t.Errorf("closed after %v, want about %v", waited, firstMessageMax)
		}
	})
}

// snapshotAs sends a snapshot of nothing in a member's name.
func (c *cluster) snapshotAs(n *Node, parts ...*kvpb.SnapshotRequest) error {
	s, err := c.dialPeer(n).Snapshot(c.ctx())
	if err != nil {
		return err
	}
	for _, p := range parts {
		if s.Send(p) != nil {
			break // CloseAndRecv tells why
		}
	}
	_, err = s.CloseAndRecv()
	return err
}

func TestBadSnapshotChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.nodes[1], "k", "v")
		c.wantSameState()
		from, to := c.leader(), c.follower()
		var h *snapshotHandle
		from.fsm.mu.Lock()
		h = from.fsm.freeze()
		from.fsm.mu.Unlock()
		before := to.Status()
		header := func(change func(h *kvpb.SnapshotHeader)) *kvpb.SnapshotRequest {
			m := &pb.Message{
				Type: pb.MsgSnap.Enum(), From: &from.loop.raftID, To: &to.loop.raftID, Term: proto.Uint64(before.Term),
				Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
					Index: proto.Uint64(h.index + 5), Term: proto.Uint64(before.Term), ConfState: h.roster.Conf,
				}},
			}
			data, _ := proto.Marshal(m) // cannot fail
			head := &kvpb.SnapshotHeader{
				Hello: c.helloOf(from, to), Message: data, Roster: h.roster.Proto(), Revision: h.revision,
				Keys: uint64(h.view.Len()), SizeBytes: uint64(h.view.DataBytes()),
			}
			change(head)
			if head.Crc == 0 {
				checksum.Seal(head)
			}
			return &kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Header{Header: head}}
		}
		good := func(*kvpb.SnapshotHeader) {}
		chunk := func(data []byte, crc uint32) *kvpb.SnapshotRequest {
			return &kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Chunk{Chunk: &kvpb.SnapshotChunk{Data: data, Crc: crc}}}
		}
		trailer := &kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Trailer{Trailer: &kvpb.SnapshotTrailer{StateHash: 1}}}
		big := bytes.Repeat([]byte("x"), 100)
		part, _ := proto.Marshal(&kvpb.SnapshotPart{Records: []*kvpb.SnapshotRecord{{Key: []byte("a"), Value: big, Revision: 1}}})
		for what, parts := range map[string][]*kvpb.SnapshotRequest{
			"no header":           {trailer},
			"a stranger":          {header(func(h *kvpb.SnapshotHeader) { h.Hello.From.ClusterId = []byte(randomID()) })},
			"another roster":      {header(func(h *kvpb.SnapshotHeader) { h.Roster.ClusterId = []byte(randomID()) })},
			"garbage for raft":    {header(func(h *kvpb.SnapshotHeader) { h.Message = []byte("garbage") })},
			"not as sealed":       {header(func(h *kvpb.SnapshotHeader) { checksum.Seal(h); h.Revision-- })},
			"impossible size":     {header(func(h *kvpb.SnapshotHeader) { h.SizeBytes = 1 << 60 })},
			"a future revision":   {header(func(h *kvpb.SnapshotHeader) { h.Revision = 1 << 62 })},
			"wrong checksum":      {header(good), chunk(part, 7)},
			"more than declared":  {header(good), chunk(part, checksum.Of(part))},
			"malformed part":      {header(good), chunk([]byte{0xff}, checksum.Of([]byte{0xff}))},
			"less than declared":  {header(good), trailer},
			"wrong hash":          {header(func(h *kvpb.SnapshotHeader) { h.Keys, h.SizeBytes = 0, 0 }), trailer},
			"no trailer":          {header(good)},
			"a header in between": {header(good), header(good)},
		} {
			if err := c.snapshotAs(to, parts...); err == nil {
				t.Errorf("%s: accepted", what)
			}
		}
		if after := to.Status(); after.StateHash != before.StateHash || after.Applied != before.Applied {
			t.Errorf("status before %+v, after %+v", before, after)
		}
		c.put(to, "k", "w")
		c.wantSameState()
	})
}

func TestStalledSnapshotIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		s, err := c.dialPeer(n).Snapshot(c.ctx())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.RecvMsg(new(kvpb.SnapshotResponse)); err == nil {
			t.Error("accepted nothing")
		}
		if waited := time.Since(began); waited > 2*chunkTimeout {
			t.Errorf("given up after %v, want about %v", waited, chunkTimeout)
		}
	})
}

func TestCallThatEndsTellsWhatItWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.follower()
		c.net.Isolate(n.cfg.Addr)
		conn, err := grpc.NewClient("passthrough:///"+n.cfg.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(c.net.Dialer(n.cfg.Addr)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err = kvpb.NewKVServiceClient(conn).Get(ctx, &kvpb.GetRequest{Key: []byte("k")})
		told, ours := wire.FromStatus(err)
		if !ours || !errors.Is(told, ErrNoLeader) || !strings.Contains(fmt.Sprint(told), "leader") {
			t.Errorf("get on an isolated member = %v", err)
		}
	})
}
