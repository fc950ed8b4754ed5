package keyspace

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func fill(n int) (*Keyspace, [][]byte) {
	k, keys := New(), make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "bench/key/%012d", i*7919%n)
		k.Put(keys[i], make([]byte, 100), 1)
	}
	return k, keys
}

// BenchmarkGet looks up keys and reads their values, one after the other or in
// groups.
func BenchmarkGet(b *testing.B) {
	k, keys := fill(100_000)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, group := range []int{1, 4, WarmMax} {
		b.Run(fmt.Sprintf("group=%d", group), func(b *testing.B) {
			hashes, chosen := make([]uint64, group), make([]string, group)
			sum := 0
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%group == 0 {
					for j := range group {
						key := keys[rng.IntN(len(keys))]
						hashes[j], chosen[j] = Hash(key), string(key)
					}
					if group > 1 {
						k.Warm(hashes, true)
					}
				}
				item, _ := k.Lookup(chosen[i%group], hashes[i%group])
				sum += int(item.Value[0]) + int(item.Value[len(item.Value)-1])
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	b.Run("overwrite", func(b *testing.B) {
		k, keys := fill(100_000)
		value, i := make([]byte, 100), 0
		b.ReportAllocs()
		for b.Loop() {
			k.Put(keys[i%len(keys)], value, 2)
			i++
		}
	})
	b.Run("new", func(b *testing.B) {
		k, keys := New(), [][]byte(nil)
		for i := range 100_000 {
			keys = append(keys, fmt.Appendf(nil, "bench/key/%012d", i*7919%100_000))
		}
		value, i := make([]byte, 100), 0
		b.ReportAllocs()
		for b.Loop() {
			if i%len(keys) == 0 {
				k = New()
			}
			k.Put(keys[i%len(keys)], value, 2)
			i++
		}
	})
}

// BenchmarkOrder puts a million keys in order, which others may wait for a step of.
func BenchmarkOrder(b *testing.B) {
	k, _ := fill(1_000_000)
	for b.Loop() {
		k.index, k.ordered = nil, 0
		steps, longest := 0, time.Duration(0)
		for done := false; !done; steps++ {
			began := time.Now()
			done = k.Order()
			longest = max(longest, time.Since(began))
		}
		b.ReportMetric(float64(steps), "steps")
		b.ReportMetric(float64(longest.Microseconds()), "longest-us")
	}
}

// BenchmarkFreeze takes a view and overwrites a number of keys after it.
func BenchmarkFreeze(b *testing.B) {
	for _, writes := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("writes=%d", writes), func(b *testing.B) {
			k, keys := fill(100_000)
			value, i := make([]byte, 100), 0
			b.ReportAllocs()
			for b.Loop() {
				k.Freeze()
				for range writes {
					k.Put(keys[i%len(keys)], value, 2)
					i++
				}
			}
		})
	}
}

func BenchmarkAscend(b *testing.B) {
	k, _ := fill(100_000)
	v := order(k).Freeze()
	b.ReportAllocs()
	for b.Loop() {
		for range v.Ascend("bench/key/00000001", "", 100) {
		}
	}
}
