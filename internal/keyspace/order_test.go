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
