package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/simnet"
	"example.com/raftkv/internal/wire"
)

// TestIdleStreamIsNotSilent: the receiver ends a stream on which nothing comes.
func TestIdleStreamIsNotSilent(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		r.want("connected")
		for i := range 3 {
			time.Sleep(SilenceMax / 2)
			synctest.Wait()
			s.mu.Lock()
			if len(s.frames) < 2 {
				t.Errorf("%d frames in time %d of %v, want 2 at least", len(s.frames), i, SilenceMax/2)
			}
			s.frames = nil
			s.mu.Unlock()
		}
	})
}

// TestConnectionOnWhichNoStreamOpensIsReplaced, unless the other side says why,
// for then it works; or a stream has been open.
func TestConnectionOnWhichNoStreamOpensIsReplaced(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(s *server)
		replaced bool
	}{
		"no answer":             {func(s *server) { s.mute = true }, true},
		"an answer of gRPC's":   {func(s *server) { s.refusal = status.Error(codes.Unimplemented, "no such method") }, true},
		"a refusal":             {func(s *server) { s.refusal = wire.ToStatus(fault.ErrNotMember, 0, "") }, false},
		"a stream that is over": {func(s *server) { s.verdict = status.Error(codes.Unknown, "over") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
				s := serve(t, n)
				s.change(func() { test.change(s) })
				run(t, l)
				for range 10 {
					l.queue.addPing()
					time.Sleep(2 * helloTimeout)
				}
				if dials := n.Counts("client", member.Addr).Dials; (dials > 5) != test.replaced {
					t.Errorf("%d connections, replaced: want %v", dials, test.replaced)
				}
			})
		})
	}
}
