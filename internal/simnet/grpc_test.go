package simnet

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// startHealth runs a gRPC health server at "server", and returns it together
// with a client at "client" that probes its connection every ten seconds.
func startHealth(t *testing.T, n *Network) (*health.Server, healthpb.HealthClient) {
	t.Helper()
	l := listen(t, n, "server")
	s := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
		MinTime: 5 * time.Second, PermitWithoutStream: true,
	}))
	h := health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///server",
		grpc.WithContextDialer(n.Dialer("client")),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true,
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closeAll(cc)
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return h, healthpb.NewHealthClient(cc)
}

func TestGRPCRunsThreeVirtualHoursInNoTime(t *testing.T) {
	start := time.Now()
	inBubble(t, func(t *testing.T, n *Network) {
		h, client := startHealth(t, n)
		r, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("Check = %v, %v; want SERVING", r, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		w, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.AfterFunc(time.Hour, func() {
			h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		})
		r, err = w.Recv()
		if err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Fatalf("second Recv = %v, %v; want NOT_SERVING", r, err)
		}
		wantElapsed(t, began, time.Hour)
		// The server knows the deadline too, and answers Canceled at the very
		// instant at which the client gives up; the answer has to be late.
		n.Delay("server", "client", time.Millisecond)
		if _, err := w.Recv(); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("third Recv = %v, want DeadlineExceeded", err)
		}
		wantElapsed(t, began, 3*time.Hour)
	})
	// A tenth of a second on an idle machine with -race; the bound only tells
	// virtual from real time.
	if took := time.Since(start); took > time.Minute {
		t.Errorf("three virtual hours took %v", took)
	}
}

func TestGRPCKeepaliveNoticesACutAndReconnectsWhenHealed(t *testing.T) {
	for _, cut := range [][2]string{{"client", "server"}, {"server", "client"}} {
		t.Run(cut[0]+" to "+cut[1], func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *Network) {
				_, client := startHealth(t, n)
				w, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Recv(); err != nil {
					t.Fatal(err)
				}
				n.Cut(cut[0], cut[1])
				start := time.Now()
				if _, err := w.Recv(); status.Code(err) != codes.Unavailable {
					t.Fatalf("Recv over a cut = %v, want Unavailable", err)
				}
				// One interval without activity and the timeout, or two
				// intervals where the first began before the cut.
				if took := time.Since(start); took < 3*time.Second || took > 23*time.Second {
					t.Errorf("the cut was noticed after %v, want 3s to 23s", took)
				}
				time.AfterFunc(time.Minute, func() { n.Heal(cut[0], cut[1]) })
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				_, err = client.Check(ctx, &healthpb.HealthCheckRequest{},
					grpc.WaitForReady(true))
				if err != nil {
					t.Fatalf("Check after Heal: %v", err)
				}
			})
		})
	}
}

func TestGRPCSurvivesAReset(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		_, client := startHealth(t, n)
		for range 3 {
			_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{},
				grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			n.Reset("client", "server")
			synctest.Wait()
		}
	})
}

func TestGRPCSurvivesResetAll(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		_, client := startHealth(t, n)
		for range 3 {
			_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			n.ResetAll("server")
			synctest.Wait()
		}
		if got := n.Counts("client", "server"); got.Dials < 3 || got.Resets != 3 {
			t.Errorf("%+v, want a connection a try and 3 resets", got)
		}
	})
}

func TestGRPCCallTakesItsTimeOnASlowLink(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		_, client := startHealth(t, n)
		n.Slow("client", "server", 1<<10)
		start := time.Now()
		// Health checks only this far, and the name is far longer.
		name := strings.Repeat("x", 10<<10)
		_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name}, grpc.WaitForReady(true))
		if status.Code(err) != codes.NotFound {
			t.Fatalf("Check = %v, want NotFound", err)
		}
		if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("10 KiB at 1 KiB/s took %v", took)
		}
		n.Slow("client", "server", 0)
		start = time.Now()
		_, err = client.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatalf("Check after the end of it = %v", err)
		}
		if took := time.Since(start); took > time.Second { // what was on the way keeps its time
			t.Errorf("a call after the end of it took %v", took)
		}
	})
}

// TestGRPCReconnectsAfterCorruption: gRPC itself notices some flipped bits, those
// in the framing, and closes the connection; others it hands on.
func TestGRPCReconnectsAfterCorruption(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		_, client := startHealth(t, n)
		n.Corrupt("client", "server", 0.2, rand.NewPCG(3, 4))
		failed := 0
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: ""}); err != nil {
				failed++
			}
			cancel()
		}
		got := n.Counts("client", "server")
		if got.Corrupted == 0 || failed == 0 || got.Dials < 2 {
			t.Errorf("%+v, %d calls failed: want corruption, failed calls and connections anew", got, failed)
		}
		n.Corrupt("client", "server", 0, nil)
		n.Reset("client", "server")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatalf("Check after the end of it: %v", err)
		}
	})
}
