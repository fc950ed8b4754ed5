package simnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// bufferBytesMax is how much may be under way in one direction of a connection,
// written and not yet read, before Write blocks.
const bufferBytesMax = 1 << 20

// link is a connection: two ends, each of which receives what the other sends.
//
// Bytes take two steps. Write puts a segment in flight towards the other end; a
// segment that is due and meets no cut arrives in that end's inbox, where Read
// finds it. Cuts, delays and a narrow bandwidth thus hold up the flight and
// nothing else. Close is a segment like the others and travels behind the bytes
// that were written before.
//
// Invariants:
//
//  1. A stream's bytes are those in flight and in the inbox together.
//  2. The due times in flight never decrease.
//  3. Unless a cut holds up its first segment, a stream with a flight has a timer
//     that fires when that segment is due, or earlier.
//
// Network.mu guards all of it.
type link struct {
	net      *Network
	dialer   end
	accepter end
	// cond is broadcast when a Read or Write on either end may go on; at most
	// a few goroutines wait there.
	cond   sync.Cond
	broken bool // by reset; both ends then fail for good
}

// end is one end of a link, a net.Conn.
type end struct {
	link          *link
	peer          *end
	local, remote string
	in            stream // from the peer to this end
	closed        bool
	writing       bool // a Write is under way; two never interleave
	readDeadline  deadline
	writeDeadline deadline
}

// stream is one direction of a link.
type stream struct {
	flight []segment
	inbox  [][]byte // no element is empty
	bytes  int      // at most bufferBytesMax
	flying int      // of bytes, those in flight
	ended  bool     // the close has arrived, after everything else
	// stalled says that a cut holds up what is due. What was on the way when
	// the cut began, and is due after its end, never met it.
	stalled bool
	timer   *time.Timer
}

// segment is what one Write, or Close, sent; packetBytesMax of it at a time where
// the direction is slow.
type segment struct {
	data []byte
	due  time.Time
	last bool // the sender has closed
}

func newLink(n *Network, from, to string) *link {
	k := &link{net: n}
	k.cond.L = &n.mu
	k.dialer = end{link: k, peer: &k.accepter, local: from, remote: to}
	k.accepter = end{link: k, peer: &k.dialer, local: to, remote: from}
	return k
}

// Read returns what has arrived, and io.EOF after the last byte that the peer
// wrote before it closed.
func (e *end) Read(b []byte) (int, error) {
	e.link.net.mu.Lock()
	defer e.link.net.mu.Unlock()
	for {
		if err := e.failure(&e.readDeadline); err != nil {
			return 0, e.opError("read", err)
		}
		if len(e.in.inbox) > 0 || len(b) == 0 {
			break
		}
		if e.in.ended {
			return 0, io.EOF
		}
		e.link.cond.Wait()
	}
	count := e.in.take(b)
	e.link.cond.Broadcast() // the peer's Write may have waited for room
	return count, nil
}

// Write sends b. It blocks while the connection's buffer is full, and fails with
// EPIPE once the peer is known to have closed.
func (e *end) Write(b []byte) (int, error) {
	e.link.net.mu.Lock()
	defer e.link.net.mu.Unlock()
	if err := e.waitToWrite(func() bool { return !e.writing }); err != nil {
		return 0, e.opError("write", err)
	}
	e.writing = true
	defer func() {
		e.writing = false
		e.link.cond.Broadcast()
	}()
	written := 0
	for written < len(b) {
		if err := e.waitToWrite(func() bool { return e.room() > 0 }); err != nil {
			return written, e.opError("write", err)
		}
		count := min(len(b)-written, e.room())
		data := append([]byte(nil), b[written:written+count]...)
		e.link.net.corrupt(e.route(), data)
		e.send(segment{data: data})
		written += count
	}
	return written, nil
}

// room returns how many bytes may be sent now as one segment.
func (e *end) room() int {
	out := &e.peer.in
	room := bufferBytesMax - out.bytes
	if _, ok := e.link.net.pipes[e.route()]; ok {
		room = min(room, slowBytesMax-out.flying, packetBytesMax)
	}
	return room
}

// route returns the direction in which the end writes.
func (e *end) route() route { return route{e.local, e.remote} }

// waitToWrite waits until isReady, or returns why this end cannot write.
func (e *end) waitToWrite(isReady func() bool) error {
	for {
		if err := e.failure(&e.writeDeadline); err != nil {
			return err
		}
		if e.in.ended {
			return syscall.EPIPE
		}
		if isReady() {
			return nil
		}
		e.link.cond.Wait()
	}
}

// failure returns why neither data nor room matters any more to a call that is
// subject to d.
func (e *end) failure(d *deadline) error {
	switch {
	case e.closed:
		return net.ErrClosed
	case e.link.broken:
		return syscall.ECONNRESET
	case d.hasPassed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close ends the connection. The peer reads what was written before and then
// io.EOF; what has come in here and was not read is lost.
func (e *end) Close() error {
	e.link.net.mu.Lock()
	defer e.link.net.mu.Unlock()
	if e.closed {
		return e.opError("close", net.ErrClosed)
	}
	e.closed = true
	e.readDeadline.set(time.Time{}, nil)
	e.writeDeadline.set(time.Time{}, nil)
	e.in.dropInbox()
	if e.peer.closed || e.link.broken {
		e.link.forget()
	} else {
		e.send(segment{last: true})
	}
	e.link.cond.Broadcast()
	return nil
}

// LocalAddr returns the address that the end was dialed from or accepted at.
func (e *end) LocalAddr() net.Addr { return address(e.local) }

// RemoteAddr returns the local address of the other end.
func (e *end) RemoteAddr() net.Addr { return address(e.remote) }

// SetDeadline sets the deadlines of Read and Write.
func (e *end) SetDeadline(t time.Time) error {
	return e.setDeadlines(t, &e.readDeadline, &e.writeDeadline)
}

// SetReadDeadline sets the deadline of Read, also of one under way.
func (e *end) SetReadDeadline(t time.Time) error {
	return e.setDeadlines(t, &e.readDeadline)
}

// SetWriteDeadline sets the deadline of Write, also of one under way.
func (e *end) SetWriteDeadline(t time.Time) error {
	return e.setDeadlines(t, &e.writeDeadline)
}

func (e *end) setDeadlines(t time.Time, deadlines ...*deadline) error {
	e.link.net.mu.Lock()
	defer e.link.net.mu.Unlock()
	if e.closed {
		return e.opError("set", net.ErrClosed)
	}
	for _, d := range deadlines {
		d.set(t, e.link.wake)
	}
	e.link.cond.Broadcast() // whoever waits measures by the new deadline
	return nil
}

func (e *end) opError(op string, err error) error {
	return opError(op, e.local, e.remote, err)
}

// send puts s in flight towards the peer.
func (e *end) send(s segment) {
	out := &e.peer.in
	s.due = e.link.net.arrival(e.route(), len(s.data))
	if k := len(out.flight); k > 0 && out.flight[k-1].due.After(s.due) {
		s.due = out.flight[k-1].due
	}
	out.flight = append(out.flight, s)
	out.bytes += len(s.data)
	out.flying += len(s.data)
	e.peer.advance()
}

// advance lets arrive at e what is due.
func (e *end) advance() {
	in, now := &e.in, time.Now()
	if e.link.net.isCut(e.remote, e.local) && len(in.flight) > 0 && !in.flight[0].due.After(now) {
		if !in.stalled {
			in.stalled = true
			e.link.net.counts(e.peer.route()).Stalls++
		}
		return // resume comes back to it
	}
	arrived := 0
	for _, s := range in.flight {
		if s.due.After(now) {
			break
		}
		arrived++
		in.flying -= len(s.data)
		e.link.net.counts(e.peer.route()).Bytes += uint64(len(s.data))
		switch {
		case s.last:
			in.ended = true
		case e.closed:
			in.bytes -= len(s.data) // nobody will read it
		default:
			in.inbox = append(in.inbox, s.data)
		}
	}
	if arrived > 0 {
		clear(in.flight[:arrived])
		in.flight = in.flight[arrived:]
		e.link.cond.Broadcast()
	}
	if len(in.flight) > 0 && in.timer == nil {
		in.timer = time.AfterFunc(in.flight[0].due.Sub(now), e.onTimer)
	}
}

func (e *end) onTimer() {
	e.link.net.mu.Lock()
	defer e.link.net.mu.Unlock()
	e.in.timer = nil
	e.advance()
}

// resume sets out again what a cut has held up on the way to e. It takes the
// direction's delay and bandwidth once more, and what was written later stays
// behind it.
func (e *end) resume() {
	in, net := &e.in, e.link.net
	if in.stalled && !net.isCut(e.remote, e.local) {
		in.stalled = false
		var due time.Time
		for i, now := 0, time.Now(); i < len(in.flight); i++ {
			s := &in.flight[i]
			if !s.due.After(now) {
				due = net.arrival(e.peer.route(), len(s.data))
			}
			if s.due.Before(due) {
				s.due = due
			}
		}
	}
	e.advance()
}

// reset breaks the link. The ends stay open until they are closed.
func (k *link) reset() {
	k.broken = true
	k.net.counts(k.dialer.route()).Resets++
	k.forget()
	k.cond.Broadcast()
}

// forget drops what the link holds, its timers included.
func (k *link) forget() {
	delete(k.net.links, k)
	for _, e := range []*end{&k.dialer, &k.accepter} {
		e.in.flight = nil
		e.in.dropInbox()
		if e.in.timer != nil {
			e.in.timer.Stop()
			e.in.timer = nil
		}
	}
}

func (k *link) wake() {
	k.net.mu.Lock()
	defer k.net.mu.Unlock()
	k.cond.Broadcast()
}

// take moves bytes of the inbox to b.
func (s *stream) take(b []byte) int {
	count := 0
	for count < len(b) && len(s.inbox) > 0 {
		moved := copy(b[count:], s.inbox[0])
		count += moved
		if s.inbox[0] = s.inbox[0][moved:]; len(s.inbox[0]) == 0 {
			s.inbox[0] = nil
			s.inbox = s.inbox[1:]
		}
	}
	s.bytes -= count
	return count
}

func (s *stream) dropInbox() {
	for _, data := range s.inbox {
		s.bytes -= len(data)
	}
	s.inbox = nil
}

// deadline is a time after which calls fail. Only the time decides; the timer
// merely wakes those who wait, so that one that fires late, after the deadline
// was moved, does no harm.
type deadline struct {
	at    time.Time // zero: none
	timer *time.Timer
}

func (d *deadline) set(t time.Time, wake func()) {
	if d.timer != nil {
		d.timer.Stop()
	}
	*d = deadline{}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	d.at = time.Now().Add(left) // with the monotonic clock that the timer goes by
	if left > 0 {
		d.timer = time.AfterFunc(left, wake)
	}
}

func (d *deadline) hasPassed() bool {
	return !d.at.IsZero() && !time.Now().Before(d.at)
}
