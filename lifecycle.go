package raftkv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/reads"
	"example.com/raftkv/internal/roster"
)

// A Node is one member of a cluster, or a process that waits to become one. Its
// methods may be called from any goroutine.
type Node struct {
	cfg       Config
	logger    *slog.Logger
	loop      *loop // only run touches it
	fsm       *fsm
	out       *outbox.Outbox
	reads     *reads.Reads
	inbox     inbox
	tasks     *taskQueue
	applier   applier
	transport *grpcTransport
	server    *grpc.Server
	health    *health.Server
	listener  *closer
	foundingc chan struct{} // capacity 1: full while an Init coordinates a founding
	calls     calls

	view  atomic.Pointer[view]
	stop  stop
	wg    sync.WaitGroup // every goroutine but supervise and what gRPC starts
	donec chan struct{}  // closed by supervise when everything has ended
}

// An applier sees to it that one goroutine at a time applies, and none after one has
// failed.
type applier struct {
	mu     sync.Mutex // held by who applies
	midway bool       // tasks have been taken and not been applied; for good if that failed
}

// stop is the end of a node.
type stop struct {
	mu    sync.Mutex    // guards cause, and starting goroutines against it
	cause error         // why, nil while the node runs
	c     chan struct{} // closed when cause is set
}

// Start starts a node. It listens when Start returns, but belongs to no
// cluster before Init, here or on another member that lists it, or AddLearner
// on a member. The errors are ErrInvalid, naming the field of cfg that is
// wrong, and that of listening on Addr. On error, a Listener in cfg is closed.
func Start(cfg Config) (*Node, error) {
	cfg, err := startable(cfg)
	if err != nil {
		if cfg.Listener != nil {
			_ = cfg.Listener.Close() // the first error matters
		}
		return nil, err
	}
	n := newNode(cfg)
	n.server = n.newServer()
	n.start(n.run)
	n.start(n.applyTasks)
	n.start(n.serve)
	go n.supervise()
	n.logger.Info("started", "addr", cfg.Addr, "listen", cfg.Listener.Addr().String())
	return n, nil
}

// startable checks a configuration and completes it, the listener included.
func startable(cfg Config) (Config, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		return cfg, err
	}
	if full.Listener == nil {
		if full.Listener, err = net.Listen("tcp", full.Addr); err != nil {
			return cfg, fmt.Errorf("raftkv: listen on %s: %w", full.Addr, err)
		}
	}
	full.Logger = full.Logger.With("member", full.ID)
	return full, nil
}

// newNode makes a blank node without a goroutine.
func newNode(cfg Config) *Node {
	n := &Node{
		cfg: cfg, logger: cfg.Logger, donec: make(chan struct{}),
		out: outbox.New(outbox.Limits{
			PendingBytesMax: cfg.Limits.MaxPendingBytes, BatchBytesMax: batchBytesMax,
			WindowMax: batchesMax, RetryTicks: uint64(cfg.Timing.electionTicks()),
		}),
		reads: reads.New(2 * uint64(cfg.Timing.heartbeatTicks())),
		inbox: inbox{wakec: make(chan struct{}, 1)},
		calls: newCalls(),
		tasks: &taskQueue{wakec: make(chan struct{}, 1)}, health: health.NewServer(), listener: newCloser(cfg.Listener),
	}
	n.stop.c, n.foundingc = make(chan struct{}), make(chan struct{}, 1)
	n.fsm = newFSM(n.out, n.reads)
	n.transport = newGRPCTransport(n)
	n.loop = &loop{
		cfg: cfg, logger: n.logger, nonce: randomID(), net: n.transport, fsm: n.fsm, tasks: n.tasks,
		out: n.out, reads: n.reads, show: n.show, roster: new(roster.Roster),
		snaps: newSnaps(), links: newLinks(links{}),
	}
	n.loop.change.worker = membership.New(n.loop, uint64(cfg.Timing.electionTicks()))
	n.loop.publish()
	return n
}

// randomID returns a nonce, a cluster ID or a change ID.
func randomID() string {
	id := make([]byte, roster.NonceBytes)
	_, _ = rand.Read(id) // never fails, says its documentation
	return string(id)
}

// show publishes a view and wakes those who wait for one.
func (n *Node) show(v *view) {
	if old := n.view.Swap(v); old != nil {
		close(old.nextc)
	}
	n.showHealth(v)
}

// restAfter is how long an append may wait for others to travel with, and a question
// for whether it is needed.
const restAfter = time.Millisecond

// run drives the loop until the node stops.
func (n *Node) run() {
	ticker := time.NewTicker(n.cfg.Timing.Tick)
	defer ticker.Stop()
	rest := time.NewTimer(restAfter) // not stopped when it is not needed: it is late by no more than itself
	defer rest.Stop()
	resting := false
	for {
		tick := false
		select {
		case <-n.inbox.wakec:
		case <-ticker.C: // drops ticks when we are late, so there never is a burst
			tick = true
		case <-rest.C:
			n.loop.rest()
			resting = false
			continue
		case <-n.stop.c:
			return
		}
		n.loop.takeIn(n.inbox.take(), tick)
		runtime.Gosched() // lets callers that are ready add to the batch; measured in raft-guide section 4
		again, err := n.loop.carryOut()
		n.haveApplied()
		if err != nil {
			n.stopFor(err)
			return
		}
		if again {
			n.inbox.wake()
		}
		if n.loop.holds() && !resting {
			rest.Reset(restAfter)
			resting = true
		}
	}
}

// haveApplied has what a round has committed applied: here if it is little and nobody
// would have to be waited for, neither who applies nor who reads; else by applyTasks.
func (n *Node) haveApplied() {
	some, little := n.tasks.waits()
	if !some {
		return
	}
	if little && n.applier.mu.TryLock() {
		defer n.applier.mu.Unlock()
		if n.fsm.mu.TryLock() {
			n.apply()
			return
		}
	}
	n.tasks.wake()
}

// Who has applied for applyStretch, because there is much to catch up with, sleeps for
// applyPause; that is a millisecond in a process that has nothing else to do, as Go's
// timers then are no finer. It is not enough to yield: Go looks for what has come from
// the network when a processor has nothing else to do, or every 10 ms. Traced beside a
// learner that caught up, on two processors: its applier always ready on one, the
// sweeper of the garbage collector on the other, and every way between two members
// took 10 ms.
const (
	applyStretch = time.Millisecond
	applyPause   = 100 * time.Microsecond
)

// applyTasks applies what haveApplied does not until the node stops.
func (n *Node) applyTasks() {
	var s stretch
	for {
		select {
		case <-n.tasks.wakec:
		case <-n.stop.c:
			return
		}
		runtime.Gosched() // a goroutine keeps its processor for 10 ms if it is not asked
		begin := time.Now()
		n.applyNext()
		if s.isOver(time.Since(begin), len(n.tasks.wakec) > 0) {
			time.Sleep(applyPause)
		}
	}
}

func (n *Node) applyNext() {
	n.applier.mu.Lock()
	defer n.applier.mu.Unlock()
	n.fsm.mu.Lock()
	n.apply()
}

// A stretch is how long the applier has worked since it last slept or had nothing to do.
type stretch time.Duration

// isOver notes work, and whether more waits. It reports whether it is time to sleep.
func (s *stretch) isOver(worked time.Duration, more bool) bool {
	*s += stretch(worked)
	isOver := more && time.Duration(*s) >= applyStretch
	if isOver || !more {
		*s = 0
	}
	return isOver
}

// apply applies what is next and does what follows from that; nothing once that has
// failed. The caller holds applier.mu and fsm.mu, and the latter no longer afterwards.
func (n *Node) apply() {
	if n.applier.midway {
		n.fsm.mu.Unlock()
		return
	}
	n.applier.midway = true
	tasks, bytes := n.tasks.take()
	frozen, err := n.fsm.applyHeld(tasks)
	room := n.tasks.finish(bytes)
	if err != nil {
		n.stopFor(err)
		return
	}
	n.applier.midway = false
	for _, h := range frozen {
		n.post(func(l *loop) { l.frozen(h) })
	}
	if freed := n.reads.Freed(); room || freed || n.out.IsDue() {
		n.inbox.wake()
	}
}

// start runs a function in a goroutine of the node's. A panic stops the node.
// After the node has stopped, it starts nothing and returns false.
func (n *Node) start(f func()) bool {
	n.stop.mu.Lock()
	defer n.stop.mu.Unlock()
	if n.stop.cause != nil {
		return false
	}
	n.wg.Go(func() {
		defer n.guard()
		f()
	})
	return true
}

// guard turns a panic, ours or raft's, into a stopped node.
func (n *Node) guard() {
	if p := recover(); p != nil {
		n.logger.Error("panic; the node stops", "panic", p, "stack", string(debug.Stack()))
		n.stopFor(fmt.Errorf("raftkv: BUG: panic: %v", p))
	}
}

// slowCall is how long a call waits before it says in the log what it waits for:
// a call without a deadline must not hang in silence.
const slowCall = 5 * time.Second

// tellIfSlow logs a message once unless the function it returns is called soon.
func (n *Node) tellIfSlow(msg string, attrs ...any) (stop func() bool) {
	return time.AfterFunc(slowCall, func() { n.logger.Warn(msg, attrs...) }).Stop
}

// stopFor begins to stop the node; the first cause wins.
func (n *Node) stopFor(cause error) {
	n.stop.mu.Lock()
	defer n.stop.mu.Unlock()
	if n.stop.cause == nil {
		n.stop.cause = cause
		close(n.stop.c)
	}
}

// stopped returns why the node stops, nil while it runs.
func (n *Node) stopped() error {
	n.stop.mu.Lock()
	defer n.stop.mu.Unlock()
	return n.stop.cause
}

// supervise ends everything once the node stops, from the callers inwards.
func (n *Node) supervise() {
	<-n.stop.c
	cause := n.stopped()
	n.calls.refuse()
	n.transport.stop()
	n.out.Fail(cause)
	n.reads.Fail(cause)
	n.fsm.fail(cause)
	n.stopServer(cause)
	n.wg.Wait()
	n.loop.change.worker.Fail(cause) // nobody waits any more; the loop's goroutine has ended
	if errors.Is(cause, ErrClosed) || errors.Is(cause, ErrRemoved) {
		n.logger.Info("stopped", "cause", cause)
	} else {
		n.logger.Error("stopped", "cause", cause)
	}
	close(n.donec)
}

// stopServer stops the server. Its handlers' calls on the node have just failed,
// so it need not wait for them; unless the node stops on its own account: then
// callers get the time to read why.
func (n *Node) stopServer(cause error) {
	if !errors.Is(cause, ErrClosed) {
		timer := time.AfterFunc(answerTime, n.listener.closeAll)
		defer timer.Stop()
		n.server.GracefulStop()
	}
	n.listener.closeAll()
	n.server.Stop() // waits for handlers
}

// Done returns a channel that is closed when the node has stopped, for whatever
// reason: Close, Shutdown, its removal or a failure.
func (n *Node) Done() <-chan struct{} { return n.donec }

// Err returns nil until Done is closed, then why the node stopped: ErrClosed,
// ErrRemoved or what failed.
func (n *Node) Err() error {
	select {
	case <-n.donec:
		return n.stopped()
	default:
		return nil
	}
}

// Close stops the node at once and waits until all of it has ended, well under
// a second. Calls under way return ErrClosed, and ErrOutcomeUnknown if they may
// still take effect. The error is always nil. Close may be called again.
func (n *Node) Close() error {
	n.stopFor(ErrClosed)
	<-n.donec
	return nil
}

// Shutdown stops the node gently: it refuses new calls, hands leadership over
// if it leads, waits for the calls under way on this node, and then closes it.
// When ctx ends first it closes the node at once and returns the context's
// error.
func (n *Node) Shutdown(ctx context.Context) error {
	n.calls.refuse()
	n.health.Shutdown() // nobody should come any more
	n.handOver(ctx)
	var err error
	select {
	case <-n.calls.idle():
	case <-n.stop.c:
	case <-ctx.Done():
		err = fault.New("raftkv: shutdown: calls were still under way: "+fault.Ended(ctx).Error(), fault.Ended(ctx))
	}
	_ = n.Close() // always nil
	return err
}
