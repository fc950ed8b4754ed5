//go:build linux || darwin

package raftkv

import (
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

// TestBenchmarksRun runs every benchmark for an operation or two, so that they do
// not rot.
func TestBenchmarksRun(t *testing.T) {
	few := grid{1000, both, []int{3}, []int{benchValueBytes}}
	benchtime := flag.Lookup("test.benchtime").Value
	full := benchtime.String()
	if err := benchtime.Set("2x"); err != nil {
		t.Fatal(err)
	}
	defer benchtime.Set(full) // it was valid before
	for name, f := range map[string]func(b *testing.B){
		"Calls": func(b *testing.B) {
			few.run(b, func(f filled) op {
				return func(r *rand.Rand) error {
					return errors.Join(putRandom(f)(r), getRandom(f)(r), getStale(f)(r), mixed(f)(r), listPage(f)(r))
				}
			})
		},
		"Remote":         func(b *testing.B) { remoteCalls(b, []int{3}, 1000) },
		"RemoteShare":    func(b *testing.B) { remoteShare(b, []int{3}, 1000) },
		"SnapshotEncode": func(b *testing.B) { snapshotEncode(b, 100) },
		"AddLearner":     func(b *testing.B) { addLearner(b, 1) },
		"CatchUp":        func(b *testing.B) { catchUp(b, 100) },
		"MillionKeys":    func(b *testing.B) { millionKeys(b, 1000, 10*time.Millisecond) },
		"Apply":          BenchmarkApply,
	} {
		t.Run(name, func(t *testing.T) {
			failed := true
			testing.Benchmark(func(b *testing.B) {
				b.Cleanup(func() { failed = b.Failed() })
				f(b)
			})
			if failed {
				t.Error("the benchmark fails; go test -bench shows how")
			}
		})
	}
}
