package raftkv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"example.com/raftkv/internal/history"
)

// client calls one member, whatever process that is, until it is told to stop.
func (k *chaos) client(client int, home uint64, rng *rand.Rand) {
	seen := make(map[string]uint64) // revision by key
	for i := 0; !k.over.Load(); i++ {
		k.cluster.pause(upToDuration(rng, 200*time.Millisecond))
		n := k.node(home)
		if n == nil || n.Status().Role == Blank {
			continue
		}
		key := fmt.Sprint("key ", rng.IntN(5))
		timeout := 100*time.Millisecond + upToDuration(rng, 4*time.Second)
		op := history.Op{Kind: history.Get, Key: key}
		switch p := rng.IntN(20); {
		case p < 9:
			op.Kind, op.Value = history.Put, fmt.Sprintf("%d.%d", client, i)
		case p < 11:
			op.Kind = history.Delete
		case p == 11:
			k.list(client, n, timeout)
			continue
		}
		if op.Kind != history.Get && rng.IntN(3) == 0 {
			op.Conditional, op.IfRevision = true, seen[key]
		}
		if result := k.do(client, n, op, timeout); op.Kind == history.Get || result.Outcome == history.OK {
			seen[key] = result.Revision // 0 if it is not there
		}
	}
}

// do makes a call, records it and checks its error.
func (k *chaos) do(client int, n *Node, op history.Op, timeout time.Duration) history.Result {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var opts []WriteOption
	if op.Conditional {
		opts = append(opts, IfRevision(op.IfRevision))
	}
	var result history.Result
	var err error
	begin := time.Now()
	id := k.record.Begin(client, op, int64(time.Since(k.began)))
	switch op.Kind {
	case history.Put:
		result.Revision, err = n.Put(ctx, op.Key, []byte(op.Value), opts...)
	case history.Delete:
		result.Revision, err = n.Delete(ctx, op.Key, opts...)
	default:
		var kv KeyValue
		kv, err = n.Get(ctx, op.Key)
		result.Value, result.Revision = string(kv.Value), kv.Revision
	}
	result.Outcome = history.OutcomeOf(err)
	k.record.End(id, result, int64(time.Since(k.began)))
	k.judge(n, op, err, time.Since(begin), timeout)
	return result
}

// judge checks an error, and that no call takes longer than it may.
func (k *chaos) judge(n *Node, op history.Op, err error, took, timeout time.Duration) {
	if took > timeout {
		k.t.Errorf("member %d: %v took %v of %v", n.cfg.ID, op, took, timeout)
	}
	ended := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) || errors.Is(err, ErrRemoved)
	isRead := op.Kind == history.Get || op.Kind == history.List
	switch {
	case errors.Is(err, ErrQuorumLost), errors.Is(err, ErrOutcomeUnknown) && (isRead || !ended), errors.Is(err, ErrNoLeader) && !ended:
		k.t.Errorf("member %d: %v: %v", n.cfg.ID, op, err)
	case err == nil, ended, errors.Is(err, ErrNotFound) && op.Kind == history.Get, errors.Is(err, ErrRevisionMismatch) && op.Conditional:
	default:
		k.t.Errorf("member %d: %v: %v", n.cfg.ID, op, err)
	}
}

// list lists everything.
func (k *chaos) list(client int, n *Node, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	op := history.Op{Kind: history.List}
	begin := time.Now()
	id := k.record.Begin(client, op, int64(time.Since(k.began)))
	l, err := n.List(ctx, "")
	result := history.Result{Outcome: history.OutcomeOf(err)}
	if err == nil {
		result.Revision = l.Revision
		for kv := range l.All() {
			result.Items = append(result.Items, history.Item{Key: kv.Key, Value: string(kv.Value), Revision: kv.Revision})
		}
	}
	k.record.End(id, result, int64(time.Since(k.began)))
	k.judge(n, op, err, time.Since(begin), timeout)
}
