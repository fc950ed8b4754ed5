package raftkv

import (
	"errors"
	"slices"
	"time"

	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/outbox"
)

// What lies between the links of the simulator: paths that can be cut and slow,
// and streams of frames over them. In some runs the network is what gRPC makes of
// it, in others it loses, repeats and mixes up single frames: more than can
// happen, which raft and the deduplication must survive all the same.

// A path is one direction of the network between two places.
type path struct {
	from, to int
	cuts     int // faults that cut it
	cut      bool
	since    time.Duration // when it was cut
	delay    time.Duration // of a packet, about
	refuses  time.Duration // until when dials are refused, whoever is there
	held     []heldFrame   // what waits for a cut path, as TCP sends it again
}

type heldFrame struct {
	s *stream
	f *simFrame
}

// A simFrame is what a link sends at once, as bytes.
type simFrame struct {
	sent time.Duration
	data []byte
}

// A stream is one stream of messages between two processes.
type stream struct {
	link   *simLink
	to     *process
	from   uint64 // raft ID of the sender
	self   uint64 // of the receiver, when it let the stream in
	last   time.Duration
	broken bool
	ended  time.Duration // when it broke
	cut    error         // why the receiver's loop wants it to end
}

// transmit puts a frame on its way.
func (w *world) transmit(s *stream, f *simFrame) {
	p := w.paths[s.link.net.p.place.at][s.to.place.at]
	w.count.frames++
	if !w.plan.datagrams {
		if p.cut {
			p.held = append(p.held, heldFrame{s, f})
			return
		}
		s.last = max(w.now+p.takes(w), s.last+1)
		w.at(s.last, func() { w.deliver(s, f) })
		return
	}
	s.link.remember(s, f)
	if p.cut || w.chance(w.plan.drop) {
		w.count.add("frames dropped", 1)
		return
	}
	copies := 1
	if w.chance(w.plan.duplicate) {
		w.count.add("frames duplicated", 1)
		copies = 2
	}
	for range copies {
		w.after(w.outOfOrder(p), func() { w.deliver(s, f) })
	}
}

// outOfOrder returns how long a datagram takes: sometimes as long as many
// others together.
func (w *world) outOfOrder(p *path) time.Duration {
	if w.chance(w.plan.reorder) {
		w.count.add("frames reordered", 1)
		return p.takes(w) + w.about(50*time.Millisecond)
	}
	return p.takes(w)
}

// replay sends frames of an earlier stream again to the same process: a
// connection that was thought dead may still bring what it carried.
func (w *world) replay(s *stream) {
	if !w.plan.datagrams || s.link.oldTo != s.to {
		return
	}
	for _, f := range s.link.old {
		if w.chance(w.plan.duplicate) {
			w.count.add("frames replayed", 1)
			w.after(w.about(20*time.Millisecond), func() { w.deliver(s, f) })
		}
	}
}

// takes returns how long a packet takes on a path.
func (p *path) takes(w *world) time.Duration {
	return p.delay/2 + w.about(p.delay/2)
}

// deliver brings a frame to its process.
func (w *world) deliver(s *stream, f *simFrame) {
	if !s.to.alive {
		return
	}
	s.to.arrive(func() { s.take(f) })
}

// take is grpcTransport.take.
func (s *stream) take(f *simFrame) {
	p, w := s.to, s.to.w
	if s.cut != nil {
		s.breakOff(p.told(s.cut), true)
		return
	}
	if s.broken && (!w.plan.lateFrames || f.sent >= s.ended) {
		if back := w.paths[p.place.at][s.link.net.p.place.at]; !back.cut {
			w.after(back.takes(w), func() { s.tellSender(errUnreachable, false) }) // what comes to no stream is reset
		}
		return
	}
	if l := p.net.links[s.from]; l != nil {
		l.nudge()
	}
	got, err := frame.Decode(f.data)
	if err != nil {
		w.fail("member %d refuses a frame of raft ID %x: %v", p.place.id, s.from, err)
		return
	}
	w.note(p.place.id, "frame", s.from, uint64(len(got.Messages)), uint64(len(got.Proposals)))
	w.mixIn(f.data)
	for _, m := range got.Messages {
		if err := firewall.Admit(m, s.from, s.self); err != nil {
			w.fail("member %d refuses a message of raft ID %x: %v", p.place.id, s.from, err)
		}
	}
	w.count.messages += uint64(len(got.Messages))
	proposals := make([]outbox.Batch, len(got.Proposals))
	for i, data := range got.Proposals {
		batch, err := checkBatch(data, s.from)
		if err != nil {
			w.fail("member %d refuses a batch of raft ID %x: %v", p.place.id, s.from, err)
		}
		proposals[i] = batch
	}
	s.post(got, proposals)
}

// post hands the contents of a frame to the loop.
func (s *stream) post(f frame.Frame, proposals []outbox.Batch) {
	p := s.to
	p.n.post(func(l *loop) {
		defer l.owe(1)
		if err := l.receiveAs(s.self, s.from, f.Messages, f.Standing); err != nil {
			if !errors.Is(err, ErrRemoved) && s.self == l.raftID { // not of a raft that a recovery has ended
				p.w.fail("member %d cuts off raft ID %x: %v", p.place.id, s.from, err)
			}
			s.cut = err
			if f.IsPing() {
				s.breakOff(p.told(err), true)
			}
			return
		}
		for _, batch := range proposals {
			l.proposal(s.from, batch)
		}
		for _, first := range f.Refusals {
			l.refusedBatch(first)
		}
	})
}

// breakOff ends a stream. Both ends learn of it, unless the network is cut or the
// machine at the other end is gone: then when their patience ends. What is on its
// way may still arrive or not.
func (s *stream) breakOff(err error, told bool) {
	if s.broken {
		return
	}
	s.broken, s.ended = true, s.link.net.p.w.now
	delete(s.to.inbound, s)
	s.tellReceiver()
	l, w := s.link, s.link.net.p.w
	if l.ended || !l.net.p.alive {
		return
	}
	if err == nil {
		err = errUnreachable
	}
	back := w.paths[s.to.place.at][l.net.p.place.at]
	d := back.takes(w)
	if back.cut {
		d, err, told = simKeepalive, errUnreachable, false
	}
	w.after(d, func() { s.tellSender(err, told) })
}

// tellReceiver has the receiver notice that a stream has ended, after all that it
// carried.
func (s *stream) tellReceiver() {
	sender, to := s.link.net.p, s.to
	w, there := sender.w, sender.w.paths[sender.place.at][to.place.at]
	d := there.takes(w)
	if there.cut || !sender.alive && sender.place.dark {
		d = simKeepalive
	}
	w.at(max(w.now+d, s.last+1), func() {
		to.arrive(func() { to.n.post(func(l *loop) { l.streamEnded(s.from) }) })
	})
}

// tellSender has the sender notice that its stream has ended.
func (s *stream) tellSender(err error, told bool) {
	l := s.link
	l.net.p.arrive(func() {
		if l.stream == s {
			l.stream = nil
			l.lost(true, err, told)
		}
	})
}

// streamsTo returns the streams on which a process receives, in order.
func (w *world) streamsTo(p *process) []*stream {
	var streams []*stream
	for s := range p.inbound {
		streams = append(streams, s)
	}
	slices.SortFunc(streams, func(a, b *stream) int { return cmpID(a.from, b.from) })
	return streams
}

// cut cuts a path. Streams over it, in either direction, break when that lasts
// for as long as keepalive waits.
func (w *world) cut(p *path) {
	p.cuts++
	if p.cut {
		return
	}
	p.cut, p.since = true, w.now
	since := w.now
	w.after(w.between(10*time.Second, simKeepalive), func() {
		if p.cut && p.since == since {
			w.breakStreams(p.from, p.to)
			w.breakStreams(p.to, p.from)
		}
	})
}

// breakStreams breaks the stream from one place to another.
func (w *world) breakStreams(from, to int) {
	p := w.procs[from]
	if p == nil {
		return
	}
	for _, l := range p.net.sorted() {
		if s := l.stream; s != nil && s.to.place.at == to {
			s.breakOff(errUnreachable, false)
		}
	}
}

// heal mends a path: what TCP has kept is sent again.
func (w *world) heal(p *path) {
	p.cuts = max(0, p.cuts-1)
	if !p.cut || p.cuts > 0 {
		return
	}
	p.cut = false
	held := p.held
	p.held = nil
	again := w.between(0, 200*time.Millisecond)
	for _, h := range held {
		if h.s.broken {
			continue
		}
		h.s.last = max(w.now+again+p.takes(w), h.s.last+1)
		w.at(h.s.last, func() { w.deliver(h.s, h.f) })
	}
}
