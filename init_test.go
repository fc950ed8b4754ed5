package raftkv

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestInitAlone: without a list it founds a cluster of one, however often it
// is called.
func TestInitAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		for range 2 {
			if err := n.Init(c.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Init(c.ctx(), Member{ID: 1, Addr: "n1:1"}); err != nil {
			t.Errorf("Init with the list that says the same: %v", err)
		}
		wantErr(t, "Init with another list", n.Init(c.ctx(), c.list(2)...), ErrAlreadyInitialized)
		c.put(n, "k", "v")
		c.learner(2)
		if err := n.Init(c.ctx()); err != nil {
			t.Errorf("Init as it was founded: %v", err)
		}
	})
}

// TestInitFoundsOneClusterWhoeverCallsIt: one, some or all of its members,
// each more than once.
func TestInitFoundsOneClusterWhoeverCallsIt(t *testing.T) {
	for _, callers := range [][]int{{1, 2, 3}, {1}, {2}, {3}, {2, 3}} {
		t.Run(fmt.Sprint(callers), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				for id := range 3 {
					c.start(uint64(id + 1))
				}
				list := c.list(3)
				slices.Reverse(list) // the order does not matter
				var wg sync.WaitGroup
				for _, id := range callers {
					for range 2 { // nor does calling it twice
						wg.Go(func() {
							if err := c.nodes[uint64(id)].Init(c.ctx(), list...); err != nil {
								t.Errorf("member %d: %v", id, err)
							}
						})
					}
				}
				wg.Wait()
				c.ready()
				first := c.nodes[1].Status()
				for _, n := range c.nodes {
					if err := n.Init(c.ctx(), list...); err != nil {
						t.Errorf("member %d: Init again: %v", n.cfg.ID, err)
					}
					wantErr(t, "Init with another list", n.Init(c.ctx(), append(c.list(3), Member{ID: 9, Addr: "n9:1"})...), ErrAlreadyInitialized)
					wantErr(t, "Init alone", n.Init(c.ctx()), ErrAlreadyInitialized)
					s := n.Status()
					if s.ClusterID != first.ClusterID || len(s.ClusterID) != 32 || !slices.Equal(voters(s.Membership), []uint64{1, 2, 3}) {
						t.Errorf("member %d: %+v", n.cfg.ID, s)
					}
					c.put(n, fmt.Sprint(n.cfg.ID), "v")
				}
				c.wantSameState()
			})
		})
	}
}

// TestInitWaitsForAMissingMember: nothing is founded without it, and the error
// says who it is.
func TestInitWaitsForAMissingMember(t *testing.T) {
	for name, missing := range map[string]func(c *cluster){
		"that does not run":        func(c *cluster) {},
		"that cannot be reached":   func(c *cluster) { c.net.Isolate("n3:1") },
		"that cannot be heard":     func(c *cluster) { c.net.Cut("n3:1", "n1:1"); c.net.Cut("n3:1", "n2:1") },
		"that sees only one other": func(c *cluster) { c.net.Cut("n3:1", "n1:1") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				missing(c)
				for id := range uint64(2) {
					c.start(id + 1)
				}
				if name == "that sees only one other" {
					c.start(3)
				}
				for _, n := range c.nodes {
					begin := time.Now()
					err := n.Init(c.within(8*time.Second), c.list(3)...)
					wantErr(t, "Init with one missing", err, ErrNotInitialized, context.DeadlineExceeded)
					if took := time.Since(begin); took != 8*time.Second {
						t.Errorf("it took %v of 8s", took)
					}
					if text := fmt.Sprint(err); !strings.Contains(text, "member 3 at n3:1") && !strings.Contains(text, "member 1 at n1:1") {
						t.Errorf("%q does not name who is missing", text)
					}
				}
				errc := make(chan error, 3)
				for _, n := range c.nodes {
					go func() { errc <- n.Init(c.ctx(), c.list(3)...) }()
				}
				c.pause(10 * time.Second)
				for _, n := range c.nodes {
					if s := n.Status(); s.Role != Blank || len(errc) > 0 {
						t.Fatalf("founded without one of its members: %+v", s)
					}
				}
				c.net.Rejoin("n3:1")
				c.net.Heal("n3:1", "n1:1")
				c.net.Heal("n3:1", "n2:1")
				if c.nodes[3] == nil {
					n := c.start(3)
					go func() { errc <- n.Init(c.ctx(), c.list(3)...) }()
				}
				for range 3 {
					if err := <-errc; err != nil {
						t.Errorf("Init after it has come: %v", err)
					}
				}
				c.ready()
			})
		})
	}
}

// TestInitRefusesWrongLists: with ErrInvalid, and the process stays blank.
func TestInitRefusesWrongLists(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		for name, list := range map[string][]Member{
			"without itself":     {{ID: 2, Addr: "n2:1"}},
			"a member twice":     {{ID: 1, Addr: "n1:1"}, {ID: 1, Addr: "n1:1"}},
			"a learner":          {{ID: 1, Addr: "n1:1"}, {ID: 2, Addr: "n2:1", Role: Learner}},
			"ID 0":               {{ID: 1, Addr: "n1:1"}, {ID: 0, Addr: "n2:1"}},
			"an ID that is huge": {{ID: 1, Addr: "n1:1"}, {ID: 1 << 31, Addr: "n2:1"}},
			"no address":         {{ID: 1, Addr: "n1:1"}, {ID: 2}},
			"no port":            {{ID: 1, Addr: "n1:1"}, {ID: 2, Addr: "n2"}},
			"too many":           c.list(16),
		} {
			wantErr(t, "Init with "+name, n.Init(c.ctx(), list...), ErrInvalid)
		}
		wantErr(t, "Init that is canceled", n.Init(canceled()), context.Canceled)
		if s := n.Status(); s.Role != Blank {
			t.Errorf("it is founded: %+v", s)
		}
	})
}

// TestInitRefusesWrongProcesses: another ID, another name of the cluster or
// another cluster at an address in the list.
func TestInitRefusesWrongProcesses(t *testing.T) {
	for _, caller := range []uint64{1, 2} { // the coordinator and another
		t.Run(fmt.Sprint("on ", caller), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.start(1)
				c.start(2)
				c.start(3, func(cfg *Config) { cfg.Cluster = "another" })
				c.start(4)
				n := c.nodes[caller]
				err := n.Init(c.ctx(), append(c.list(2), Member{ID: 5, Addr: "n4:1"})...)
				wantErr(t, "Init with another ID at the address", err, ErrMembershipRefused)
				err = n.Init(c.ctx(), c.list(3)...)
				wantErr(t, "Init with a member of a differently named cluster", err, ErrMembershipRefused)

				other := c.nodes[4]
				if err := other.Init(c.ctx()); err != nil {
					t.Fatal(err)
				}
				err = n.Init(c.ctx(), append(c.list(2), Member{ID: 4, Addr: "n4:1"})...)
				wantErr(t, "Init with a member of another cluster", err, ErrNotMember)
				for id := range uint64(3) {
					if s := c.nodes[id+1].Status(); s.Role != Blank {
						t.Errorf("member %d is founded: %+v", id+1, s)
					}
				}
				if err := n.Init(c.ctx(), c.list(2)...); err != nil {
					t.Errorf("Init with the right list afterwards: %v", err)
				}
			})
		})
	}
}

// TestInitOfAnAddedMember: a program calls Init with the founding list on every
// start; on a process that was added meanwhile, that is fine.
func TestInitOfAnAddedMember(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.start(4)
		list := append(c.list(3), Member{ID: 4, Addr: "n4:1"})
		err := n.Init(c.ctx(), list...)
		wantErr(t, "Init with members of a cluster that does not know it", err, ErrNotMember)
		if _, err := c.nodes[2].AddLearner(c.ctx(), 4, "n4:1"); err != nil {
			t.Fatal(err)
		}
		if err := n.Init(c.ctx(), list...); err != nil {
			t.Errorf("Init of a member that was added: %v", err)
		}
	})
}

// TestMemberThatKnowsNobodyYetDoesNotTurnOthersAway: a member that was greeted,
// but has not received the membership, cannot tell a process that calls Init
// that the cluster does not have it.
func TestMemberThatKnowsNobodyYetDoesNotTurnOthersAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(5)
		c.delay(5, 5*time.Millisecond)
		leader := c.leader()
		a, b := c.but(leader)[0], c.but(leader)[1]
		c.kill(b)
		a = c.replaced(a, 5)
		c.until("two incarnations", func() bool { return isReplacing(leader) })
		c.net.Cut(leader.cfg.Addr, a.cfg.Addr)
		c.until("adoption", func() bool { return a.view.Load().raftID != 0 })
		if r := a.view.Load().roster; len(r.Members) > 0 {
			t.Fatalf("it has received %+v: the test tests nothing", r)
		}
		b = c.restart(b.cfg.ID)
		errc := make(chan error, 1)
		go func() { errc <- b.Init(c.ctx(), c.list(5)...) }()
		c.pause(time.Second)
		c.net.Heal(leader.cfg.Addr, a.cfg.Addr)
		if err := <-errc; err != nil {
			t.Errorf("Init: %v", err)
		}
		c.wantHealed(5*time.Second, upTo(5)...)
	})
}
