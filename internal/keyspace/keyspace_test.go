package keyspace

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

// A model is the plain map that a Keyspace must agree with.
type model map[string]entry

type entry struct {
	value    string
	revision uint64
}

func (m model) dataBytes() (n int64) {
	for key, r := range m {
		n += int64(len(key) + len(r.value))
	}
	return n
}

func (m model) cost() (n int64) {
	for key, r := range m {
		n += Cost(len(key), len(r.value))
	}
	return n
}

func (m model) ascend(prefix, after string, limit int) []string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if strings.HasPrefix(key, prefix) && (after == "" || key > after) && (limit == 0 || len(keys) < limit) {
			keys = append(keys, key)
		}
	}
	return keys
}

// A checked is a Keyspace or a View.
type checked interface {
	check() error
	Len() int
	DataBytes() int64
	Bytes() int64
	Get(key string) (Item, bool)
}

// order has a Keyspace take all keys into its index.
func order(k *Keyspace) *Keyspace {
	for !k.Order() {
	}
	return k
}

// checkContents fails unless contents are those of a model.
func checkContents(t *testing.T, c checked, want model) {
	t.Helper()
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	if c.Len() != len(want) || c.DataBytes() != want.dataBytes() {
		t.Fatalf("%d keys of %d bytes, want %d of %d", c.Len(), c.DataBytes(), len(want), want.dataBytes())
	}
	if got, w := c.Bytes(), want.cost(); got < w || got > w+int64(len(want)) {
		t.Fatalf("Bytes = %d, want %d", got, w)
	}
	for key, r := range want {
		if item, ok := c.Get(key); !ok || item != (Item{key, r.value, r.revision}) {
			t.Fatalf("Get(%q) = %+v, %v; want %+v", key, item, ok, r)
		}
	}
}

func keysOf(items iter.Seq[Item]) []string {
	var keys []string
	for item := range items {
		keys = append(keys, item.Key)
	}
	return keys
}

// randomKey draws from a few thousand keys over a small alphabet that has the
// lowest and the highest byte in it, so that keys are prefixes of each other.
func randomKey(rng *rand.Rand, lengthMax int) string {
	b := make([]byte, 1+rng.IntN(lengthMax))
	for i := range b {
		b[i] = "\x00a\xfe\xff"[rng.IntN(4)]
	}
	return string(b)
}

// randomValue draws from few sizes, so that many have the same class, and now and then
// from all, up to one that has a chunk of its own.
func randomValue(rng *rand.Rand) string {
	n := 8 * rng.IntN(4)
	if rng.IntN(50) == 0 {
		n = rng.IntN(SharedMax * 5 / 4)
	}
	return strings.Repeat(string(rune('a'+rng.IntN(26))), n)
}

// mutate makes random changes to a Keyspace and to a model.
func mutate(t *testing.T, rng *rand.Rand, k *Keyspace, m model, n int) {
	t.Helper()
	for range n {
		key := randomKey(rng, 6)
		if rng.IntN(3) == 0 {
			_, had := m[key]
			if got := k.Delete([]byte(key)); got != had {
				t.Fatalf("Delete(%q) = %v, want %v", key, got, had)
			}
			delete(m, key)
			continue
		}
		r := entry{value: randomValue(rng), revision: k.records.newest + 1}
		if rng.IntN(20) == 0 {
			r.revision = 1 + rng.Uint64N(r.revision) // a state that is sent has them in any order
		}
		k.Put([]byte(key), []byte(r.value), r.revision)
		m[key] = r
	}
}

func TestKeyspaceEqualsAPlainMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	k, m := New(), model{}
	for range 20 {
		mutate(t, rng, k, m, 500)
		checkContents(t, k, m)
		v := order(k).Freeze()
		all := keysOf(v.All())
		slices.Sort(all)
		if want := m.ascend("", "", 0); !slices.Equal(all, want) {
			t.Fatalf("All yields %q, want %q", all, want)
		}
		for range 50 {
			checkRange(t, rng, k, v, m)
		}
	}
	for key := range m {
		k.Delete([]byte(key))
	}
	checkContents(t, k, nil)
	if k.Hash() != 0 {
		t.Errorf("the hash of nothing is %#x, want 0", k.Hash())
	}
}

// Warm must not look beyond what is there.
func TestWarmingChangesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	k, m := New(), model{}
	for range 100 {
		hashes := make([]uint64, rng.IntN(WarmMax+1))
		for i := range hashes {
			hashes[i] = Hash([]byte(randomKey(rng, 6)))
		}
		k.Warm(hashes, rng.IntN(2) == 0)
		checkContents(t, k, m)
		mutate(t, rng, k, m, rng.IntN(50))
	}
}

// Warm reads the records of all keys that are there, and of their values what is
// worth it if that is wanted.
func TestWarmingReadsWhatIsThere(t *testing.T) {
	const keys = 300
	var sums [2][2]uint64 // by what the values end with, and whether they are wanted
	var hashes []uint64
	found := 0
	for i := range keys {
		hashes = append(hashes, Hash(fmt.Append(nil, i)))
	}
	for end := range sums {
		k := New()
		for i := range keys {
			k.Put(fmt.Append(nil, i), append(make([]byte, i%200), byte(end)), 1)
		}
		for wanted := range sums[end] {
			for group := range slices.Chunk(slices.Concat(hashes, []uint64{0, math.MaxUint64}), WarmMax) {
				n, sum := k.warm(group, wanted == 1)
				found += n
				sums[end][wanted] += sum
			}
		}
	}
	if want := 4 * keys; found != want {
		t.Errorf("found %d records, want %d", found, want)
	}
	if got := sums[1][0] - sums[0][0]; got != 0 {
		t.Errorf("the ends of %d values were read that are not wanted", got)
	}
	if got := sums[1][1] - sums[0][1]; got < keys { // more if they begin a line, too
		t.Errorf("of %d values the ends of %d were read", keys, got)
	}
}

// checkRange compares a random range, gathered both ways, with the model's.
func checkRange(t *testing.T, rng *rand.Rand, k *Keyspace, v *View, m model) {
	t.Helper()
	var prefix, after string
	if rng.IntN(4) != 0 {
		prefix = randomKey(rng, 3)
	}
	switch rng.IntN(3) {
	case 0:
		after = randomKey(rng, 6)
	case 1:
		after = prefix + randomKey(rng, 3)
	}
	limit, most := rng.IntN(8), rng.IntN(30)
	want := m.ascend(prefix, after, limit)
	if got := keysOf(v.Ascend(prefix, after, limit)); !slices.Equal(got, want) {
		t.Fatalf("Ascend(%q, %q, %d) = %q, want %q", prefix, after, limit, got, want)
	}
	items, complete := k.Collect(prefix, after, limit, most)
	if complete != (len(want) <= most) {
		t.Fatalf("Collect(%q, %q, %d, %d) is complete: %v, with %d keys in range", prefix, after, limit, most, complete, len(want))
	}
	if got := keysOf(slices.Values(items)); complete && !slices.Equal(got, want) || !complete && got != nil {
		t.Fatalf("Collect(%q, %q, %d, %d) = %q, want %q", prefix, after, limit, most, got, want)
	}
}

func TestIteratorsStopWhenTheCallerDoes(t *testing.T) {
	k := New()
	for i := range 100 {
		k.Put(fmt.Append(nil, i), nil, 1)
	}
	order(k)
	for name, seq := range map[string]iter.Seq[Item]{"All": k.Freeze().All(), "Ascend": k.Freeze().Ascend("", "", 0)} {
		n := 0
		for range seq {
			if n++; n == 3 {
				break
			}
		}
		if n != 3 {
			t.Errorf("%s yields %d items after the break, want none", name, n-3)
		}
	}
}

func TestViewsStayAsTheyWere(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	k, m := order(New()), model{}
	var views []*View
	var want []model
	for range 15 {
		mutate(t, rng, k, m, 300)
		views, want = append(views, k.Freeze()), append(want, maps.Clone(m))
	}
	mutate(t, rng, k, m, 3000)
	for i, v := range views {
		checkContents(t, v, want[i])
		if got, w := keysOf(v.Ascend("", "", 0)), want[i].ascend("", "", 0); !slices.Equal(got, w) {
			t.Errorf("view %d has the keys %q, want %q", i, got, w)
		}
	}
	checkContents(t, k, m)
}

// Under the race detector this shows that a View shares nothing that changes.
func TestViewsAreReadWhileWritesGoOn(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	k, m := order(New()), model{}
	mutate(t, rng, k, m, 3000)
	var readers sync.WaitGroup
	for range 3 {
		v, want := k.Freeze(), maps.Clone(m)
		readers.Go(func() {
			for range 2 {
				var hash uint64
				for item := range v.All() {
					hash += newRecord(item).hash()
				}
				if keys := keysOf(v.Ascend("a", "", 0)); !slices.Equal(keys, want.ascend("a", "", 0)) {
					t.Errorf("Ascend yields %d keys, want %d", len(keys), len(want.ascend("a", "", 0)))
				}
				if hash != v.Hash() || v.Len() != len(want) {
					t.Errorf("hash %#x of %d keys, want %#x of %d", hash, v.Len(), v.Hash(), len(want))
				}
			}
		})
		mutate(t, rng, k, m, 3000)
	}
	readers.Wait()
}

func TestFreezeIsTheSameViewUntilAWrite(t *testing.T) {
	k := New()
	v := k.Freeze()
	if k.Delete([]byte("missing")); k.Freeze() != v {
		t.Error("a delete that changed nothing made a new view")
	}
	for name, write := range map[string]func(){
		"new key":   func() { k.Put([]byte("a"), nil, 1) },
		"overwrite": func() { k.Put([]byte("a"), nil, 1) },
		"delete":    func() { k.Put([]byte("b"), nil, 1); k.Freeze(); k.Delete([]byte("b")) },
	} {
		v := k.Freeze()
		if write(); k.Freeze() == v {
			t.Errorf("%s: the view before it is returned after it", name)
		}
	}
}

func TestAShardIsClonedOncePerFreeze(t *testing.T) {
	k := New()
	for i := range 5000 {
		k.Put(fmt.Append(nil, i), nil, 1)
	}
	identity := func() (p [shardCount]*slot) {
		for i := range k.shards {
			p[i] = unsafe.SliceData(k.shards[i].slots)
		}
		return p
	}
	unfrozen := identity()
	k.Put([]byte("1"), nil, 2)
	if identity() != unfrozen {
		t.Fatal("a write without a view cloned a shard")
	}
	v := k.Freeze()
	if identity() != unfrozen {
		t.Fatal("Freeze cloned a shard")
	}
	k.Put([]byte("1"), nil, 3)
	first := identity()
	changed := 0
	for i := range first {
		if first[i] != unfrozen[i] {
			changed++
		}
	}
	k.Put([]byte("1"), nil, 4)
	if identity() != first || changed != 1 {
		t.Fatalf("%d shards were cloned by the first write, want 1, and none by the second", changed)
	}
	if item, _ := v.Get("1"); item.Revision != 2 {
		t.Errorf("the view has revision %d, want 2", item.Revision)
	}
}

func TestNothingAliasesTheInput(t *testing.T) {
	k := New()
	key, value := []byte("key"), []byte("value")
	k.Put(key, value, 1)
	copy(key, "KEY")
	copy(value, "VALUE")
	item, ok := k.Get("key")
	if !ok || item.Key != "key" || item.Value != "value" {
		t.Fatalf("the stored item is %+v, want what was put", item)
	}
}

// What views and Collect return is good for ever, and so are large values.
func TestNothingThatIsKeptChanges(t *testing.T) {
	k := order(New())
	large := strings.Repeat("l", SharedMax+1)
	k.Put([]byte("key"), []byte("value"), 1)
	k.Put([]byte("large"), []byte(large), 2)
	collected, _ := k.Collect("", "", 0, 10)
	got, _ := k.Get("large")
	overwrite := func(revision uint64) {
		k.Put([]byte("key"), []byte("other"), revision)
		k.Put([]byte("large"), []byte(strings.ToUpper(large)), revision+1)
	}
	overwrite(3)
	var viewed []Item
	for item := range k.Freeze().Ascend("", "", 0) {
		viewed = append(viewed, item)
	}
	overwrite(5)
	if want := []Item{{"key", "value", 1}, {"large", large, 2}}; !slices.Equal(collected, want) {
		t.Error("what Collect returned has changed")
	}
	if want := []Item{{"key", "other", 3}, {"large", strings.ToUpper(large), 4}}; !slices.Equal(viewed, want) {
		t.Error("what a view yielded has changed")
	}
	if got != (Item{"large", large, 2}) {
		t.Error("a large value has changed")
	}
	if item, _ := k.Get("key"); item != (Item{"key", "other", 5}) {
		t.Errorf("the key has %+v", item)
	}
}

func TestHashDependsOnContentAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	k, m := New(), model{}
	mutate(t, rng, k, m, 3000)
	other := New()
	mutate(t, rng, other, model{}, 1000)
	for item := range other.Freeze().All() {
		other.Delete([]byte(item.Key))
	}
	for key, r := range m {
		other.Put([]byte(key), []byte(r.value), r.revision)
	}
	if k.Hash() != other.Hash() || k.Freeze().Hash() != other.Hash() {
		t.Errorf("equal contents have the hashes %#x and %#x", k.Hash(), other.Hash())
	}
}

func TestHashChangesWithKeyValueAndRevision(t *testing.T) {
	seen := map[uint64]string{}
	for _, c := range []struct {
		key, value string
		revision   uint64
	}{{"a", "b", 1}, {"b", "a", 1}, {"a", "b", 2}, {"a", "", 1}, {"ab", "", 1}, {"a", "bb", 1}, {"a", "b\x00", 1}} {
		k := New()
		k.Put([]byte("rest"), []byte("same"), 7)
		k.Put([]byte(c.key), []byte(c.value), c.revision)
		name := fmt.Sprintf("%+v", c)
		if other, ok := seen[k.Hash()]; ok {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[k.Hash()] = name
	}
	// Swapped values: the sum over items must not be a sum over their parts.
	a, b := New(), New()
	a.Put([]byte("x"), []byte("1"), 1)
	a.Put([]byte("y"), []byte("2"), 1)
	b.Put([]byte("x"), []byte("2"), 1)
	b.Put([]byte("y"), []byte("1"), 1)
	if a.Hash() == b.Hash() {
		t.Error("two keys with swapped values have the same hash")
	}
}

func TestOverwritesAllocateNothing(t *testing.T) {
	k := New()
	key := bytes.Repeat([]byte("k"), 100)
	k.Put(key, []byte("v"), 1)
	name := string(key)
	if n := testing.AllocsPerRun(100, func() { k.Get(name); k.Find(key, Hash(key)) }); n != 0 {
		t.Errorf("lookups allocate %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { k.Put(key, []byte("w"), 2) }); n != 0 {
		t.Errorf("an overwrite by a value of the same size allocates %v times", n)
	}
	for i := range 1000 { // the key is not the last of its size
		k.Put(fmt.Appendf(nil, "%0100d", i), key[:1+i%2*99], uint64(3+i))
	}
	if n := testing.AllocsPerRun(100, func() {
		k.Put(key, key, 2000)
		k.Put(key, []byte("v"), 2001)
	}); n != 0 {
		t.Errorf("overwrites by values of two sizes in turns allocate %v times", n)
	}
}

// TestExpectedKeysFindTheirRoom: tables that know how much comes move few slots,
// and are no larger in the end than those that have grown.
func TestExpectedKeysFindTheirRoom(t *testing.T) {
	const keys = 200_000
	fill := func(expected int) (k *Keyspace, room, growths int) {
		k = New()
		k.Expect(expected)
		var homes [shardCount]int
		for i := range keys {
			k.Put(fmt.Appendf(nil, "%08d", i*7919%keys), nil, 1)
			if i%16 == 0 {
				for j, t := range k.shards {
					if t.homes != homes[j] {
						homes[j] = t.homes
						growths++
					}
				}
			}
		}
		for _, t := range k.shards {
			room += len(t.slots)
		}
		return k, room, growths
	}
	k, room, growths := fill(keys)
	if err := k.check(); err != nil {
		t.Error(err)
	}
	if growths > shardCount*11/10 {
		t.Errorf("%d tables have grown %d times", shardCount, growths)
	}
	if _, grown, _ := fill(0); room > grown*11/10 {
		t.Errorf("%d slots, want not many more than the %d of tables that were not told", room, grown)
	}
}
