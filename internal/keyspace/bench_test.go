package keyspace

import (
	"fmt"
	"testing"
)

func fill(n int) (*Keyspace, [][]byte) {
	k, keys := New(), make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "bench/key/%012d", i*7919%n)
		k.Put(keys[i], make([]byte, 100), 1)
	}
	return k, keys
}

func BenchmarkGet(b *testing.B) {
	k, keys := fill(100_000)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		k.Find(keys[i%len(keys)])
		i++
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
	v := k.Freeze()
	b.ReportAllocs()
	for b.Loop() {
		for range v.Ascend("bench/key/00000001", "", 100) {
		}
	}
}
