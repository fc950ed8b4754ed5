package raftkv

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// What the tests of whole nodes in bubbles share beside the cluster.

// sweep runs a bubble for every moment of a time, in steps, so that something
// happens at each step of what takes that long. With the race detector, which
// makes everything slow, the steps are five times as wide.
func sweep(t *testing.T, end, step time.Duration, f func(t *testing.T, c *cluster, at time.Duration)) {
	t.Helper()
	if raceEnabled {
		step *= 5
	}
	for at := time.Duration(0); at < end; at += step {
		t.Run(at.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) { f(t, c, at) })
		})
	}
}

// startAt starts a process at an address of its own. It is not one of the
// cluster's nodes, as another may have its ID.
func (c *cluster) startAt(id uint64, addr string) *Node {
	c.t.Helper()
	l, err := c.net.Listen(addr)
	if err != nil {
		c.t.Fatalf("listen: %v", err)
	}
	cfg := Config{ID: id, Listener: l, Dialer: c.net.Dialer(addr)}
	if os.Getenv("RAFTKV_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	n, err := Start(cfg)
	if err != nil {
		c.t.Fatalf("start %d at %s: %v", id, addr, err)
	}
	c.t.Cleanup(func() { n.Close() }) // always nil
	return n
}

// revive restarts a member that was killed as its program would: it calls Init
// with the list of the founders.
func (c *cluster) revive(id uint64, size int, change ...func(*Config)) *Node {
	c.t.Helper()
	n := c.restart(id, change...)
	c.initLater(n, size)
	return n
}

// initLater calls Init on a node and lets it take its time: until the node is a
// member or is closed.
func (c *cluster) initLater(n *Node, size int) {
	list, ctx := c.list(size), c.within(time.Hour)
	go func() {
		if err := n.Init(ctx, list...); err != nil && !errors.Is(err, ErrClosed) {
			c.t.Errorf("member %d: %v", n.cfg.ID, err)
		}
	}()
}

// replaced kills a member and revives it.
func (c *cluster) replaced(n *Node, size int) *Node {
	c.t.Helper()
	c.kill(n)
	return c.revive(n.cfg.ID, size)
}

// wantHealed checks that in time all nodes are ready, that all of them know
// exactly these voters, each in one incarnation, and that all have one state.
func (c *cluster) wantHealed(within time.Duration, want ...uint64) {
	c.t.Helper()
	ctx := c.within(within)
	for _, n := range c.but() {
		if err := n.Ready(ctx); err != nil {
			c.t.Fatalf("member %d: %v; %+v", n.cfg.ID, err, n.Status())
		}
	}
	for ctx.Err() == nil {
		sick := 0
		for _, n := range c.but() {
			now, s := n.view.Load().roster, n.Status()
			if now.IsReplacing() || now.IsJoint() || !s.Ready || !slices.Equal(voters(s.Membership), want) || len(now.Members) != len(s.Membership.Members) {
				sick++
			}
		}
		if sick == 0 {
			c.wantSameState()
			return
		}
		c.pause(20 * time.Millisecond)
	}
	for _, n := range c.but() {
		c.t.Errorf("member %d: not healed within %v: %+v, roster %v", n.cfg.ID, within, n.Status(), n.view.Load().roster.Conf)
	}
}

// upTo returns the member IDs from 1.
func upTo(size int) []uint64 {
	var ids []uint64
	for id := range size {
		ids = append(ids, uint64(id+1))
	}
	return ids
}

// without returns the IDs without some.
func without(ids []uint64, some ...uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(ids), func(id uint64) bool { return slices.Contains(some, id) })
}

// until waits for something to become true.
func (c *cluster) until(what string, f func() bool) {
	c.t.Helper()
	for range 5000 {
		if f() {
			return
		}
		c.pause(5 * time.Millisecond)
	}
	c.t.Fatalf("never: %s", what)
}

// isReplacing reports whether a node knows two incarnations of a member.
func isReplacing(n *Node) bool { return n.view.Load().roster.IsReplacing() }

// raceless returns many, or few with the race detector.
func raceless(many, few int) int {
	if raceEnabled {
		return few
	}
	return many
}

// named is for sub-tests by number.
func named(what string, n any) string { return fmt.Sprintf("%s %v", what, n) }

// upToDuration returns a random duration below d.
func upToDuration(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d)))
}
