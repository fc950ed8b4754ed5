//go:build linux || darwin

package raftkv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// callersPerConn is how many callers share a connection: more than some hundred
// and the connection is what is measured.
const callersPerConn = 256

// A remote is the client's side of KVService: plain generated clients with
// gRPC's defaults.
type remote []kvpb.KVServiceClient

func dialRemote(b *testing.B, addr string, callers int) remote {
	clients := make(remote, (callers+callersPerConn-1)/callersPerConn)
	for i := range clients {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() }) // nothing more to do about an error
		clients[i] = kvpb.NewKVServiceClient(conn)
	}
	return clients
}

// op returns a unary call, put or get.
func (c remote) op(name string, keys int) op {
	value := make([]byte, benchValueBytes)
	if name == "put" {
		return func(r *rand.Rand) error {
			_, err := c[r.IntN(len(c))].Put(context.Background(), &kvpb.PutRequest{Key: []byte(benchKey(r, keys)), Value: value})
			return err
		}
	}
	return func(r *rand.Rand) error {
		resp, err := c[r.IntN(len(c))].Get(context.Background(), &kvpb.GetRequest{Key: []byte(benchKey(r, keys))})
		if err == nil && len(resp.GetKv().GetValue()) != benchValueBytes {
			err = fmt.Errorf("Get = %v", resp)
		}
		return err
	}
}

// An echo is a KVService without a store: what unary gRPC costs by itself.
type echo struct {
	kvpb.UnimplementedKVServiceServer
	value []byte
}

func (e *echo) Put(context.Context, *kvpb.PutRequest) (*kvpb.PutResponse, error) {
	return &kvpb.PutResponse{Revision: 1}, nil
}

func (e *echo) Get(_ context.Context, req *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	return &kvpb.GetResponse{Kv: &kvpb.KeyValue{Key: req.GetKey(), Value: e.value, Revision: 1}}, nil
}

// serveBare serves with gRPC's defaults until the benchmark ends.
func serveBare(b *testing.B, register func(*grpc.Server)) (addr string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	go s.Serve(l) // ends with Stop; its error is not news then
	b.Cleanup(s.Stop)
	return l.Addr().String()
}

func serveEcho(b *testing.B) (addr string) {
	return serveBare(b, func(s *grpc.Server) {
		kvpb.RegisterKVServiceServer(s, &echo{value: make([]byte, benchValueBytes)})
	})
}

// BenchmarkRemote calls the leader of three through gRPC, a unary call for each
// operation.
func BenchmarkRemote(b *testing.B) { remoteCalls(b, everyCaller.callers, benchKeys) }

// BenchmarkRemoteShare compares that with an echo server: share is the
// throughput as a part of the echo server's.
func BenchmarkRemoteShare(b *testing.B) { remoteShare(b, []int{256}, benchKeys) }

func remoteLeader(b *testing.B, keys int) *Node {
	c := loopback(b)
	c.found(3)
	benchFill(b, c.leader(), keys, benchValueBytes)
	return c.leader()
}

func remoteCalls(b *testing.B, callers []int, keys int) {
	leader := remoteLeader(b, keys)
	for _, name := range []string{"put", "get"} {
		for _, callers := range callers {
			clients := dialRemote(b, leader.cfg.Addr, callers)
			b.Run(fmt.Sprintf("op=%s/callers=%d/value=%d", name, callers, benchValueBytes), func(b *testing.B) {
				clients.op(name, keys).drive(b, callers)
			})
		}
	}
}

func remoteShare(b *testing.B, callers []int, keys int) {
	leader, echo := remoteLeader(b, keys), serveEcho(b)
	for _, name := range []string{"put", "get"} {
		for _, callers := range callers {
			ours, bare := dialRemote(b, leader.cfg.Addr, callers).op(name, keys), dialRemote(b, echo, callers).op(name, keys)
			b.Run(fmt.Sprintf("op=%s/callers=%d/value=%d", name, callers, benchValueBytes), func(b *testing.B) {
				share(b, ours, bare, callers)
			})
		}
	}
}

// share drives two kinds of calls in turns of some hundred milliseconds, so that
// the machine is the same for both. ns/op is that of ours.
func share(b *testing.B, ours, bare op, callers int) {
	turnCalls := 32 * callers
	keyNames()
	ours.loop(b, callers, 2*callers)
	bare.loop(b, callers, 2*callers)
	var h, bareH histogram
	var spent, bareSpent cpuUsage
	var bareTime time.Duration
	b.ResetTimer()
	b.StopTimer()
	for left := b.N; left > 0; {
		n := min(left, turnCalls)
		left -= n
		before := usage()
		b.StartTimer()
		h.merge(ours.loop(b, callers, n))
		b.StopTimer()
		between, begin := usage(), time.Now()
		bareH.merge(bare.loop(b, callers, n))
		bareTime += time.Since(begin)
		spent = spent.plus(between.since(before))
		bareSpent = bareSpent.plus(usage().since(between))
	}
	h.report(b)
	b.ReportMetric(micros(spent.cpu)/float64(b.N), "cpu-us/op")
	b.ReportMetric(spent.lost(), "lost-%")
	b.ReportMetric(micros(bareSpent.cpu)/float64(b.N), "bare-cpu-us/op")
	b.ReportMetric(micros(bareH.quantile(0.99)), "bare-p99-us")
	b.ReportMetric(float64(bareTime)/float64(b.Elapsed()), "share")
}
