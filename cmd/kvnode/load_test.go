package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"example.com/raftkv/internal/history"
	"example.com/raftkv/internal/wire"
	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

const (
	// Few keys, so that operations meet; a delete now and then keeps Lists short.
	loadKeys = 5
	// A client's pause between operations. A handful of clients leaves most of
	// two cores to the processes, and the history stays small enough to check.
	loadPause = 4 * time.Millisecond
	// A call that waits for longer than an election is given up.
	loadTimeout = 3 * election
	// How long a client waits for an endpoint before it looks for another.
	connectPause = 100 * time.Millisecond
	// How many operations of each kind a test must have seen succeed.
	doneMin = 10
	// How long the check of a history may search.
	checkTimeout = time.Minute
)

// A load is clients that read and write a few keys all the time, and a record
// of what they saw. One client is bound to each member, and some go to whoever
// answers, as programs do.
type load struct {
	p      *processes
	start  time.Time
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the clients

	// turn is held for reading during an operation, and for writing by a check,
	// which thus has the store for itself.
	turn     sync.RWMutex
	recorder *history.Recorder
	done     [history.List + 1]int // what succeeded, by kind; only check uses it

	mu      sync.Mutex // guards what follows
	last    time.Time  // of the last acknowledged write
	longest time.Duration
	mark    time.Time // what is awaited: a write that began after it
	marked  time.Time // when that was acknowledged, zero before
}

// startLoad starts clients that end with the test.
func (p *processes) startLoad(rng *rand.Rand) *load {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{p: p, start: time.Now(), cancel: cancel, recorder: new(history.Recorder), last: time.Now()}
	for n := range len(p.addrs) + 3 {
		c := &loadClient{load: l, n: n, rng: rand.New(rand.NewPCG(rng.Uint64(), 0))}
		for id := uint64(1); id <= uint64(len(p.addrs)); id++ {
			if n >= len(p.addrs) || int(id) == n+1 {
				conn := dial(p.t, p.addrs[id])
				p.t.Cleanup(func() { conn.Close() })
				c.conns = append(c.conns, conn)
			}
		}
		c.at = n % len(c.conns)
		l.wg.Go(func() { c.run(ctx) })
	}
	p.t.Cleanup(l.stop) // before the connections are closed
	return l
}

func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// acknowledged notes that a write was.
func (l *load) acknowledged(began, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, now.Sub(l.last))
	l.last = now
	if l.marked.IsZero() && began.After(l.mark) {
		l.marked = now
	}
}

// wantWrites waits for the acknowledgement of a write that begins from now on,
// and returns how long it took.
func (l *load) wantWrites(limit time.Duration, what string) time.Duration {
	l.p.t.Helper()
	l.mu.Lock()
	l.mark, l.marked = time.Now(), time.Time{}
	l.mu.Unlock()
	var took time.Duration
	l.p.await(limit, "writes go on "+what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		took = l.marked.Sub(l.mark)
		return !l.marked.IsZero()
	})
	return took
}

// pause returns the longest time without an acknowledged write since it was
// last asked.
func (l *load) pause() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest := max(l.longest, time.Since(l.last))
	l.longest, l.last = 0, time.Now()
	return longest
}

// check holds the clients, has one List read everything, and checks the history
// up to it: no acknowledged write is lost, and everything was linearizable. The
// clients go on with a new history.
func (l *load) check() {
	t := l.p.t
	t.Helper()
	l.turn.Lock()
	defer l.turn.Unlock()
	reader := &loadClient{load: l, n: 100, conns: []*grpc.ClientConn{l.p.conn(l.p.ids()[0])}}
	l.p.await(healingMax, "a last list of everything", func() bool {
		ctx := context.Background()
		return reader.connect(ctx) && reader.do(ctx, history.Op{Kind: history.List}).Outcome == history.OK
	})
	report, err := l.recorder.Check(checkTimeout)
	t.Log(report)
	if err != nil {
		t.Fatal(err)
	}
	for kind := range l.done {
		l.done[kind] += report.Count(history.Kind(kind), history.OK)
	}
	if l.recorder, err = l.recorder.Next(); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.last = time.Now()
	l.mu.Unlock()
}

// finish checks all that there is to check once faults are over: the members
// are back, the history holds, and they show the same.
func (l *load) finish() {
	l.p.t.Helper()
	l.p.awaitReady(healingMax, l.p.ids()...)
	l.check()
	l.stop()
	for kind, n := range l.done {
		if n < doneMin {
			l.p.t.Errorf("only %d of kind %v succeeded, want %d: the histories show little", n, history.Kind(kind), doneMin)
		}
	}
	l.p.wantMembers()
	l.p.wantSameState()
}

// A loadClient calls one member, or another one when that does not answer.
type loadClient struct {
	*load
	n     int
	rng   *rand.Rand
	conns []*grpc.ClientConn
	at    int // the connection in use
	puts  int
	// seen is the revision of a key that it has seen last.
	seen [loadKeys]uint64
}

// run ends with the context.
func (c *loadClient) run(ctx context.Context) {
	ticker := time.NewTicker(loadPause)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if !c.connect(ctx) {
			c.at = (c.at + 1) % len(c.conns)
			continue
		}
		c.turn.RLock()
		if ctx.Err() == nil {
			c.step(ctx)
		}
		c.turn.RUnlock()
	}
}

// connect reports whether there is a connection, so that what fails for lack of
// one does not count as sent.
func (c *loadClient) connect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectPause)
	defer cancel()
	conn := c.conns[c.at]
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return true
}

func (c *loadClient) step(ctx context.Context) {
	key := c.rng.IntN(loadKeys)
	op := history.Op{Key: fmt.Sprint("key ", key)}
	switch dice := c.rng.IntN(100); {
	case dice < 40:
		op.Kind = history.Get
	case dice < 90:
		c.puts++
		op.Kind, op.Value = history.Put, fmt.Sprintf("%d/%d", c.n, c.puts)
		op.Conditional, op.IfRevision = dice >= 75, c.seen[key]
	case dice < 93:
		op.Kind = history.Delete
	default:
		op.Kind, op.Key = history.List, ""
	}
	if !op.Conditional {
		op.IfRevision = 0
	}
	result := c.do(ctx, op)
	switch {
	case op.Kind == history.List:
	case result.Outcome == history.OK && op.Kind != history.Delete:
		c.seen[key] = result.Revision
	case result.Outcome == history.NotFound:
		c.seen[key] = 0
	case result.Outcome == history.Unknown:
		c.at = (c.at + 1) % len(c.conns) // whoever was called may be in trouble
	}
}

// do makes a call and records it.
func (c *loadClient) do(ctx context.Context, op history.Op) history.Result {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	client := raftkvv1.NewKVServiceClient(c.conns[c.at])
	began := time.Now()
	id := c.recorder.Begin(c.n, op, int64(began.Sub(c.start)))
	var result history.Result
	var err error
	switch op.Kind {
	case history.Put:
		result, err = callPut(ctx, client, op)
	case history.Delete:
		var resp *raftkvv1.DeleteResponse
		resp, err = client.Delete(ctx, &raftkvv1.DeleteRequest{Key: []byte(op.Key)})
		result.Revision = resp.GetRevision()
	case history.Get:
		result, err = callGet(ctx, client, op)
	case history.List:
		result, err = callList(ctx, client)
	}
	if err != nil {
		result.Outcome = outcomeOf(err)
	} else {
		result.Outcome = cmp.Or(result.Outcome, history.OK)
	}
	now := time.Now()
	c.recorder.End(id, result, int64(now.Sub(c.start)))
	if err == nil && (op.Kind == history.Put || op.Kind == history.Delete) {
		c.acknowledged(began, now)
	}
	return result
}

// outcomeOf reads what an error says about what was done. A mismatch does not
// show a revision on the wire, so all that it says is that nothing was done.
func outcomeOf(err error) history.Outcome {
	told, _ := wire.FromStatus(err)
	if o := history.OutcomeOf(told); o != history.Mismatch {
		return o
	}
	return history.NotDone
}

func callPut(ctx context.Context, client raftkvv1.KVServiceClient, op history.Op) (history.Result, error) {
	req := &raftkvv1.PutRequest{Key: []byte(op.Key), Value: []byte(op.Value)}
	if op.Conditional {
		req.IfRevision = &op.IfRevision
	}
	resp, err := client.Put(ctx, req)
	return history.Result{Revision: resp.GetRevision()}, err
}

func callGet(ctx context.Context, client raftkvv1.KVServiceClient, op history.Op) (history.Result, error) {
	resp, err := client.Get(ctx, &raftkvv1.GetRequest{Key: []byte(op.Key)})
	if err == nil && resp.GetKv() == nil {
		return history.Result{Outcome: history.NotFound}, nil
	}
	return history.Result{Value: string(resp.GetKv().GetValue()), Revision: resp.GetKv().GetRevision()}, err
}

func callList(ctx context.Context, client raftkvv1.KVServiceClient) (result history.Result, err error) {
	stream, err := client.List(ctx, &raftkvv1.ListRequest{})
	for err == nil {
		var part *raftkvv1.ListResponse
		part, err = stream.Recv()
		if err == nil {
			result.Revision = part.GetRevision()
		}
		for _, kv := range part.GetKvs() {
			result.Items = append(result.Items, history.Item{Key: string(kv.GetKey()), Value: string(kv.GetValue()), Revision: kv.GetRevision()})
		}
	}
	if errors.Is(err, io.EOF) {
		return result, nil
	}
	return history.Result{}, err
}
