package keyspace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
)

// check verifies the invariants.
func (k *Keyspace) check() error {
	if err := k.contents.check(k.ordered); err != nil {
		return err
	}
	alive := map[address]bool{}
	for _, t := range k.shards {
		for _, s := range t.slots {
			if !s.isEmpty() {
				alive[s.at] = true
			}
		}
	}
	return k.records.check(alive)
}

func (v *View) check() error {
	if v.index == nil {
		return v.contents.check(0)
	}
	return v.contents.check(allOrdered)
}

// check verifies the invariants of contents whose index has the keys before a position.
func (c *contents) check(ordered position) error {
	var dataBytes, keyBytes int64
	var hash uint64
	n, indexed := 0, 0
	for i := range c.shards {
		of, err := c.checkShard(i, ordered)
		if err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
		indexed += of
		for _, s := range c.shards[i].slots {
			if !s.isEmpty() {
				r := c.records.record(s.at)
				n++
				dataBytes += int64(r.keyLen() + r.valueLen())
				keyBytes += int64(r.keyLen())
				hash += r.hash()
			}
		}
	}
	if n != c.Len() || dataBytes != c.dataBytes || keyBytes != c.keyBytes || hash != c.hash {
		return fmt.Errorf("%d keys of %d bytes, %d with their values, hash %#x, but counted %d, %d, %d, %#x",
			n, keyBytes, dataBytes, hash, c.Len(), c.keyBytes, c.dataBytes, c.hash)
	}
	if c.index != nil && c.index.Len() != indexed {
		return fmt.Errorf("%d keys are in the index, %d should be", c.index.Len(), indexed)
	}
	return nil
}

// checkShard returns how many of its keys are in the index.
func (c *contents) checkShard(i int, ordered position) (indexed int, err error) {
	t := c.shards[i]
	if err := t.check(); err != nil {
		return 0, err
	}
	for j := range t.slots {
		s := &t.slots[j]
		if s.isEmpty() {
			continue
		}
		r := c.records.record(s.at)
		item := r.item()
		if shard, tag := place(maphash.String(seed, item.Key)); shard != i || tag != s.tag {
			return 0, fmt.Errorf("key %q is misplaced", item.Key)
		}
		if positionOf(i, s.tag) < ordered {
			indexed++
			if !c.index.Contains(item.Key) {
				return 0, fmt.Errorf("key %q is not in the index", item.Key)
			}
		}
		if r[:r.size()] != newRecord(item) {
			return 0, fmt.Errorf("item %+v has a wrong hash", item)
		}
	}
	return indexed, nil
}

// newRecord returns the record of an item, alone.
func newRecord(item Item) record {
	b := make([]byte, recordSize(len(item.Key), len(item.Value)))
	writeRecord(b, []byte(item.Key), []byte(item.Value), item.Revision)
	return record(stringOf(b))
}

// check verifies the invariants of an arena with some records alive.
func (a *arena) check(alive map[address]bool) error {
	if len(a.bytes) != len(a.chunks) {
		return fmt.Errorf("bytes of %d chunks, %d chunks", len(a.bytes), len(a.chunks))
	}
	var live [classCount]int
	for number := 1; number < len(a.chunks); number++ {
		n, err := a.checkChunk(uint32(number), alive)
		if err != nil {
			return fmt.Errorf("chunk %d, %+v: %w", number, a.chunks[number], err)
		}
		if class := a.chunks[number].class; class != ownClass {
			live[class] += n
		}
	}
	for i := range live {
		if live[i] != a.classes[i].live {
			return fmt.Errorf("%d live records of class %d, counted %d", live[i], i, a.classes[i].live)
		}
	}
	return nil
}

// checkChunk returns how many records of a chunk are alive.
func (a *arena) checkChunk(number uint32, alive map[address]bool) (live int, err error) {
	c := &a.chunks[number]
	if len(a.bytes[number]) != c.size*c.slots {
		return 0, fmt.Errorf("%d bytes", len(a.bytes[number]))
	}
	if c.slots == 0 {
		if !slices.Contains(a.spare, number) {
			return 0, errors.New("it is empty, and nobody knows")
		}
		return 0, nil
	}
	free := map[int]bool{}
	for slot := c.free; slot != 0; slot = int(binary.LittleEndian.Uint64(a.bytes[number][(slot-1)*c.size:])) {
		if free[slot-1] {
			return 0, fmt.Errorf("slot %d is free twice", slot-1)
		}
		free[slot-1] = true
	}
	for slot := range c.slots {
		is := alive[address{number, uint32(slot * c.size)}]
		if is {
			live++
		}
		if is && (slot >= c.used || free[slot]) {
			return 0, fmt.Errorf("slot %d is free and has a record", slot)
		}
	}
	hasRoom := len(free) > 0 || c.used < c.slots
	if live != c.live || live == 0 || hasRoom && !c.isCondemned && !slices.Contains(a.classes[c.class].open, number) {
		return 0, fmt.Errorf("%d records, %d free slots", live, len(free))
	}
	return live, nil
}
