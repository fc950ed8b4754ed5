package peer

import (
	"fmt"
	"sync"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	// FrameBytesMax is how many bytes of messages share a frame, unless one
	// message alone is larger: control messages never wait for more than this.
	FrameBytesMax = 1 << 20

	controlMax     = 4096     // messages without entries
	appendsMax     = 4096     // messages with entries, batches
	queueBytesMax  = 64 << 20 // of entries and batches; raft has at most so much on its way
	frameMessages  = 1024     // messages in a frame
	messageBytesIn = 64       // assumed for a message without its entries
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

// take returns the next frame, or nil if nothing waits.
func (q *queue) take() (*kvpb.MessagesRequest, error) {
	messages, proposals, refusals, ping := q.cut()
	standing := q.takeStanding()
	if len(messages)+len(proposals)+len(refusals) == 0 && !ping && standing == nil {
		return nil, nil
	}
	frame := &kvpb.MessagesRequest{Proposals: proposals, Standing: standing}
	for _, m := range messages {
		// Entries are shared with the log; marshalling only reads them.
		data, err := proto.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("raftkv: marshal message: %w", err)
		}
		frame.Messages = append(frame.Messages, data)
	}
	for _, first := range refusals {
		frame.Refusals = append(frame.Refusals, &kvpb.Refusal{FirstSequence: first})
	}
	return frame, nil
}

func (q *queue) takeStanding() *kvpb.Standing {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.standing
	q.standing = nil
	return s
}

// cut removes what goes into the next frame.
func (q *queue) cut() (messages []*pb.Message, proposals [][]byte, refusals []uint64, ping bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	ping, q.ping = q.ping, false
	n := min(len(q.control), frameMessages)
	messages, q.control = q.control[:n:n], q.control[n:]
	refusals, q.refusals = q.refusals, nil
	bytes := 0
	for len(q.appends) > 0 && len(messages) < frameMessages {
		size := messageBytes(q.appends[0])
		if bytes > 0 && bytes+size > FrameBytesMax {
			break
		}
		messages = append(messages, q.appends[0])
		q.appends[0] = nil
		q.appends = q.appends[1:]
		bytes += size
	}
	for len(q.proposals) > 0 && (bytes == 0 || bytes+len(q.proposals[0]) <= FrameBytesMax) {
		bytes += len(q.proposals[0])
		proposals = append(proposals, q.proposals[0])
		q.proposals = q.proposals[1:]
	}
	q.bytes -= bytes
	if len(q.control)+len(q.appends)+len(q.proposals) == 0 {
		q.overflow = false
	}
	return messages, proposals, refusals, ping
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
