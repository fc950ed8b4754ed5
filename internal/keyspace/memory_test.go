package keyspace

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

func liveBytes() int64 {
	runtime.GC()
	runtime.GC() // what the first one's finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// overheadOf returns what a key of a number of them costs beside its bytes, twice,
// and the value's, after some overwrites and with the index.
func overheadOf(keys, keyBytes, valueBytes int, scattered bool) float64 {
	rng := rand.New(rand.NewPCG(1, 1))
	value, key := make([]byte, valueBytes), make([]byte, 0, keyBytes)
	before := liveBytes()
	k := New()
	for round := range 2 {
		for i := range keys {
			at := i
			switch {
			case round == 1:
				at = rng.IntN(keys)
			case scattered:
				at = i * 7919 % keys
			}
			key = fmt.Appendf(key[:0], "%0*d", keyBytes, at)
			k.Put(key, value, uint64(i+1))
		}
	}
	order(k)
	after := liveBytes()
	n := int64(k.Len())
	return float64(after-before-k.DataBytes()-n*int64(keyBytes)) / float64(n)
}

// Limits.MaxStateBytes counts with it.
func TestAKeyCostsNoMoreThanDeclared(t *testing.T) {
	for _, keys := range []int{10_000, 37_000} {
		for _, size := range [][2]int{{16, 128}, {32, 100}, {8, 8}, {64, 300}, {16, 1930}} {
			for _, scattered := range []bool{false, true} {
				got := overheadOf(keys, size[0], size[1], scattered)
				t.Logf("%d keys of %d bytes with values of %d, scattered %v: %.1f bytes", keys, size[0], size[1], scattered, got)
				if declared := float64(Cost(size[0], size[1]) - int64(2*size[0]+size[1])); got > declared {
					t.Errorf("%d keys of %d bytes with values of %d, scattered %v, cost %.1f bytes each beside their data, not %.0f",
						keys, size[0], size[1], scattered, got, declared)
				}
			}
		}
	}
}
