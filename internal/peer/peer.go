// Package peer is a link to one other member: a bounded queue and a goroutine
// that sends it over one gRPC stream, again and again until it is told to stop.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	helloTimeout  = 5 * time.Second
	retryDelayMin = 50 * time.Millisecond
	retryDelayMax = time.Second // a member that comes back is found this soon
	redialDelay   = 5 * time.Millisecond
	redialsMax    = 4 // at most so many tries come of one Redial
	pingInterval  = 5 * time.Second

	// SilenceMax is how long a receiver waits at least for the next frame of a stream, of
	// which an idle one has several in that time. Damage to the length before a
	// frame has gRPC take the following ones for part of it, while connection and
	// stream look healthy; only silence tells. A frame of FrameBytesMax comes
	// through in time at 35 KiB/s.
	SilenceMax = 6 * pingInterval
)

// Events is told what happens to a link. Its methods return at once.
type Events interface {
	// Connected says that the other side has accepted a stream.
	Connected(raftID uint64)
	// Unreachable says that messages were lost. Once per outage or overflow.
	Unreachable(raftID uint64)
	// TurnedAway says that the other side refuses the link.
	TurnedAway(raftID uint64, err error)
	// Met says that another process than the one linked with answers there.
	Met(raftID uint64, who *kvpb.Identity)
	// Committed asks how much has been committed here, in bytes.
	Committed() int64
}

// A Link carries messages to one incarnation of a member. Messages wait in a
// queue; while there is no stream, what waits is dropped with every failed try,
// so that nothing old is ever sent and memory does not grow. Losing messages is
// safe: raft sends again what matters.
//
// The other side's messages come on a stream of its own.
type Link struct {
	member roster.Member
	hello  *kvpb.Hello
	dial   func() *grpc.ClientConn
	conn   atomic.Pointer[grpc.ClientConn] // Run replaces it
	events Events
	queue  queue
	up     atomic.Bool   // the other side has accepted the present stream
	nudgec chan struct{} // Nudge sends, Run takes; capacity 1: one covers others
	dialc  chan struct{} // Redial sends, Run takes; likewise
}

// New returns a link that Run will serve. It owns the connections that dial
// returns, the first of which it asks for now.
func New(member roster.Member, hello *kvpb.Hello, dial func() *grpc.ClientConn, events Events) *Link {
	l := &Link{member: member, hello: hello, dial: dial, events: events,
		queue: queue{wakec: make(chan struct{}, 1)}, nudgec: make(chan struct{}, 1), dialc: make(chan struct{}, 1)}
	l.conn.Store(dial())
	return l
}

// Member returns whom the link leads to.
func (l *Link) Member() roster.Member { return l.member }

// Client returns a client for calls to the same member.
func (l *Link) Client() kvpb.PeerServiceClient { return kvpb.NewPeerServiceClient(l.conn.Load()) }

// Send queues a raft message.
func (l *Link) Send(m *pb.Message) { l.overflow(l.queue.addMessage(m)) }

// Forward queues a batch that the member, as leader, shall propose.
func (l *Link) Forward(batch []byte) { l.overflow(l.queue.addProposal(batch)) }

// Refuse queues the answer that a batch of the member's was not taken.
func (l *Link) Refuse(first uint64) { l.overflow(l.queue.addRefusal(first)) }

// Stand has the member told how this one sees the cluster. It answers if it is
// asked to, or if it no longer takes us for a member.
func (l *Link) Stand(s *kvpb.Standing) { l.queue.addStanding(s) }

func (l *Link) overflow(first bool) {
	if first {
		l.events.Unreachable(l.member.RaftID)
	}
}

// Run sends until the context ends, then closes the connection.
func (l *Link) Run(ctx context.Context) {
	defer l.Close()
	delay, quick := retryDelayMin, 0 // quick: how many tries are to follow soon on each other
	for ctx.Err() == nil {
		worked, err := l.stream(ctx)
		if l.queue.drop() || worked {
			l.events.Unreachable(l.member.RaftID)
		}
		if err != nil && ctx.Err() == nil {
			l.events.TurnedAway(l.member.RaftID, err)
		}
		if worked {
			delay, quick = retryDelayMin, 0
		} else {
			l.doubt(err)
		}
		switch {
		case quick > 0:
			quick--
			l.pause(ctx, redialDelay)
			l.conn.Load().ResetConnectBackoff()
		case l.pause(ctx, delay/2+rand.N(delay/2)): // jitter: not all members at once
			quick = redialsMax - 1
		default:
			delay = min(2*delay, retryDelayMax)
		}
	}
}

// Close closes the connection, for a link that is not run.
func (l *Link) Close() { _ = l.conn.Load().Close() } // nothing more to do about an error

// doubt replaces the connection if a stream could not be opened on it for a
// reason that neither the other side has given nor the network. Both ends of a
// connection keep state that damage may have put out of step for good, and each
// new stream on it fails: the compression of headers, and windows.
func (l *Link) doubt(err error) {
	if _, ours := wire.FromStatus(err); ours || l.conn.Load().GetState() != connectivity.Ready {
		return
	}
	_ = l.conn.Swap(l.dial()).Close() // nothing more to do about an error
}

// pause waits before the next try. A redial ends it, and after the shortest
// delay a nudge does. It reports whether it was a redial.
func (l *Link) pause(ctx context.Context, d time.Duration) (redial bool) {
	shortest, whole := time.NewTimer(min(d, retryDelayMin)), time.NewTimer(d)
	defer shortest.Stop()
	defer whole.Stop()
	var nudgec chan struct{} // l.nudgec from the shortest delay on
	for {
		select {
		case <-shortest.C:
			nudgec = l.nudgec
			continue
		case <-l.dialc:
			redial = true
		case <-nudgec:
		case <-whole.C:
			return false
		case <-ctx.Done():
			return false
		}
		l.conn.Load().ResetConnectBackoff()
		return redial
	}
}

// Redial has the next try made at once: now if there is no stream, or else when
// the stream ends. It is for who has reason to believe that it has ended, or is
// about to, and wants to know why. A few more tries follow soon, because the
// kernel of a process that dies may take a connection before it closes the
// listener. Whoever is there ends that by accepting a stream.
func (l *Link) Redial() {
	select {
	case l.dialc <- struct{}{}:
	default: // one is pending
	}
}

// Nudge says that the member is heard of: if there is no stream to it, it is
// worth a try now. A member that was cut off would otherwise be answered only
// when the pause is over.
func (l *Link) Nudge() {
	if l.up.Load() {
		return
	}
	select {
	case l.nudgec <- struct{}{}:
	default: // one is pending
	}
}

// stream opens a stream and sends on it until it breaks. It reports whether the
// other side accepted it.
func (l *Link) stream(parent context.Context) (worked bool, err error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	s, err := l.Client().Messages(ctx, frame.Option())
	if err != nil {
		return false, err
	}
	if err := l.greet(s, cancel); err != nil {
		return false, err
	}
	l.up.Store(true)
	defer l.up.Store(false)
	l.events.Connected(l.member.RaftID)
	ended := make(chan error, 1) // closed by nobody; the one send never blocks
	go func() {
		_, err := s.Recv() // the other side only ever ends the stream
		cancel()
		ended <- err
	}()
	l.send(ctx, s)
	cancel()
	return true, <-ended
}

// greet says hello and waits for the answer.
func (l *Link) greet(s grpc.BidiStreamingClient[kvpb.MessagesRequest, kvpb.MessagesResponse], cancel func()) error {
	timer := time.AfterFunc(helloTimeout, cancel)
	defer timer.Stop()
	hello := &kvpb.MessagesRequest{Hello: l.hello}
	checksum.Seal(hello)
	if err := s.Send(hello); err != nil && !errors.Is(err, io.EOF) {
		return err
	} // on io.EOF, Recv tells why
	resp, err := s.Recv()
	if err != nil {
		return err
	}
	if err := checksum.Check(resp); err != nil {
		return err
	}
	if id := resp.GetIdentity(); id.GetRaftId() != l.member.RaftID || string(id.GetNonce()) != l.member.Nonce {
		l.events.Met(l.member.RaftID, id)
		if _, err = s.Recv(); err != nil {
			return err // why it refuses
		}
		return fmt.Errorf("raftkv: raft ID %d answers in place of %d", id.GetRaftId(), l.member.RaftID)
	}
	return nil
}

// send sends what is queued until the stream breaks.
func (l *Link) send(ctx context.Context, s grpc.ClientStream) {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	var f frame.Frame
	p := pace{events: l.events}
	for {
		rests := p.rests()
		if !l.queue.take(&f, !rests) {
			var restc <-chan time.Time // if it rests
			if rests {
				restc = time.After(restStep)
			}
			select {
			case <-l.queue.wakec:
				continue
			case <-restc:
				continue
			case <-ticker.C:
				l.queue.addPing()
				continue
			case <-ctx.Done():
				return
			}
		}
		if s.SendMsg(&f) != nil {
			return // Recv tells why
		}
		p.sent(&f)
	}
}
