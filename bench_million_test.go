//go:build linux || darwin

package raftkv

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// BenchmarkMillionKeys is three members with a million keys of 16 bytes and values
// of 128: what they keep in memory, how fast a learner takes it up, and what
// writers notice of that.
func BenchmarkMillionKeys(b *testing.B) { millionKeys(b, 1_000_000, 2*time.Second) }

// millionKeys measures calls beside a transfer and, for a while, without one.
func millionKeys(b *testing.B, keys int, while time.Duration) {
	c := loopback(b)
	c.found(3)
	n := c.leader()
	benchFill(b, n, keys, benchValueBytes)
	appliedEverywhere(b, c)
	all := liveBytes()
	dropLogs(c)
	state := liveBytes()
	b.Run("what=memory", func(b *testing.B) {
		for b.Loop() {
			runtime.GC()
		}
		b.ReportMetric(float64(state)/1e6, "state-MB")
		b.ReportMetric(float64(all-state)/1e6, "log-MB")
		b.ReportMetric(float64(n.cfg.Limits.MaxLogBytes*3)/1e6, "log-max-MB")
		b.ReportMetric(float64(state)/3/float64(keys), "B/key")
	})
	ids := uint64(3)
	b.Run("what=learner", func(b *testing.B) {
		learnerShare(b, c, &ids)
	})
	b.Run("what=writes", func(b *testing.B) {
		writesBesideSnapshot(b, c, &ids, keys, while)
	})
}

func appliedEverywhere(b *testing.B, c *cluster) {
	revision := c.leader().Status().Revision
	for _, n := range c.nodes {
		if _, err := n.Get(b.Context(), "none", MinRevision(revision)); !errors.Is(err, ErrNotFound) {
			b.Fatal(err)
		}
	}
}

// liveBytes returns what is live in this process.
func liveBytes() int64 {
	runtime.GC() // the next finds pools emptied and finalizers run
	return heapBytes()
}

// dropLogs has all nodes drop what they have applied of their logs.
func dropLogs(c *cluster) {
	for _, n := range c.nodes {
		err := n.do(func(l *loop) {
			limit := l.log.maxBytes
			l.log.maxBytes = 0
			l.log.compact(l.fsm.applied.Load(), l.now)
			l.log.maxBytes = limit
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// learnerShare is a learner that comes in by a snapshot, beside a bare gRPC
// stream of as many bytes in chunks of the same size: share is the part of its
// bandwidth that the learner reaches.
func learnerShare(b *testing.B, c *cluster, ids *uint64) {
	size := dataBytes(c.leader())
	bare := serveBare(b, func(s *grpc.Server) { kvpb.RegisterPeerServiceServer(s, sink{}) })
	var streamTime time.Duration
	var spent cpuUsage
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		runtime.GC()
		begin := time.Now()
		streamBare(b, bare, size)
		streamTime += time.Since(begin)
		*ids++
		learn(b, c, *ids, func(add func()) {
			before := usage()
			b.StartTimer()
			add()
			b.StopTimer()
			spent = spent.plus(usage().since(before))
		})
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(spent.lost(), "lost-%")
	b.ReportMetric(float64(size)*float64(b.N)/1e6/streamTime.Seconds(), "stream-MB/s")
	b.ReportMetric(float64(streamTime)/float64(b.Elapsed()), "share")
}

// A sink takes snapshots and forgets them.
type sink struct {
	kvpb.UnimplementedPeerServiceServer
}

func (sink) Snapshot(s grpc.ClientStreamingServer[kvpb.SnapshotRequest, kvpb.SnapshotResponse]) error {
	for {
		switch _, err := s.Recv(); {
		case errors.Is(err, io.EOF):
			return s.SendAndClose(&kvpb.SnapshotResponse{})
		case err != nil:
			return err
		}
	}
}

func streamBare(b *testing.B, addr string, size int64) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close() // nothing more to do about an error
	s, err := kvpb.NewPeerServiceClient(conn).Snapshot(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, chunkBytesMax)
	for sent := int64(0); sent < size; sent += chunkBytesMax {
		part := &kvpb.SnapshotRequest_Chunk{Chunk: &kvpb.SnapshotChunk{Crc: 1, Data: chunk}}
		if err := s.Send(&kvpb.SnapshotRequest{Part: part}); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := s.CloseAndRecv(); err != nil {
		b.Fatal(err)
	}
}

// writesBesideSnapshot has callers write at half of the rate that they reach at
// most, and compares how long a write takes while a learner is sent the state with
// how long it takes before that: without the garbage collector, and with a whole
// cycle of it, as there is in every transfer. An operation is such a transfer.
func writesBesideSnapshot(b *testing.B, c *cluster, ids *uint64, keys int, while time.Duration) {
	const callers = 256
	n := c.leader()
	value := make([]byte, benchValueBytes)
	write := op(func(r *rand.Rand) error {
		_, err := n.Put(context.Background(), string(appendKey(nil, r.IntN(keys))), value)
		return err
	})
	calls := keys / 5
	write.loop(b, callers, calls)
	begin := time.Now()
	write.loop(b, callers, calls)
	peak := float64(calls) / time.Since(begin).Seconds()

	var without, collected, with histogram
	var spent cpuUsage
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		runtime.GC() // nobody pays for the learner before
		load := write.pace(b, callers, peak/2)
		c.pause(while / 2)
		load.cut()
		c.pause(while)
		without.merge(load.cut())
		c.pauseForCycles(1, 5*while) // one that was forced, without a load, has taught the collector to begin too late
		load.cut()
		c.pauseForCycles(1, 5*while)
		collected.merge(load.cut())
		*ids++
		learn(b, c, *ids, func(add func()) {
			load.cut()
			before := usage()
			b.StartTimer()
			add()
			b.StopTimer()
			spent = spent.plus(usage().since(before))
			with.merge(load.cut())
			load.stop() // what it owes by now would count as without
		})
		b.StartTimer()
	}
	b.StopTimer()
	with.report(b)
	b.ReportMetric(float64(with.total())/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(peak/2, "wanted-ops/s")
	b.ReportMetric(spent.lost(), "lost-%")
	b.ReportMetric(micros(without.quantile(0.99)), "base-p99-us")
	b.ReportMetric(float64(with.quantile(0.99))/float64(without.quantile(0.99)), "p99-ratio")
	b.ReportMetric(micros(collected.quantile(0.99)), "base-gc-p99-us")
	b.ReportMetric(float64(with.quantile(0.99))/float64(collected.quantile(0.99)), "p99-ratio-gc")
}

// pauseForCycles pauses until the garbage collector has begun by itself and ended so
// often, but not for ever.
func (c *cluster) pauseForCycles(cycles uint64, most time.Duration) {
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
	count := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	begin, first := time.Now(), count()
	for count() < first+cycles && time.Since(begin) < most {
		c.pause(10 * time.Millisecond)
	}
}

// A load is callers who call at a steady rate.
type load struct {
	stopc chan struct{}  // closed by stop
	duec  chan time.Time // when a call is due: tick sends, callers receive and tick closes
	wg    sync.WaitGroup

	mu        sync.Mutex
	histogram histogram // since the last cut
}

// pace begins to have callers call op, together so often a second: some calls
// every millisecond. A call counts from when it is due, even if all callers still
// wait for the answer to an earlier one.
func (do op) pace(b *testing.B, callers int, rate float64) *load {
	l := &load{stopc: make(chan struct{}), duec: make(chan time.Time, 1<<16)}
	l.wg.Go(func() { l.tick(rate) })
	for i := range callers {
		l.wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for due := range l.duec {
				if l.stopped() {
					return
				}
				if err := do(r); err != nil {
					b.Error(err)
					return
				}
				l.add(time.Since(due))
			}
		})
	}
	return l
}

func (l *load) tick(rate float64) {
	defer close(l.duec)
	const step = time.Millisecond
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	owed := 0.0
	for due := time.Now(); ; {
		select {
		case <-ticker.C:
		case <-l.stopc:
			return
		}
		for now := time.Now(); !due.After(now); due = due.Add(step) {
			for owed += rate * step.Seconds(); owed >= 1; owed-- {
				select {
				case l.duec <- due:
				case <-l.stopc:
					return
				}
			}
		}
	}
}

func (l *load) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.histogram.add(d)
}

// cut returns how long the calls took that have ended since the last cut.
func (l *load) cut() *histogram {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.histogram
	l.histogram = histogram{}
	return &h
}

func (l *load) stopped() bool {
	select {
	case <-l.stopc:
		return true
	default:
		return false
	}
}

func (l *load) stop() {
	close(l.stopc)
	l.wg.Wait()
}
