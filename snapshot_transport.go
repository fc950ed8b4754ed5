package raftkv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/snapshot"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	// A chunk with what surrounds it fits into a buffer of 32 KiB that gRPC pools,
	// unless one record is larger, and takes either side some 100 µs.
	chunkBytesMax   = 32<<10 - 64
	chunkTimeout    = 10 * time.Second
	pauseMax        = 5 * time.Millisecond // between two chunks, unless processors are short
	snapshotKeysMax = 1 << 40              // nobody has so many; a header that says so is garbage
	revisionMax     = 1 << 62              // likewise
)

// sendSnapshot streams a frozen state to a member, on a connection of its own,
// so that heartbeats and appends do not wait behind it.
func (t *grpcTransport) sendSnapshot(m *pb.Message, h *snapshotHandle) bool {
	to := m.GetTo()
	l := t.to(to)
	if l == nil || !t.out.TryAcquire(1) {
		return false
	}
	hello := t.lockedHello(l.Member())
	return t.node.start(func() {
		defer t.out.Release(1)
		err := t.stream(l.Member(), hello, m, h)
		t.node.post(func(l *loop) { l.snapshotSent(to, err) })
	})
}

func (t *grpcTransport) lockedHello(to roster.Member) *kvpb.Hello {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hello(to)
}

// A watchdog cancels a context when nothing has moved for a while.
type watchdog struct {
	timer  *time.Timer
	cancel context.CancelFunc
}

func newWatchdog(parent context.Context) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancel(parent)
	return ctx, &watchdog{time.AfterFunc(chunkTimeout, cancel), cancel}
}

func (w *watchdog) moved() { w.timer.Reset(chunkTimeout) }

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel()
}

func (t *grpcTransport) stream(to roster.Member, hello *kvpb.Hello, m *pb.Message, h *snapshotHandle) error {
	message, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("raftkv: marshal snapshot message: %w", err)
	}
	conn, err := t.dial(to.Addr)
	if err != nil {
		return err
	}
	defer conn.Close() // nothing more to do about an error
	ctx, dog := newWatchdog(t.ctx)
	defer dog.stop()
	s, err := kvpb.NewPeerServiceClient(conn).Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("raftkv: open snapshot stream: %w", err)
	}
	send := func(part *kvpb.SnapshotRequest) bool {
		dog.moved()
		return s.Send(part) == nil // on an error, CloseAndRecv tells why
	}
	header := &kvpb.SnapshotHeader{
		Hello: hello, Message: message, Roster: h.roster.Proto(), Revision: h.revision,
		Keys: uint64(h.view.Len()), SizeBytes: uint64(h.view.DataBytes()),
	}
	checksum.Seal(header)
	if send(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Header{Header: header}}) {
		t.sendParts(h, send)
	}
	dog.moved()
	if _, err := s.CloseAndRecv(); err != nil {
		return fmt.Errorf("raftkv: snapshot to %s: %w", to.Addr, err)
	}
	return nil
}

// giveWay lets everybody run who is ready to: callers, the loop and the applier go
// before a snapshot. Go takes a processor away from a goroutine only after 10 ms.
func giveWay() { runtime.Gosched() }

func (t *grpcTransport) sendParts(h *snapshotHandle, send func(*kvpb.SnapshotRequest) bool) {
	p, begin := t.newPace(h), time.Now()
	for data := range snapshot.Parts(h.view, h.dedup, chunkBytesMax) {
		chunk := &kvpb.SnapshotChunk{Crc: checksum.Of(data), Data: data}
		worked := time.Since(begin) // without what the network takes
		if !send(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Chunk{Chunk: chunk}}) {
			return
		}
		p.rest(len(data), worked)
		begin = time.Now()
	}
	send(&kvpb.SnapshotRequest{Part: &kvpb.SnapshotRequest_Trailer{Trailer: &kvpb.SnapshotTrailer{StateHash: h.hash}}})
}

// A pace is how fast a state is sent.
//
// While entries are committed here, its sender rests for a multiple of what it
// works: a transfer that merely took turns with the many short steps of a write
// would have as much of the processors as all of them together, and so would its
// receiver. Nor is it enough to give way, probably because Go looks for what has come
// from the network when a processor has nothing else to do, or every 10 ms: as many
// goroutines as there are processors, each always ready to go on, would make each
// way between two members take so long. (Seen are rounds of 10 ms; no trace was taken.)
//
// When it wakes up late, there are more who want a processor than there are, as
// while the garbage collector runs: then it rests for a multiple of that again.
//
// But it must be over before the log that is kept for the receiver has grown too
// large: the share of the state that is sent is held against the share that is used
// of three quarters of that log; the last is for catching up. Early on it may be
// behind by a part of what is left to send. As it loses that lead it rests less; when
// the lead is gone it hurries, and gives way to nobody.
type pace struct {
	tasks     *taskQueue
	start     int64 // what was committed when it began
	committed int64 // and when it last rested
	log       float64
	size      float64 // of the state
	sent      int
}

const (
	restPerWork = 12
	restPerLate = 4
	lateMin     = 2 * time.Millisecond // less is the grain of a timer
	lateRestMax = 50 * time.Millisecond
	behindMax   = 0.2 // of the state, at first
	leadMin     = 0.1 // with less it rests less
)

func (t *grpcTransport) newPace(h *snapshotHandle) *pace {
	committed := t.node.tasks.committed.Load()
	return &pace{
		tasks: t.node.tasks, start: committed, committed: committed,
		log: 3 * float64(t.node.cfg.Limits.MaxLogBytes), size: max(1, float64(h.view.DataBytes())),
	}
}

// rest rests after so many bytes and so much work, unless it has to hurry.
func (p *pace) rest(bytes int, worked time.Duration) {
	p.sent += bytes
	committed := p.tasks.committed.Load()
	isBusy := committed != p.committed
	p.committed = committed
	lead := p.lead()
	if lead < 0 {
		return
	}
	giveWay()
	if isBusy {
		share := min(lead/leadMin, 1)
		d := min(time.Duration(share*restPerWork*float64(worked)), pauseMax)
		begin := time.Now()
		time.Sleep(d)
		late := time.Since(begin) - d
		time.Sleep(time.Duration(share * float64(restOfLate(late))))
	}
}

// lead is by how much of the state more is sent than has to be by now.
func (p *pace) lead() float64 {
	sent, used := float64(p.sent)/p.size, float64(p.committed-p.start)/p.log
	return sent - used + behindMax*(1-sent)
}

// restOfLate is how long a sender rests that has woken up so late.
func restOfLate(late time.Duration) time.Duration {
	if late < lateMin {
		return 0
	}
	return min(restPerLate*late, lateRestMax)
}

// Snapshot receives a state beside the one in force, which goes on; only when
// it is whole and its hash is right does raft hear of it. It is bounded by what
// its header declares and by the time between two parts.
func (t *grpcTransport) Snapshot(s grpc.ClientStreamingServer[kvpb.SnapshotRequest, kvpb.SnapshotResponse]) error {
	if !t.in.TryAcquire(1) {
		return t.node.status(fmt.Errorf("%w: another snapshot is being received", ErrOverloaded))
	}
	defer t.in.Release(1)
	r := &snapshotReceiver{parts: make(chan snapshotPart)}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	go r.pump(ctx, s) // ends with the stream or this call
	err := r.receive(ctx, t)
	if err == nil {
		err = t.ask(func(l *loop) error { return l.receiveSnapshot(r.message, r.staged) })
	}
	if err != nil {
		t.refused(r.hello, err)
		return t.node.status(err)
	}
	return s.SendAndClose(&kvpb.SnapshotResponse{})
}

// A snapshotReceiver is one snapshot on its way in.
type snapshotReceiver struct {
	parts   chan snapshotPart // pump sends, receive takes; nobody closes
	hello   *kvpb.Hello
	message *pb.Message
	staged  *stagedSnapshot
}

type snapshotPart struct {
	req *kvpb.SnapshotRequest
	err error
}

// pump moves parts from the stream to receive, so that receive can give up on a
// sender that has stalled.
func (r *snapshotReceiver) pump(ctx context.Context, s grpc.ClientStreamingServer[kvpb.SnapshotRequest, kvpb.SnapshotResponse]) {
	for {
		req, err := s.Recv()
		select {
		case r.parts <- snapshotPart{req, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (r *snapshotReceiver) next(ctx context.Context, timer *time.Timer) (*kvpb.SnapshotRequest, error) {
	timer.Reset(chunkTimeout)
	select {
	case <-ctx.Done(): // then pump may end without a word
		return nil, ctx.Err()
	case p := <-r.parts:
		if errors.Is(p.err, io.EOF) {
			return nil, fmt.Errorf("%w: snapshot ends without a trailer", ErrInvalid)
		}
		return p.req, p.err
	case <-timer.C:
		return nil, fmt.Errorf("%w: snapshot stalled for %v", ErrInvalid, chunkTimeout)
	}
}

func (r *snapshotReceiver) receive(ctx context.Context, t *grpcTransport) error {
	timer := time.NewTimer(chunkTimeout)
	defer timer.Stop()
	req, err := r.next(ctx, timer)
	if err != nil {
		return err
	}
	header := req.GetHeader()
	r.hello = header.GetHello()
	if header == nil {
		return fmt.Errorf("%w: snapshot without a header", ErrInvalid)
	}
	if err := checksum.Check(header); err != nil {
		return err
	}
	if err := t.ask(func(l *loop) error { return l.welcome(r.hello) }); err != nil {
		return err
	}
	if err := r.open(header); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	builder := snapshot.NewBuilder(header.GetKeys(), header.GetSizeBytes())
	for {
		if req, err = r.next(ctx, timer); err != nil {
			return err
		}
		if trailer := req.GetTrailer(); trailer != nil {
			return r.finish(builder, trailer)
		}
		chunk := req.GetChunk()
		if checksum.Of(chunk.GetData()) != chunk.GetCrc() {
			return fmt.Errorf("%w: snapshot chunk with a wrong checksum", ErrInvalid)
		}
		if err := builder.Add(chunk.GetData()); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		giveWay()
	}
}

// open checks the header, which welcome has bound to this member.
func (r *snapshotReceiver) open(h *kvpb.SnapshotHeader) error {
	hello := h.GetHello()
	m, err := firewall.DecodeSnapshot(h.GetMessage(), hello.GetFrom().GetRaftId(), hello.GetToRaftId())
	if err != nil {
		return err
	}
	ros, err := roster.FromProto(h.GetRoster())
	if err != nil {
		return err
	}
	meta := m.GetSnapshot().GetMetadata()
	switch {
	case ros.ClusterID != string(hello.GetFrom().GetClusterId()):
		return errors.New("snapshot of another cluster")
	case ros.Index > meta.GetIndex() || h.GetRevision() > revisionMax:
		return errors.New("snapshot with a roster or revision of the future")
	case !roster.SameConf(meta.GetConfState(), ros.Conf):
		return errors.New("snapshot with two configurations")
	case h.GetKeys() > snapshotKeysMax || h.GetSizeBytes() > h.GetKeys()*(command.KeyBytesMax+command.ValueBytesMax):
		return errors.New("snapshot with impossible sizes")
	}
	r.message = m
	r.staged = &stagedSnapshot{index: meta.GetIndex(), term: meta.GetTerm(), roster: ros, revision: h.GetRevision()}
	return nil
}

func (r *snapshotReceiver) finish(b *snapshot.Builder, trailer *kvpb.SnapshotTrailer) error {
	keys, table, err := b.Finish()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := r.staged
	s.keys, s.dedup = keys, table
	table.Retain(s.roster.RaftIDs())
	if snapshot.StateHash(keys.Hash(), table.Hash(), s.roster.Hash(), s.revision) != trailer.GetStateHash() {
		return fmt.Errorf("%w: snapshot with a wrong hash", ErrInvalid)
	}
	return nil
}
