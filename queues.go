package raftkv

import (
	"slices"
	"sync"
	"sync/atomic"
)

// What stands between the goroutines of a node: the loop's inbox, the applier's
// tasks, and the count of calls under way.

// An inbox holds what the loop shall do next. It is bounded by those who fill
// it: frames by the transport's semaphore, the rest by callers that wait.
type inbox struct {
	wakec chan struct{} // capacity 1: a pending wake-up covers later ones
	mu    sync.Mutex
	items []func(*loop)
	taken []func(*loop) // what the last take returned
}

func (b *inbox) wake() {
	select {
	case b.wakec <- struct{}{}:
	default:
	}
}

// take returns all items, until the next take.
func (b *inbox) take() []func(*loop) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items, b.taken = reuse(b.taken), b.items
	return b.taken
}

// post has the loop do something soon; if the node stops, perhaps never.
func (n *Node) post(f func(*loop)) {
	n.inbox.mu.Lock()
	n.inbox.items = append(n.inbox.items, f)
	n.inbox.mu.Unlock()
	n.inbox.wake()
}

// do has the loop do something and waits for it. An error says that the node
// stopped before; then it was not done and will not be.
func (n *Node) do(f func(*loop)) error {
	donec := make(chan struct{})
	var begun, ended atomic.Bool
	n.post(func(l *loop) {
		if begun.Swap(true) {
			return
		}
		defer close(donec)
		f(l)
		ended.Store(true)
	})
	select {
	case <-donec:
	case <-n.stop.c:
		if !begun.Swap(true) {
			return n.stopped()
		}
		<-donec // what f writes is the caller's when do returns
	}
	if !ended.Load() {
		<-n.stop.c // f has panicked
		return n.stopped()
	}
	return nil
}

// doErr is do for functions with an error.
func (n *Node) doErr(f func(*loop) error) error {
	var err error
	if stopped := n.do(func(l *loop) { err = f(l) }); stopped != nil {
		return stopped
	}
	return err
}

// takeBytesMax is how much the applier takes at once, unless a task is larger. In
// between readers and whoever else is ready have their turn.
const takeBytesMax = 64 << 10

// littleBytes is how much the loop's goroutine applies itself: so a caller who is alone
// waits for one wake-up less. It takes some microseconds, and less than one millisecond
// at worst, for dozens of small writes after a freeze.
const littleBytes = 1 << 10

// A taskQueue holds what the applier shall do next, in the order of the log.
type taskQueue struct {
	committed atomic.Int64  // bytes that all entries so far take in the log
	wakec     chan struct{} // capacity 1: a pending wake-up covers later ones
	mu        sync.Mutex
	tasks     []task
	taken     []task // what the last take returned
	bytes     int64  // of the tasks, and of those being done
}

// push adds tasks. Whoever drives the loop sees to them after the round.
func (q *taskQueue) push(tasks []task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tasks = append(q.tasks, tasks...)
	for _, t := range tasks {
		q.bytes += int64(len(t.data))
		if !t.freeze && t.install == nil {
			q.committed.Add(int64(len(t.data)) + entryOverheadBytes)
		}
	}
}

// waits reports whether there are tasks, and whether they are all quickly done.
func (q *taskQueue) waits() (some, little bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	large := func(t task) bool { return t.freeze || t.install != nil || t.roster != nil }
	return len(q.tasks) > 0, q.bytes <= littleBytes && !slices.ContainsFunc(q.tasks, large)
}

func (q *taskQueue) wake() {
	select {
	case q.wakec <- struct{}{}:
	default:
	}
}

// take returns the next tasks, until the next take, and how many bytes they have.
// If there are more it wakes the applier again.
func (q *taskQueue) take() (tasks []task, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.tasks) && (n == 0 || bytes+int64(len(q.tasks[n].data)) <= takeBytesMax) {
		bytes += int64(len(q.tasks[n].data))
		n++
	}
	if n == len(q.tasks) {
		q.tasks, q.taken = reuse(q.taken), q.tasks
		return q.taken, bytes
	}
	q.taken = append(reuse(q.taken), q.tasks[:n]...)
	clear(q.tasks[:n])
	q.tasks = q.tasks[n:]
	q.wake()
	return q.taken, bytes
}

// reuse returns the room of a slice that nobody uses any more. It keeps nothing
// that was in it alive, nor what a burst has made it grow to.
func reuse[T any](s []T) []T {
	const capMax = 4096
	if cap(s) > capMax {
		return nil
	}
	clear(s)
	return s[:0]
}

// finish takes off what was taken. It reports whether the queue was full before
// that and no longer is.
func (q *taskQueue) finish(bytes int64) (room bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wasFull := q.bytes > applyBytesMax
	q.bytes -= bytes
	return wasFull && q.bytes <= applyBytesMax
}

// isFull reports whether the applier is so far behind that no more writes
// should enter the log.
func (q *taskQueue) isFull() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes > applyBytesMax
}

// calls counts the calls under way on this node.
type calls struct {
	state atomic.Int64  // twice their number, and 1 when no more are let in
	idlec chan struct{} // closed when no more are let in and none is under way
	once  sync.Once
}

func newCalls() calls { return calls{idlec: make(chan struct{})} }

// enter lets a call in, unless the node is stopping.
func (c *calls) enter() bool {
	if c.state.Add(2)&1 == 0 {
		return true
	}
	c.leave()
	return false
}

func (c *calls) leave() { c.signal(c.state.Add(-2)) }

func (c *calls) refuse() { c.signal(c.state.Or(1) | 1) }

// idle returns a channel that is closed when no call is under way, once no more
// are let in.
func (c *calls) idle() <-chan struct{} { return c.idlec }

func (c *calls) signal(state int64) {
	if state == 1 {
		c.once.Do(func() { close(c.idlec) })
	}
}
