package raftkv

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"example.com/raftkv/internal/simnet"
)

// TestMain proves that no test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A cluster is some nodes in this process: on an in-memory network inside a
// synctest bubble, where time is virtual, or on loopback.
type cluster struct {
	t     testing.TB
	net   *simnet.Network // nil: loopback
	nodes map[uint64]*Node
	addrs map[uint64]string
}

// bubble runs a test with virtual time. Its network is in memory, because time
// stands still while a goroutine waits for a real one.
func bubble(t *testing.T, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t, &cluster{t: t, net: simnet.New(), nodes: make(map[uint64]*Node), addrs: make(map[uint64]string)})
	})
}

func loopback(t testing.TB) *cluster {
	return &cluster{t: t, nodes: make(map[uint64]*Node), addrs: make(map[uint64]string)}
}

// start starts a blank process. It is closed when the test ends.
func (c *cluster) start(id uint64, change ...func(*Config)) *Node {
	c.t.Helper()
	cfg := Config{ID: id}
	if os.Getenv("RAFTKV_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	cfg.Listener, cfg.Addr = c.listen(id)
	if c.net != nil {
		cfg.Dialer = c.net.Dialer(cfg.Addr)
	}
	for _, f := range change {
		f(&cfg)
	}
	n, err := Start(cfg)
	if err != nil {
		c.t.Fatalf("start %d: %v", id, err)
	}
	c.t.Cleanup(func() { n.Close() }) // always nil
	c.nodes[id], c.addrs[id] = n, cfg.Addr
	return n
}

func (c *cluster) listen(id uint64) (net.Listener, string) {
	c.t.Helper()
	var l net.Listener
	var err error
	if c.net != nil {
		l, err = c.net.Listen(fmt.Sprintf("n%d:1", id))
	} else {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		c.t.Fatalf("listen: %v", err)
	}
	return l, l.Addr().String()
}

// found starts members 1 to size and founds a cluster of them.
func (c *cluster) found(size int, change ...func(*Config)) {
	c.t.Helper()
	var members []Member
	for id := uint64(1); id <= uint64(size); id++ {
		c.start(id, change...)
		members = append(members, Member{ID: id, Addr: c.addrs[id]})
	}
	errc := make(chan error, size)
	for _, n := range c.nodes {
		go func() { errc <- n.Init(c.ctx(), members...) }()
	}
	for range size {
		if err := <-errc; err != nil {
			c.t.Fatalf("init: %v", err)
		}
	}
	c.ready()
}

// list returns a founding list of members 1 to size.
func (c *cluster) list(size int) []Member {
	var members []Member
	for id := range size {
		members = append(members, Member{ID: uint64(id + 1), Addr: fmt.Sprintf("n%d:1", id+1)})
	}
	return members
}

// ready waits until all nodes are.
func (c *cluster) ready() {
	c.t.Helper()
	for id, n := range c.nodes {
		if err := n.Ready(c.ctx()); err != nil {
			c.t.Fatalf("member %d: %v", id, err)
		}
	}
}

// ctx returns a context that ends with the test, or after 30 seconds.
func (c *cluster) ctx() context.Context { return c.within(30 * time.Second) }

func (c *cluster) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	c.t.Cleanup(cancel)
	return ctx
}

// leader waits until all live nodes agree on a leader, and returns it.
func (c *cluster) leader() *Node {
	c.t.Helper()
	for range 1000 {
		ids := make(map[uint64]bool)
		for _, n := range c.nodes {
			ids[n.Status().Leader] = true
		}
		if len(ids) == 1 {
			for id := range ids {
				if n := c.nodes[id]; n != nil && n.view.Load().leads {
					return n
				}
			}
		}
		c.pause(20 * time.Millisecond)
	}
	c.t.Fatal("no leader that all agree on")
	return nil
}

// pause lets time pass; outside of a bubble only to poll.
func (c *cluster) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// follower returns some node that does not lead.
func (c *cluster) follower() *Node {
	leader := c.leader()
	for _, id := range c.ids() {
		if n := c.nodes[id]; n != leader {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *cluster) ids() []uint64 {
	var ids []uint64
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// kill stops a node as a crash would, as far as the others can tell.
func (c *cluster) kill(n *Node) {
	c.t.Helper()
	delete(c.nodes, n.cfg.ID)
	if c.net != nil {
		c.net.Isolate(n.cfg.Addr) // no goodbye reaches anybody
	}
	n.Close()
}

func (c *cluster) put(n *Node, key, value string, opts ...WriteOption) uint64 {
	c.t.Helper()
	revision, err := n.Put(c.ctx(), key, []byte(value), opts...)
	if err != nil {
		c.t.Fatalf("member %d: %v", n.cfg.ID, err)
	}
	return revision
}

// commit returns the commit index after everything under way has come to rest.
func (c *cluster) commit() uint64 {
	c.t.Helper()
	c.pause(3 * time.Second)
	return c.leader().Status().Commit
}

// agreed waits until the nodes given agree on a leader among them.
func (c *cluster) agreed(nodes ...*Node) *Node {
	c.t.Helper()
	for range 1000 {
		leaders := make(map[uint64]bool)
		for _, n := range nodes {
			leaders[n.Status().Leader] = true
		}
		for _, n := range nodes {
			if len(leaders) == 1 && leaders[n.cfg.ID] && n.view.Load().leads {
				return n
			}
		}
		c.pause(20 * time.Millisecond)
	}
	c.t.Fatal("no leader that those given agree on")
	return nil
}

// but returns all nodes that are running, by ID, without those given.
func (c *cluster) but(without ...*Node) []*Node {
	var nodes []*Node
	for _, id := range c.ids() {
		if n := c.nodes[id]; !slices.Contains(without, n) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// learner starts a process and adds it as a learner.
func (c *cluster) learner(id uint64, change ...func(*Config)) *Node {
	c.t.Helper()
	leader := c.leader()
	n := c.start(id, change...)
	if _, err := leader.AddLearner(c.ctx(), id, c.addrs[id]); err != nil {
		c.t.Fatal(err)
	}
	if err := n.Ready(c.ctx()); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// roles founds three voters, adds a learner and returns one member of each kind.
func (c *cluster) roles() map[string]*Node {
	c.t.Helper()
	c.found(3)
	c.learner(4)
	return map[string]*Node{"leader": c.leader(), "follower": c.follower(), "learner": c.nodes[4]}
}

// restart starts a blank process in the place of one that was killed.
func (c *cluster) restart(id uint64, change ...func(*Config)) *Node {
	c.t.Helper()
	c.net.Rejoin(c.addrs[id])
	return c.start(id, change...)
}

// delay makes what members 1 to size send each other take a while. Without it
// nothing but timers lets virtual time pass.
func (c *cluster) delay(size int, d time.Duration) {
	for from := range size {
		for to := range size {
			if from != to {
				c.net.Delay(fmt.Sprintf("n%d:1", from+1), fmt.Sprintf("n%d:1", to+1), d)
			}
		}
	}
}
