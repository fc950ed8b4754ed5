package simnet

import (
	"math/rand/v2"
	"time"
)

const (
	// slowBytesMax is how much of a connection may be under way in a slow
	// direction before Write blocks, as the send buffer of a TCP connection.
	slowBytesMax = 64 << 10
	// packetBytesMax is how much arrives at once in a slow direction.
	packetBytesMax = 1 << 10
)

// Slow makes what is written from now on take its turn at a bandwidth, in this
// direction only; zero ends it. All connections of the direction share the
// bandwidth, in the order of their writes. Write blocks when 64 KiB of its
// connection are under way. The direction's delay comes on top.
func (n *Network) Slow(from, to string, bytesPerSecond int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := route{from, to}
	old := n.pipes[r]
	delete(n.pipes, r)
	if bytesPerSecond > 0 {
		n.pipes[r] = &pipe{bytesPerSecond: bytesPerSecond}
		if old != nil {
			n.pipes[r].free = old.free
		}
	}
	for k := range n.links {
		k.cond.Broadcast() // Writes that wait have more room without a limit
	}
}

// pipe is a slow direction.
type pipe struct {
	bytesPerSecond int
	free           time.Time // when the last byte so far has gone through
}

// arrival sends so many bytes in a direction and returns when they are due at
// the other end. n.mu is held.
func (n *Network) arrival(r route, bytes int) time.Time {
	at := time.Now()
	if p := n.pipes[r]; p != nil {
		if p.free.After(at) {
			at = p.free
		}
		// At most bufferBytesMax seconds' worth of nanoseconds: no overflow.
		at = at.Add(time.Duration(bytes) * time.Second / time.Duration(p.bytesPerSecond))
		p.free = at
		n.counts(r).Slowed++
	}
	return at.Add(n.delays[r])
}

// Corrupt flips a bit in some of what is written from now on, in this direction
// only: in each Write with the given probability, in each KiB of it where the
// direction is also slow. The source decides which and where, so that the same
// writes meet the same fate; the network owns it until the next Corrupt. A
// probability of zero ends it.
func (n *Network) Corrupt(from, to string, probability float64, source rand.Source) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.noises, route{from, to})
	if probability > 0 {
		n.noises[route{from, to}] = noise{probability, rand.New(source)}
	}
}

// noise is what corrupts a direction.
type noise struct {
	probability float64
	random      *rand.Rand
}

// corrupt does to a segment what Corrupt promises. n.mu is held.
func (n *Network) corrupt(r route, data []byte) {
	noise, ok := n.noises[r]
	if !ok || noise.random.Float64() >= noise.probability {
		return
	}
	bit := noise.random.IntN(8 * len(data))
	data[bit/8] ^= 1 << (bit % 8)
	n.counts(r).Corrupted++
}

// Counts is what has happened in one direction since the network was made.
type Counts struct {
	Dials     int    // connections made, dialed in this direction
	Resets    int    // of these, broken by a reset
	Bytes     uint64 // arrived
	Stalls    int    // times that a cut has held up bytes of a connection
	Slowed    int    // segments that have taken their turn at a bandwidth
	Corrupted int    // segments with a flipped bit
}

// Counts returns what has happened in a direction.
func (n *Network) Counts(from, to string) Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.counts(route{from, to})
}

// counts returns the counters of a direction. n.mu is held.
func (n *Network) counts(r route) *Counts {
	c := n.counters[r]
	if c == nil {
		c = new(Counts)
		n.counters[r] = c
	}
	return c
}
