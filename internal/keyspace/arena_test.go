package keyspace

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

func TestSlotsAreLittleLargerThanTheirRecords(t *testing.T) {
	last, sizes := 0, map[int]int{}
	for n := recordHead + 1; n <= SharedMax; n++ {
		class, size := classOf(n)
		if size < n || size%grain != 0 || size-n >= max(grain, n/8) {
			t.Fatalf("a record of %d bytes gets a slot of %d", n, size)
		}
		if class < last || class > last+1 && n > recordHead+1 || class >= classCount {
			t.Fatalf("class %d comes after %d", class, last)
		}
		if had := sizes[class]; had != 0 && had != size {
			t.Fatalf("class %d has slots of %d and of %d", class, had, size)
		}
		last, sizes[class] = class, size
	}
	if class, size := classOf(SharedMax + 1); class != ownClass || size != SharedMax+1 {
		t.Errorf("class %d, slot of %d, want %d and a chunk of its own", class, size, ownClass)
	}
}

// room returns the bytes of all chunks.
func (a *arena) roomBytes() (n int64) {
	for _, b := range a.bytes {
		n += int64(len(b))
	}
	return n
}

// Places that views had, and those of keys that have gone, are won back.
func TestNoMoreThanHalfIsLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	const keys = 5_000
	k, revision := New(), uint64(0)
	put := func(i int) {
		revision++
		k.Put(fmt.Appendf(nil, "%08d", i), []byte(strings.Repeat("v", 80+rng.IntN(40))), revision)
	}
	within := func(what string) {
		t.Helper()
		if err := k.check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		live := k.DataBytes() + int64(k.Len())*recordHead
		// A quarter more for slots that are larger than their records, and for
		// chunks that are not full yet.
		if room := k.records.roomBytes(); room > live*5/2 {
			t.Errorf("%s: %d bytes for records of %d", what, room, live)
		}
	}
	for i := range keys {
		put(i)
	}
	within("new keys")
	full := k.records.roomBytes()
	if live := k.DataBytes() + int64(k.Len())*recordHead; full > live*5/4 {
		t.Errorf("%d bytes for new records of %d", full, live)
	}
	for range 5 * keys {
		put(rng.IntN(keys))
	}
	within("without a view")
	for round := range 10 {
		k.Freeze()
		for range keys / 3 {
			put(rng.IntN(keys))
		}
		within(fmt.Sprintf("view %d", round))
	}
	for range 3 { // chunks are half empty all at once, and the next view is not far
		k.Freeze()
		for _, i := range rng.Perm(keys)[:keys*7/10] {
			put(i)
		}
		if live := k.DataBytes() + int64(k.Len())*recordHead; k.records.roomBytes() > 2*live {
			t.Errorf("most keys written after a view: %d bytes for records of %d", k.records.roomBytes(), live)
		}
	}
	for range 100 { // a view and a write, in turns
		k.Freeze()
		put(rng.IntN(keys))
	}
	within("views and writes in turns")
	for _, i := range rng.Perm(keys)[keys/20:] {
		k.Delete(fmt.Appendf(nil, "%08d", i))
	}
	within("keys deleted")
	for i := range keys {
		k.Delete(fmt.Appendf(nil, "%08d", i))
	}
	if room := k.records.roomBytes(); room != 0 {
		t.Errorf("%d bytes for no keys", room)
	}
}

// A record that a view has is moved when its chunk is emptied, and the view keeps its
// own.
func TestWritesMoveALittleAtATime(t *testing.T) {
	k := New()
	for i := range 3_000 {
		k.Put(fmt.Appendf(nil, "%08d", i), make([]byte, 64), uint64(i+1))
	}
	k.Freeze()
	addresses := func() map[string]address {
		m := map[string]address{}
		for _, t := range k.shards {
			for _, s := range t.slots {
				if !s.isEmpty() {
					m[strings.Clone(k.records.record(s.at).key())] = s.at
				}
			}
		}
		return m
	}
	moved := 0
	for i, key := range rand.New(rand.NewPCG(1, 1)).Perm(3_000)[:2_100] {
		key := fmt.Appendf(nil, "%08d", key)
		var before map[string]address
		if i%10 == 0 {
			before = addresses()
		}
		k.Put(key, make([]byte, 64), uint64(20_000+i))
		if before == nil {
			continue
		}
		n := 0
		for name, at := range addresses() {
			if name != string(key) && before[name] != at {
				n++
			}
		}
		if moved += n; n > tidyStep {
			t.Fatalf("a write moved %d other records", n)
		}
	}
	if moved == 0 {
		t.Error("nothing was moved")
	}
}

// The garbage collector has as little to do with many keys as with few.
func TestManyKeysAreFewObjects(t *testing.T) {
	objects := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapObjects)
	}
	before := objects()
	k := New()
	for i := range 100_000 {
		k.Put(fmt.Appendf(nil, "%08d", i), make([]byte, 100), uint64(i+1))
	}
	after := objects()
	if got := after - before; got > 2*shardCount {
		t.Errorf("100,000 keys are %d objects, want some for each of %d shards", got, shardCount)
	}
	runtime.KeepAlive(k)
}

// A chunk that is to be emptied gets nothing new, or else it would never be.
func TestWhatIsToBeEmptiedGetsEmpty(t *testing.T) {
	const keys = 3_000
	k, rng := New(), rand.New(rand.NewPCG(8, 8))
	key := func(i int) []byte { return fmt.Appendf(nil, "%08d", i) }
	for i := range keys {
		k.Put(key(i), make([]byte, 64), uint64(i+1))
	}
	for range keys {
		k.Delete(key(rng.IntN(keys)))
	}
	for i := range keys {
		k.Put(key(keys+i), make([]byte, 64), uint64(2*keys+i))
	}
	for i := range 2 * keys { // each has others moved
		k.Put(key(keys), make([]byte, 64), uint64(10*keys+i))
	}
	for number, c := range k.records.chunks {
		if c.isCondemned {
			t.Errorf("chunk %d still has %d of %d records", number, c.live, c.slots)
		}
	}
	if err := k.check(); err != nil {
		t.Error(err)
	}
}
