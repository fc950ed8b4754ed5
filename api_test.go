package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestEveryMemberTakesEveryCall: leader, follower and learner alike, and what
// it did is seen on every other as soon as it returns.
func TestEveryMemberTakesEveryCall(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for role, n := range c.roles() {
			key := "from " + role
			put := c.put(n, key, role)
			for _, o := range c.nodes {
				kv, err := o.Get(c.ctx(), key)
				if err != nil || kv.Key != key || string(kv.Value) != role || kv.Revision != put {
					t.Errorf("put on the %s, Get on %d = %+v, %v, want revision %d", role, o.cfg.ID, kv, err, put)
				}
			}
			l, err := n.List(c.ctx(), key)
			if err != nil || !slices.Equal(keysOf(l), []string{key}) || l.Revision != put {
				t.Errorf("List on the %s = %+v, %v", role, l, err)
			}
			deleted, err := n.Delete(c.ctx(), key)
			if err != nil || deleted != put+1 {
				t.Errorf("Delete on the %s = %d, %v, want %d", role, deleted, err, put+1)
			}
			for _, o := range c.nodes {
				_, err := o.Get(c.ctx(), key)
				wantErr(t, "Get of what was deleted on the "+role, err, ErrNotFound)
			}
		}
		c.wantSameState()
	})
}

// TestRefusedCallsProposeNothing: what is wrong is refused before it reaches
// the log.
func TestRefusedCallsProposeNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		at := c.roles()
		before := c.commit()
		long, large := strings.Repeat("k", 4<<10+1), make([]byte, 1<<20+1)
		overdue, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		for role, n := range at {
			for name, call := range map[string]func(key string, value []byte, ctx context.Context) error{
				"Put": func(key string, value []byte, ctx context.Context) error {
					_, err := n.Put(ctx, key, value)
					return err
				},
				"Delete": func(key string, value []byte, ctx context.Context) error {
					_, err := n.Delete(ctx, key)
					return err
				},
			} {
				name += " on the " + role
				wantErr(t, name+", empty key", call("", nil, c.ctx()), ErrInvalid)
				wantErr(t, name+", key too long", call(long, nil, c.ctx()), ErrTooLarge)
				wantErr(t, name+", canceled", call("k", nil, canceled()), context.Canceled)
				wantErr(t, name+", overdue", call("k", nil, overdue), context.DeadlineExceeded)
			}
			_, err := n.Put(c.ctx(), "k", large)
			wantErr(t, "Put on the "+role+", value too large", err, ErrTooLarge)
			_, err = n.Get(canceled(), "k")
			wantErr(t, "Get on the "+role+", canceled", err, context.Canceled)
			_, err = n.Get(c.ctx(), "")
			wantErr(t, "Get on the "+role+", empty key", err, ErrInvalid)
			_, err = n.List(canceled(), "")
			wantErr(t, "List on the "+role+", canceled", err, context.Canceled)
			_, err = n.List(c.ctx(), "", Limit(-1))
			wantErr(t, "List on the "+role+", negative limit", err, ErrInvalid)
			_, err = n.ChangeMembership(canceled(), []uint64{1})
			wantErr(t, "ChangeMembership on the "+role+", canceled", err, context.Canceled)
			_, err = n.ChangeMembership(c.ctx(), nil)
			wantErr(t, "ChangeMembership on the "+role+" to nobody", err, ErrInvalid)
			_, err = n.AddLearner(c.ctx(), 9, "no address")
			wantErr(t, "AddLearner on the "+role+" at no address", err, ErrInvalid)
		}
		if after := c.commit(); after != before {
			t.Errorf("commit index %d became %d", before, after)
		}
		if r := c.leader().Status().Revision; r != 0 {
			t.Errorf("revision %d, want 0", r)
		}
	})
}

// canceled returns a context that is done.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// everyCall makes each call of the API once.
func (c *cluster) everyCall(n *Node, ctx context.Context) map[string]error {
	errs := make(map[string]error)
	_, errs["Put"] = n.Put(ctx, "k", nil)
	_, errs["Get"] = n.Get(ctx, "k")
	_, errs["stale Get"] = n.Get(ctx, "k", Stale())
	_, errs["Get with MinRevision"] = n.Get(ctx, "k", MinRevision(1<<40))
	_, errs["Delete"] = n.Delete(ctx, "k")
	_, errs["List"] = n.List(ctx, "")
	_, errs["AddLearner"] = n.AddLearner(ctx, 9, "n9:1")
	_, errs["RemoveLearner"] = n.RemoveLearner(ctx, 9)
	_, errs["ChangeMembership"] = n.ChangeMembership(ctx, []uint64{n.cfg.ID})
	errs["TransferLeadership"] = n.TransferLeadership(ctx, n.cfg.ID)
	return errs
}

// TestCallsBeforeInit: a blank process refuses all but Ready at once, and goes
// on.
func TestCallsBeforeInit(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		n := c.start(1)
		begin := time.Now()
		for name, err := range c.everyCall(n, c.ctx()) {
			wantErr(t, name, err, ErrNotInitialized)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the calls took %v", took)
		}
		if s := n.Status(); s.Role != Blank || s.ID != 1 || s.ClusterID != "" || s.Leader != 0 || len(s.Membership.Members) != 0 {
			t.Errorf("status %+v", s)
		}
		wantErr(t, "Ready", n.Ready(c.within(time.Second)), ErrNotInitialized, context.DeadlineExceeded)
		select {
		case <-n.Done():
			t.Error("done")
		default:
		}
		if n.Err() != nil {
			t.Errorf("Err() = %v", n.Err())
		}
	})
}

// TestCallsAfterClose: all are refused; Status shows what was last known.
func TestCallsAfterClose(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		c.put(n, "k", "v")
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		errs := c.everyCall(n, c.ctx())
		errs["Ready"], errs["Init"] = n.Ready(c.ctx()), n.Init(c.ctx())
		errs["Err"] = n.Err()
		for name, err := range errs {
			wantErr(t, name, err, ErrClosed)
		}
		select {
		case <-n.Done():
		default:
			t.Error("not done")
		}
		if err := n.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := n.Shutdown(c.ctx()); err != nil {
			t.Errorf("Shutdown after Close: %v", err)
		}
		if s := n.Status(); s.ID != 1 || s.Revision != 1 || len(s.Membership.Members) != 1 {
			t.Errorf("status after Close %+v, want what was last known", s)
		}
	})
}

// TestCauseOfTheContextIsKept: errors.Is holds for the context's error and for
// the cause that its owner gave.
func TestCauseOfTheContextIsKept(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(3)
		n := c.follower()
		c.net.Isolate(n.cfg.Addr)
		cause := errors.New("out of patience")
		ended, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		for name, err := range c.everyCall(n, ended) {
			if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
				t.Errorf("%s with a canceled context: %v", name, err)
			}
		}
		for name, call := range map[string]func(ctx context.Context) error{
			"Put":                func(ctx context.Context) error { _, err := n.Put(ctx, "k", nil); return err },
			"Get":                func(ctx context.Context) error { _, err := n.Get(ctx, "k"); return err },
			"MinRevision":        func(ctx context.Context) error { _, err := n.Get(ctx, "k", MinRevision(99)); return err },
			"Ready":              n.Ready,
			"ChangeMembership":   func(ctx context.Context) error { _, err := n.ChangeMembership(ctx, []uint64{1}); return err },
			"TransferLeadership": func(ctx context.Context) error { return n.TransferLeadership(ctx, 1) },
			"Init": func(ctx context.Context) error {
				return c.start(7).Init(ctx, Member{ID: 7, Addr: "n7:1"}, Member{ID: 8, Addr: "n8:1"})
			},
			"Ready, blank": func(ctx context.Context) error { return c.start(6).Ready(ctx) },
		} {
			ctx, cancel := context.WithTimeoutCause(context.Background(), 3*time.Second, cause)
			err := call(ctx)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cause) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestResultWinsOverAContextThatEnds: what a call says of its write is true,
// whether or not it says that its context ended.
func TestResultWinsOverAContextThatEnds(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.found(1)
		n := c.nodes[1]
		for i := range 200 { // both are ready when the caller looks: one is chosen at random
			ctx, cancel := context.WithCancel(context.Background())
			errc := make(chan error, 1)
			key := fmt.Sprint(i)
			go func() {
				_, err := n.Put(ctx, key, nil)
				errc <- err
			}()
			if i%2 == 0 {
				synctest.Wait()
			}
			cancel()
			err := <-errc
			_, getErr := n.Get(c.ctx(), key)
			switch {
			case err == nil && getErr == nil, errors.Is(err, ErrOutcomeUnknown):
			case err != nil && errors.Is(getErr, ErrNotFound):
			default:
				t.Fatalf("put %d: %v, then get: %v", i, err, getErr)
			}
		}
	})
}
