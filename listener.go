package raftkv

import (
	"net"
	"sync"
)

// A closer is a listener that can close the connections it has accepted. A gRPC
// server does not know of those whose handshake is not over, and waits for them
// when it stops: as long as somebody likes who connects and says nothing.
type closer struct {
	net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once all have been closed
}

func newCloser(l net.Listener) *closer {
	return &closer{Listener: l, conns: make(map[net.Conn]bool)}
}

// Accept returns the next connection.
func (c *closer) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		_ = conn.Close() // nobody will use it
		return nil, net.ErrClosed
	}
	tracked := &closable{Conn: conn, from: c}
	c.conns[tracked] = true
	return tracked, nil
}

// closeAll closes the listener and every connection.
func (c *closer) closeAll() {
	_ = c.Listener.Close() // closed already is as good
	c.mu.Lock()
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for conn := range conns {
		_ = conn.Close() // likewise
	}
}

type closable struct {
	net.Conn
	from *closer
}

// Close closes the connection and forgets it.
func (c *closable) Close() error {
	c.from.mu.Lock()
	delete(c.from.conns, c)
	c.from.mu.Unlock()
	return c.Conn.Close()
}
