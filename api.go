// Package raftkv puts strongly consistent shared state inside a Go program.
//
// Three processes each start a [Node]; together they are one linearizable
// key-value store that survives the loss of any minority of them. There is no
// server to install. The state is kept in memory, replicated by Raft
// (go.etcd.io/raft) over gRPC.
//
// # Usage
//
// Start a node, found a cluster or join one, and use it:
//
//	n, err := raftkv.Start(raftkv.Config{ID: 1, Addr: "10.0.0.1:21001"})
//	...
//	defer n.Close()
//	err = n.Init(ctx, members...) // the same list on every member, on every start
//	_, err = n.Put(ctx, "greeting", []byte("hello"))
//	kv, err := n.Get(ctx, "greeting")
//
// Every member takes every call, whether it leads or not, and answers alike.
//
// # What holds
//
// Calls are linearizable: each takes effect at one moment between its begin and
// its return, in one order for the whole cluster. Only a read that asks for it,
// with [Stale] or [MinRevision], may show something older.
//
// A write that returns nil took effect exactly once, and survives as long as a
// majority of the voters keeps running. One that returns an error did not and
// will not take effect, unless the error is [ErrOutcomeUnknown]; that comes only
// when the context ended, or the node stopped, after the write was sent.
//
// A process that restarts has lost its state, and its vote with it. It never
// goes on under its old identity: every life of a process is an incarnation of
// its own. The cluster puts the new one in the place of the old by itself, with
// the same role, within seconds; [Node.Ready] tells when. Restart one member at a
// time and wait for that: when a majority of the voters has lost its memory, calls
// return [ErrQuorumLost], and only a person can go on, with [Node.Recover].
//
// # Contexts
//
// A call that cannot be answered yet, because there is no leader or the learner
// has not caught up, waits until its context ends; give every call a deadline.
// The error then satisfies errors.Is for the context's error, and for
// [ErrNoLeader] if nothing was done or [ErrOutcomeUnknown] if it may have been.
// A result that is known already wins over a context that has ended.
//
// # Limits
//
// Keys, values, pending calls, log and state are bounded by [Limits]; past a
// bound calls return [ErrOverloaded] or [ErrTooLarge] at once. The library
// never exits, prints or panics: a failure stops the node, and Err says why.
package raftkv

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"unsafe"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/reads"
)

// A KeyValue is a key with its value.
type KeyValue struct {
	Key      string
	Value    []byte // the caller's own copy
	Revision uint64 // of the write that set it
}

// A WriteOption changes how Put and Delete work.
type WriteOption func(*writeOptions)

type writeOptions struct {
	conditional bool
	revision    uint64
}

// IfRevision lets a write take effect only if the key's revision is r, as Get
// shows it; 0 means that the key must not exist. Otherwise the write returns
// ErrRevisionMismatch.
func IfRevision(r uint64) WriteOption {
	return func(o *writeOptions) { o.conditional, o.revision = true, r }
}

// A ReadOption changes how Get and List work.
type ReadOption func(*readOptions)

type readOptions struct {
	stale    bool
	revision uint64
	limit    int
	after    string
}

// Stale reads this node's own state, however old it is, without asking anybody.
func Stale() ReadOption { return func(o *readOptions) { o.stale = true } }

// MinRevision reads this node's own state once it has applied revision r, for
// instance that of a Put on another node. It is not linearizable: what was
// written after r may be missing.
func MinRevision(r uint64) ReadOption { return func(o *readOptions) { o.revision = r } }

// Limit lets List return at most n keys; 0 means all. Get ignores it.
func Limit(n int) ReadOption { return func(o *readOptions) { o.limit = n } }

// After lets List begin behind a key: the last one of the page before. Get
// ignores it.
func After(key string) ReadOption { return func(o *readOptions) { o.after = key } }

// Put sets a key to a value and returns the write's revision. It copies the
// value. Put returns when the write is committed and this node shows it.
//
// Without a leader Put waits. When it returns nil the write took effect once,
// however many leaders died meanwhile. Not done: ErrInvalid (empty key),
// ErrTooLarge, ErrOverloaded, ErrRevisionMismatch (then the revision is that of
// the store), ErrNotInitialized, ErrQuorumLost, ErrClosed, ErrRemoved, and the
// context's error with ErrNoLeader. May be done: ErrOutcomeUnknown, with the
// context's error or that of the stopped node.
func (n *Node) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (revision uint64, err error) {
	revision, err = n.write(ctx, command.Command{Op: command.Put, Key: bytesOf(key), Value: value}, opts)
	return revision, wrapKey("put", key, err)
}

// Delete removes a key and returns the write's revision. If there is no such
// key, nothing changes and the store's revision is returned. Errors are those
// of Put.
func (n *Node) Delete(ctx context.Context, key string, opts ...WriteOption) (revision uint64, err error) {
	revision, err = n.write(ctx, command.Command{Op: command.Delete, Key: bytesOf(key)}, opts)
	return revision, wrapKey("delete", key, err)
}

// bytesOf returns a string's bytes, which must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// wrapKey adds what failed to an error, and keeps the prefix of the package
// from standing twice.
func wrapKey(what, key string, err error) error {
	if err == nil {
		return nil
	}
	if len(key) > 64 {
		key = key[:64] + "..."
	}
	return wrap(fmt.Sprintf("%s %q", what, key), err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fault.New("raftkv: "+what+": "+strings.ReplaceAll(err.Error(), "raftkv: ", ""), err)
}

// enter checks what every call needs: a context that has not ended, a node that
// runs and belongs to a cluster.
func (n *Node) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx)
	}
	if err := n.begin(); err != nil {
		return err
	}
	if err := n.usable(); err != nil {
		n.calls.leave()
		return err
	}
	return nil
}

// begin counts a call as under way. The error says why the node takes none.
func (n *Node) begin() error {
	if n.calls.enter() {
		return nil
	}
	if err := n.stopped(); err != nil {
		return err
	}
	return ErrClosed // Shutdown is under way
}

func (n *Node) usable() error {
	switch v := n.view.Load(); {
	case v.raftID == 0:
		return fmt.Errorf("%w: member %d belongs to no cluster yet; Init founds one, AddLearner on a member of another joins it", ErrNotInitialized, n.cfg.ID)
	case v.gone:
		return ErrRemoved
	}
	return nil
}

// gather returns the options of a call. Without any nothing is allocated.
func gather[O any, Option ~func(*O)](opts []Option) O {
	if len(opts) == 0 {
		var none O
		return none
	}
	o := new(O)
	for _, opt := range opts {
		opt(o)
	}
	return *o
}

func (n *Node) write(ctx context.Context, c command.Command, opts []WriteOption) (uint64, error) {
	o := gather[writeOptions](opts)
	c.Conditional, c.IfRevision = o.conditional, o.revision
	if err := n.enter(ctx); err != nil {
		return 0, err
	}
	defer n.calls.leave()
	if err := n.view.Load().lost; err != nil {
		return 0, err
	}
	if err := n.admits(&c); err != nil {
		return 0, err
	}
	t, wake, err := n.out.Add(&c)
	if err != nil {
		return 0, err
	}
	if wake {
		n.inbox.wake()
	}
	select {
	case <-t.Done():
	case <-ctx.Done():
		if err := n.abandon(ctx, t); err != nil {
			return 0, err
		}
	}
	r, err := t.Result()
	if err == nil && r.Mismatch {
		err = ErrRevisionMismatch
	}
	return r.Revision, err
}

// admits checks a command against this node's limits.
func (n *Node) admits(c *command.Command) error {
	limits := &n.cfg.Limits
	if err := checkKey(len(c.Key), limits.MaxKeyBytes); err != nil {
		return err
	}
	if len(c.Value) > limits.MaxValueBytes {
		return fmt.Errorf("%w: value of %d bytes; the limit is %d", ErrTooLarge, len(c.Value), limits.MaxValueBytes)
	}
	if c.Op == command.Put {
		if state := n.fsm.stateBytes.Load(); state+n.out.PendingBytes()+keyspace.Cost(len(c.Key), len(c.Value)) > limits.MaxStateBytes {
			return fmt.Errorf("%w: the state has %d bytes; the limit is %d; delete something", ErrOverloaded, state, limits.MaxStateBytes)
		}
	}
	return nil
}

func checkKey(size, limit int) error {
	switch {
	case size == 0:
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case size > limit:
		return fmt.Errorf("%w: key of %d bytes; the limit is %d", ErrTooLarge, size, limit)
	}
	return nil
}

// abandon gives up a write whose context has ended. It returns nil if the
// result is there after all: a result wins over a context.
func (n *Node) abandon(ctx context.Context, t outbox.Ticket) error {
	sent := n.out.Abandon(t)
	select {
	case <-t.Done():
		return nil
	default:
	}
	if !sent {
		return n.noLeader(ctx)
	}
	text := fmt.Sprintf("%v while the write was under way; it may still take effect", fault.Ended(ctx))
	if lost := n.view.Load().lost; lost != nil {
		return fault.New(text+"; "+lost.Error(), ErrOutcomeUnknown, ErrQuorumLost, fault.Ended(ctx))
	}
	return fault.New(text, ErrOutcomeUnknown, fault.Ended(ctx))
}

// noLeader is the error of a call whose context ended before anything was sent
// or, for a read, confirmed.
func (n *Node) noLeader(ctx context.Context) error {
	v := n.view.Load()
	text := fmt.Sprintf("%v while waiting for a leader; too few of the voters (%s) may be reachable", fault.Ended(ctx), votersText(v.roster))
	if v.leader.RaftID != 0 {
		text = fmt.Sprintf("%v while waiting for the leader, member %d at %s", fault.Ended(ctx), v.leader.ID(), v.leader.Addr)
	}
	return fault.New(text, ErrNoLeader, fault.Ended(ctx))
}

// Get reads a key. It is linearizable: it shows every write that had returned
// before Get was called, on whatever member; see Stale and MinRevision for
// reads that are not. Without a leader it waits. The errors are ErrNotFound and
// those of Put that mean not done.
func (n *Node) Get(ctx context.Context, key string, opts ...ReadOption) (KeyValue, error) {
	kv, err := n.get(ctx, key, opts)
	return kv, wrapKey("get", key, err)
}

func (n *Node) get(ctx context.Context, key string, opts []ReadOption) (KeyValue, error) {
	if err := checkKey(len(key), command.KeyBytesMax); err != nil {
		return KeyValue{}, err
	}
	hash := keyspace.Hash(bytesOf(key))
	_, seat, err := n.read(ctx, opts, hash)
	if err != nil {
		return KeyValue{}, err
	}
	kv, ok := n.fsm.get(key, hash, seat)
	if !ok {
		return KeyValue{}, ErrNotFound
	}
	return kv, nil
}

// keyValue copies an item, whose strings may be pieces of something large.
func keyValue(i keyspace.Item) KeyValue {
	n := len(i.Key)
	b := make([]byte, n+len(i.Value))
	copy(b, i.Key)
	copy(b[n:], i.Value)
	return KeyValue{Key: unsafe.String(unsafe.SliceData(b), n), Value: b[n:], Revision: i.Revision}
}

// read returns when this node's state may be read as the options ask. The reader had
// the seat in a round, if it needed one, with a note for who comes before it.
func (n *Node) read(ctx context.Context, opts []ReadOption, note uint64) (readOptions, reads.Seat, error) {
	o, none := gather[readOptions](opts), reads.Seat{}
	if err := n.enter(ctx); err != nil {
		return o, none, err
	}
	defer n.calls.leave()
	if o.limit < 0 {
		return o, none, fmt.Errorf("%w: limit %d", ErrInvalid, o.limit)
	}
	if lost := n.view.Load().lost; lost != nil && o.revision > 0 {
		if _, revision, _ := n.fsm.status(); revision < o.revision {
			return o, none, lost // it never comes
		}
	}
	if o.stale || o.revision != 0 {
		return o, none, n.fsm.awaitRevision(ctx, o.revision, func() func() bool {
			return n.tellIfSlow("read: waits for a revision that this node has not applied", "revision", o.revision)
		})
	}
	seat, err := n.confirm(ctx, note)
	return o, seat, err
}

// confirm returns when this node's state shows all that was acknowledged before.
func (n *Node) confirm(ctx context.Context, note uint64) (reads.Seat, error) {
	if err := n.view.Load().lost; err != nil {
		return reads.Seat{}, err
	}
	seat, idle := n.reads.Join(note)
	if idle {
		n.inbox.wake()
	}
	select {
	case <-seat.Done():
		return seat, seat.Err()
	case <-ctx.Done():
	}
	select {
	case <-seat.Done(): // a result that is known wins over the context
		return seat, seat.Err()
	default:
		return seat, n.noLeader(ctx)
	}
}

// A Listing is all keys of a List as of one revision. It is immutable and may
// be read by many goroutines, for as long as they like.
type Listing struct {
	Revision uint64 // of the store
	items    iter.Seq[keyspace.Item]
}

// All yields the keys in order. Values are copies. It may be called again.
func (l *Listing) All() iter.Seq[KeyValue] {
	return func(yield func(KeyValue) bool) {
		for i := range l.items {
			if !yield(keyValue(i)) {
				return
			}
		}
	}
}

// List returns all keys that begin with prefix, in order, as of one revision.
// It is linearizable as Get is and has the same options, and Limit and After
// for pages. It copies nothing before the listing is read.
//
// A node keeps its keys in order from its first List on, and begins anew when it has
// been sent a state. That List takes one or two seconds for a million keys;
// others read and write meanwhile.
func (n *Node) List(ctx context.Context, prefix string, opts ...ReadOption) (*Listing, error) {
	o, _, err := n.read(ctx, opts, 0)
	if err != nil {
		return nil, wrapKey("list", prefix, err)
	}
	l, err := n.fsm.list(ctx, prefix, o.after, o.limit)
	return l, wrapKey("list", prefix, err)
}

// Ready returns when this node is a member in force, knows a leader that answers
// and shows all that the cluster had acknowledged when Ready was called. A member
// that has restarted is ready when it has taken over the vote that it had. A node
// that was just started may call Ready at once.
//
// The errors are ErrQuorumLost, ErrClosed, ErrRemoved and the context's error with
// ErrNotInitialized or ErrNoLeader.
func (n *Node) Ready(ctx context.Context) error {
	defer n.tellIfSlow("ready: waits until this process belongs to a cluster and has caught up")()
	return wrap("ready", n.awaitReady(ctx))
}

func (n *Node) awaitReady(ctx context.Context) error {
	for {
		v := n.view.Load()
		switch {
		case v.ready:
			_, err := n.confirm(ctx, 0)
			return err
		case v.lost != nil:
			return v.lost
		}
		select {
		case <-v.nextc:
		case <-n.stop.c:
			return n.stopped()
		case <-ctx.Done():
			if v.raftID != 0 {
				return n.noLeader(ctx)
			}
			return fault.New(fmt.Sprintf("%v before member %d belonged to a cluster", fault.Ended(ctx), n.cfg.ID),
				ErrNotInitialized, fault.Ended(ctx))
		}
	}
}
