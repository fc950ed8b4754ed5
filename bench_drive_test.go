//go:build linux || darwin

package raftkv

// Benchmarks of whole clusters: three nodes with the default Config over TCP on
// loopback. Nodes, callers and, where there are any, gRPC clients share this
// process and its CPUs. internal/BENCHMARKS.md says what the figures mean and
// how to run them. The constraint above is for getrusage.

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	benchKeys       = 100_000 // of 16 bytes
	benchValueBytes = 128
)

// appendKey makes the name of a key, of 16 bytes.
func appendKey(b []byte, i int) []byte { return fmt.Appendf(b, "key-%012d", i) }

// keyNames are made before the clock runs: to format one takes as long as a
// stale Get.
var keyNames = sync.OnceValue(func() []string {
	names := make([]string, benchKeys)
	for i := range names {
		names[i] = string(appendKey(nil, i))
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

func (h *histogram) total() (n int64) {
	for _, count := range h {
		n += int64(count)
	}
	return n
}

// quantile returns the upper edge of the bucket in which the quantile lies.
func (h *histogram) quantile(q float64) time.Duration {
	rank, i := int64(q*float64(h.total())), 0
	for seen := int64(0); i < len(h)-1; i++ {
		if seen += int64(h[i]); seen > rank {
			break
		}
	}
	if i < 2*histogramSteps {
		return time.Duration(i)
	}
	shift := i/histogramSteps - 1
	return time.Duration(i-shift*histogramSteps+1) << shift
}

// report reports the quantiles, in microseconds.
func (h *histogram) report(b *testing.B) {
	for name, q := range map[string]float64{"p50-us": 0.50, "p99-us": 0.99, "p99.9-us": 0.999} {
		b.ReportMetric(micros(h.quantile(q)), name)
	}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// An op is one call of a closed-loop caller.
type op func(r *rand.Rand) error

// loop has callers call op until that has been done often enough, each the next
// call as soon as it has the answer to the last, and returns how long they took.
func (do op) loop(b *testing.B, callers, times int) *histogram {
	histograms := make([]histogram, callers)
	var left atomic.Int64
	left.Store(int64(times))
	var wg sync.WaitGroup
	for i := range histograms {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), uint64(times)))
			for left.Add(-1) >= 0 {
				begin := time.Now()
				if err := do(r); err != nil {
					b.Error(err)
					return
				}
				histograms[i].add(time.Since(begin))
			}
		})
	}
	wg.Wait()
	all := &histograms[0]
	for i := range histograms[1:] {
		all.merge(&histograms[1+i])
	}
	return all
}

// drive has callers call op until b.N calls are done, after some to warm up, and
// reports what they cost: time and latency, and the CPU time and allocations of
// the whole process.
func (do op) drive(b *testing.B, callers int) {
	b.Helper()
	b.ReportAllocs()
	keyNames()
	do.loop(b, callers, 2*callers+b.N/10)
	before := usage()
	b.ResetTimer()
	h := do.loop(b, callers, b.N)
	b.StopTimer()
	spent := usage().since(before)
	b.ReportMetric(micros(spent.cpu)/float64(b.N), "cpu-us/op")
	b.ReportMetric(spent.lost(), "lost-%")
	h.report(b)
}

// A cpuUsage is the CPU time that this process, and all, have got.
type cpuUsage struct {
	cpu  time.Duration
	busy time.Duration // that the machine believes it was not idle, 0 without /proc
}

func usage() (u cpuUsage) {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	const tick = time.Second / 100
	// user, nice, system, idle, iowait, irq, softirq, steal; the rest is in user.
	for i, field := range strings.Fields(line)[1:9] {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i != 3 && i != 4 {
			u.busy += time.Duration(n) * tick
		}
	}
	return u
}

func (u cpuUsage) since(o cpuUsage) cpuUsage { return cpuUsage{u.cpu - o.cpu, u.busy - o.busy} }
func (u cpuUsage) plus(o cpuUsage) cpuUsage  { return cpuUsage{u.cpu + o.cpu, u.busy + o.busy} }

// lost is the share of the busy time, in percent, that others had: processes, or
// the host of a virtual machine. It says how much a result is worth.
func (u cpuUsage) lost() float64 {
	if u.busy <= u.cpu {
		return 0
	}
	return 100 * float64(u.busy-u.cpu) / float64(u.busy)
}

// benchFill sets the first keys to values of a size.
func benchFill(b *testing.B, n *Node, keys, size int) {
	b.Helper()
	callers := min(256, 32<<20/size) // MaxPendingBytes has room for their writes
	value := make([]byte, size)
	var wg sync.WaitGroup
	for first := range callers {
		wg.Go(func() {
			for i := first; i < keys; i += callers {
				if _, err := n.Put(b.Context(), string(appendKey(nil, i)), value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
