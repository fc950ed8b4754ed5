package raftkv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// An earlyBird writes on nodes from their start on, and keeps what was
// acknowledged.
type earlyBird struct {
	mu   sync.Mutex
	keys []string
}

func (b *earlyBird) writeOn(c *cluster, n *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c.t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("%d/%x/%d", n.cfg.ID, n.loop.nonce[:4], i)
			_, err := n.Put(ctx, key, nil)
			switch {
			case err == nil:
				b.mu.Lock()
				b.keys = append(b.keys, key)
				b.mu.Unlock()
			case !errors.Is(err, ErrNotInitialized):
				return
			}
			c.pause(10 * time.Millisecond)
		}
	}()
}

// wantAll checks that a node has all that was acknowledged.
func (b *earlyBird) wantAll(c *cluster, n *Node) {
	c.t.Helper()
	b.mu.Lock()
	keys := b.keys
	b.mu.Unlock()
	if len(keys) == 0 {
		c.t.Error("nothing was acknowledged")
	}
	l, err := n.List(c.ctx(), "")
	if err != nil {
		c.t.Error(err)
		return
	}
	there := make(map[string]bool)
	for kv := range l.All() {
		there[kv.Key] = true
	}
	for _, key := range keys {
		if !there[key] {
			c.t.Errorf("%q was acknowledged, and is lost", key)
		}
	}
}

// TestFoundingIsAllOrNothing kills a member at every moment of a founding, and
// starts it again, blank and with the same list, at once or later. There never
// are two clusters, everybody comes to belong to the one there is, and nothing
// that was acknowledged in it is lost.
func TestFoundingIsAllOrNothing(t *testing.T) {
	for _, test := range []struct {
		size   int
		victim uint64
		step   time.Duration
	}{
		{3, 1, 5 * time.Millisecond}, // the coordinator
		{3, 2, 5 * time.Millisecond},
		{5, 1, 15 * time.Millisecond},
		{5, 5, 15 * time.Millisecond},
	} {
		for _, restart := range []string{"at once", "later"} {
			t.Run(fmt.Sprintf("%d of %d, restarted %s", test.victim, test.size, restart), func(t *testing.T) {
				sweep(t, 150*time.Millisecond, test.step, func(t *testing.T, c *cluster, at time.Duration) {
					bird := c.foundWithout(test.size, test.victim, at)
					if restart == "later" {
						rng := rand.New(rand.NewPCG(uint64(at), test.victim))
						c.pause(upToDuration(rng, 2*time.Second))
					}
					bird.writeOn(c, c.revive(test.victim, test.size))
					c.wantOneCluster(15*time.Second, test.size, bird)
				})
			})
		}
	}
}

// TestFoundingWithoutAMemberThatDiesHappensOrNot: those that are left make up
// one cluster or wait for the one that is missing, and take it in when it comes
// after a long time.
func TestFoundingWithoutAMemberThatDiesHappensOrNot(t *testing.T) {
	var founded, waiting int
	for _, victim := range []uint64{1, 2, 3} {
		sweep(t, 150*time.Millisecond, 10*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
			bird := c.foundWithout(3, victim, at)
			c.pause(20 * time.Second)
			clusters := make(map[string]int)
			for _, n := range c.nodes {
				clusters[n.Status().ClusterID]++
			}
			switch {
			case len(clusters) > 1:
				t.Errorf("processes by cluster: %v", clusters)
			case clusters[""] > 0:
				waiting++
			default:
				founded++
				bird.wantAll(c, c.but()[0])
			}
			bird.writeOn(c, c.revive(victim, 3))
			c.wantOneCluster(15*time.Second, 3, bird)
		})
	}
	if founded == 0 || waiting == 0 {
		t.Errorf("founded without the dead member %d times, not founded %d times: the test misses the moment", founded, waiting)
	}
}

// foundWithout begins to found a cluster and kills a member on the way.
func (c *cluster) foundWithout(size int, victim uint64, at time.Duration) *earlyBird {
	c.t.Helper()
	bird := new(earlyBird)
	c.delay(size, 7*time.Millisecond)
	for _, id := range upTo(size) {
		n := c.start(id)
		c.initLater(n, size)
		bird.writeOn(c, n)
	}
	c.pause(at)
	c.kill(c.nodes[victim])
	return bird
}

// wantOneCluster checks that all nodes come to belong to one cluster, all of
// them as voters, and that it has all that was acknowledged.
func (c *cluster) wantOneCluster(within time.Duration, size int, bird *earlyBird) {
	c.t.Helper()
	for _, n := range c.but() {
		if err := n.Ready(c.within(within)); err != nil {
			c.t.Fatalf("member %d: %v", n.cfg.ID, err)
		}
	}
	clusterID := c.nodes[1].Status().ClusterID
	for _, n := range c.but() {
		if s := n.Status(); s.ClusterID != clusterID {
			c.t.Fatalf("two clusters: %s, and of member %d %s", clusterID, s.ID, s.ClusterID)
		}
	}
	c.until("one membership", func() bool {
		for _, n := range c.nodes {
			if s := n.Status(); len(voters(s.Membership)) != size || isReplacing(n) || s.Membership.Joint {
				return false
			}
		}
		return true
	})
	bird.wantAll(c, c.nodes[1])
}

// TestFoundingGoesOnThoughLinksBreak: resets at every moment, between all.
func TestFoundingGoesOnThoughLinksBreak(t *testing.T) {
	sweep(t, 150*time.Millisecond, 5*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
		bird := new(earlyBird)
		c.delay(3, 7*time.Millisecond)
		for _, id := range upTo(3) {
			n := c.start(id)
			c.initLater(n, 3)
			bird.writeOn(c, n)
		}
		c.pause(at)
		for range 3 {
			c.net.Reset("n1:1", "n2:1")
			c.net.Reset("n1:1", "n3:1")
			c.net.Reset("n2:1", "n3:1")
			c.pause(11 * time.Millisecond)
		}
		c.wantOneCluster(5*time.Second, 3, bird)
	})
}

// TestFoundingSurvivesACoordinatorThatIsCutOff: at every moment; the others are all
// blank or all founded, and go on when it is back.
func TestFoundingSurvivesACoordinatorThatIsCutOff(t *testing.T) {
	sweep(t, 150*time.Millisecond, 10*time.Millisecond, func(t *testing.T, c *cluster, at time.Duration) {
		bird := new(earlyBird)
		c.delay(3, 7*time.Millisecond)
		for _, id := range upTo(3) {
			n := c.start(id)
			c.initLater(n, 3)
			bird.writeOn(c, n)
		}
		c.pause(at)
		c.net.Isolate("n1:1")
		c.pause(20 * time.Second)
		a, b := c.nodes[2].Status(), c.nodes[3].Status()
		if a.ClusterID != b.ClusterID {
			t.Errorf("one belongs to cluster %q, the other to %q", a.ClusterID, b.ClusterID)
		}
		if a.ClusterID == "" {
			err := c.nodes[2].Init(c.within(time.Second), c.list(3)...)
			wantErr(t, "Init without the coordinator", err, ErrNotInitialized, context.DeadlineExceeded)
		}
		c.net.Rejoin("n1:1")
		c.wantOneCluster(10*time.Second, 3, bird)
	})
}
