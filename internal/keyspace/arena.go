package keyspace

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	// chunkMax is the most that a chunk of several records has.
	chunkMax = 256 << 10
	// chunkShare says how large a chunk is when it is made: that part of what there is
	// of its class. So much may be empty.
	chunkShare = 8

	// SharedMax is the largest value that is ever overwritten in its place, so that
	// an Item which the Keyspace itself has returned is good only until the
	// next write. Whatever is larger has a chunk of its own, which nobody writes again.
	SharedMax = 8 << 10

	// A slot of up to fineMax bytes is a multiple of grain; larger ones come in
	// steps of an eighth to a sixteenth.
	fineMax = 256
	grain   = 8
)

// An arena holds records in chunks of bytes, many of a class of sizes in each. To the
// garbage collector a chunk is one object without pointers, and a table of addresses
// is another: it has as little to do with a million keys as with a thousand.
//
// A record is overwritten in its place if there is no view of it: if its revision is
// higher than any was when the arena was last frozen. If there may be one, its place
// stays as it is, for good. So the memory that a view has is never written to but where
// there was no record, and lives as long as the view does.
//
// Places that are lost to views, and those that nobody has needed again, are won back
// by moving what is left in their chunk, when that is half empty: a little with
// each write (Keyspace.tidy).
//
// Invariants:
//
//  1. bytes and chunks have the same length. Number 0 is nobody's: an address with it is
//     nowhere. Numbers in spare have neither bytes nor slots.
//  2. Of a chunk's slots the first used have been written to; live of them have a record
//     of a table, those in the list that begins with free have none, and neither have
//     any others that a view has a record in.
//  3. A chunk with room that is not condemned is in the list of its class.
type arena struct {
	bytes  [][]byte // by the chunk's number; a view has the same array
	shared bool     // so that this side has to copy it before it changes
	frozen uint64   // the highest revision when it was last frozen
	newest uint64   // the highest revision so far

	chunks    []chunk
	spare     []uint32 // numbers
	classes   [classCount]class
	condemned []uint32 // numbers, in the order in which they are emptied
}

// A class is the chunks whose slots have the same size.
type class struct {
	live int      // slots in use
	open []uint32 // numbers of chunks that may have room
}

type chunk struct {
	size  int // of a slot
	slots int
	used  int
	live  int
	swept int // slots that have been emptied of a condemned chunk
	free  int // 1 more than the number of a free slot, which has the same of the next; 0 is the end

	class       int
	isListed    bool // in its class
	isCondemned bool
}

// An address is where a record begins.
type address struct {
	chunk, place uint32
}

func (a address) isNowhere() bool { return a.chunk == 0 }

const (
	fineClasses = fineMax / grain
	classCount  = fineClasses + 8*6
	ownClass    = -1
)

// classOf returns the class for records of a size, and the size of its slots.
func classOf(n int) (class, size int) {
	switch {
	case n <= fineMax:
		class = (n - 1) / grain
		return class, (class + 1) * grain
	case n > SharedMax:
		return ownClass, n
	}
	shift := bits.Len(uint(n-1)) - 4
	step := (n - 1) >> shift // 8 to 15
	return fineClasses + (shift-5)*8 + step - 8, (step + 1) << shift
}

// record returns the record at an address.
func (a *arena) record(at address) record { return record(stringOf(a.bytes[at.chunk][at.place:])) }

// freeze returns what a view needs to find all records that there are now.
func (a *arena) freeze() arena {
	a.shared = true
	a.frozen = a.newest
	return arena{bytes: a.bytes}
}

// add writes a record.
func (a *arena) add(key, value []byte, revision uint64) address {
	a.newest = max(a.newest, revision)
	at, b := a.room(recordSize(len(key), len(value)))
	writeRecord(b, key, value, revision)
	return at
}

// replace writes a record in place of another.
func (a *arena) replace(at address, key, value []byte, revision uint64) address {
	c, old := &a.chunks[at.chunk], a.record(at)
	n := recordSize(len(key), len(value))
	if class, _ := classOf(n); class == ownClass || class != c.class || c.isCondemned || old.revision() <= a.frozen {
		a.drop(at)
		return a.add(key, value, revision)
	}
	a.newest = max(a.newest, revision)
	writeRecord(a.bytes[at.chunk][at.place:], key, value, revision)
	return at
}

// move writes a record once more, elsewhere.
func (a *arena) move(from address) address {
	r := a.record(from)
	n := r.size()
	to, b := a.room(n)
	copy(b, r[:n])
	a.drop(from)
	return to
}

// drop takes a record out.
func (a *arena) drop(at address) {
	c := &a.chunks[at.chunk]
	c.live--
	if c.class != ownClass {
		a.classes[c.class].live--
	}
	if c.live == 0 {
		a.release(at.chunk)
		return
	}
	if !c.isCondemned && a.record(at).revision() > a.frozen {
		binary.LittleEndian.PutUint64(a.bytes[at.chunk][at.place:], uint64(c.free))
		c.free = int(at.place)/c.size + 1
		a.list(at.chunk)
	}
	if !c.isCondemned && c.used-c.live > c.slots/2 {
		c.isCondemned = true
		a.condemned = append(a.condemned, at.chunk)
	}
}

// room returns room for a record.
func (a *arena) room(n int) (address, []byte) {
	class, size := classOf(n)
	if class == ownClass {
		number := a.grow(chunk{size: size, slots: 1, used: 1, live: 1, class: ownClass})
		return address{chunk: number}, a.bytes[number]
	}
	l := &a.classes[class]
	l.live++
	for len(l.open) > 0 {
		number := l.open[len(l.open)-1]
		if c := &a.chunks[number]; c.class == class && c.isListed { // or else the number has another chunk by now
			if at, ok := a.take(number); ok {
				return at, a.bytes[number][at.place:]
			}
			c.isListed = false
		}
		l.open = l.open[:len(l.open)-1]
	}
	number := a.grow(chunk{size: size, slots: max(1, min(l.live*size/chunkShare, chunkMax)/size), class: class})
	a.list(number)
	at, _ := a.take(number)
	return at, a.bytes[number][at.place:]
}

// take takes a slot of a chunk, if it may and there is one.
func (a *arena) take(number uint32) (at address, ok bool) {
	c := &a.chunks[number]
	slot := c.used
	switch {
	case c.isCondemned:
		return address{}, false
	case c.free != 0:
		slot = c.free - 1
		c.free = int(binary.LittleEndian.Uint64(a.bytes[number][slot*c.size:]))
	case c.used < c.slots:
		c.used++
	default:
		return address{}, false
	}
	c.live++
	return address{chunk: number, place: uint32(slot * c.size)}, true
}

// list has a class look for room in a chunk.
func (a *arena) list(number uint32) {
	if c := &a.chunks[number]; !c.isListed {
		c.isListed = true
		l := &a.classes[c.class]
		l.open = append(l.open, number)
	}
}

// grow makes a chunk.
func (a *arena) grow(c chunk) (number uint32) {
	if n := len(a.spare); n > 0 {
		number, a.spare = a.spare[n-1], a.spare[:n-1]
	} else {
		a.unshare()
		number = uint32(max(1, len(a.chunks)))
		a.bytes = append(a.bytes, make([][]byte, int(number)+1-len(a.bytes))...)
		a.chunks = append(a.chunks, make([]chunk, int(number)+1-len(a.chunks))...)
	}
	a.set(number, make([]byte, c.size*c.slots))
	a.chunks[number] = c
	return number
}

// release forgets a chunk. Views may still have it.
func (a *arena) release(number uint32) {
	a.set(number, nil)
	a.chunks[number] = chunk{class: ownClass}
	a.spare = append(a.spare, number)
}

func (a *arena) set(number uint32, bytes []byte) {
	a.unshare()
	a.bytes[number] = bytes
}

func (a *arena) unshare() {
	if a.shared {
		a.bytes = slices.Clone(a.bytes)
		a.shared = false
	}
}

// next returns the address of a slot that has to be emptied, if there is any. It may
// have a record, or have had one.
func (a *arena) next() (at address, ok bool) {
	for len(a.condemned) > 0 {
		number := a.condemned[0]
		if c := &a.chunks[number]; c.isCondemned && c.swept < c.used { // or else it has been released
			c.swept++
			return address{chunk: number, place: uint32((c.swept - 1) * c.size)}, true
		}
		a.condemned = a.condemned[1:]
	}
	return address{}, false
}
