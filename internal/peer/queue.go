package peer

import (
	"slices"
	"sync"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/frame"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	// FrameBytesMax is how many bytes of messages share a frame, unless one
	// message alone is larger: control messages never wait for more than this.
	FrameBytesMax = 256 << 10

	controlMax     = frame.RefusalsMax // messages without entries, refusals, which all go at once
	appendsMax     = frame.BatchesMax  // messages with entries, batches
	queueBytesMax  = 64 << 20          // of entries and batches; raft has a quarter on its way
	messageBytesIn = 64                // assumed for a message without its entries
)

// A queue is what waits to be sent to one member. Control messages go ahead of
// appends; each kind keeps its order. Full means that the newest is dropped.
type queue struct {
	wakec chan struct{} // capacity 1: a wake-up that is pending covers later ones

	mu        sync.Mutex
	control   []*pb.Message
	appends   []*pb.Message
	proposals [][]byte
	refusals  []uint64
	ping      bool // send a frame even if nothing waits
	standing  *kvpb.Standing
	bytes     int
	overflow  bool // something was dropped since the queue was last empty
}

func messageBytes(m *pb.Message) int {
	n := messageBytesIn
	for _, e := range m.GetEntries() {
		n += messageBytesIn + len(e.GetData())
	}
	return n
}

// addMessage queues a message. Like its siblings it reports whether this begins
// an overflow.
func (q *queue) addMessage(m *pb.Message) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.GetType() != pb.MsgApp {
		return add(q, &q.control, controlMax, m, 0)
	}
	return add(q, &q.appends, appendsMax, m, messageBytes(m))
}

func (q *queue) addProposal(batch []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return add(q, &q.proposals, appendsMax, batch, len(batch))
}

func (q *queue) addRefusal(first uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return add(q, &q.refusals, controlMax, first, 0)
}

// add puts an item of a size into its list if there is room; something large
// always has room in an empty queue. The caller holds the lock.
func add[T any](q *queue, list *[]T, countMax int, item T, size int) (overflow bool) {
	if len(*list) >= countMax || size > 0 && q.bytes > 0 && q.bytes+size > queueBytesMax {
		overflow = !q.overflow
		q.overflow = true
		return overflow
	}
	*list = append(*list, item)
	q.bytes += size
	q.wake()
	return false
}

func (q *queue) addPing() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ping = true
	q.wake()
}

// addStanding queues how this member sees the cluster, in place of what it said
// before. A question that waits is not lost by that.
func (q *queue) addStanding(s *kvpb.Standing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.standing.GetAsks() && !s.GetAsks() {
		s = &kvpb.Standing{RosterIndex: s.GetRosterIndex(), HearsLeader: s.GetHearsLeader(), Asks: true}
	}
	q.standing = s
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.wakec <- struct{}{}:
	default: // a wake-up is pending
	}
}

// take moves what waits into the next frame, in place of what is in it: appends only
// if it may. It returns false if there is nothing to send.
func (q *queue) take(f *frame.Frame, appends bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(f.Messages) // so that an idle link keeps nothing alive
	clear(f.Proposals)
	ping, n := q.ping, min(len(q.control), frame.MessagesMax)
	f.Messages = append(f.Messages[:0], q.control[:n]...)
	q.control = slices.Delete(q.control, 0, n)
	f.Refusals, q.refusals = append(f.Refusals[:0], q.refusals...), q.refusals[:0]
	f.Standing, q.standing, q.ping = q.standing, nil, false
	q.takeBytes(f, appends)
	if len(q.control)+len(q.appends)+len(q.proposals) == 0 {
		q.overflow = false
	}
	return ping || f.Standing != nil || !f.IsPing()
}

// takeBytes moves appends and batches into a frame while there is room. The
// caller holds the lock.
func (q *queue) takeBytes(f *frame.Frame, appends bool) {
	bytes, n := 0, 0
	for ; appends && n < len(q.appends) && len(f.Messages) < frame.MessagesMax; n++ {
		size := messageBytes(q.appends[n])
		if bytes > 0 && bytes+size > FrameBytesMax {
			break
		}
		f.Messages = append(f.Messages, q.appends[n])
		bytes += size
	}
	q.appends = slices.Delete(q.appends, 0, n)
	for n = 0; n < len(q.proposals) && (bytes == 0 || bytes+len(q.proposals[n]) <= FrameBytesMax); n++ {
		bytes += len(q.proposals[n])
	}
	f.Proposals = append(f.Proposals[:0], q.proposals[:n]...)
	q.proposals = slices.Delete(q.proposals, 0, n)
	q.bytes -= bytes
}

// drop empties the queue and reports whether anything was in it.
func (q *queue) drop() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	had := len(q.control)+len(q.appends)+len(q.proposals)+len(q.refusals) > 0
	q.control, q.appends, q.proposals, q.refusals, q.standing = nil, nil, nil, nil, nil
	q.bytes, q.overflow = 0, false
	return had
}
