package keyspace

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// A table with few tags, of which some are the highest there is: keys stand in
// each other's way, and are pushed over the end.
func TestTableEqualsAPlainMapThoughTagsCollide(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tags := make([]uint32, 1+rng.IntN(200))
		for i := range tags {
			tags[i] = rng.Uint32()
			if rng.IntN(3) == 0 {
				tags[i] = ^uint32(0) - uint32(rng.IntN(2))
			}
		}
		var table table
		var a arena
		want := map[string]uint64{}
		for range 2000 {
			i := rng.IntN(600)
			if rng.IntN(500) == 0 { // once in a while most of it goes
				for _, key := range slices.Sorted(maps.Keys(want))[len(want)/10:] {
					change(t, &table, &a, want, tags, key, 0)
				}
			}
			change(t, &table, &a, want, tags, fmt.Sprint(i), uint64(rng.IntN(4)))
			if err := table.check(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for i := range 600 {
			key := fmt.Sprint(i)
			at, ok := table.find(&a, tagOf(tags, key), key)
			if revision, has := want[key]; ok != has || ok && a.record(table.slots[at].at).item() != (Item{key, "v", revision}) {
				t.Fatalf("seed %d: key %q is at %d, %v; want %v", seed, key, at, ok, revision)
			}
			if !ok {
				continue
			}
			if same, ok := table.findAt(tagOf(tags, key), table.slots[at].at); !ok || same != at {
				t.Fatalf("seed %d: the record of %q is found at %d, %v; its slot is %d", seed, key, same, ok, at)
			}
		}
	}
}

func tagOf(tags []uint32, key string) uint32 {
	var i int
	for _, c := range key {
		i = i*10 + int(c-'0')
	}
	return tags[i%len(tags)]
}

// change sets a key to a revision, or removes it if that is 0.
func change(t *testing.T, table *table, a *arena, want map[string]uint64, tags []uint32, key string, revision uint64) {
	t.Helper()
	tag := tagOf(tags, key)
	at, ok := table.find(a, tag, key)
	if _, has := want[key]; ok != has {
		t.Fatalf("key %q is there: %v, want %v", key, ok, has)
	}
	switch {
	case revision == 0 && ok:
		a.drop(table.slots[at].at)
		table.remove(at)
		delete(want, key)
	case revision != 0 && ok:
		s := &table.slots[at]
		s.at = a.replace(s.at, []byte(key), []byte("v"), revision)
		want[key] = revision
	case revision != 0:
		table.insert(a, at, slot{tag: tag, at: a.add([]byte(key), []byte("v"), revision)}, 0)
		want[key] = revision
	}
}
