//go:build linux || darwin

package raftkv

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"example.com/raftkv/internal/snapshot"
)

func BenchmarkSnapshotEncode(b *testing.B) { snapshotEncode(b, benchKeys) }

// snapshotEncode freezes a state, writes it and reads it back: what a snapshot
// costs without a network.
func snapshotEncode(b *testing.B, keys int) {
	c := loopback(b)
	c.found(1)
	n := c.leader()
	benchFill(b, n, keys, benchValueBytes)
	b.ReportAllocs()
	for b.Loop() {
		n.fsm.mu.Lock()
		h := n.fsm.freeze()
		n.fsm.mu.Unlock()
		b.SetBytes(h.view.DataBytes())
		builder := snapshot.NewBuilder(uint64(h.view.Len()), uint64(h.view.DataBytes()))
		for data := range snapshot.Parts(h.view, h.dedup, chunkBytesMax) {
			if err := builder.Add(data); err != nil {
				b.Fatal(err)
			}
		}
		if _, _, err := builder.Finish(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAddLearner is a new member that comes in by a snapshot: frozen, sent,
// checked and installed. With one key it is what does not depend on the data.
func BenchmarkAddLearner(b *testing.B) { addLearner(b, 1, benchKeys) }

func addLearner(b *testing.B, keys ...int) {
	for _, keys := range keys {
		b.Run(fmt.Sprintf("keys=%d/value=%d", keys, 1<<10), func(b *testing.B) {
			c := loopback(b)
			c.found(1)
			benchFill(b, c.leader(), keys, 1<<10)
			b.SetBytes(dataBytes(c.leader()))
			b.ReportAllocs()
			for id := uint64(2); b.Loop(); id++ {
				b.StopTimer()
				learn(b, c, id, func(add func()) {
					b.StartTimer()
					add()
					b.StopTimer()
				})
				b.StartTimer()
			}
		})
	}
}

// dataBytes returns the bytes of keys and values of a node that nobody writes to.
func dataBytes(n *Node) int64 { return n.fsm.keys.DataBytes() }

// learn starts a blank process, has measure make it a learner, and removes it.
func learn(b *testing.B, c *cluster, id uint64, measure func(add func())) {
	n, learner := c.leader(), c.start(id)
	measure(func() {
		if _, err := n.AddLearner(c.ctx(), id, learner.cfg.Addr); err != nil {
			b.Fatal(err)
		}
	})
	if _, err := n.RemoveLearner(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	c.kill(learner)
}

// A gate holds up all that a member receives, as if its process did not run.
type gate struct{ sync.RWMutex }

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.RLock() // only to wait
	defer c.gate.RUnlock()
	return n, err
}

type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{conn, l.gate}, nil
}

// BenchmarkCatchUp is how fast a member that did not run for a moment takes in
// the log that it has missed.
func BenchmarkCatchUp(b *testing.B) { catchUp(b, 16<<10) }

func catchUp(b *testing.B, missed int) {
	const size = 1 << 10
	c := loopback(b)
	c.found(1)
	n, g := c.leader(), new(gate)
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &gatedConn{conn, g}, nil
	}
	learner := c.start(2, func(cfg *Config) {
		cfg.Listener, cfg.Dialer = &gatedListener{cfg.Listener, g}, dialer
	})
	if _, err := n.AddLearner(b.Context(), 2, learner.cfg.Addr); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(missed * size))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		g.Lock()
		benchFill(b, n, missed, size)
		revision := n.Status().Revision
		b.StartTimer()
		g.Unlock()
		if _, err := learner.Get(b.Context(), "key-000000000000", MinRevision(revision)); err != nil {
			b.Fatal(err)
		}
	}
}
