package keyspace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"example.com/raftkv/internal/mix"
)

// A record is a key with its value, revision and hash in one allocation that
// holds no pointers: the two numbers, the key, the value. It is immutable. The
// hash is of the other three.
type record string

// recordHead is what comes before the key: revision and hash.
const recordHead = 16

func newRecord(key, value []byte, revision uint64) record {
	b := make([]byte, recordHead+len(key)+len(value))
	copy(b[recordHead:], key)
	copy(b[recordHead+len(key):], value)
	// The length says where the key ends; the revision goes in with it, so that
	// key and value can be read in one go.
	hash := mix.Long(mix.Uint64(uint64(len(key)), revision), b[recordHead:])
	binary.LittleEndian.PutUint64(b, revision)
	binary.LittleEndian.PutUint64(b[8:], hash)
	return record(stringOf(b))
}

// stringOf returns bytes as a string, for as long as they do not change.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (r record) revision() uint64 { return r.number(0) }
func (r record) hash() uint64     { return r.number(8) }
func (r record) dataBytes() int   { return len(r) - recordHead }

// read reads the beginning of a record, which has the numbers and most keys, or in
// steps of a cache line as much of it as is worth it: of a long one the processor
// fetches the rest by itself. What it returns means nothing.
func (r record) read(values bool) (sum uint64) {
	const line, linesMax = 64, 4
	end := recordHead + 1
	if values {
		end = min(len(r), line*linesMax)
	}
	for at := 0; at < end; at += line {
		sum += uint64(r[at])
	}
	return sum + uint64(r[end-1]) // it need not begin with a line
}

func (r record) number(at int) uint64 {
	b := r[at : at+8]
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

// A table is a hash table of records, for one shard.
//
// Its slots are in the order of their tags, with gaps: a tag names the place
// where its slot would stand best, its home, and a slot stands there or, when
// slots with lower tags are in the way, as little behind it as can be. (This is
// linear probing with Robin Hood's rule, where that is the order of the hashes.)
// So a search ends at the first higher tag, a table may be nearly full, and it
// grows by a quarter: a Go map, which doubles, would need half as much again for
// each key. A write finds its slot once, for the look at what is there and for
// what comes instead; and its slot can be read before it is needed (Warm).
//
// Invariants:
//
//  1. Tags do not descend; there is no empty slot between a home and its slot.
//  2. n slots are in use. No key is in two.
type table struct {
	slots []slot
	homes int // slots that are a home; behind them are some that take in who is pushed over the end
	n     int
}

// A slot is empty if its record is.
type slot struct {
	record record
	tag    uint32
	keyLen uint32
}

const (
	homesMin = 8
	spare    = 8 // slots behind the homes, at first
)

func (s *slot) key() string { return string(s.record[recordHead : recordHead+int(s.keyLen)]) }

func (s *slot) item() Item {
	keyEnd := recordHead + int(s.keyLen)
	return Item{
		Key: string(s.record[recordHead:keyEnd]), Value: string(s.record[keyEnd:]), Revision: s.record.revision(),
	}
}

func (t *table) home(tag uint32) int { return int(uint64(tag) * uint64(t.homes) >> 32) }

// find returns where the slot of a key is or, if there is none, where it would
// have to be.
func (t *table) find(tag uint32, key string) (at int, ok bool) {
	for at = t.home(tag); at < len(t.slots); at++ {
		s := &t.slots[at]
		if s.tag >= tag || s.record == "" {
			if s.record == "" || s.tag > tag {
				return at, false
			}
			if s.key() == key {
				return at, true
			}
		}
	}
	return at, false
}

// insert adds a slot whose key is not there, at the place that find returned. A
// table that has to grow gets so many homes at least.
func (t *table) insert(at int, s slot, homes int) {
	if t.n >= t.homes-t.homes/8 {
		t.resize(max(homesMin, t.homes+t.homes/4, homes))
		at, _ = t.find(s.tag, s.key())
	}
	t.place(at, s)
	t.n++
}

// place makes room for a slot.
func (t *table) place(at int, s slot) {
	end := at
	for end < len(t.slots) && t.slots[end].record != "" {
		end++
	}
	if end == len(t.slots) {
		t.slots = append(t.slots, slot{}) // as good as never
	}
	copy(t.slots[at+1:end+1], t.slots[at:end])
	t.slots[at] = s
}

// remove takes a slot out and closes the gap.
func (t *table) remove(at int) {
	end := at + 1
	for end < len(t.slots) && t.slots[end].record != "" && t.home(t.slots[end].tag) != end {
		end++
	}
	copy(t.slots[at:end-1], t.slots[at+1:end])
	t.slots[end-1] = slot{}
	t.n--
	switch {
	case t.n == 0:
		*t = table{}
	case t.n < t.homes/4 && t.homes > homesMin:
		t.resize(max(homesMin, t.n+t.n/2))
	}
}

// resize moves the slots to an array of another size.
func (t *table) resize(homes int) {
	old := t.slots
	t.slots = slices.Grow([]slot(nil), homes+spare)
	t.slots = t.slots[:cap(t.slots)] // all that the allocator gives
	t.homes = len(t.slots) - spare
	at := 0
	for i := range old {
		if s := &old[i]; s.record != "" {
			at = max(at, t.home(s.tag))
			if at == len(t.slots) {
				t.slots = append(t.slots, slot{})
			}
			t.slots[at] = *s
			at++
		}
	}
}

// clone returns a copy that can be written to.
func (t *table) clone() *table {
	return &table{slots: slices.Clone(t.slots), homes: t.homes, n: t.n}
}

// check verifies the invariants, for tests.
func (t *table) check() error {
	n, free := 0, 0 // free is behind the last empty slot
	var last uint32
	for i := range t.slots {
		s := &t.slots[i]
		if s.record == "" {
			free = i + 1
			continue
		}
		n++
		if home := t.home(s.tag); s.tag < last || home < free && home != i || home > i {
			return fmt.Errorf("tag %#x stands at %d, its home is %d, after tag %#x and a gap that ends at %d", s.tag, i, home, last, free)
		}
		last = s.tag
	}
	if n != t.n || n > t.homes {
		return fmt.Errorf("%d slots of %d in use, counted %d", n, t.homes, t.n)
	}
	return nil
}
