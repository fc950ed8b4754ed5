package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// An operation is what a command asks of a cluster, as far as errors and
// endpoints are concerned.
type operation struct {
	what string // as an error names it: put "key"
	look string // for a write: how to find out what became of it
	// echo is how the library names it in its own errors, which would otherwise
	// say it twice.
	echo string
	// blank is what to do if the member belongs to no cluster, if not the usual.
	blank string
	// write: it changes something, so it must not be sent twice.
	write bool
	// local: a member answers by itself, whether there is a leader or not.
	local bool
}

// problem is what kept one endpoint from answering.
type problem struct {
	code int
	text string
	// next: certainly not done, or only a read; another endpoint may be asked.
	next bool
	// weight orders problems by how much they tell about the cluster. If no
	// endpoint can, the heaviest is reported: "no leader" says more than that
	// some other endpoint refused the connection.
	weight int
}

const (
	weightUnreachable = iota
	weightSilent
	weightBlank
	weightStopping
	weightAnswered
	weightLost
)

// do runs f against the first endpoint that can do it. An error that f returns
// as a *failure is final; every other is a gRPC status and is explained.
//
// A request that was sent is sent again only if it is a read, or if the member
// has answered that it did not and will not do it.
func (c *client) do(parent context.Context, op operation, f func(ctx context.Context, l *link) error) error {
	ctx, cancel := context.WithTimeout(parent, c.timeout)
	defer cancel()
	var problems []problem
	for l, err := range c.links(ctx, op) {
		if parent.Err() != nil {
			return fail(exitInterrupted, "%s: interrupted", op.what)
		}
		if err != nil {
			problems = append(problems, problem{code: exitUnreachable, text: err.Error(), next: true})
			continue
		}
		l.sent.Store(false)
		err = f(ctx, l)
		if err == nil {
			return nil
		}
		if final, ok := errors.AsType[*failure](err); ok {
			return final
		}
		p := explain(op, l.addr, err, circumstances{
			sent: l.sent.Load(), interrupted: parent.Err() != nil, timeout: c.timeout,
		})
		if !p.next {
			return fail(p.code, "%s: %s", op.what, p.text)
		}
		problems = append(problems, p)
	}
	return summary(op, problems, c.endpoints)
}

// links connects to one endpoint after the other. Those that answer but see no
// leader come last, because they would make a call wait for nothing while
// another endpoint could answer at once: they may be cut off from the majority.
func (c *client) links(ctx context.Context, op operation) iter.Seq2[*link, error] {
	return func(yield func(*link, error) bool) {
		var later []*link
		defer func() {
			for _, l := range later {
				l.close()
			}
		}()
		for _, addr := range c.endpoints {
			l, err := connect(ctx, addr, c.share(connectTimeoutMax))
			if err == nil && !op.local && len(c.endpoints) > 1 && !l.knowsLeader(ctx, c.share(probeTimeoutMax)) {
				later = append(later, l)
				continue
			}
			if !yieldAndClose(yield, l, err) {
				return
			}
		}
		for _, l := range later {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func yieldAndClose(yield func(*link, error) bool, l *link, err error) bool {
	if l != nil {
		defer l.close()
	}
	return yield(l, err)
}

// share bounds a step towards one endpoint so that all get their turn.
func (c *client) share(most time.Duration) time.Duration {
	return min(most, c.timeout/time.Duration(len(c.endpoints)))
}

// summary is the error when no endpoint could do it.
func summary(op operation, problems []problem, endpoints []string) error {
	best := problems[0]
	for _, p := range problems[1:] {
		if p.weight > best.weight {
			best = p
		}
	}
	also := ""
	if len(endpoints) > 1 {
		also = fmt.Sprintf(" (tried %s)", strings.Join(endpoints, ", "))
	}
	return fail(best.code, "%s: %s%s", op.what, best.text, also)
}
