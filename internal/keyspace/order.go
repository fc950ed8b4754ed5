package keyspace

import (
	"fmt"
	"hash/maphash"
	"strings"

	"github.com/tidwall/btree"
)

const (
	// orderStep is how many keys a call of Order takes into the index, and a few
	// more: some 0.2 ms.
	orderStep = 256
	// allOrdered is behind the positions of all keys.
	allOrdered = position(shardCount) << 32
)

// A position is where a key stands among all: its shard, then its tag.
type position uint64

func positionOf(shard int, tag uint32) position { return position(shard)<<32 | position(tag) }

// Order takes some more keys into the index and reports whether it has all, so that
// Collect can be used, and Ascend of the views from now on. Whoever wants
// order calls it until then, and may let others read and write in between.
//
// The index is not there from the beginning because many never list: it takes longer to
// insert a key there than in its shard, 30 to 40 bytes beside the key, and of
// all that the garbage collector has to look at more than half.
func (k *Keyspace) Order() (done bool) {
	if k.index == nil {
		k.index = new(btree.Set[string])
	}
	for left := orderStep; left > 0 && k.ordered < allOrdered; {
		left -= k.orderSome(left)
	}
	if !k.isOrdered() {
		return false
	}
	if k.frozen != nil && k.frozen.index == nil {
		k.frozen = nil
	}
	return true
}

// isOrdered reports whether the index has all keys.
func (k *Keyspace) isOrdered() bool { return k.ordered == allOrdered }

// orderSome takes keys of a shard into the index from where that ends: so many, and
// those with the same tag as the last of them.
func (k *Keyspace) orderSome(most int) (n int) {
	shard, tag := int(k.ordered>>32), uint32(k.ordered)
	t := k.shards[shard]
	for at := t.home(tag); at < len(t.slots); at++ {
		s := &t.slots[at]
		if s.isEmpty() || s.tag < tag {
			continue
		}
		if n >= most && s.tag != tag {
			k.ordered = positionOf(shard, s.tag)
			return n
		}
		k.index.Insert(strings.Clone(k.records.record(s.at).key()))
		tag = s.tag
		n++
	}
	k.ordered = positionOf(shard+1, 0)
	return n
}

// appear takes a new key into the index, if it has come that far.
func (k *Keyspace) appear(p Place, key []byte) {
	if positionOf(p.shard, p.tag) < k.ordered {
		k.index.Insert(string(key))
	}
}

// disappear takes a key out of the index.
func (k *Keyspace) disappear(p Place, key string) {
	if positionOf(p.shard, p.tag) < k.ordered {
		k.index.Delete(key)
	}
}

// Collect returns copies of the items that View.Ascend would yield, or false if there
// are more than max of them, or no order yet. It is for ranges so small that their
// gathering may hold up writes.
func (k *Keyspace) Collect(prefix, after string, limit, max int) (items []Item, complete bool) {
	if !k.isOrdered() {
		return nil, false
	}
	complete = true
	k.ascend(prefix, after, limit, func(item Item) bool {
		if len(items) == max {
			items, complete = nil, false
			return false
		}
		items = append(items, item)
		return true
	})
	detach(items)
	return items, complete
}

// detach copies what may be overwritten.
func detach(items []Item) {
	n := 0
	for i := range items {
		n += len(items[i].Key)
		if len(items[i].Value) <= SharedMax {
			n += len(items[i].Value)
		}
	}
	b := make([]byte, 0, n)
	own := func(s string) string {
		b = append(b, s...)
		return stringOf(b[len(b)-len(s):])
	}
	for i := range items {
		items[i].Key = own(items[i].Key)
		if len(items[i].Value) <= SharedMax {
			items[i].Value = own(items[i].Value)
		}
	}
}

// ascend calls yield for the keys with a prefix after a key, in order, at most
// limit of them. It looks up several keys at a time; see Warm.
func (c *contents) ascend(prefix, after string, limit int, yield func(Item) bool) {
	var group [WarmMax]string
	keys, n, more := group[:0], 0, true
	c.index.Ascend(max(prefix, after), func(key string) bool {
		if !strings.HasPrefix(key, prefix) {
			return false // keys with the prefix follow each other
		}
		if key == after {
			return true
		}
		keys = append(keys, key)
		n++
		if len(keys) == WarmMax || n == limit {
			more = c.yieldAll(keys, yield) && n != limit
			keys = keys[:0]
		}
		return more
	})
	if more {
		c.yieldAll(keys, yield)
	}
}

// yieldAll calls yield for some keys, at most WarmMax, until it returns false.
func (c *contents) yieldAll(keys []string, yield func(Item) bool) bool {
	var hashes [WarmMax]uint64
	for i, key := range keys {
		hashes[i] = maphash.String(seed, key)
	}
	c.warm(hashes[:len(keys)], true)
	for i, key := range keys {
		item, ok := c.Lookup(key, hashes[i])
		if !ok {
			panic(fmt.Sprintf("raftkv: BUG: key %q is in the index alone", key))
		}
		if !yield(item) {
			return false
		}
	}
	return true
}
