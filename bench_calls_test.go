//go:build linux || darwin

package raftkv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

const benchListKeys = 100 // in one page

// A grid is the points at which calls are measured.
type grid struct {
	keys    int      // at most
	from    []string // leader, follower
	callers []int
	sizes   []int // of values
}

var (
	both        = []string{"leader", "follower"}
	everyCaller = grid{benchKeys, both, []int{1, 16, 64, 256, 1024, 4096}, []int{benchValueBytes}}
	fewCallers  = grid{benchKeys, both, []int{1, 64, 256, 1024, 4096}, []int{benchValueBytes}}
	onLeader    = grid{benchKeys, both[:1], []int{1, 256}, []int{benchValueBytes}}
	// MaxPendingBytes has room for 64 values of 1 MiB.
	everySize = grid{benchKeys, both[:1], []int{16}, []int{16, 128, 1 << 10, 16 << 10, 128 << 10, 1 << 20}}
)

// A filled is a node with the first keys set to values of a size.
type filled struct {
	*Node
	keys, size int
}

// run measures the call that makeOp returns at every point, and how many commands
// shared an entry of the log if it writes. Each size has a cluster of its own, so
// that nobody pays for the collection of another's state.
func (g grid) run(b *testing.B, makeOp func(filled) op) {
	for _, size := range g.sizes {
		c := loopback(b)
		c.found(3)
		keys := min(g.keys, 64<<20/size)
		benchFill(b, c.leader(), keys, size)
		nodes := map[string]*Node{"leader": c.leader(), "follower": c.follower()}
		for _, from := range g.from {
			for _, callers := range g.callers {
				b.Run(fmt.Sprintf("from=%s/callers=%d/value=%d", from, callers, size), func(b *testing.B) {
					before := nodes[from].Status()
					makeOp(filled{nodes[from], keys, size}).drive(b, callers)
					reportBatching(b, before, nodes[from].Status())
				})
			}
		}
		for _, n := range c.nodes {
			n.Close() // always nil; before the next size, not at the end
		}
	}
}

func reportBatching(b *testing.B, before, after Status) {
	if writes := after.Revision - before.Revision; writes > 0 {
		b.ReportMetric(float64(writes)/float64(after.Applied-before.Applied), "commands/entry")
	}
}

func putRandom(f filled) op {
	value := make([]byte, f.size)
	return func(r *rand.Rand) error {
		_, err := f.Put(context.Background(), benchKey(r, f.keys), value)
		return err
	}
}

func getRandom(f filled) op {
	return func(r *rand.Rand) error {
		_, err := f.Get(context.Background(), benchKey(r, f.keys))
		return err
	}
}

func getStale(f filled) op {
	return func(r *rand.Rand) error {
		_, err := f.Get(context.Background(), benchKey(r, f.keys), Stale())
		return err
	}
}

// mixed reads nine times out of ten.
func mixed(f filled) op {
	put, get := putRandom(f), getRandom(f)
	return func(r *rand.Rand) error {
		if r.IntN(10) == 0 {
			return put(r)
		}
		return get(r)
	}
}

// listPage reads a page of keys, somewhere, with their values.
func listPage(f filled) op {
	return func(r *rand.Rand) error {
		page, err := f.List(context.Background(), "key-", After(benchKey(r, f.keys-benchListKeys)), Limit(benchListKeys))
		if err != nil {
			return err
		}
		keys := 0
		for range page.All() {
			keys++
		}
		if keys != benchListKeys {
			return fmt.Errorf("List yields %d keys, want %d", keys, benchListKeys)
		}
		return nil
	}
}

func BenchmarkPut(b *testing.B)      { everyCaller.run(b, putRandom) }
func BenchmarkGet(b *testing.B)      { everyCaller.run(b, getRandom) }
func BenchmarkGetStale(b *testing.B) { onLeader.run(b, getStale) }
func BenchmarkMixed(b *testing.B)    { fewCallers.run(b, mixed) }
func BenchmarkList(b *testing.B)     { fewCallers.run(b, listPage) }
func BenchmarkPutSize(b *testing.B)  { everySize.run(b, putRandom) }
func BenchmarkGetSize(b *testing.B)  { everySize.run(b, getRandom) }
