// Package keyspace is the map of keys to values that the state machine
// maintains, with immutable views of it for snapshots and lists.
package keyspace

import (
	"hash/maphash"
	"math"

	"github.com/tidwall/btree"
)

const (
	// shardCount is how many tables share the keys. The longest pause that a view
	// causes is the clone of one of them at the next write to it: at a million
	// keys that is a copy of 30 KB, some 15 µs. A view costs one pointer for each
	// shard, which is why there are not more.
	shardCount = 1 << shardBits
	shardBits  = 10

	// OverheadBytes and a quarter of its data are what a key costs beside its bytes,
	// twice, and those of the value: the head of its record, room in its chunk, its
	// places in the shard and in the index, which has the key once more. Measured
	// with 10,000 to 1,000,000 keys of 8 to 64 bytes: 68 to 107, and with large values
	// a fifth of them. What views have, and have left behind, is not in it.
	OverheadBytes = 96
)

// An Item is a key with its value. Its strings are pieces of larger ones. Those of a
// View are good for ever; those of the Keyspace itself only until the next write, but
// for values that are larger than SharedMax.
type Item struct {
	Key      string
	Value    string
	Revision uint64 // of the write that set it
}

// A Keyspace holds the keys in force.
//
// Three users want different things of it. Gets and writes look up single keys
// and must be fast: a hash table. Snapshots and lists read all of a state, or a
// range in order, for as long as they like, while writes go on: an immutable
// view. Lists want order: a tree. A copy-on-write tree alone would do, but its
// lookups take three times as long as a map's.
//
// So the keys are spread over shards, each a table, by a hash of the key; what they
// lead to, key and value, is in an arena, where the garbage collector has no work.
// Freeze hands the tables to a View and marks them as shared; the next write to
// a shared shard clones that shard alone, once. Views are garbage collected and
// nobody has to release them. Once somebody has asked for order there is beside the
// shards a copy-on-write tree of the keys alone, the index, which only a key that
// appears or disappears changes; see Order.
//
// A list of a few keys does better without a view: after a Freeze every first
// write to a shard pays for a clone. Collect therefore gathers a small range
// while its caller holds the lock, and gives up when the range is not small;
// only then is a view worth its price.
//
// Where a key stands is decided by a hash with a seed of this process's own, so
// that nobody can choose keys that get into each other's way. Nothing that
// members compare depends on it.
//
// A Keyspace does no locking. Get, Collect and the counts may run at the same
// time as each other; everything else, Freeze included, needs the Keyspace
// alone. Views may be used at any time by anyone.
//
// Invariants:
//
//  1. A key is in the shard that its hash names, and nowhere else; it is in the index
//     if its position is lower than ordered. The index of a View has all keys or is nil.
//  2. The slots of a shared shard never change: a View has them. Nor do the records that
//     they lead to; see arena.
//  3. hash, dataBytes, keyBytes and the length are those of the items; the hash does not
//     depend on how they came to be, or on the seed.
//  4. frozen, if not nil, is a View of exactly the present items.
type Keyspace struct {
	contents
	shared  [shardCount]bool
	frozen  *View    // what Freeze returned, until the next write
	homes   int      // that a table which has to grow gets at least; see Expect
	ordered position // the index has the keys before it; see Order
}

// contents are what a Keyspace and its views have in common.
type contents struct {
	shards    [shardCount]*table // never nil
	records   arena
	index     *btree.Set[string]
	n         int   // keys
	dataBytes int64 // of keys and values
	keyBytes  int64 // of keys alone
	hash      uint64
}

// New returns an empty Keyspace.
func New() *Keyspace {
	k := new(Keyspace)
	tables := make([]table, shardCount)
	for i := range k.shards {
		k.shards[i] = &tables[i]
	}
	return k
}

var seed = maphash.MakeSeed()

// Hash returns where a key stands, the same in every Keyspace of this process: who
// has more than one use for it computes it once.
func Hash(key []byte) uint64 { return maphash.Bytes(seed, key) }

// Expect says how many keys there will be in all, as far as that is known; 0 that
// nothing is. A table that has to grow then grows to what it will need, at once: a
// slot would else be moved four times on average, and pushed aside far more
// often, because a table that grows by a quarter is always nearly full.
func (k *Keyspace) Expect(keys int) {
	if k.homes = 0; keys > 0 {
		n := float64(keys) / shardCount
		n += 3 * math.Sqrt(n) // hardly a shard has more
		k.homes = int(n*8/7) + 1
	}
}

// Get returns the item of a key. It does not copy.
func (c *contents) Get(key string) (Item, bool) { return c.Lookup(key, maphash.String(seed, key)) }

// Lookup is Get for a key whose hash is known.
func (c *contents) Lookup(key string, hash uint64) (Item, bool) {
	shard, tag := place(hash)
	t := c.shards[shard]
	at, ok := t.find(&c.records, tag, key)
	if !ok {
		return Item{}, false
	}
	return c.records.record(t.slots[at].at).item(), true
}

// Len returns the number of keys.
func (c *contents) Len() int { return c.n }

// DataBytes returns the bytes of all keys and values.
func (c *contents) DataBytes() int64 { return c.dataBytes }

// Bytes returns about how much memory the items take: what Cost returns for each, but
// for what that rounds.
func (c *contents) Bytes() int64 {
	return c.dataBytes + c.dataBytes/4 + c.keyBytes + int64(c.Len())*OverheadBytes
}

// Cost returns about how much memory an item takes.
func Cost(keyBytes, valueBytes int) int64 {
	data := keyBytes + valueBytes
	return int64(data + data/4 + keyBytes + OverheadBytes)
}

// Hash returns a hash of all keys, values and revisions, the same wherever
// they are the same.
func (c *contents) Hash() uint64 { return c.hash }

// A Place is where a key is, or would be. It is good until the next write.
type Place struct {
	// Revision is the key's, 0 if there is no such key.
	Revision uint64

	shard, at int
	tag       uint32
	found     bool
}

// Find returns the place of a key with a hash, for Set and Remove: so a write that
// depends on what is there looks once.
func (k *Keyspace) Find(key []byte, hash uint64) Place {
	shard, tag := place(hash)
	t := k.shards[shard]
	p := Place{shard: shard, tag: tag}
	if p.at, p.found = t.find(&k.records, tag, stringOf(key)); p.found {
		p.Revision = k.records.record(t.slots[p.at].at).revision()
	}
	return p
}

// WarmMax is how many keys are worth a call of Warm: what they bring in must still
// be there when the last of them is looked up.
const WarmMax = 16

// Warm brings into the processor's cache what Find reads for keys with these hashes
// and, if values is true, what Lookup returns. One key after the other, the
// processor waits for the memory of each: for its slot, and then for its record.
// Side by side, these loads do not depend on each other, and it waits for many at a
// time: that is a third of all that a write costs, and half of a lookup.
func (k *Keyspace) Warm(hashes []uint64, values bool) { k.warm(hashes, values) }

// warm is Warm. It returns how many records it has found, and a sum that means
// nothing, but has it read.
//
//go:noinline
func (c *contents) warm(hashes []uint64, values bool) (found int, sum uint64) {
	for _, hash := range hashes {
		shard, tag := place(hash)
		if t := c.shards[shard]; t.n > 0 {
			sum += uint64(t.slots[t.home(tag)].tag)
		}
	}
	for _, hash := range hashes {
		shard, tag := place(hash)
		t := c.shards[shard]
		for at := t.home(tag); at < len(t.slots) && t.slots[at].tag <= tag; at++ {
			if s := &t.slots[at]; s.tag == tag && !s.isEmpty() {
				sum += c.records.record(s.at).read(values)
				found++
				break
			}
		}
	}
	return found, sum
}

// Exists reports whether the key is there.
func (p Place) Exists() bool { return p.found }

// Set sets the key for which Find returned a place. It copies what it is given.
func (k *Keyspace) Set(p Place, key, value []byte, revision uint64) {
	t := k.writable(p.shard)
	var at address
	if p.found {
		s := &t.slots[p.at]
		k.forget(k.records.record(s.at))
		at = k.records.replace(s.at, key, value, revision)
		s.at = at
	} else {
		at = k.records.add(key, value, revision)
		t.insert(&k.records, p.at, slot{tag: p.tag, at: at}, k.homes)
		k.keyBytes += int64(len(key))
		k.n++
		k.appear(p, key)
	}
	k.dataBytes += int64(len(key) + len(value))
	k.hash += k.records.record(at).hash()
	k.tidy(tidyStep)
}

// Remove removes the key for which Find returned a place where it exists.
func (k *Keyspace) Remove(p Place) {
	t := k.writable(p.shard)
	at := t.slots[p.at].at
	r := k.records.record(at)
	k.n--
	k.disappear(p, r.key())
	k.keyBytes -= int64(r.keyLen())
	k.forget(r)
	t.remove(p.at)
	k.records.drop(at)
	k.tidy(tidyRemove)
}

// tidyStep is for how many slots of a chunk that is to be emptied each write looks. A
// chunk of n slots is, after n/2 records went out of it, so two are enough, and more
// would make a wave of it: some time after a freeze all chunks are half empty. Who
// removes keys looks at more, as there are ever fewer of them to bear what is left.
const (
	tidyStep   = 2
	tidyRemove = 4
)

// tidy looks at some slots of chunks that have few records, and moves what it finds.
func (k *Keyspace) tidy(slots int) {
	for range slots {
		at, ok := k.records.next()
		if !ok {
			return
		}
		shard, tag := place(maphash.String(seed, k.records.record(at).key()))
		if i, ok := k.shards[shard].findAt(tag, at); ok {
			k.writable(shard).slots[i].at = k.records.move(at)
		}
	}
}

// Put sets a key. It copies what it is given.
func (k *Keyspace) Put(key, value []byte, revision uint64) {
	k.Set(k.Find(key, Hash(key)), key, value, revision)
}

// Delete removes a key and reports whether it was there.
func (k *Keyspace) Delete(key []byte) bool {
	p := k.Find(key, Hash(key))
	if p.found {
		k.Remove(p)
	}
	return p.found
}

// forget takes a record that goes out of the counts.
func (k *Keyspace) forget(r record) {
	k.dataBytes -= int64(r.keyLen() + r.valueLen())
	k.hash -= r.hash()
}

// writable returns a shard for a write, cloned if a View has it too.
func (k *Keyspace) writable(i int) *table {
	k.frozen = nil
	if k.shared[i] {
		k.shards[i] = k.shards[i].clone()
		k.shared[i] = false
	}
	return k.shards[i]
}

// Freeze returns a View of the present items. Without a write in between it is
// the same View again.
func (k *Keyspace) Freeze() *View {
	if k.frozen == nil {
		k.frozen = &View{k.contents}
		k.frozen.records, k.frozen.index = k.records.freeze(), nil
		if k.isOrdered() {
			// Copy marks all nodes of both trees as shared; the view's is never
			// written to, so only this side copies nodes.
			k.frozen.index = k.index.Copy()
		}
		for i := range k.shared {
			k.shared[i] = true
		}
	}
	return k.frozen
}

// place splits the hash of a key into the shard and the tag in it.
func place(hash uint64) (shard int, tag uint32) { return int(hash >> (64 - shardBits)), uint32(hash) }
