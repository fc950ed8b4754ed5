package mix

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// Members of different releases compare hashes, so these values never change.
func TestHashesAreFixedForever(t *testing.T) {
	text := "The quick brown fox jumps over the lazy dog"
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"Uint64(0, 0)", Uint64(0, 0), 0x5ee3ae563ee2aacb},
		{"Uint64(1, 2)", Uint64(1, 2), 0xbacab5595e04fd79},
		{"Bytes(0, nil)", Bytes(0, nil), 0x4072e1ecd786741a},
		{"Bytes(0, a)", Bytes(0, []byte("a")), 0x8a9cff9b08395168},
		{"Bytes(7, 16 bytes)", Bytes(7, []byte(text[:16])), 0xae1ee563315f758d},
		{"Bytes(7, text)", Bytes(7, []byte(text)), 0xac3647cbbf7d5d5a},
		{"Long(7, text)", Long(7, []byte(text)), 0xac3647cbbf7d5d5a},
		{"Long(7, 5 times text)", Long(7, []byte(strings.Repeat(text, 5))), 0xa9b234e1115be61a},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#x, want %#x", c.name, c.got, c.want)
		}
	}
}

func TestStringEqualsBytesAndDoesNotAllocate(t *testing.T) {
	long := strings.Repeat("long enough to leave the stack buffer ", 100)
	for n := range 100 {
		if got, want := String(3, long[:n]), Bytes(3, []byte(long[:n])); got != want {
			t.Errorf("String of %d bytes = %#x, want %#x", n, got, want)
		}
	}
	var sink uint64
	if n := testing.AllocsPerRun(100, func() { sink += String(sink, long) }); n != 0 {
		t.Errorf("String allocates %v times", n)
	}
}

// avalanche flips every bit of n-byte inputs and requires that each flip
// changes about half the bits of the hash, and each bit of the hash about half
// the time.
func avalanche(t *testing.T, n int, hash func([]byte) uint64) {
	t.Helper()
	const rounds = 1000
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for bit := range n * 8 {
		var flips [64]int
		for range rounds {
			binary.LittleEndian.PutUint64(b[n-8:], rng.Uint64())
			b[0] = byte(rng.Uint32())
			before := hash(b)
			b[bit/8] ^= 1 << (bit % 8)
			for d := before ^ hash(b); d != 0; d &= d - 1 {
				flips[bits.TrailingZeros64(d)]++
			}
		}
		for out, k := range flips {
			// Ten standard deviations: sqrt(1000)/2 = 16.
			if k < rounds/2-160 || k > rounds/2+160 {
				t.Errorf("%d bytes: bit %d flips output bit %d in %d of %d cases", n, bit, out, k, rounds)
			}
		}
	}
}

func TestEveryInputBitReachesEveryOutputBit(t *testing.T) {
	for _, n := range []int{8, 15, 24} {
		avalanche(t, n, func(b []byte) uint64 { return Bytes(0, b) })
	}
	for _, n := range []int{64, 88, 136} {
		avalanche(t, n, func(b []byte) uint64 { return Long(0, b) })
	}
	avalanche(t, 8, func(b []byte) uint64 { return Uint64(5, binary.LittleEndian.Uint64(b)) })
	avalanche(t, 8, func(b []byte) uint64 { return Uint64(binary.LittleEndian.Uint64(b), 5) })
}

func TestLengthCounts(t *testing.T) {
	zeros := make([]byte, 4096)
	for name, hash := range map[string]func(uint64, []byte) uint64{"Bytes": Bytes, "Long": Long} {
		seen := map[uint64]int{}
		for n := range zeros {
			h := hash(0, zeros[:n])
			if m, ok := seen[h]; ok {
				t.Fatalf("%s: %d and %d zeros have the same hash", name, m, n)
			}
			seen[h] = n
		}
	}
	ab := Bytes(Bytes(0, []byte("a")), []byte("b"))
	if ab == Bytes(0, []byte("ab")) || ab == Bytes(Bytes(0, []byte("ab")), nil) ||
		ab == Bytes(Bytes(0, nil), []byte("ab")) {
		t.Error("the border between two strings does not count")
	}
}

// An operand of 0, 1 or all ones must not erase the other one.
func TestNoInputErasesWhatCameBefore(t *testing.T) {
	for _, word := range []uint64{k0, k1, k2, k1 ^ k2, k1 ^ 1, ^uint64(k1), k1 ^ k2 ^ 1, k0 ^ 1, ^uint64(k0)} {
		for n := 8; n <= 160; n += 8 {
			for at := 0; at < n; at += 8 {
				b := make([]byte, n)
				binary.LittleEndian.PutUint64(b[at:], word)
				if Bytes(1, b) == Bytes(2, b) || Long(1, b) == Long(2, b) {
					t.Errorf("%#x at %d of %d bytes erases the seed", word, at, n)
				}
				if at < 64 {
					continue
				}
				c := bytes.Clone(b)
				c[at-64] ^= 1 // in the same chain
				if Long(1, b) == Long(1, c) {
					t.Errorf("%#x at %d of %d bytes erases what came before", word, at, n)
				}
			}
		}
		if Uint64(1, word) == Uint64(2, word) || Uint64(word, 1) == Uint64(word, 2) {
			t.Errorf("%#x erases the other operand", word)
		}
	}
}

func TestStructuredInputsDoNotCollide(t *testing.T) {
	seen := make(map[uint64]bool, 400_000)
	add := func(h uint64, kind string, args ...uint64) {
		if seen[h] {
			t.Fatalf("%s %d has the hash %#x of an earlier input", kind, args, h)
		}
		seen[h] = true
	}
	for i := range uint64(100_000) {
		add(Uint64(0, i), "number", i)
		add(Uint64(i+1, 0), "seed", i+1)
		add(String(0, "key/"+strconv.FormatUint(i, 10)), "key", i)
	}
	for i := range uint64(300) {
		for j := range uint64(300) {
			add(Uint64(Uint64(9, i), j), "pair", i, j)
		}
	}
}

// Sums of hashes tell sets apart whose sums of members are equal.
func TestSumsOfConsecutiveNumbersDiffer(t *testing.T) {
	seen := make(map[uint64][2]uint64, 130_000)
	for i := range uint64(500) {
		for j := range i {
			sum := Uint64(0, i) + Uint64(0, j)
			if other, ok := seen[sum]; ok {
				t.Fatalf("{%d, %d} and %v have the same sum", i, j, other)
			}
			seen[sum] = [2]uint64{i, j}
		}
	}
}

func BenchmarkLong(b *testing.B) {
	for _, n := range []int{64, 128, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			var h uint64
			for b.Loop() {
				h = Long(h, buf)
			}
		})
	}
}

func BenchmarkBytes(b *testing.B) {
	for _, n := range []int{8, 16, 32, 128, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			var h uint64
			for b.Loop() {
				h = Bytes(h, buf)
			}
		})
	}
}
