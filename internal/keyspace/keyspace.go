// Package keyspace is the map of keys to values that the state machine
// maintains, with immutable views of it for snapshots and lists.
package keyspace

import (
	"fmt"
	"maps"
	"strings"

	"github.com/tidwall/btree"

	"example.com/raftkv/internal/mix"
)

const (
	// shardCount is how many maps share the keys. The longest pause that a view
	// causes is the clone of one of them at the next write to it: at a million
	// keys that is a thousand entries, some 30 µs. A view costs one pointer for
	// each shard, which is why there are not more.
	shardCount = 1024

	// OverheadBytes is what a key costs beside the bytes of key and value: the
	// item, its places in the shard and in the index, and what the allocator
	// rounds up. Measured with 100,000 to 600,000 keys of 16 and 32 bytes: 134
	// to 153.
	OverheadBytes = 160
)

// An Item is a key with its value. It is immutable, so views, readers and the
// owner of the map share it; its bytes must not be changed.
type Item struct {
	Key      string
	Value    []byte // never nil
	Revision uint64 // of the write that set it

	hash uint64 // of the three
}

// A Keyspace holds the keys in force.
//
// Three users want different things of it. Gets and writes look up single keys
// and must be fast: a Go map. Snapshots and lists read all of a state, or a
// range in order, for as long as they like, while writes go on: an immutable
// view. Lists want order: a tree. A copy-on-write tree alone would do, but its
// lookups take three times as long as a map's.
//
// So the keys are spread over shards, each a Go map, by a hash of the key.
// Freeze hands the maps to a View and marks them as shared; the next write to a
// shared shard clones that shard alone, once. Views are garbage collected and
// nobody has to release them. Beside the shards there is a copy-on-write tree
// of the keys alone, which only a key that appears or disappears changes.
//
// A list of a few keys does better without a view: after a Freeze every first
// write to a shard pays for a clone. Collect therefore gathers a small range
// while its caller holds the lock, and gives up when the range is not small;
// only then is a view worth its price.
//
// A Keyspace does no locking. Get, GetBytes, Collect and the counts may run
// at the same time as each other; everything else, Freeze included, needs the
// Keyspace alone. Views may be used at any time by anyone.
//
// Invariants:
//
//  1. A key is in the shard that its hash names, in the index, and nowhere else.
//  2. The map of a shared shard never changes: a View has it.
//  3. hash, dataBytes and the length are those of the items; the hash does not
//     depend on how they came to be, or on a per-process seed.
//  4. frozen, if not nil, is a View of exactly the present items.
type Keyspace struct {
	contents
	shared [shardCount]bool
	frozen *View // what Freeze returned, until the next write
}

// contents are what a Keyspace and its views have in common.
type contents struct {
	shards    [shardCount]map[string]*Item
	index     *btree.Set[string]
	dataBytes int64
	hash      uint64
}

// New returns an empty Keyspace.
func New() *Keyspace {
	return &Keyspace{contents: contents{index: new(btree.Set[string])}}
}

// Get returns the item of a key.
func (c *contents) Get(key string) (*Item, bool) {
	item, ok := c.shards[shardOf(mix.String(0, key))][key]
	return item, ok
}

// GetBytes is Get for a key in bytes, without a conversion that allocates.
func (c *contents) GetBytes(key []byte) (*Item, bool) {
	item, ok := c.shards[shardOf(mix.Bytes(0, key))][string(key)]
	return item, ok
}

// Len returns the number of keys.
func (c *contents) Len() int { return c.index.Len() }

// DataBytes returns the bytes of all keys and values.
func (c *contents) DataBytes() int64 { return c.dataBytes }

// Bytes returns about how much memory the items take: DataBytes and
// OverheadBytes for each key.
func (c *contents) Bytes() int64 { return c.dataBytes + int64(c.Len())*OverheadBytes }

// Hash returns a hash of all keys, values and revisions, the same wherever
// they are the same.
func (c *contents) Hash() uint64 { return c.hash }

// Put sets a key. It copies what it is given.
func (k *Keyspace) Put(key, value []byte, revision uint64) {
	keyHash := mix.Bytes(0, key)
	shard := k.writable(shardOf(keyHash))
	item := &Item{Value: make([]byte, len(value)), Revision: revision, hash: itemHash(keyHash, value, revision)}
	copy(item.Value, value)
	if old, ok := shard[string(key)]; ok {
		item.Key = old.Key
		k.forget(old)
	} else {
		item.Key = string(key)
		k.index.Insert(item.Key)
	}
	shard[item.Key] = item
	k.dataBytes += int64(len(item.Key) + len(item.Value))
	k.hash += item.hash
}

// Delete removes a key and reports whether it was there.
func (k *Keyspace) Delete(key []byte) bool {
	i := shardOf(mix.Bytes(0, key))
	item, ok := k.shards[i][string(key)]
	if !ok {
		return false
	}
	shard := k.writable(i)
	delete(shard, item.Key)
	if len(shard) == 0 {
		k.shards[i] = nil // maps do not shrink by themselves
	}
	k.index.Delete(item.Key)
	k.forget(item)
	return true
}

// forget takes an item that goes out of the counts.
func (k *Keyspace) forget(item *Item) {
	k.dataBytes -= int64(len(item.Key) + len(item.Value))
	k.hash -= item.hash
}

// writable returns a shard for a write, cloned if a View has it too.
func (k *Keyspace) writable(i int) map[string]*Item {
	k.frozen = nil
	switch {
	case k.shards[i] == nil:
		k.shards[i] = make(map[string]*Item)
	case k.shared[i]:
		k.shards[i] = maps.Clone(k.shards[i])
	}
	k.shared[i] = false
	return k.shards[i]
}

// Freeze returns a View of the present items. Without a write in between it is
// the same View again.
func (k *Keyspace) Freeze() *View {
	if k.frozen == nil {
		// Copy marks all nodes of both trees as shared; the view's is never
		// written to, so only this side copies nodes.
		k.frozen = &View{contents{shards: k.shards, index: k.index.Copy(), dataBytes: k.dataBytes, hash: k.hash}}
		for i := range k.shared {
			k.shared[i] = true
		}
	}
	return k.frozen
}

// Collect returns the items that View.Ascend would yield, or false if there
// are more than max of them. It is for ranges so small that their gathering
// may hold up writes.
func (k *Keyspace) Collect(prefix, after string, limit, max int) (items []*Item, complete bool) {
	complete = true
	k.ascend(prefix, after, limit, func(item *Item) bool {
		if len(items) == max {
			items, complete = nil, false
			return false
		}
		items = append(items, item)
		return true
	})
	return items, complete
}

// ascend calls yield for the keys with a prefix after a key, in order, at most
// limit of them.
func (c *contents) ascend(prefix, after string, limit int, yield func(*Item) bool) {
	n := 0
	c.index.Ascend(max(prefix, after), func(key string) bool {
		if !strings.HasPrefix(key, prefix) {
			return false // keys with the prefix follow each other
		}
		if key == after {
			return true
		}
		item, ok := c.Get(key)
		if !ok {
			panic(fmt.Sprintf("raftkv: BUG: key %q is in the index alone", key))
		}
		n++
		return yield(item) && n != limit
	})
}

// check verifies the invariants, for tests.
func (c *contents) check() error {
	var dataBytes int64
	var hash uint64
	n := 0
	for i, shard := range &c.shards {
		for key, item := range shard {
			keyHash := mix.String(0, key)
			switch {
			case key != item.Key || shardOf(keyHash) != i || !c.index.Contains(key):
				return fmt.Errorf("key %q is misplaced in shard %d", key, i)
			case item.Value == nil || item.hash != itemHash(keyHash, item.Value, item.Revision):
				return fmt.Errorf("item %+v has a wrong hash or no value", item)
			}
			n++
			dataBytes += int64(len(key) + len(item.Value))
			hash += item.hash
		}
	}
	if n != c.Len() || dataBytes != c.dataBytes || hash != c.hash {
		return fmt.Errorf("%d keys, %d bytes, hash %#x, but counted %d, %d, %#x", n, dataBytes, hash, c.Len(), c.dataBytes, c.hash)
	}
	return nil
}

// shardOf takes the low bits: Go's maps use a hash of their own within a shard.
func shardOf(keyHash uint64) int { return int(keyHash % shardCount) }

func itemHash(keyHash uint64, value []byte, revision uint64) uint64 {
	return mix.Bytes(mix.Uint64(keyHash, revision), value)
}
