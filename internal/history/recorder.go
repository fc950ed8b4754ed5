package history

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// A seq is a place in the order of all calls and returns.
//
// The order in which they reach the recorder is what "before" means here, and
// not the times, which are for messages: an End that comes before a Begin does
// so in real time, whatever the clock's resolution, and in virtual time much
// happens at the same instant.
type seq int32

const (
	beginning seq = 0             // before the first operation
	never     seq = math.MaxInt32 // the return of what is unknown
)

// startClient is the client of the puts that stand for what was there before.
const startClient = -1

// An operation is one call with its return.
type operation struct {
	Op
	result    Result
	client    int
	call      seq
	ret       seq // never while it is open
	callAt    int64
	retAt     int64
	isCarried bool // from the recorder before
}

// String describes the operation with its result.
func (o *operation) String() string {
	if o.client == startClient {
		return fmt.Sprintf("%v at revision %d, before the history begins", o.Op, o.result.Revision)
	}
	end := "open"
	if o.ret != never {
		end = time.Duration(o.retAt).String()
	}
	text := fmt.Sprintf("client %d [%v, %s]: %v: %v",
		o.client, time.Duration(o.callAt), end, o.Op, o.result.Outcome)
	switch {
	case o.result.Outcome == Mismatch || o.Kind == List && o.result.Outcome == OK:
		text += fmt.Sprintf(", store revision %d", o.result.Revision)
	case o.Kind == Get && o.result.Outcome == OK:
		text += fmt.Sprintf(", %.64q, revision %d", o.result.Value, o.result.Revision)
	case o.result.Outcome == OK:
		text += fmt.Sprintf(", revision %d", o.result.Revision)
	}
	return text
}

// An ID is an operation of one recorder.
type ID int

// A Recorder is a history in the making. The zero value is one of a store that
// was never written to. All methods may be called concurrently.
type Recorder struct {
	mu            sync.Mutex // guards what follows
	ops           []operation
	last          seq
	startRevision uint64 // of the store; what it held stands in ops
}

// Begin records a call. It must come before the call is made. The client is for
// messages; now is in nanoseconds of any clock.
func (r *Recorder) Begin(client int, op Op, now int64) ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.ops = append(r.ops, operation{Op: op, client: client, call: r.last, ret: never, callAt: now})
	return ID(len(r.ops) - 1)
}

// End records the return of a call, after it. An operation ends at most once.
func (r *Recorder) End(id ID, result Result, now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := &r.ops[id]
	if o.ret != never {
		panic(fmt.Sprintf("history: operation %d ends twice: %v", id, o))
	}
	r.last++
	o.result, o.ret, o.retAt = result, r.last, now
}

// Len returns how many operations have begun.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

// Next returns a recorder for what comes after, so that a long test need not
// keep all of its history. It begins with what the last operation shows, which
// must be a List of everything, called when all others had returned. Writes of
// unknown outcome that have not shown themselves go along, as they may yet.
//
// Next does not check anything; nobody may use r after it.
func (r *Recorder) Next() (*Recorder, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, err := r.finalList()
	if err != nil {
		return nil, err
	}
	next := &Recorder{startRevision: last.result.Revision}
	for _, i := range last.result.Items {
		next.ops = append(next.ops, operation{
			Op:     Op{Kind: Put, Key: i.Key, Value: i.Value},
			result: Result{Outcome: OK, Revision: i.Revision},
			client: startClient,
		})
	}
	seen := r.valuesSeen()
	for _, o := range r.ops {
		if o.isRead() || o.result.Outcome != Unknown {
			continue
		}
		if _, ok := seen[o.Value]; ok && o.Kind == Put {
			continue
		}
		o.call, o.ret, o.isCarried = beginning, never, true
		next.ops = append(next.ops, o)
	}
	return next, nil
}

func (r *Recorder) finalList() (*operation, error) {
	if len(r.ops) == 0 {
		return nil, errors.New("history: nothing to go on from: no operation")
	}
	last := &r.ops[len(r.ops)-1]
	isAll := last.Kind == List && last.Key == "" && last.After == "" && last.Limit == 0 && !last.isStale()
	if !isAll || last.result.Outcome != OK {
		return nil, fmt.Errorf("history: the last operation is not a List of everything: %v", last)
	}
	for i := range r.ops {
		if o := &r.ops[i]; o != last && o.ret != never && o.ret > last.call {
			return nil, fmt.Errorf("history: the last List was called before this returned: %v", o)
		}
	}
	return last, nil
}

func (r *Recorder) valuesSeen() map[string]struct{} {
	seen := make(map[string]struct{})
	for i := range r.ops {
		o := &r.ops[i]
		if o.result.Outcome != OK {
			continue
		}
		if o.Kind == Get {
			seen[o.result.Value] = struct{}{}
		}
		for _, item := range o.result.Items {
			seen[item.Value] = struct{}{}
		}
	}
	return seen
}
