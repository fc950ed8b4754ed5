//go:build linux || darwin

package raftkv

// Benchmarks of whole clusters on loopback. All members, the callers and, where
// there is one, the gRPC client share this process and its CPUs, so that
// throughput is the CPUs divided by cpu-µs/op; ns/op is the time by which one
// operation follows another, and p50-µs and p99-µs are what a caller waits.
// The constraint above is for getrusage.
//
//	go test -run='^$' -bench='Put/nodes=3/on=leader/callers=(1|64|256)$'
//	go test -run='^$' -bench=. -benchtime=200ms        # all of it

import (
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/raftkv/internal/snapshot"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	benchKeys       = 100_000 // of 16 bytes
	benchValueBytes = 128
	benchListKeys   = 100 // in one page
)

var benchCallers = []int{1, 16, 64, 256, 1024}

// keyNames are made before the clock runs: to format one takes as long as a
// stale Get.
var keyNames = sync.OnceValue(func() []string {
	names := make([]string, benchKeys)
	for i := range names {
		names[i] = fmt.Sprintf("key-%012d", i)
	}
	return names
})

// benchKey returns one of the first keys.
func benchKey(r *rand.Rand, keys int) string { return keyNames()[r.IntN(keys)] }

// A histogram counts durations in buckets that are 1/32 of a power of two wide:
// a resolution of 3 %.
type histogram [40 * histogramSteps]uint32

const histogramSteps = 32

func (h *histogram) add(d time.Duration) {
	n := uint64(max(d, 0))
	i := int(n)
	if n >= histogramSteps {
		shift := bits.Len64(n) - 6
		i = shift*histogramSteps + int(n>>shift)
	}
	h[min(i, len(h)-1)]++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o {
		h[i] += n
	}
}

// quantile returns the upper edge of the bucket in which the quantile lies.
func (h *histogram) quantile(q float64) time.Duration {
	total := uint64(0)
	for _, n := range h {
		total += uint64(n)
	}
	rank, i := uint64(q*float64(total)), 0
	for seen := uint64(0); i < len(h)-1; i++ {
		if seen += uint64(h[i]); seen > rank {
			break
		}
	}
	if i < 2*histogramSteps {
		return time.Duration(i)
	}
	shift := i/histogramSteps - 1
	return time.Duration(i-shift*histogramSteps+1) << shift
}

// cpuTime returns what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// drive has callers call op until b.N calls are done, each the next as soon as
// it has the answer to the last, and reports what the calls cost.
func drive(b *testing.B, callers int, op func(r *rand.Rand) error) {
	b.Helper()
	b.ReportAllocs()
	keyNames()
	histograms := make([]histogram, callers)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	cpu := cpuTime()
	b.ResetTimer()
	for i := range histograms {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), uint64(b.N)))
			for left.Add(-1) >= 0 {
				begin := time.Now()
				if err := op(r); err != nil {
					b.Error(err)
					return
				}
				histograms[i].add(time.Since(begin))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cpu = cpuTime() - cpu
	all := &histograms[0]
	for i := range histograms[1:] {
		all.merge(&histograms[1+i])
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(all.quantile(0.50).Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(all.quantile(0.99).Nanoseconds())/1e3, "p99-µs")
}

// reportBatching reports how many writes shared an entry of the log.
func reportBatching(b *testing.B, n *Node, before Status) {
	after := n.Status()
	if entries := after.Applied - before.Applied; entries > 0 {
		b.ReportMetric(float64(after.Revision-before.Revision)/float64(entries), "cmds/entry")
	}
}

// benchFill sets the first keys to values of a size.
func benchFill(b *testing.B, n *Node, keys, size int) {
	b.Helper()
	const callers = 64
	value := make([]byte, size)
	var wg sync.WaitGroup
	for first := range callers {
		wg.Go(func() {
			for i := first; i < keys; i += callers {
				if _, err := n.Put(b.Context(), keyNames()[i], value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// onEveryKindOfMember runs a benchmark against the leaders of clusters of one
// and of three, and against a follower, with all numbers of callers.
func onEveryKindOfMember(b *testing.B, f func(b *testing.B, n *Node, callers int)) {
	for _, size := range []int{1, 3} {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) {
			c := loopback(b)
			c.found(size)
			benchFill(b, c.leader(), benchKeys, benchValueBytes)
			run := func(name string, n *Node) {
				for _, callers := range benchCallers {
					b.Run(fmt.Sprintf("on=%s/callers=%d", name, callers), func(b *testing.B) { f(b, n, callers) })
				}
			}
			run("leader", c.leader())
			if size > 1 {
				run("follower", c.follower())
			}
		})
	}
}

func putRandom(n *Node, size, keys int) func(*rand.Rand) error {
	value := make([]byte, size)
	return func(r *rand.Rand) error {
		_, err := n.Put(context.Background(), benchKey(r, keys), value)
		return err
	}
}

func getRandom(n *Node, opts ...ReadOption) func(*rand.Rand) error {
	return func(r *rand.Rand) error {
		_, err := n.Get(context.Background(), benchKey(r, benchKeys), opts...)
		return err
	}
}

func BenchmarkPut(b *testing.B) {
	onEveryKindOfMember(b, func(b *testing.B, n *Node, callers int) {
		before := n.Status()
		drive(b, callers, putRandom(n, benchValueBytes, benchKeys))
		reportBatching(b, n, before)
	})
}

func BenchmarkGet(b *testing.B) {
	onEveryKindOfMember(b, func(b *testing.B, n *Node, callers int) {
		drive(b, callers, getRandom(n))
	})
}

func BenchmarkGetStale(b *testing.B) {
	onEveryKindOfMember(b, func(b *testing.B, n *Node, callers int) {
		drive(b, callers, getRandom(n, Stale()))
	})
}

// BenchmarkMixed reads nine times out of ten.
func BenchmarkMixed(b *testing.B) {
	onEveryKindOfMember(b, func(b *testing.B, n *Node, callers int) {
		before := n.Status()
		put, get := putRandom(n, benchValueBytes, benchKeys), getRandom(n)
		drive(b, callers, func(r *rand.Rand) error {
			if r.IntN(10) == 0 {
				return put(r)
			}
			return get(r)
		})
		reportBatching(b, n, before)
	})
}

// BenchmarkList reads a page of 100 keys, somewhere, with their values.
func BenchmarkList(b *testing.B) {
	onEveryKindOfMember(b, func(b *testing.B, n *Node, callers int) {
		drive(b, callers, func(r *rand.Rand) error {
			page, err := n.List(context.Background(), "key-", After(benchKey(r, benchKeys-benchListKeys)), Limit(benchListKeys))
			if err != nil {
				return err
			}
			keys := 0
			for range page.All() {
				keys++
			}
			if keys != benchListKeys {
				return fmt.Errorf("List yields %d keys, want %d", keys, benchListKeys)
			}
			return nil
		})
	})
}

func BenchmarkPutSize(b *testing.B) {
	const callers = 16 // of 1 MiB each fit into MaxPendingBytes
	for _, size := range []int{16, 128, 1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			c := loopback(b) // each its own: the state of the one before would be collected again and again
			c.found(3)
			n := c.leader()
			keys := min(benchKeys, 64<<20/size)
			b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
				b.SetBytes(int64(size))
				before := n.Status()
				drive(b, callers, putRandom(n, size, keys))
				reportBatching(b, n, before)
			})
		})
	}
}

// BenchmarkRemote calls the leader of three through a gRPC client with one
// connection, a unary call for each operation.
func BenchmarkRemote(b *testing.B) {
	c := loopback(b)
	c.found(3)
	leader := c.leader()
	benchFill(b, leader, benchKeys, benchValueBytes)
	conn, err := grpc.NewClient(leader.cfg.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close() // nothing more to do about an error
	client, value := kvpb.NewKVServiceClient(conn), make([]byte, benchValueBytes)
	ops := map[string]func(*rand.Rand) error{
		"put": func(r *rand.Rand) error {
			_, err := client.Put(context.Background(), &kvpb.PutRequest{Key: []byte(benchKey(r, benchKeys)), Value: value})
			return err
		},
		"get": func(r *rand.Rand) error {
			_, err := client.Get(context.Background(), &kvpb.GetRequest{Key: []byte(benchKey(r, benchKeys))})
			return err
		},
	}
	for _, name := range []string{"put", "get"} {
		for _, callers := range benchCallers {
			b.Run(fmt.Sprintf("op=%s/callers=%d", name, callers), func(b *testing.B) { drive(b, callers, ops[name]) })
		}
	}
}

// BenchmarkSnapshotEncode freezes a state, writes it and reads it back: what a
// snapshot costs without a network.
func BenchmarkSnapshotEncode(b *testing.B) {
	c := loopback(b)
	c.found(1)
	n := c.leader()
	benchFill(b, n, benchKeys, benchValueBytes)
	b.ReportAllocs()
	for b.Loop() {
		n.fsm.mu.Lock()
		h := n.fsm.freeze()
		n.fsm.mu.Unlock()
		b.SetBytes(h.view.DataBytes())
		builder := snapshot.NewBuilder(uint64(h.view.Len()), uint64(h.view.DataBytes()))
		for data := range snapshot.Parts(h.view, h.dedup, chunkBytesMax) {
			if err := builder.Add(data); err != nil {
				b.Fatal(err)
			}
		}
		if _, _, err := builder.Finish(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAddLearner is a new member that comes in by a snapshot: frozen, sent,
// checked and installed. With one key it is what does not depend on the data.
func BenchmarkAddLearner(b *testing.B) {
	for _, keys := range []int{1, benchKeys} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			c := loopback(b)
			c.found(1)
			n := c.leader()
			benchFill(b, n, keys, 1<<10)
			b.SetBytes(n.fsm.keys.DataBytes()) // nobody writes
			b.ReportAllocs()
			for id := uint64(2); b.Loop(); id++ {
				b.StopTimer()
				learner := c.start(id)
				b.StartTimer()
				if _, err := n.AddLearner(b.Context(), id, learner.cfg.Addr); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := n.RemoveLearner(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				c.kill(learner)
				b.StartTimer()
			}
		})
	}
}

// A gate holds up all that a member receives, as if its process did not run.
type gate struct{ sync.RWMutex }

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.RLock() // only to wait
	defer c.gate.RUnlock()
	return n, err
}

type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{conn, l.gate}, nil
}

// BenchmarkCatchUp is how fast a member that did not run for a moment takes in
// the log that it has missed.
func BenchmarkCatchUp(b *testing.B) {
	const missed, size = 16 << 10, 1 << 10
	c := loopback(b)
	c.found(1)
	n, g := c.leader(), new(gate)
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &gatedConn{conn, g}, nil
	}
	learner := c.start(2, func(cfg *Config) {
		cfg.Listener, cfg.Dialer = &gatedListener{cfg.Listener, g}, dialer
	})
	if _, err := n.AddLearner(b.Context(), 2, learner.cfg.Addr); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(missed * size)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		g.Lock()
		benchFill(b, n, missed, size)
		revision := n.Status().Revision
		b.StartTimer()
		g.Unlock()
		if _, err := learner.Get(b.Context(), keyNames()[0], MinRevision(revision)); err != nil {
			b.Fatal(err)
		}
	}
}
