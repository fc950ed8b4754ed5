package raftkv

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/raftkv/internal/history"
)

var chaosSeeds = flag.Uint64("chaos.seeds", 0, "how many seeds TestChaos tries; 0 is a few")

// A chaos is a cluster whose links and processes fail at random while clients
// on all members use a few keys. Faults are random but for one thing: no
// majority of voters ever loses its memory, as nothing could survive that.
type chaos struct {
	*cluster
	size    int // voters; one more process may be a learner or take the place of one
	rng     *rand.Rand
	record  *history.Recorder
	began   time.Time
	ctx     context.Context // ends with the faults
	cancel  context.CancelFunc
	faults  sync.WaitGroup // what goes on beside the main loop
	clients sync.WaitGroup
	over    atomic.Bool // clients stop

	mu       sync.Mutex // guards what follows, and cluster.nodes
	lost     map[uint64]bool
	restarts int
	changes  int // of the membership, acknowledged
	changing bool
}

// TestChaos: a few virtual minutes of faults for each seed. What the clients
// were told is linearizable, each write took effect once, none that was
// acknowledged is lost; and soon after the faults end, all is well again.
func TestChaos(t *testing.T) {
	seeds := *chaosSeeds
	if seeds == 0 {
		seeds = uint64(raceless(4, 2))
	}
	for seed := range seeds {
		t.Run(named("seed", seed), func(t *testing.T) {
			record := new(history.Recorder)
			bubble(t, func(t *testing.T, c *cluster) { c.chaos(seed, record) })
			report, err := record.Check(time.Minute)
			if err != nil {
				t.Error(err)
			}
			done := report.Count(history.Put, history.OK) + report.Count(history.Get, history.OK)
			if t.Log(report); done < raceless(1000, 200) {
				t.Errorf("only %d puts and gets succeeded", done)
			}
		})
	}
}

func (c *cluster) chaos(seed uint64, record *history.Recorder) {
	c.t.Helper()
	k := &chaos{
		cluster: c, size: 3 + 2*int(seed%2), rng: rand.New(rand.NewPCG(seed, 11)), record: record,
		began: time.Now(), lost: make(map[uint64]bool),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	c.found(k.size)
	c.calm()
	k.cluster.start(uint64(k.size + 1))
	before := c.nodes[1].Status().Term
	for _, id := range upTo(k.size + 1) {
		for i := range 2 {
			client := int(id)*10 + i
			rng := rand.New(rand.NewPCG(seed, uint64(client)))
			k.clients.Go(func() { k.client(client, id, rng) })
		}
	}
	length := time.Duration(raceless(120, 40)) * time.Second
	for time.Since(k.began) < length {
		k.fault()
		k.cluster.pause(upToDuration(k.rng, 2*time.Second))
	}
	k.heal()
	k.cancel()
	k.faults.Wait()
	k.wantConverged(30 * time.Second)
	k.over.Store(true)
	k.clients.Wait()
	k.list(0, c.but()[0], time.Minute)
	elections := c.but()[0].Status().Term - before
	c.t.Logf("%d terms, %d restarts, %d membership changes", elections, k.restarts, k.changes)
	if elections < 1 || k.restarts < raceless(5, 1) || k.changes < raceless(1, 0) {
		c.t.Error("too few: the test tests nothing")
	}
}

// calm ends all faults of links but for a short delay.
func (c *cluster) calm() {
	for a := range c.addrs {
		c.net.Rejoin(c.addrs[a])
		for b := range c.addrs {
			c.net.Heal(c.addrs[a], c.addrs[b])
		}
	}
	c.delay(len(c.addrs), 2*time.Millisecond)
}

func (k *chaos) heal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calm()
}

// node returns the process that runs under a member ID, nil if none does.
func (k *chaos) node(id uint64) *Node {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.nodes[id]
}

// fault does something bad, or ends it all.
func (k *chaos) fault() {
	a, b := k.some(), k.some()
	switch k.rng.IntN(12) {
	case 0:
		k.net.Cut(k.addr(a), k.addr(b))
	case 1:
		k.net.Cut(k.addr(a), k.addr(b))
		k.net.Cut(k.addr(b), k.addr(a))
	case 2:
		k.net.Isolate(k.addr(a))
	case 3:
		k.bridge()
	case 4:
		k.net.Delay(k.addr(a), k.addr(b), upToDuration(k.rng, 150*time.Millisecond))
	case 5:
		k.net.Reset(k.addr(a), k.addr(b))
	case 6, 7:
		k.crash(a)
	case 8:
		k.faults.Go(func() { k.transfer(a, b) })
	case 9:
		rng := rand.New(rand.NewPCG(k.rng.Uint64(), 0))
		k.faults.Go(func() { k.change(a, rng) })
	default:
		k.heal()
	}
}

// some returns a random member ID.
func (k *chaos) some() uint64 { return k.rng.Uint64N(uint64(k.size+1)) + 1 }

func (k *chaos) addr(id uint64) string { return fmt.Sprintf("n%d:1", id) }

// bridge cuts the processes in two halves, which one of them still reaches both
// of.
func (k *chaos) bridge() {
	ids := k.rng.Perm(k.size + 1)
	half := len(ids) / 2
	for _, a := range ids[:half] {
		for _, b := range ids[half+k.rng.IntN(2):] {
			k.net.Cut(k.addr(uint64(a+1)), k.addr(uint64(b+1)))
			k.net.Cut(k.addr(uint64(b+1)), k.addr(uint64(a+1)))
		}
	}
}

// crash kills a process and starts it again, blank, after a while. At most one
// has lost its memory at a time.
func (k *chaos) crash(id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[id]
	if n == nil || len(k.lost) > 0 {
		return
	}
	k.lost[id] = true
	k.restarts++
	k.kill(n)
	down := upToDuration(k.rng, 3*time.Second)
	k.faults.Go(func() {
		k.cluster.pause(down)
		k.mu.Lock()
		n := k.restart(id)
		k.mu.Unlock()
		for k.ctx.Err() == nil && !k.isBack(n) {
			k.cluster.pause(100 * time.Millisecond)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.lost, id)
	})
}

// isBack reports whether a process that has restarted has all again that it had
// lost, or is a member no more.
func (k *chaos) isBack(n *Node) bool {
	if n.Status().Ready {
		return true
	}
	for _, id := range upTo(k.size + 1) {
		other := k.node(id)
		if other == nil || !other.view.Load().leads || other.Ready(k.cluster.within(time.Second)) != nil {
			continue
		}
		_, known := other.view.Load().roster.Newest(n.cfg.ID)
		return !known
	}
	return false
}

func (k *chaos) transfer(on, to uint64) {
	if n := k.node(on); n != nil {
		ctx, cancel := context.WithTimeout(k.ctx, 3*time.Second)
		defer cancel()
		_ = n.TransferLeadership(ctx, to) // may fail in many ways
	}
}

// change changes the membership, one change at a time: a process comes in as a
// learner, or a learner goes, or takes the place of a voter.
func (k *chaos) change(on uint64, rng *rand.Rand) {
	n := k.node(on)
	k.mu.Lock()
	busy := k.changing
	k.changing = k.changing || n != nil
	k.mu.Unlock()
	if n == nil || busy {
		return
	}
	ctx, cancel := context.WithTimeout(k.ctx, 10*time.Second)
	defer cancel()
	var err error
	now := n.Status().Membership
	switch idle := learners(now); {
	case len(idle) == 0:
		out := without(upTo(k.size+1), voters(now)...)
		if len(out) == 0 {
			break
		}
		k.again(out[0])
		_, err = n.AddLearner(ctx, out[0], k.addr(out[0]))
	case rng.IntN(3) == 0:
		_, err = n.RemoveLearner(ctx, idle[0])
	default:
		next := voters(now)
		next[rng.IntN(len(next))] = idle[0]
		_, err = n.ChangeMembership(ctx, next, Retain(), IfIndex(now.Index))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changing = false
	if err == nil {
		k.changes++
	}
}

// again starts a process again that has stopped because it was removed.
func (k *chaos) again(id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.nodes[id]; n != nil && errors.Is(n.Err(), ErrRemoved) {
		k.cluster.start(id)
	}
}

// wantConverged checks that all members are well within a time, and forgets
// those processes that are none.
func (k *chaos) wantConverged(within time.Duration) {
	k.t.Helper()
	var leader *Node
	k.until("a leader", func() bool {
		i := slices.IndexFunc(k.but(), func(n *Node) bool { return n.Status().Ready && n.view.Load().leads })
		if i < 0 {
			return false
		}
		leader = k.but()[i]
		return leader.Ready(k.cluster.within(time.Second)) == nil
	})
	m := leader.Status().Membership
	for _, n := range k.but() {
		if !slices.ContainsFunc(m.Members, func(row Member) bool { return row.ID == n.cfg.ID }) {
			k.mu.Lock()
			delete(k.nodes, n.cfg.ID)
			k.mu.Unlock()
			n.Close()
		}
	}
	if len(voters(m)) != k.size {
		k.t.Errorf("membership %+v, want %d voters", m, k.size)
	}
	k.cluster.pause(time.Second)
	k.wantWell(within, voters(m))
}

// wantWell is wantHealed, while writes go on.
func (k *chaos) wantWell(within time.Duration, want []uint64) {
	k.t.Helper()
	ctx := k.cluster.within(within)
	for _, n := range k.but() {
		if err := n.Ready(ctx); err != nil {
			k.t.Fatalf("member %d: %v; %+v", n.cfg.ID, err, n.Status())
		}
	}
	k.over.Store(true)
	k.clients.Wait()
	k.wantHealed(within, want...)
}
