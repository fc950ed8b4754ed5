// Package mix is a fast 64-bit hash without a per-process seed, so that all
// members compute the same. It is not cryptographic: it finds replicas that
// diverged by a bug, not by an attack.
//
// It follows wyhash: 16 bytes for one multiplication to 128 bits. The results
// are part of what members compare with each other, so they never change; the
// golden values in the tests hold them.
package mix

import (
	"encoding/binary"
	"math/bits"
)

// Odd constants with about as many ones as zeros; what matters is only that
// they are fixed.
const (
	k0 = 0x9e3779b97f4a7c15 // 2^64 / golden ratio
	k1 = 0xd6e8feb86659fd93
	k2 = 0xa0761d6478bd642f
)

// Uint64 mixes a number into a hash.
func Uint64(seed, v uint64) uint64 { return finish(v^k1, seed^k0) }

// Bytes mixes bytes into a hash. The length counts: the hash of a
// concatenation is not that of its parts, and zeros at the end are no padding.
func Bytes(seed uint64, b []byte) uint64 {
	h := seed ^ fold(uint64(len(b))^k2, k0)
	for len(b) >= 16 {
		h = fold(binary.LittleEndian.Uint64(b)^k1, binary.LittleEndian.Uint64(b[8:])^h)
		b = b[16:]
	}
	var tail [16]byte
	copy(tail[:], b)
	return finish(binary.LittleEndian.Uint64(tail[:])^k1, binary.LittleEndian.Uint64(tail[8:])^h^k2)
}

// String is Bytes for a string. The conversion does not copy: the compiler
// sees that Bytes neither keeps nor changes its argument (a test holds it to
// that).
func String(seed uint64, s string) uint64 { return Bytes(seed, []byte(s)) }

// fold multiplies to 128 bits and folds the halves together. The operands go
// in once more, because some operands make the product forget the other one:
// eight bytes equal to k1 would make it 0, whatever was hashed before them, and
// the complement of k1 would make it all ones. Rotated, they do not cancel out
// when an operand is 1 and the product is the other one.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return (hi ^ lo) + bits.RotateLeft64(a, 23) + bits.RotateLeft64(b, 41)
}

// finish is fold twice. One multiplication leaves hashes of consecutive
// numbers almost in an arithmetic progression, and the users of this package
// add hashes up: {1, 4} must not come near {2, 3}.
func finish(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return fold((lo+bits.RotateLeft64(a, 23))^k2, (hi+bits.RotateLeft64(b, 41))^k1)
}

// Long mixes bytes into a hash, faster than Bytes if there are many: in four
// chains of multiplications that do not wait for each other. From 64 bytes on it
// is another hash.
func Long(seed uint64, b []byte) uint64 {
	if len(b) < 64 {
		return Bytes(seed, b)
	}
	n := uint64(len(b))
	h0, h1, h2, h3 := seed, seed^k0, seed^k1, seed^k2
	for len(b) >= 64 {
		h0 = fold(binary.LittleEndian.Uint64(b)^k1, binary.LittleEndian.Uint64(b[8:])^h0)
		h1 = fold(binary.LittleEndian.Uint64(b[16:])^k1, binary.LittleEndian.Uint64(b[24:])^h1)
		h2 = fold(binary.LittleEndian.Uint64(b[32:])^k1, binary.LittleEndian.Uint64(b[40:])^h2)
		h3 = fold(binary.LittleEndian.Uint64(b[48:])^k1, binary.LittleEndian.Uint64(b[56:])^h3)
		b = b[64:]
	}
	return Bytes(fold(fold(h0^k1, h1)^k2, fold(h2^k1, h3)^n), b)
}
