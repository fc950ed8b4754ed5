package raftkv

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/frame"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// The network of the simulator, in place of grpcTransport and internal/peer: a
// link to each member, which says hello until it is let in and then sends frames
// on an ordered stream. What is checked where is as there: hello and identity by
// the loop, frames by the firewall before they are posted.

const (
	simHelloTimeout = 5 * time.Second
	simDialTimeout  = 2 * time.Second
	simRetryMin     = 50 * time.Millisecond
	simRetryMax     = time.Second
	simRedialDelay  = 5 * time.Millisecond
	simRedialsMax   = 4
	simKeepalive    = 13 * time.Second // until a silent connection is given up
	simQueueMax     = 4096
	simOldFrames    = 16 // of a stream, that may come again
)

// A simTransport is the network as one process has it.
type simTransport struct {
	p        *process
	self     *kvpb.Identity
	links    map[uint64]*simLink // by raft ID
	sending  int                 // snapshots
	outgoing []*simSnapshot
}

// A simLink leads to one incarnation of a member.
type simLink struct {
	net     *simTransport
	member  roster.Member
	hello   *kvpb.Hello
	ended   bool
	try     int // tells the attempts to open a stream apart
	delay   time.Duration
	since   time.Duration // when the pause began
	pausing bool
	redials int         // tries that are still to be made without a pause
	stream  *stream     // nil unless the other side has accepted it
	old     []*simFrame // the last of this and earlier streams, for them to come again
	oldTo   *process

	control, appends []*pb.Message
	proposals        [][]byte
	refusals         []uint64
	standing         *kvpb.Standing
	overflow         bool
	flushing         bool
}

// sorted returns the links in order.
func (t *simTransport) sorted() []*simLink {
	links := make([]*simLink, 0, len(t.links))
	for _, id := range slices.Sorted(maps.Keys(t.links)) {
		links = append(links, t.links[id])
	}
	return links
}

func (t *simTransport) connect(self *kvpb.Identity, members []roster.Member) {
	t.p.w.facts.owns(t.p, self.GetRaftId())
	t.self = self
	members = slices.SortedFunc(slices.Values(members), func(a, b roster.Member) int { return cmpID(a.RaftID, b.RaftID) })
	wanted := make(map[uint64]bool, len(members))
	for _, m := range members {
		wanted[m.RaftID] = true
		if old, ok := t.links[m.RaftID]; ok && old.member == m {
			continue
		} else if ok {
			old.end()
		}
		l := &simLink{net: t, member: m, delay: simRetryMin}
		l.hello = t.hello(m)
		t.links[m.RaftID] = l
		t.p.timer(0, l.dial)
	}
	for _, l := range t.sorted() {
		if !wanted[l.member.RaftID] {
			l.end()
			delete(t.links, l.member.RaftID)
		}
	}
}

func cmpID(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (t *simTransport) hello(to roster.Member) *kvpb.Hello {
	return &kvpb.Hello{From: t.self, ToId: to.ID(), ToRaftId: to.RaftID, ToNonce: []byte(to.Nonce)}
}

func (t *simTransport) send(m *pb.Message) {
	t.p.w.facts.spoken(t.p, m)
	l := t.links[m.GetTo()]
	if l == nil {
		return
	}
	if m.GetType() == pb.MsgApp {
		simAdd(l, &l.appends, m)
	} else {
		simAdd(l, &l.control, m)
	}
}

func (t *simTransport) forward(to uint64, batch outbox.Batch) {
	if l := t.links[to]; l != nil {
		t.p.w.facts.forwarded(t.p, batch)
		simAdd(l, &l.proposals, batch.Data)
	}
}

func (t *simTransport) refuse(to, first uint64) {
	if l := t.links[to]; l != nil {
		t.p.w.count.add("refused batches", 1)
		simAdd(l, &l.refusals, first)
	}
}

func (t *simTransport) room(int64) {}

func (t *simTransport) stand(to uint64, s *kvpb.Standing) {
	if l := t.links[to]; l != nil {
		l.standing = s
		l.wake()
	}
}

func (t *simTransport) redial(raftID uint64) {
	l := t.links[raftID]
	if l == nil {
		return
	}
	if l.redials = simRedialsMax; l.pausing && l.stream == nil && !l.ended {
		l.dialSoon(0)
	}
}

// simAdd queues something, or drops it and says so once.
func simAdd[T any](l *simLink, list *[]T, item T) {
	if len(*list) >= simQueueMax {
		if !l.overflow {
			l.unreachable()
		}
		l.overflow = true
		return
	}
	*list = append(*list, item)
	l.wake()
}

// wake has the link send soon, if it can.
func (l *simLink) wake() {
	if l.flushing || l.stream == nil || l.ended {
		return
	}
	l.flushing = true
	l.net.p.timer(l.net.p.w.between(0, 30*time.Microsecond), l.flush)
}

func (l *simLink) unreachable() {
	l.net.p.n.post(func(loop *loop) { loop.unreachable(l.member.RaftID) })
}

func (l *simLink) turnedAway(err error, told bool) {
	l.net.p.n.post(func(loop *loop) { loop.turnedAway(l.member.RaftID, err, told) })
}

// end ends the link: the member has gone.
func (l *simLink) end() {
	l.ended = true
	l.try++
	if s := l.stream; s != nil {
		l.stream = nil
		s.breakOff(nil, false)
	}
}

// dial begins an attempt to open a stream.
func (l *simLink) dial() {
	p, w := l.net.p, l.net.p.w
	if l.ended || l.stream != nil {
		return
	}
	l.try++
	l.pausing, l.redials = false, max(0, l.redials-1)
	try := l.try
	to := w.placeOf(l.member.Addr)
	there, back := w.paths[p.place.at][to.at], w.paths[to.at][p.place.at]
	if there.cut || back.cut || w.procs[to.at] == nil && to.dark {
		p.timer(simDialTimeout, func() { l.failed(try, errUnreachable, false) })
		return
	}
	p.timer(simHelloTimeout, func() { l.failed(try, errUnreachable, false) })
	w.after(there.takes(w), func() {
		q := w.procs[to.at]
		if q == nil || there.cut || there.refuses > w.now {
			if !back.cut {
				w.after(back.takes(w), func() { p.arrive(func() { l.refused(try, !there.cut && !to.isDying()) }) })
			}
			return
		}
		q.arrive(func() { q.greeted(l, try, back) })
	})
}

var errUnreachable = errors.New("cannot be reached")

// greeted has a hello decided by the loop of the process that it reached, as
// grpcTransport.Messages does.
func (p *process) greeted(l *simLink, try int, back *path) {
	w := p.w
	p.n.post(func(loop *loop) {
		err := loop.welcome(l.hello)
		self := loop.identity()
		w.note(p.place.id, "hello", l.net.p.place.id, self.GetRaftId(), uint64(boolInt(err == nil)))
		w.count.add("hellos", 1)
		if err != nil {
			p.refusedPeer(l.hello, err)
			err = p.told(err)
		}
		if back.cut {
			return // the hello's timeout ends the attempt
		}
		w.after(back.takes(w), func() { l.net.p.arrive(func() { l.answered(try, p, self, err) }) })
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// told makes of an error what its receiver will see.
func (p *process) told(err error) error {
	told, ours := wire.FromStatus(p.n.status(err))
	if !ours {
		p.w.fail("member %d: error %v cannot be told", p.place.id, err)
	}
	return told
}

// refusedPeer notes that somebody was turned away, as grpcTransport.refused
// does. Among honest members nobody is for breaking the protocol.
func (p *process) refusedPeer(h *kvpb.Hello, err error) {
	if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrMembershipRefused) || p.isForeign(h) {
		return
	}
	p.w.fail("member %d turned member %d away: %v", p.place.id, h.GetFrom().GetId(), err)
}

// answered takes the answer to a hello, as peer.Link does.
func (l *simLink) answered(try int, to *process, self *kvpb.Identity, err error) {
	if l.ended || try != l.try || l.stream != nil {
		return
	}
	if self.GetRaftId() != l.member.RaftID || string(self.GetNonce()) != l.member.Nonce {
		if err == nil || errors.Is(err, ErrNotMember) {
			l.net.p.n.post(func(loop *loop) { loop.met(l.member.RaftID, self) })
		}
		if err == nil {
			err = fmt.Errorf("raftkv: raft ID %d answers in place of %d", self.GetRaftId(), l.member.RaftID)
			l.failed(try, err, false)
			return
		}
	}
	if err != nil {
		l.failed(try, err, true)
		return
	}
	if !to.alive {
		l.failed(try, errUnreachable, false)
		return
	}
	l.try++
	l.delay = simRetryMin
	from := l.net.self.GetRaftId()
	l.stream = &stream{link: l, to: to, from: from, self: l.member.RaftID}
	to.inbound[l.stream] = true
	to.arrive(func() { to.n.post(func(loop *loop) { loop.streamBegan(from) }) })
	l.net.p.n.post(func(loop *loop) { loop.connected(l.member.RaftID) })
	l.net.p.w.replay(l.stream)
	l.wake()
}

// isDying reports whether a kernel that has just lost its process here may still
// take a connection, only to end it.
func (pl *place) isDying() bool {
	return pl.w.procs[pl.at] == nil && pl.w.now-pl.died < pl.w.between(0, 4*time.Millisecond)
}

// refused ends an attempt because nobody listens there, or because the network
// has lost it.
func (l *simLink) refused(try int, told bool) {
	if told && !l.ended {
		l.net.p.n.post(func(loop *loop) { loop.presumeDead(l.member.RaftID) })
	}
	l.failed(try, errUnreachable, false)
}

// failed ends an attempt and begins the pause before the next.
func (l *simLink) failed(try int, err error, told bool) {
	if l.ended || try != l.try || l.stream != nil {
		return
	}
	l.lost(false, err, told)
}

// lost is what peer.Link.Run does between two streams.
func (l *simLink) lost(worked bool, err error, told bool) {
	if l.drop() || worked {
		l.unreachable()
	}
	l.turnedAway(err, told)
	if worked {
		l.delay = simRetryMin
	}
	l.try++
	l.pausing, l.since = true, l.net.p.w.now
	try, p := l.try, l.net.p
	p.timer(p.w.between(l.delay/2, l.delay), func() {
		if l.try == try && l.pausing {
			l.dial()
		}
	})
	l.delay = min(2*l.delay, simRetryMax)
	if worked && l.redials > 0 {
		l.dialSoon(0)
	} else if l.redials > 0 {
		l.dialSoon(simRedialDelay)
	}
}

// drop empties the queue and reports whether anything was in it.
func (l *simLink) drop() bool {
	had := len(l.control)+len(l.appends)+len(l.proposals)+len(l.refusals) > 0
	l.control, l.appends, l.proposals, l.refusals = nil, nil, nil, nil
	l.overflow = false
	return had
}

// nudge says that the member is heard of: it is worth a try now.
func (l *simLink) nudge() {
	if l.stream != nil || !l.pausing || l.ended {
		return
	}
	l.dialSoon(max(0, simRetryMin-(l.net.p.w.now-l.since)))
}

// dialSoon ends the pause after a time.
func (l *simLink) dialSoon(d time.Duration) {
	l.pausing = false
	try := l.try
	l.net.p.timer(d, func() {
		if l.try == try {
			l.dial()
		}
	})
}

// flush sends what is queued, as frames of so many messages as one may hold.
func (l *simLink) flush() {
	l.flushing = false
	s := l.stream
	if s == nil || l.ended {
		return
	}
	f := &frame.Frame{Proposals: l.proposals, Refusals: l.refusals, Standing: l.standing}
	messages := slices.Concat(l.control, l.appends)
	l.control, l.appends, l.proposals, l.refusals, l.standing, l.overflow = l.control[:0], l.appends[:0], nil, nil, nil, false
	clear(l.control[:cap(l.control)])
	clear(l.appends[:cap(l.appends)])
	for len(messages) > frame.MessagesMax {
		l.send(s, &frame.Frame{Messages: messages[:frame.MessagesMax]})
		messages = messages[frame.MessagesMax:]
	}
	f.Messages = messages
	if !f.IsPing() || f.Standing != nil {
		l.send(s, f)
	}
}

// send encodes a frame as gRPC would have it done, so that nothing that arrives
// is shared with the log that it comes from.
func (l *simLink) send(s *stream, f *frame.Frame) {
	buffers, err := f.Encode()
	if err != nil {
		l.net.p.w.fail("encode: %v", err)
		return
	}
	data := buffers.Materialize()
	buffers.Free()
	l.net.p.w.transmit(s, &simFrame{sent: l.net.p.w.now, data: data})
}

// remember keeps a frame, so that it can come again.
func (l *simLink) remember(s *stream, f *simFrame) {
	if l.oldTo != s.to {
		l.old, l.oldTo = nil, s.to
	}
	l.old = append(l.old, f)
	if len(l.old) > simOldFrames {
		l.old = l.old[1:]
	}
}

// die ends the process's side of all connections.
func (t *simTransport) die(silent bool) {
	w := t.p.w
	for _, l := range t.sorted() {
		l.end()
	}
	for _, s := range w.streamsTo(t.p) {
		if !silent {
			s.breakOff(errUnreachable, false)
			continue
		}
		w.after(simKeepalive, func() { s.breakOff(errUnreachable, false) })
	}
	for _, x := range slices.Clone(t.outgoing) {
		x.senderDied()
	}
	for _, x := range slices.Clone(w.nets.incoming) {
		if x.target == t.p {
			x.endReceive(errInterrupted)
			if !silent {
				x.answer(errInterrupted)
			}
		}
	}
}

// wakeLinks has the connections to an earlier process here break: the machine
// is back and knows nothing of them.
func (p *process) wakeLinks() {
	for _, q := range p.w.procs {
		if q == nil || q == p {
			continue
		}
		for _, l := range q.net.sorted() {
			if s := l.stream; s != nil && s.to.place == p.place {
				s.breakOff(errUnreachable, false)
			}
		}
	}
}

// doubt has the others give up their connections to a paused process when it
// has not answered for long.
func (t *simTransport) doubt() {
	w, began := t.p.w, t.p.w.now
	w.after(simKeepalive, func() {
		if !t.p.alive || !t.p.paused || w.now-began < simKeepalive {
			return
		}
		for _, s := range w.streamsTo(t.p) {
			s.breakOff(errUnreachable, false)
		}
	})
}
