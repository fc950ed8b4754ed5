package raftkv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/peer"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	frameBytesMax   = 32 << 20  // what a receiver takes; the largest legal Put is half of it
	inboxBytesMax   = 128 << 20 // frames that wait for the loop; past it receivers stop reading
	firstMessageMax = 5 * time.Second
	silenceCheck    = peer.SilenceMax / 6
	snapshotsOutMax = 2 // sent at once
	snapshotsInMax  = 1 // received at once
)

// A grpcTransport connects a node with the others: a link to each, which owns
// the stream on which this node sends, and the server side of theirs. The
// server's handlers check what they can without the loop's state and hand the
// rest to it. All its goroutines end in stop.
type grpcTransport struct {
	kvpb.UnimplementedPeerServiceServer
	node   *Node
	ctx    context.Context // ends with the transport
	cancel context.CancelFunc
	inbox  *semaphore.Weighted // bytes of frames that wait for the loop
	in     *semaphore.Weighted // snapshots being received
	out    *semaphore.Weighted // snapshots being sent

	mu    sync.Mutex
	self  *kvpb.Identity
	links map[uint64]*link
}

type link struct {
	*peer.Link
	cancel context.CancelFunc
}

// end ends a link that nobody finds any more, after a time. If the node stops before,
// it ends with the transport.
func (l *link) end(after time.Duration) {
	if after == 0 {
		l.cancel()
		return
	}
	time.AfterFunc(after, l.cancel)
}

type dialer = func(ctx context.Context, addr string) (net.Conn, error)

func newGRPCTransport(n *Node) *grpcTransport {
	t := &grpcTransport{
		node: n, links: make(map[uint64]*link), inbox: semaphore.NewWeighted(inboxBytesMax),
		in: semaphore.NewWeighted(snapshotsInMax), out: semaphore.NewWeighted(snapshotsOutMax),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// dialer makes a network connection to an address.
func (t *grpcTransport) dialer(ctx context.Context, addr string) (net.Conn, error) {
	if d := t.node.cfg.Dialer; d != nil {
		return d(ctx, addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// dial returns a connection to an address. It connects when it is first used.
func (t *grpcTransport) dial(addr string) (*grpc.ClientConn, error) { return t.dialBy(t.dialer, addr) }

func (t *grpcTransport) dialBy(dialer dialer, addr string) (*grpc.ClientConn, error) {
	// Escaped, because the target is a URL, and not every address is part of one:
	// the zone of [fe80::1%eth0]:21001 looks like half an escape.
	conn, err := grpc.NewClient("passthrough:///"+url.PathEscape(addr),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dialer),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(frameBytesMax), grpc.MaxCallSendMsgSize(frameBytesMax)),
		grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("raftkv: dial %s: %w", addr, err)
	}
	return conn, nil
}

// partingTime is how long a link outlives the membership of whom it leads to. What was
// said last tells it that it is removed; else it would learn that only when it misses
// the leader, an election timeout later.
const partingTime = 100 * time.Millisecond

// connect starts and ends links until they are those to the members given.
func (t *grpcTransport) connect(self *kvpb.Identity, members []roster.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return
	}
	parting := partingTime
	if self.GetRaftId() != t.self.GetRaftId() {
		parting = 0 // nobody is spoken to under an identity of the past
	}
	t.self = self
	wanted := make(map[uint64]bool, len(members))
	for _, m := range members {
		wanted[m.RaftID] = true
		if old, ok := t.links[m.RaftID]; ok && old.Member() == m {
			continue
		} else if ok {
			old.cancel()
		}
		t.links[m.RaftID] = t.link(m)
	}
	for id, l := range t.links {
		if !wanted[id] {
			delete(t.links, id)
			l.end(parting)
		}
	}
}

func (t *grpcTransport) link(m roster.Member) *link {
	ctx, cancel := context.WithCancel(t.ctx)
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := t.dialer(ctx, addr)
		// Here, because of what gRPC makes of the error only the text is left. On
		// Windows the number is another, and the election timeout decides.
		if errors.Is(err, syscall.ECONNREFUSED) {
			t.node.post(func(l *loop) { l.presumeDead(m.RaftID) })
		}
		return conn, err
	}
	dial := func() *grpc.ClientConn {
		conn, err := t.dialBy(dialer, m.Addr)
		if err != nil {
			panic(fmt.Sprintf("raftkv: BUG: %v", err)) // only the options can be wrong
		}
		return conn
	}
	l := &link{peer.New(m, t.hello(m), dial, t), cancel}
	if !t.node.start(func() { l.Run(ctx) }) {
		l.Close() // Run would have; the node is stopping
	}
	return l
}

// hello returns what this node says to a member first.
func (t *grpcTransport) hello(to roster.Member) *kvpb.Hello {
	return &kvpb.Hello{From: t.self, ToId: to.ID(), ToRaftId: to.RaftID, ToNonce: []byte(to.Nonce)}
}

func (t *grpcTransport) to(raftID uint64) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links[raftID]
}

func (t *grpcTransport) send(m *pb.Message) {
	if l := t.to(m.GetTo()); l != nil {
		l.Send(m)
	}
}

func (t *grpcTransport) forward(to uint64, batch outbox.Batch) {
	if l := t.to(to); l != nil {
		l.Forward(batch.Data)
	}
}

func (t *grpcTransport) refuse(to, first uint64) {
	if l := t.to(to); l != nil {
		l.Refuse(first)
	}
}

func (t *grpcTransport) room(bytes int64) { t.inbox.Release(bytes) }

func (t *grpcTransport) stand(to uint64, s *kvpb.Standing) {
	if l := t.to(to); l != nil {
		l.Stand(s)
	}
}

func (t *grpcTransport) redial(raftID uint64) {
	if l := t.to(raftID); l != nil {
		l.Redial()
	}
}

// Connected is called by links.
func (t *grpcTransport) Connected(raftID uint64) {
	t.node.post(func(l *loop) { l.connected(raftID) })
}

// Unreachable is called by links.
func (t *grpcTransport) Unreachable(raftID uint64) {
	t.node.post(func(l *loop) { l.unreachable(raftID) })
}

// TurnedAway is called by links.
func (t *grpcTransport) TurnedAway(raftID uint64, err error) {
	told, ours := wire.FromStatus(err)
	if !ours {
		told = err
	}
	t.node.post(func(l *loop) { l.turnedAway(raftID, told, ours) })
}

// Met is called by links.
func (t *grpcTransport) Met(raftID uint64, who *kvpb.Identity) {
	t.node.post(func(l *loop) { l.met(raftID, who) })
}

// Committed is called by links.
func (t *grpcTransport) Committed() int64 { return t.node.tasks.committed.Load() }

// Messages receives what another member sends, for as long as both live.
func (t *grpcTransport) Messages(s grpc.BidiStreamingServer[kvpb.MessagesRequest, kvpb.MessagesResponse]) error {
	hello, err := first(s.Recv)
	if err != nil {
		return t.node.status(err)
	}
	if err := checksum.Check(hello); err != nil {
		t.refused(hello.GetHello(), err)
		return t.node.status(err)
	}
	var self *kvpb.Identity
	from := hello.GetHello().GetFrom().GetRaftId()
	err = t.ask(func(l *loop) error {
		err := l.welcome(hello.GetHello()) // which may make us somebody
		self = l.identity()
		if err == nil {
			l.streamBegan(from)
		}
		return err
	})
	resp := &kvpb.MessagesResponse{Identity: self}
	checksum.Seal(resp)
	if err != nil {
		if errors.Is(err, ErrNotMember) {
			_ = s.Send(resp) // so that it knows whom it has met; err is what counts
		}
		t.refused(hello.GetHello(), err)
		return t.node.status(err)
	}
	defer t.node.post(func(l *loop) { l.streamEnded(from) }) // after the last of its frames
	if err := s.Send(resp); err != nil {
		return err
	}
	if !frame.IsSpoken(s.Context()) {
		err := fmt.Errorf("%w: a stream without the codec for frames", ErrInvalid)
		t.refused(hello.GetHello(), err)
		return t.node.status(err)
	}
	errc := make(chan error, 1) // the one send never blocks
	var beats atomic.Uint64     // odd while the next frame is waited for
	// It ends with the stream.
	go func() { errc <- t.frames(s, hello.GetHello(), self.RaftId, &beats) }()
	select {
	case err := <-errc:
		return err
	case <-silent(s.Context(), &beats):
		err := fmt.Errorf("%w: nothing has come through for %v", ErrInvalid, peer.SilenceMax)
		t.refused(hello.GetHello(), err)
		return t.node.status(err)
	}
}

// frames takes frames from a stream until it ends.
func (t *grpcTransport) frames(s grpc.ServerStream, hello *kvpb.Hello, self uint64, beats *atomic.Uint64) (err error) {
	defer t.node.guardHandler(&err) // the handler's own guard is in another goroutine
	var cut atomic.Pointer[error]   // why the loop wants the stream to end
	for {
		beats.Add(1)
		var data frame.Bytes
		err := s.RecvMsg(&data)
		beats.Add(1)
		if err != nil {
			return err
		}
		if err := t.take(s.Context(), hello.GetFrom().GetRaftId(), self, data, &cut); err != nil {
			t.refused(hello, err)
			return t.node.status(err)
		}
	}
}

// silent returns a channel that is closed when the next frame of a stream has been
// waited for in vain for peer.SilenceMax. To look every few seconds costs less than
// a timer for every frame.
func silent(ctx context.Context, beats *atomic.Uint64) <-chan struct{} {
	c := make(chan struct{})
	go func() { // ends with the stream
		ticker := time.NewTicker(silenceCheck)
		defer ticker.Stop()
		last, since := beats.Load(), time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if beat := beats.Load(); beat != last || beat%2 == 0 {
				last, since = beat, time.Now()
			} else if time.Since(since) >= peer.SilenceMax {
				close(c)
				return
			}
		}
	}()
	return c
}

// ask has the loop decide something for another member. That this node stops is
// ErrClosed to others, whatever the reason: they must not take it for theirs.
func (t *grpcTransport) ask(f func(*loop) error) error {
	var err error
	if t.node.do(func(l *loop) { err = f(l) }) != nil {
		return fmt.Errorf("%w: it is about to stop", ErrClosed)
	}
	return err
}

// refused notes that somebody was turned away, unless it is in order.
func (t *grpcTransport) refused(h *kvpb.Hello, err error) {
	if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrMembershipRefused) {
		return // removed, meant for an earlier process, stopping, overloaded, or gone
	}
	from := h.GetFrom()
	who := fmt.Sprintf("member %d at %.100s, raft ID %d", from.GetId(), from.GetAddr(), from.GetRaftId())
	t.node.post(func(l *loop) { l.blame(who, err) })
}

// first receives the first message of a stream, which must come soon. The
// goroutine ends with the stream.
func first[T any](recv func() (*T, error)) (*T, error) {
	type result struct {
		m   *T
		err error
	}
	c := make(chan result, 1)
	go func() {
		m, err := recv()
		c <- result{m, err}
	}()
	timer := time.NewTimer(firstMessageMax)
	defer timer.Stop()
	select {
	case r := <-c:
		return r.m, r.err
	case <-timer.C:
		return nil, fmt.Errorf("%w: no hello within %v", ErrInvalid, firstMessageMax)
	}
}

// take decodes a frame, checks it and hands it to the loop, waiting while too
// much waits there already. An error says that the peer broke the protocol.
func (t *grpcTransport) take(ctx context.Context, from, self uint64, data frame.Bytes, cut *atomic.Pointer[error]) error {
	if err := cut.Load(); err != nil {
		return *err
	}
	f, err := frame.Decode(data)
	if err != nil {
		return err
	}
	if l := t.to(from); l != nil {
		l.Nudge()
	}
	for _, m := range f.Messages {
		if err := firewall.Admit(m, from, self); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	var batches int64
	proposals := make([]outbox.Batch, len(f.Proposals))
	for i, data := range f.Proposals {
		batch, err := checkBatch(data, from)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		proposals[i] = batch
		batches += int64(len(data))
	}
	if f.IsPing() {
		return t.ask(func(l *loop) error { return l.receiveAs(self, from, nil, f.Standing) }) // the sender wants to know
	}
	rest := int64(len(data)) - batches
	if err := t.inbox.Acquire(ctx, rest+batches); err != nil {
		return nil // the stream has ended; the next RecvMsg says so
	}
	t.node.post(func(l *loop) {
		defer t.inbox.Release(batches) // in the log, or refused
		defer l.owe(rest)
		if err := l.receiveAs(self, from, f.Messages, f.Standing); err != nil {
			cut.Store(&err)
			return
		}
		for _, batch := range proposals {
			l.proposal(from, batch)
		}
		for _, first := range f.Refusals {
			l.refusedBatch(first)
		}
	})
	return nil
}

// stop ends all links and transfers. Their goroutines are waited for elsewhere.
func (t *grpcTransport) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel()
}
