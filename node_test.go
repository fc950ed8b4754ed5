package raftkv

import (
	"fmt"
	"testing"
)

func TestFoundedClusterServesOnEveryMember(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		for _, n := range c.nodes {
			key := fmt.Sprintf("from %d", n.cfg.ID)
			c.put(n, key, "v")
			for _, o := range c.nodes {
				c.wantValue(o, key, "v")
			}
		}
		c.wantSameState()
	})
}

func TestWritesGoOnAfterTheLeaderDies(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		c.put(c.leader(), "before", "1")
		c.kill(c.leader())
		for _, n := range c.nodes {
			c.put(n, fmt.Sprintf("after %d", n.cfg.ID), "2")
		}
		for _, n := range c.nodes {
			c.wantValue(n, "before", "1")
		}
		c.wantSameState()
	})
}
