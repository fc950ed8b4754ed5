package keyspace

import (
	"fmt"
	"slices"
)

// A table is a hash table of addresses of records, for one shard.
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

// A slot is empty if its address is nowhere.
type slot struct {
	tag uint32
	at  address
}

func (s *slot) isEmpty() bool { return s.at.isNowhere() }

const (
	homesMin = 8
	spare    = 8 // slots behind the homes, at first
)

func (t *table) home(tag uint32) int { return int(uint64(tag) * uint64(t.homes) >> 32) }

// find returns where the slot of a key is or, if there is none, where it would
// have to be.
func (t *table) find(a *arena, tag uint32, key string) (at int, ok bool) {
	for at = t.home(tag); at < len(t.slots); at++ {
		s := &t.slots[at]
		if s.tag >= tag || s.isEmpty() {
			if s.isEmpty() || s.tag > tag {
				return at, false
			}
			if a.record(s.at).key() == key {
				return at, true
			}
		}
	}
	return at, false
}

// findAt returns where the slot with a tag and an address is.
func (t *table) findAt(tag uint32, record address) (at int, ok bool) {
	for at = t.home(tag); at < len(t.slots); at++ {
		switch s := &t.slots[at]; {
		case s.isEmpty() || s.tag > tag:
			return at, false
		case s.tag == tag && s.at == record:
			return at, true
		}
	}
	return at, false
}

// insert adds a slot whose key is not there, at the place that find returned. A
// table that has to grow gets so many homes at least.
func (t *table) insert(a *arena, at int, s slot, homes int) {
	if t.n >= t.homes-t.homes/8 {
		t.resize(max(homesMin, t.homes+t.homes/4, homes))
		at, _ = t.find(a, s.tag, a.record(s.at).key())
	}
	t.place(at, s)
	t.n++
}

// place makes room for a slot.
func (t *table) place(at int, s slot) {
	end := at
	for end < len(t.slots) && !t.slots[end].isEmpty() {
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
	for end < len(t.slots) && !t.slots[end].isEmpty() && t.home(t.slots[end].tag) != end {
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
		if s := &old[i]; !s.isEmpty() {
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
		if s.isEmpty() {
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
