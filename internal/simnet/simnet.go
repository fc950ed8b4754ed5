// Package simnet is an in-memory network for tests: it joins several nodes of
// one process by stream connections that can be cut, delayed, slowed, corrupted
// and reset.
//
// Real sockets do not work inside a testing/synctest bubble, because waiting for
// one does not count as being blocked and virtual time stands still. Everything
// here waits on sync.Cond, on channels and on timers, so that gRPC and all that
// is above it run on virtual time. Make the Network inside the bubble.
package simnet

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"
)

// backlogMax is how many connections wait for Accept, as Linux allots.
const backlogMax = 128

// Network joins nodes that are known by their addresses. An address is any
// string; a node should listen on the one that it dials from, so that one name
// stands for the node in every fault.
//
// Faults hold for addresses, not for connections: they act on the connections
// that exist and on those to come. They act on a direction of travel, whichever
// end has dialed. They lose nothing on a connection that survives, as TCP sends
// again what was lost: bytes come late, or in order after the cut is healed, or
// never. Only Corrupt changes them, as happens where TCP's checksum fails.
//
// The network has no goroutines. A direction of a connection holds a timer
// while delayed bytes travel on it. All methods may be called concurrently.
// Counts tells a test whether its faults have met anything.
type Network struct {
	// mu guards everything in the network, down to the bytes of its
	// connections. One lock keeps the faults free of lock order, and tests
	// have no need of more; nobody waits while holding it except in Cond.Wait.
	mu        sync.Mutex
	listeners map[string]*listener
	links     map[*link]struct{} // until both ends are closed, or reset
	cuts      map[route]struct{}
	isolated  map[string]struct{}
	delays    map[route]time.Duration
	pipes     map[route]*pipe // those that are slow
	noises    map[route]noise
	counters  map[route]*Counts
	// changedc is closed, and replaced, when a dial that hangs may go on.
	changedc chan struct{}
}

// route is a direction of travel between two addresses.
type route struct{ from, to string }

// New returns a network without listeners and without faults.
func New() *Network {
	return &Network{
		listeners: make(map[string]*listener),
		links:     make(map[*link]struct{}),
		cuts:      make(map[route]struct{}),
		isolated:  make(map[string]struct{}),
		delays:    make(map[route]time.Duration),
		pipes:     make(map[route]*pipe),
		noises:    make(map[route]noise),
		counters:  make(map[route]*Counts),
		changedc:  make(chan struct{}),
	}
}

// Listen announces addr. It fails with EADDRINUSE while another listener has it;
// the connections of an earlier one do not count.
func (n *Network) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr == "" {
		return nil, opError("listen", "", addr, syscall.EADDRNOTAVAIL)
	}
	if _, ok := n.listeners[addr]; ok {
		return nil, opError("listen", "", addr, syscall.EADDRINUSE)
	}
	l := &listener{net: n, addr: addr}
	l.cond.L = &n.mu
	n.listeners[addr] = l
	return l, nil
}

// Dial connects from one address to the listener of another. It fails at once
// with ECONNREFUSED when nobody listens there. While either direction between
// the two is cut it hangs, as if the first packet or its answer were dropped,
// until the cut is healed or ctx ends; the same while the listener's backlog is
// full. With a delay it takes a round trip.
func (n *Network) Dial(ctx context.Context, from, addr string) (net.Conn, error) {
	traveled := false
	for {
		if err := ctx.Err(); err != nil {
			return nil, opError("dial", from, addr, err)
		}
		c, wait, err := n.tryDial(from, addr, traveled)
		if c != nil || err != nil {
			return c, err
		}
		if wait.changedc != nil {
			select {
			case <-wait.changedc:
			case <-ctx.Done():
			}
			continue
		}
		t := time.NewTimer(wait.roundTrip)
		select {
		case <-t.C:
			traveled = true
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// dialWait says what a dial that neither failed nor succeeded has to wait for:
// a change, or else the time of a round trip.
type dialWait struct {
	changedc  <-chan struct{}
	roundTrip time.Duration
}

func (n *Network) tryDial(from, addr string, traveled bool) (net.Conn, dialWait, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isCut(from, addr) || n.isCut(addr, from) {
		return nil, dialWait{changedc: n.changedc}, nil
	}
	roundTrip := n.delays[route{from, addr}] + n.delays[route{addr, from}]
	if roundTrip > 0 && !traveled {
		return nil, dialWait{roundTrip: roundTrip}, nil
	}
	l := n.listeners[addr]
	if l == nil {
		return nil, dialWait{}, opError("dial", from, addr, syscall.ECONNREFUSED)
	}
	if len(l.backlog) == backlogMax {
		return nil, dialWait{changedc: n.changedc}, nil
	}
	k := newLink(n, from, addr)
	n.links[k] = struct{}{}
	n.counts(k.dialer.route()).Dials++
	l.backlog = append(l.backlog, &k.accepter)
	l.cond.Signal()
	return &k.dialer, dialWait{}, nil
}

// Dialer returns Dial with its first address fixed, in the form that
// raftkv.Config and grpc.WithContextDialer take.
func (n *Network) Dialer(from string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		return n.Dial(ctx, from, addr)
	}
}

// Cut stops delivery from one address to the other, in this direction only.
// What has arrived can still be read; what is written stays on the way, and
// Write blocks when the connection's buffer is full. A close stays on the way
// too: the other end does not notice it.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[route{from, to}] = struct{}{}
}

// Heal undoes Cut. What is on the way arrives in order, after the delay of the
// direction.
func (n *Network) Heal(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cuts, route{from, to})
	n.resume()
}

// Isolate cuts both directions between addr and every other address, those to
// come included. A node still reaches itself.
func (n *Network) Isolate(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[addr] = struct{}{}
}

// Rejoin undoes Isolate. Cuts made with Cut stay, and so does the isolation of
// others.
func (n *Network) Rejoin(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.isolated, addr)
	n.resume()
}

// Reset breaks the connections between two addresses, whichever has dialed:
// both ends get ECONNRESET at once, over a cut as well, and what has not been
// read is lost. New connections are possible at once.
func (n *Network) Reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.links {
		from, to := k.dialer.local, k.accepter.local
		if (from == a && to == b) || (from == b && to == a) {
			k.reset()
		}
	}
}

// ResetAll is Reset for an address and every other.
func (n *Network) ResetAll(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.links {
		from, to := k.dialer.local, k.accepter.local
		if (from == addr) != (to == addr) {
			k.reset()
		}
	}
}

// Delay makes what is written from now on arrive later by d, in this direction
// only; zero ends it. Order is kept: nothing overtakes what is on the way.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delays[route{from, to}] = max(d, 0)
}

// isCut reports whether nothing travels from one address to the other. n.mu is
// held.
func (n *Network) isCut(from, to string) bool {
	if _, ok := n.cuts[route{from, to}]; ok {
		return true
	}
	if from == to {
		return false
	}
	_, fromIsolated := n.isolated[from]
	_, toIsolated := n.isolated[to]
	return fromIsolated || toIsolated
}

// resume sets going whatever waited for a cut that may be gone. n.mu is held.
func (n *Network) resume() {
	for k := range n.links {
		k.dialer.resume()
		k.accepter.resume()
	}
	n.changed()
}

// changed wakes the dials that hang. n.mu is held.
func (n *Network) changed() {
	close(n.changedc)
	n.changedc = make(chan struct{})
}

// listener is a net.Listener; Network.mu guards it.
type listener struct {
	net     *Network
	addr    string
	cond    sync.Cond // signaled per connection in the backlog and at the end
	backlog []*end    // at most backlogMax
	closed  bool
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.backlog) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, opError("accept", "", l.addr, net.ErrClosed)
	}
	c := l.backlog[0]
	l.backlog = l.backlog[1:]
	if len(l.backlog) == backlogMax-1 {
		l.net.changed()
	}
	return c, nil
}

// Close frees the address. It resets the connections that were not accepted;
// the others go on.
func (l *listener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.closed {
		return opError("close", "", l.addr, net.ErrClosed)
	}
	l.closed = true
	delete(l.net.listeners, l.addr)
	for _, c := range l.backlog {
		c.link.reset()
	}
	l.backlog = nil
	l.cond.Broadcast()
	l.net.changed() // a dial that waits for room is refused now
	return nil
}

// Addr returns the address that was given to Listen.
func (l *listener) Addr() net.Addr { return address(l.addr) }

// address is a net.Addr of this network.
type address string

func (a address) Network() string { return "simnet" }
func (a address) String() string  { return string(a) }

// opError wraps err as package net does, so that callers see what they would
// see on TCP. Empty addresses are left out.
func opError(op, source, addr string, err error) error {
	e := &net.OpError{Op: op, Net: "simnet", Err: err}
	if source != "" {
		e.Source = address(source)
	}
	if addr != "" {
		e.Addr = address(addr)
	}
	return e
}
