package raftkv

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/snapshot"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// Snapshots in the simulator: what grpcTransport.stream and Snapshot do, in
// steps. The parts are made one by one while the sender's applier goes on, and
// taken into a state beside the receiver's, so that a fault can come between any
// two of them.

var (
	errInterrupted = errors.New("connection lost")
	errStalled     = fmt.Errorf("%w: snapshot stalled for %v", ErrInvalid, chunkTimeout)
)

// A simSnapshot is a state on its way from one process to another.
type simSnapshot struct {
	w        *world
	from     *process
	to       roster.Member
	target   *process // nil until the first part is there
	next     func() ([]byte, bool)
	stop     func()
	handle   *snapshotHandle
	moved    time.Duration // when the sender last got rid of a part
	last     time.Duration // when the latest part arrives
	sent     bool          // the sender has heard the outcome
	received bool          // the receiver is done with it
	r        snapshotReceiver
	builder  *snapshot.Builder // nil until the loop has let the sender in
	early    [][]byte          // parts that came before that
}

func (t *simTransport) sendSnapshot(m *pb.Message, h *snapshotHandle) bool {
	l := t.links[m.GetTo()]
	if l == nil || t.sending >= snapshotsOutMax {
		return false
	}
	w := t.p.w
	t.p.w.facts.spoken(t.p, m)
	message, err := proto.Marshal(m)
	if err != nil {
		w.fail("marshal snapshot message: %v", err)
	}
	header := &kvpb.SnapshotHeader{
		Hello: t.hello(l.member), Message: message, Roster: h.roster.Proto(), Revision: h.revision,
		Keys: uint64(h.view.Len()), SizeBytes: uint64(h.view.DataBytes()),
	}
	x := &simSnapshot{w: w, from: t.p, to: l.member, handle: h, moved: w.now}
	// In an order that is the same in every run of a seed.
	items := slices.SortedFunc(h.view.All(), func(a, b keyspace.Item) int { return strings.Compare(a.Key, b.Key) })
	x.next, x.stop = iter.Pull(snapshot.PartsOf(slices.Values(items), h.view.Bytes(), h.dedup, w.plan.chunkBytes))
	w.nets.open = append(w.nets.open, x)
	t.sending++
	t.outgoing = append(t.outgoing, x)
	w.note(t.p.place.id, "snapshot out", m.GetTo(), h.index, 0)
	w.count.add("snapshots begun", 1)
	x.push(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Header{Header: header}}, x.pushChunk)
	return true
}

// push sends a part and then goes on, unless the path stays cut for too long.
func (x *simSnapshot) push(part *kvpb.SnapshotRequest, then func()) {
	data, err := proto.Marshal(part)
	if err != nil {
		x.w.fail("marshal snapshot part: %v", err)
	}
	x.pushData(data, then)
}

func (x *simSnapshot) pushData(data []byte, then func()) {
	if x.sent {
		return
	}
	w := x.w
	path := w.paths[x.from.place.at][w.placeOf(x.to.Addr).at]
	switch {
	case !path.cut:
		x.moved = w.now
		x.last = max(w.now+path.takes(w), x.last+1)
		w.at(x.last, func() { x.arrived(data) })
		x.from.timer(w.about(w.plan.chunkEvery), then)
	case w.now-x.moved > chunkTimeout:
		x.tell(errInterrupted)
		w.after(chunkTimeout, func() { x.endReceive(errStalled) })
	default:
		x.from.timer(200*time.Millisecond, func() { x.pushData(data, then) })
	}
}

func (x *simSnapshot) pushChunk() {
	if x.sent {
		return
	}
	data, ok := x.next()
	if !ok {
		trailer := &kvpb.SnapshotTrailer{StateHash: x.handle.hash}
		x.push(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Trailer{Trailer: trailer}}, x.await)
		return
	}
	chunk := &kvpb.SnapshotChunk{Crc: checksum.Of(data), Data: data}
	x.push(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Chunk{Chunk: chunk}}, x.pushChunk)
}

// await is the sender's wait for the answer.
func (x *simSnapshot) await() {
	x.from.timer(chunkTimeout, func() { x.tell(errInterrupted) })
}

// arrived brings a part to the process that runs at the address.
func (x *simSnapshot) arrived(data []byte) {
	q := x.w.procs[x.w.placeOf(x.to.Addr).at]
	switch {
	case x.received:
	case x.target == nil && q == nil, x.target != nil && !x.target.alive:
		x.endReceive(errInterrupted)
		x.answer(errInterrupted)
	default:
		if x.target == nil {
			x.target = q
		}
		x.target.arrive(func() { x.take(data) })
	}
}

// take is a step of snapshotReceiver.receive.
func (x *simSnapshot) take(data []byte) {
	if x.received {
		return
	}
	part := new(kvpb.SnapshotRequest)
	if err := proto.Unmarshal(data, part); err != nil {
		x.w.fail("unmarshal snapshot part: %v", err)
	}
	x.w.mixIn(data)
	if header := part.GetHeader(); header != nil {
		x.open(header)
		return
	}
	if x.builder == nil {
		x.early = append(x.early, data)
		return
	}
	if err := x.add(part); err != nil {
		x.refuse(err)
	}
}

// open asks the loop whether the sender may come in.
func (x *simSnapshot) open(header *kvpb.SnapshotHeader) {
	p := x.target
	if p.receives >= snapshotsInMax {
		x.received = true
		x.answer(p.told(fmt.Errorf("%w: another snapshot is being received", ErrOverloaded)))
		return
	}
	p.receives++
	x.w.nets.incoming = append(x.w.nets.incoming, x)
	x.r.hello = header.GetHello()
	p.n.post(func(l *loop) {
		if err := l.welcome(x.r.hello); err != nil {
			x.refuse(err)
			return
		}
		if err := x.r.open(header); err != nil {
			x.refuse(fmt.Errorf("%w: %w", ErrInvalid, err))
			return
		}
		x.builder = snapshot.NewBuilder(header.GetKeys(), header.GetSizeBytes())
		x.w.facts.receiving(x)
		early := x.early
		x.early = nil
		for _, data := range early {
			x.take(data)
		}
	})
}

func (x *simSnapshot) add(part *kvpb.SnapshotRequest) error {
	if trailer := part.GetTrailer(); trailer != nil {
		if err := x.r.finish(x.builder, trailer); err != nil {
			return err
		}
		x.target.n.post(func(l *loop) {
			if x.received {
				return
			}
			err := l.receiveSnapshot(x.r.message, x.r.staged)
			if err != nil {
				x.refuse(err)
				return
			}
			x.w.note(x.target.place.id, "snapshot in", x.r.staged.index, 0, 0)
			x.endReceive(nil)
			x.answer(nil)
		})
		return nil
	}
	chunk := part.GetChunk()
	if checksum.Of(chunk.GetData()) != chunk.GetCrc() {
		return fmt.Errorf("%w: snapshot chunk with a wrong checksum", ErrInvalid)
	}
	x.w.count.add("snapshot chunks", 1)
	if err := x.builder.Add(chunk.GetData()); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// refuse ends the transfer from the receiver's side.
func (x *simSnapshot) refuse(err error) {
	x.target.refusedPeer(x.r.hello, err)
	x.endReceive(err)
	x.answer(x.target.told(err))
}

// endReceive frees the receiver.
func (x *simSnapshot) endReceive(err error) {
	if x.received {
		return
	}
	x.received = true
	if i := slices.Index(x.w.nets.incoming, x); i >= 0 {
		x.w.nets.incoming = slices.Delete(x.w.nets.incoming, i, i+1)
		x.target.receives--
	}
	x.builder = nil
	if err != nil {
		x.w.count.add("snapshots interrupted", 1)
	}
}

// answer tells the sender the outcome, if the way back is open.
func (x *simSnapshot) answer(err error) {
	back := x.w.paths[x.w.placeOf(x.to.Addr).at][x.from.place.at]
	if back.cut {
		x.w.after(chunkTimeout, func() { x.from.arrive(func() { x.tell(errInterrupted) }) })
		return
	}
	x.w.after(back.takes(x.w), func() { x.from.arrive(func() { x.tell(err) }) })
}

// tell tells the sender's loop the outcome.
func (x *simSnapshot) tell(err error) {
	if x.sent {
		return
	}
	x.close()
	if !x.from.alive {
		return
	}
	if err != nil {
		err = fmt.Errorf("raftkv: snapshot to %s: %w", x.to.Addr, err)
	}
	to := x.to.RaftID
	x.from.n.post(func(l *loop) { l.snapshotSent(to, err) })
	x.from.settle()
}

// close frees the sender.
func (x *simSnapshot) close() {
	x.sent = true
	x.stop()
	t := x.from.net
	t.sending--
	t.outgoing = slices.DeleteFunc(t.outgoing, func(o *simSnapshot) bool { return o == x })
	x.w.nets.open = slices.DeleteFunc(x.w.nets.open, func(o *simSnapshot) bool { return o == x })
}

// senderDied has the receiver notice, at once or when it has waited for long.
func (x *simSnapshot) senderDied() {
	x.close()
	d := chunkTimeout
	if x.w.chance(0.8) {
		d = x.w.about(5 * time.Millisecond)
	}
	x.w.after(d, func() { x.endReceive(errInterrupted) })
}

// interrupt breaks the connection under the transfer.
func (x *simSnapshot) interrupt() {
	x.w.note(x.from.place.id, "snapshot cut", x.to.RaftID, x.handle.index, 0)
	x.endReceive(errInterrupted)
	x.w.after(time.Millisecond, func() { x.from.arrive(func() { x.tell(errInterrupted) }) })
}

// netStats is what of the network the world must know as a whole.
type netStats struct {
	open     []*simSnapshot // being sent
	incoming []*simSnapshot // being received
}
