package keyspace

import (
	"fmt"
	"hash/maphash"
)

// check verifies the invariants.
func (k *Keyspace) check() error { return k.contents.check(k.ordered) }

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
			if s.record != "" {
				n++
				dataBytes += int64(s.record.dataBytes())
				keyBytes += int64(s.keyLen)
				hash += s.record.hash()
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
		if s.record == "" {
			continue
		}
		item := s.item()
		if shard, tag := place(maphash.String(seed, item.Key)); shard != i || tag != s.tag {
			return 0, fmt.Errorf("key %q is misplaced", item.Key)
		}
		if positionOf(i, s.tag) < ordered {
			indexed++
			if !c.index.Contains(item.Key) {
				return 0, fmt.Errorf("key %q is not in the index", item.Key)
			}
		}
		if s.record != newRecord([]byte(item.Key), []byte(item.Value), item.Revision) {
			return 0, fmt.Errorf("item %+v has a wrong hash", item)
		}
	}
	return indexed, nil
}
