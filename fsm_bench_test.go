//go:build linux || darwin

package raftkv

// Benchmarks of the state machine alone, without a log and without callers.
//
//	go test -run='^$' -bench='^BenchmarkApply$' -cpuprofile=cpu.out .

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"example.com/raftkv/internal/command"
)

const (
	applyKeys = 100_000 // of 16 bytes, with values of 128
	// applyCommands is how many commands are made before the clock runs. Their
	// batches go round with new numbers; so few that they stay in a cache would
	// keep their keys there.
	applyCommands = 1 << 16
)

// An applyBench is a state machine and batches for it, numbered as an outbox
// numbers them that has its window of batches in flight.
type applyBench struct {
	f       *fsm
	origin  uint64
	count   int // of commands in a batch
	batches [][]byte
	next    uint64
	at      int
}

// newApplyBench makes batches of what of returns, all of one origin.
func newApplyBench(b *testing.B, count int, own bool, of func(r *rand.Rand, key []byte) command.Command) *applyBench {
	b.Helper()
	a := &applyBench{f: newTestFSM(testOrigins[0]), count: count, next: 1}
	fillFSM(b, a.f, applyKeys, 128)
	a.origin = testOrigins[1]
	if own {
		a.origin = a.f.origin
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range applyCommands / count {
		batch := make([]byte, command.HeaderBytes)
		for range count {
			c := of(r, benchKeyOf(r.IntN(applyKeys)))
			batch = c.Append(batch)
		}
		a.batches = append(a.batches, batch)
	}
	return a
}

func benchKeyOf(i int) []byte { return fmt.Appendf(nil, "key-%012d", i) }

// fillFSM sets the first keys in a scattered order, by batches of a member.
func fillFSM(tb testing.TB, f *fsm, keys, size int) {
	tb.Helper()
	const count = 1000
	value, origin := make([]byte, size), testOrigins[2]
	for first := 0; first < keys; first += count {
		data := command.Header{Origin: origin, First: uint64(first) + 1, AnsweredTo: uint64(first)}.Append(nil)
		for i := first; i < first+count; i++ {
			c := command.Command{Op: command.Put, Key: benchKeyOf(i * 7919 % keys), Value: value}
			data = c.Append(data)
		}
		applyAll(tb, f, task{index: f.index + 1, term: 1, data: data})
	}
	if f.keys.Len() != keys {
		tb.Fatalf("%d keys, want %d", f.keys.Len(), keys)
	}
}

// batch returns the next batch. All before the last three are answered.
func (a *applyBench) batch() []byte {
	data := a.batches[a.at%len(a.batches)]
	a.at++
	h := command.Header{Origin: a.origin, First: a.next}
	h.AnsweredTo = a.next - 1 - min(a.next-1, uint64(3*a.count))
	h.Append(data[:0])
	a.next += uint64(a.count)
	return data
}

func (a *applyBench) run(b *testing.B, prepare func() []byte) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cpu := usage().cpu
	b.ResetTimer()
	n := 0
	for b.Loop() {
		if _, err := a.f.apply([]task{{index: a.f.index + 1, term: 1, data: prepare()}}); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.StopTimer()
	cpu = usage().cpu - cpu // with that of the garbage collector, beside what waits for it
	runtime.ReadMemStats(&after)
	commands := float64(n) * float64(a.count)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/commands, "ns/command")
	b.ReportMetric(float64(cpu.Nanoseconds())/commands, "cpu-ns/command")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/commands, "allocs/command")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkApply applies one entry of the log per iteration, of another member,
// as a follower sees it, unless its kind says otherwise.
func BenchmarkApply(b *testing.B) {
	value := make([]byte, 128)
	put := func(_ *rand.Rand, key []byte) command.Command {
		return command.Command{Op: command.Put, Key: key, Value: value}
	}
	for _, kind := range []struct {
		name   string
		counts []int
		own    bool
		late   bool
		make   func(r *rand.Rand, key []byte) command.Command
	}{
		{name: "put", counts: []int{1, 16, 128, 1024}, make: put},
		{name: "own", counts: []int{128}, own: true, make: put},
		{name: "late", counts: []int{128}, late: true, make: put},
		{name: "mismatch", counts: []int{128}, make: func(r *rand.Rand, key []byte) command.Command {
			c := put(r, key)
			c.Conditional = true // that there is no such key
			return c
		}},
		// Half of it deletes keys, the other half brings some back.
		{name: "delete", counts: []int{128}, make: func(r *rand.Rand, key []byte) command.Command {
			c := put(r, key)
			if r.IntN(2) == 0 {
				c.Op, c.Value = command.Delete, nil
			}
			return c
		}},
	} {
		for _, count := range kind.counts {
			b.Run(fmt.Sprintf("%s/commands=%d", kind.name, count), func(b *testing.B) {
				a := newApplyBench(b, count, kind.own, kind.make)
				prepare := a.batch
				if kind.late {
					data := a.batch()
					applyAll(b, a.f, task{index: a.f.index + 1, term: 1, data: data})
					prepare = func() []byte { return data }
				}
				a.run(b, prepare)
			})
		}
	}
}

// BenchmarkMemory is what a key of 16 bytes with a value of 128 takes on one
// member, with all that belongs to the state. Keys come in the order of a load
// from a file, or scattered.
func BenchmarkMemory(b *testing.B) {
	for _, order := range []string{"sorted", "scattered"} {
		b.Run(order, func(b *testing.B) {
			const keys = 1_000_000
			for b.Loop() {
				f := newTestFSM(testOrigins[0])
				before := liveBytes()
				loadKeys(b, f, keys, order == "scattered")
				b.ReportMetric(float64(liveBytes()-before)/keys, "bytes/key")
				runtime.KeepAlive(f)
			}
		})
	}
}

func loadKeys(b *testing.B, f *fsm, keys int, scattered bool) {
	b.Helper()
	value := make([]byte, 128)
	for i := range keys {
		at := i
		if scattered {
			at = i * 7919 % keys
		}
		f.keys.Put(benchKeyOf(at), value, uint64(i)+1)
	}
}
