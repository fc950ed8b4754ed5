package keyspace

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Writes may come between the steps by which keys are put in order, and views.
func TestKeysArePutInOrderWhileWritesGoOn(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(6, seed))
		k, m := New(), model{}
		mutate(t, rng, k, m, 5000)
		steps := 0
		for done := false; !done; steps++ {
			v := k.Freeze()
			if v.index != nil {
				t.Fatal("a view has a part of an index")
			}
			done = k.Order()
			if items, ok := k.Collect("", "", 1, 10); ok != done || len(items) > 1 {
				t.Fatalf("Collect is complete: %v, with %d items; done: %v", ok, len(items), done)
			}
			checkContents(t, v, m)
			checkContents(t, k, m)
			mutate(t, rng, k, m, rng.IntN(100))
			checkContents(t, k, m)
		}
		if least := len(m) / (2 * orderStep); steps < least {
			t.Errorf("%d keys took %d steps, want %d at least", len(m), steps, least)
		}
		if got, want := keysOf(k.Freeze().Ascend("", "", 0)), m.ascend("", "", 0); !slices.Equal(got, want) {
			t.Errorf("Ascend yields %d keys, want %d", len(got), len(want))
		}
	}
}

func TestViewThatIsOlderThanTheOrderIsNotUsedForIt(t *testing.T) {
	k := New()
	k.Put([]byte("a"), nil, 1)
	v := k.Freeze()
	order(k)
	if k.Freeze() == v {
		t.Fatal("Freeze returns a view that has no index")
	}
	if v = k.Freeze(); len(keysOf(v.Ascend("", "", 0))) != 1 {
		t.Error("the key is missing")
	}
	if !k.Order() || k.Freeze() != v {
		t.Error("Order without anything to do made Freeze forget its view")
	}
}

// What nobody asks for costs nothing.
func TestWithoutOrderThereIsNoIndex(t *testing.T) {
	k := New()
	for i := range 1000 {
		k.Put(fmt.Append(nil, i), nil, 1)
	}
	k.Delete([]byte("1"))
	if k.Freeze(); k.index != nil {
		t.Error("there is an index that nobody has asked for")
	}
}

// Keys of an index and of what Collect returned stay as they are when the places where
// they stood have others.
func TestKeysOutliveTheirPlaces(t *testing.T) {
	k, want := New(), []string(nil)
	for i := range 300 {
		want = append(want, fmt.Sprintf("%08d", i))
		k.Put([]byte(want[i]), []byte("small"), uint64(i+1))
	}
	order(k)
	items, _ := k.Collect("", "", 0, len(want))
	for i, key := range want {
		k.Put([]byte(key), make([]byte, 500), uint64(1000+i)) // of another class
		k.Put(fmt.Appendf(nil, "other%03d", i), []byte("small"), uint64(2000+i))
	}
	if err := k.check(); err != nil {
		t.Error(err)
	}
	for i, item := range items {
		if item.Key != want[i] || item.Value != "small" {
			t.Errorf("item %d is now %q = %q, want %q", i, item.Key, item.Value, want[i])
		}
	}
}

// Where a step ends is between two tags: of keys with the same tag none is left behind, and
// what comes or goes there is not yet in the index.
func TestOrderEndsBetweenTags(t *testing.T) {
	k := New()
	put := func(i int, tag uint32) {
		key := fmt.Appendf(nil, "%08d", i)
		at, _ := k.shards[3].find(&k.records, tag, string(key))
		k.Set(Place{shard: 3, at: at, tag: tag}, key, nil, uint64(i+1))
	}
	const same = 10 // keys with the last tag of the first step
	for i := range orderStep + same {
		put(i, min(uint32(i), orderStep-1)<<16)
	}
	next := uint32(orderStep) << 16
	put(1000, next)
	if k.Order() || k.index.Len() != orderStep+same || k.ordered != positionOf(3, next) {
		t.Fatalf("%d keys are in the index up to %#x, want %d up to %#x", k.index.Len(), k.ordered, orderStep+same, positionOf(3, next))
	}
	put(1001, next)
	if k.index.Contains("00001001") {
		t.Error("a key that is not below the position is in the index")
	}
	if order(k); k.index.Len() != k.Len() {
		t.Errorf("%d keys are in the index, want %d", k.index.Len(), k.Len())
	}
}
