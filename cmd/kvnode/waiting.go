package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// waitingNotice is how long a command waits before it says what for.
const waitingNotice = 3 * time.Second

// tellWhileWaiting writes one line about what a command waits for if it is not
// stopped soon. It uses connections of its own: what was sent on that of the
// command matters.
func (c *client) tellWhileWaiting(ctx context.Context, stderr io.Writer, what string, why func(context.Context) string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTimer(waitingNotice)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if text := why(ctx); ctx.Err() == nil {
			fmt.Fprintf(stderr, "kvnode: %s: still waiting (%v at most): %s\n", what, c.timeout, text)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// whyChangeWaits looks at the first endpoint that answers.
func (c *client) whyChangeWaits(ctx context.Context) string {
	for _, addr := range c.endpoints {
		l, err := connect(ctx, addr, c.share(probeTimeoutMax))
		if err != nil {
			continue
		}
		defer l.close()
		ctx, cancel := context.WithTimeout(ctx, probeTimeoutMax)
		defer cancel()
		st, err := raftkvv1.NewClusterServiceClient(l.conn).Status(ctx, &raftkvv1.StatusRequest{})
		switch {
		case err != nil:
			return fmt.Sprintf("%s does not answer", addr)
		case st.GetLeader() == 0:
			return fmt.Sprintf("%s knows no leader; too few of the voters may be running: kvnode status --endpoints %s", addr, addr)
		}
		return fmt.Sprintf("the leader, member %d, works on it; members may have to catch up: kvnode status --endpoints %s", st.GetLeader(), addr)
	}
	return "no endpoint answers"
}

// whyInitWaits looks which of the founders cannot be reached.
func (c *client) whyInitWaits(members []*raftkvv1.Member) func(context.Context) string {
	return func(ctx context.Context) string {
		var missing []string
		for _, m := range members {
			l, err := connect(ctx, m.GetAddr(), probeTimeoutMax)
			if err != nil {
				missing = append(missing, fmt.Sprintf("%d=%s", m.GetId(), m.GetAddr()))
				continue
			}
			l.close()
		}
		if len(missing) == 0 {
			return "all that are listed accept connections; the founding is under way"
		}
		return strings.Join(missing, ", ") + " cannot be reached; start all that are listed"
	}
}
