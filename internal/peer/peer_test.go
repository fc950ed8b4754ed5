package peer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/simnet"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

var (
	member = roster.Member{RaftID: roster.RaftID(2, 5), Addr: "server", Nonce: "0123456789abcdef"}
	hello  = &kvpb.Hello{From: &kvpb.Identity{Id: 1, RaftId: roster.RaftID(1, 1)}, ToId: 2, ToRaftId: member.RaftID}
)

// A server is the other side of a link: it says who it is and keeps what comes.
type server struct {
	kvpb.UnimplementedPeerServiceServer
	grpc   *grpc.Server
	served chan error

	mu       sync.Mutex
	identity *kvpb.Identity
	refusal  error // of the hello
	mute     bool  // it never answers a hello
	verdict  error // of the next frame
	hellos   []*kvpb.Hello
	frames   []frame.Frame
}

func serve(t *testing.T, n *simnet.Network) *server {
	t.Helper()
	l, err := n.Listen(member.Addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		grpc: grpc.NewServer(), served: make(chan error, 1),
		identity: &kvpb.Identity{RaftId: member.RaftID, Nonce: []byte(member.Nonce)},
	}
	kvpb.RegisterPeerServiceServer(s.grpc, s)
	go func() { s.served <- s.grpc.Serve(l) }()
	t.Cleanup(s.stop)
	return s
}

// stop ends the server as the death of its process would.
func (s *server) stop() {
	s.grpc.Stop()
	synctest.Wait()
}

func (s *server) Messages(stream grpc.BidiStreamingServer[kvpb.MessagesRequest, kvpb.MessagesResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.hellos = append(s.hellos, req.GetHello())
	identity, refusal, mute := s.identity, s.refusal, s.mute
	s.mu.Unlock()
	if mute {
		<-stream.Context().Done()
		return nil
	}
	if refusal != nil {
		return refusal
	}
	resp := &kvpb.MessagesResponse{Identity: identity}
	checksum.Seal(resp)
	if err := stream.Send(resp); err != nil {
		return err
	}
	if identity.GetRaftId() != member.RaftID || string(identity.GetNonce()) != member.Nonce {
		return status.Error(codes.FailedPrecondition, "another process")
	}
	for {
		var data frame.Bytes
		if err := stream.RecvMsg(&data); err != nil {
			return err
		}
		f, err := frame.Decode(data)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.frames = append(s.frames, f)
		verdict := s.verdict
		s.mu.Unlock()
		if verdict != nil {
			return verdict
		}
	}
}

func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// A recorder writes down what happens to a link, and when.
type recorder struct {
	t  *testing.T
	mu sync.Mutex

	events []string
	last   error
	tries  []time.Time // of TurnedAway

	committed atomic.Int64
}

func (r *recorder) note(event string, raftID uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if raftID != member.RaftID {
		r.t.Errorf("%s of raft ID %d, want %d", event, raftID, member.RaftID)
	}
	r.events = append(r.events, event)
	if err != nil {
		r.last = err
		r.tries = append(r.tries, time.Now())
	}
}

func (r *recorder) Committed() int64 { return r.committed.Load() }

func (r *recorder) Connected(raftID uint64)             { r.note("connected", raftID, nil) }
func (r *recorder) Unreachable(raftID uint64)           { r.note("unreachable", raftID, nil) }
func (r *recorder) TurnedAway(raftID uint64, err error) { r.note("turned away", raftID, err) }
func (r *recorder) Met(raftID uint64, who *kvpb.Identity) {
	r.note(fmt.Sprintf("met %x", who.GetNonce()), raftID, nil)
}

// cause returns why the link was turned away last.
func (r *recorder) cause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// take returns the events since it was last called.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

func (r *recorder) want(want ...string) {
	r.t.Helper()
	if got := r.take(); !slices.Equal(got, want) {
		r.t.Fatalf("events %q, want %q", got, want)
	}
}

// linked runs a test with a link from "client" to a server that may not be
// there. The bubble fails if the link leaves a goroutine behind.
func linked(t *testing.T, f func(t *testing.T, n *simnet.Network, l *Link, r *recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New()
		dial := func() *grpc.ClientConn {
			conn, err := grpc.NewClient("passthrough:///"+member.Addr,
				grpc.WithContextDialer(n.Dialer("client")), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}, MinConnectTimeout: time.Second,
				}))
			if err != nil {
				panic(err) // only the options can be wrong
			}
			return conn
		}
		r := &recorder{t: t}
		f(t, n, New(member, hello, dial, r), r)
	})
}

// run starts a link and returns how to end it; that waits until it has ended.
func run(t *testing.T, l *Link) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	donec := make(chan struct{})
	go func() {
		l.Run(ctx)
		close(donec)
	}()
	end = func() {
		cancel()
		<-donec
	}
	t.Cleanup(end)
	synctest.Wait()
	return end
}

func TestHelloComesFirstAndAlone(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		l.Send(heartbeat(1))
		l.Forward([]byte("batch"))
		l.Refuse(7)
		run(t, l)
		r.want("connected")
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.hellos) != 1 || s.hellos[0].GetToRaftId() != member.RaftID || s.hellos[0].GetFrom().GetId() != 1 {
			t.Fatalf("hellos %v, want the one given", s.hellos)
		}
		if len(s.frames) != 1 {
			t.Fatalf("%d frames, want 1", len(s.frames))
		}
		f := s.frames[0]
		if fmt.Sprint(names(&f)) != "[h1]" || string(f.Proposals[0]) != "batch" || f.Refusals[0] != 7 {
			t.Errorf("frame %v, want message, batch and refusal", f)
		}
	})
}

func TestMessagesArriveInOrder(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		for i := range 2000 {
			l.Send(appendOf(i, 100))
			if i%100 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		i := 0
		for _, f := range s.frames {
			for _, name := range names(&f) {
				if want := fmt.Sprint("a", i); name != want {
					t.Fatalf("message %s, want %s", name, want)
				}
				i++
			}
		}
		if i != 2000 {
			t.Errorf("%d messages arrived, want 2000", i)
		}
		r.want("connected")
	})
}

func TestWrongIdentityIsRefused(t *testing.T) {
	for name, identity := range map[string]*kvpb.Identity{
		"another raft ID": {RaftId: roster.RaftID(2, 6), Nonce: []byte(member.Nonce)},
		"another nonce":   {RaftId: member.RaftID, Nonce: []byte("fedcba9876543210")},
		"blank":           {Nonce: []byte(member.Nonce)},
		"nothing":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
				s := serve(t, n)
				s.change(func() { s.identity = identity })
				l.Send(heartbeat(1))
				run(t, l)
				r.want(fmt.Sprintf("met %x", identity.GetNonce()), "unreachable", "turned away")
				if err := r.cause(); !strings.Contains(fmt.Sprint(err), "another process") {
					t.Errorf("turned away because of %v, want the reason that was given", err)
				}
				s.change(func() {
					if len(s.frames) != 0 {
						t.Errorf("%d frames went to a stranger", len(s.frames))
					}
					s.identity = &kvpb.Identity{RaftId: member.RaftID, Nonce: []byte(member.Nonce)}
				})
				time.Sleep(time.Second)
				synctest.Wait()
				if got := r.take(); len(got) != 1 || got[0] != "connected" {
					t.Errorf("events %q once the right process answers, want connected", got)
				}
			})
		})
	}
}

func TestTurnedAwayCarriesTheServersError(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		s.change(func() { s.refusal = status.Error(codes.FailedPrecondition, "removed from the cluster") })
		run(t, l)
		r.want("turned away")
		wantCause(t, r, codes.FailedPrecondition, "removed from the cluster")
	})
}

// A stream that was accepted may be ended later: the member has been removed.
func TestStreamThatIsEndedTellsTheReason(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		r.want("connected")
		s.change(func() { s.verdict = status.Error(codes.FailedPrecondition, "removed meanwhile") })
		l.Send(heartbeat(1))
		synctest.Wait()
		r.want("unreachable", "turned away")
		wantCause(t, r, codes.FailedPrecondition, "removed meanwhile")
	})
}

func wantCause(t *testing.T, r *recorder, code codes.Code, text string) {
	t.Helper()
	if err := r.cause(); status.Code(err) != code || status.Convert(err).Message() != text {
		t.Errorf("turned away with %v, want %v: %q", err, code, text)
	}
}

func TestLinkComesBackAfterTheServerDies(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		r.want("connected")
		s.stop()
		if got := r.take(); len(got) != 2 || got[0] != "unreachable" || got[1] != "turned away" {
			t.Fatalf("events %q when the server dies, want unreachable and turned away", got)
		}
		if err := r.cause(); status.Code(err) != codes.Unavailable {
			t.Errorf("turned away with %v, want Unavailable", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if slices.Contains(r.take(), "unreachable") {
			t.Error("unreachable was reported again while nothing was lost")
		}
		s = serve(t, n)
		before := time.Now()
		for !slices.Contains(r.take(), "connected") {
			time.Sleep(10 * time.Millisecond)
			if time.Since(before) > 2*retryDelayMax {
				t.Fatalf("not connected %v after the server is back", time.Since(before))
			}
		}
		l.Send(heartbeat(3))
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.frames) != 1 || fmt.Sprint(names(&s.frames[0])) != "[h3]" {
			t.Errorf("frames %v after the new stream, want [h3]", s.frames)
		}
	})
}

func TestRetriesBackOff(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		s.change(func() { s.refusal = status.Error(codes.PermissionDenied, "no") })
		run(t, l)
		time.Sleep(time.Minute)
		r.mu.Lock()
		defer r.mu.Unlock()
		delay := retryDelayMin
		for i := 1; i < len(r.tries); i++ {
			if got := r.tries[i].Sub(r.tries[i-1]); got < delay/2 || got > delay {
				t.Errorf("try %d comes after %v, want %v to %v", i, got, delay/2, delay)
			}
			delay = min(2*delay, retryDelayMax)
		}
		if n := len(r.tries); n < 60 || n > 130 {
			t.Errorf("%d tries in a minute, want one each half to whole second", n)
		}
	})
}

func TestWhatWaitsWithoutAStreamIsDroppedAndReported(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		run(t, l) // nobody listens
		r.want("turned away")
		l.Send(heartbeat(1))
		time.Sleep(retryDelayMax)
		synctest.Wait()
		lost := 0
		for _, e := range r.take() {
			if e == "unreachable" {
				lost++
			}
		}
		if lost != 1 {
			t.Errorf("one lost message was reported %d times, want once", lost)
		}
		s := serve(t, n)
		time.Sleep(2 * retryDelayMax)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.hellos) != 1 || len(s.frames) != 0 {
			t.Errorf("%d hellos and %d frames, want one hello and nothing old", len(s.hellos), len(s.frames))
		}
	})
}

func TestOverflowOfTheQueueIsUnreachableOnce(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		for range controlMax + 10 {
			l.Send(heartbeat(1))
			l.Refuse(1)
		}
		for range appendsMax + 10 {
			l.Forward([]byte{1})
		}
		r.want("unreachable")
		run(t, l)()
	})
}

func TestHelloThatIsNeverAnsweredTimesOut(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		s.change(func() { s.mute = true })
		began := time.Now()
		run(t, l)
		r.want()
		time.Sleep(helloTimeout)
		synctest.Wait()
		r.want("turned away")
		r.mu.Lock()
		defer r.mu.Unlock()
		if took := r.tries[0].Sub(began); took != helloTimeout {
			t.Errorf("gave up after %v, want %v", took, helloTimeout)
		}
	})
}

func TestRunEndsWithItsContextWhateverItDoes(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, n *simnet.Network){
		"connected": func(t *testing.T, n *simnet.Network) { serve(t, n) },
		"no server": func(*testing.T, *simnet.Network) {},
		"no answer to the dial": func(_ *testing.T, n *simnet.Network) {
			n.Cut("client", member.Addr)
		},
		"no answer to the hello": func(t *testing.T, n *simnet.Network) {
			s := serve(t, n)
			s.change(func() { s.mute = true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
				prepare(t, n)
				end := run(t, l)
				r.take()
				began := time.Now()
				end()
				if took := time.Since(began); took > 0 {
					t.Errorf("Run ended %v after its context", took)
				}
				if slices.Contains(r.take(), "turned away") {
					t.Error("the end of the context is reported as a refusal")
				}
			})
		})
	}
}

func TestLinkNamesItsMember(t *testing.T) {
	linked(t, func(t *testing.T, _ *simnet.Network, l *Link, _ *recorder) {
		if l.Member() != member {
			t.Errorf("Member = %+v, want %+v", l.Member(), member)
		}
		if l.Client() == nil {
			t.Error("no client")
		}
		run(t, l)()
	})
}
