package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// How often a member is asked whether it is ready. What waits is a script that
// restarts members, each of which takes a second or more.
const readyInterval = 100 * time.Millisecond

// askStatus asks one member and, if it has no answer, says why. Connecting and
// asking may each take the timeout.
func askStatus(ctx context.Context, addr string, timeout time.Duration) (*raftkvv1.StatusResponse, problem) {
	l, err := connect(ctx, addr, timeout)
	if err != nil {
		return nil, problem{code: exitUnreachable, text: err.Error(), next: true}
	}
	defer l.close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	st, err := raftkvv1.NewClusterServiceClient(l.conn).Status(ctx, &raftkvv1.StatusRequest{})
	if err != nil {
		return nil, explain(operation{what: "status", local: true}, addr, err, circumstances{timeout: timeout})
	}
	return st, problem{}
}

// statusWhenReady is status --wait-ready.
func (c *client) statusWhenReady(ctx context.Context, cmd *cobra.Command) error {
	if len(c.endpoints) > 1 {
		return usageFailure("--wait-ready wants one endpoint, the member to wait for, and got %d (--endpoints or KVNODE_ENDPOINTS)", len(c.endpoints))
	}
	if !cmd.Flags().Changed("timeout") {
		c.timeout = longTimeout // the default of --timeout is that of a single question
	}
	st, err := c.waitReady(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	return c.printStatus(cmd.OutOrStdout(), c.endpoints[0], st)
}

// waitReady returns the status of the one endpoint once it is ready.
func (c *client) waitReady(parent context.Context, stderr io.Writer) (*raftkvv1.StatusResponse, error) {
	const what = "status --wait-ready"
	addr := c.endpoints[0]
	defer c.tellWhileWaiting(parent, stderr, what, func(ctx context.Context) string {
		_, why := askReady(ctx, addr)
		return why.text
	})()
	deadline := time.Now().Add(c.timeout)
	ctx, cancel := context.WithDeadline(parent, deadline)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	var last problem
	for {
		st, why := askReady(ctx, addr)
		if time.Now().Before(deadline) || last.text == "" { // that the time is over is no news of the member
			last = why
		}
		switch {
		case why.text == "":
			return st, nil
		case parent.Err() != nil:
			return nil, fail(exitInterrupted, "%s: interrupted: %s", what, last.text)
		case !last.next:
			return nil, fail(last.code, "%s: %s", what, last.text)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil && parent.Err() == nil {
			return nil, fail(exitUnreachable, "%s: not ready within %v: %s", what, c.timeout, last.text)
		}
	}
}

// askReady returns a problem without a text if the member is ready. It may be so
// later if the problem says next.
func askReady(ctx context.Context, addr string) (*raftkvv1.StatusResponse, problem) {
	st, why := askStatus(ctx, addr, connectTimeoutMax)
	switch {
	case st == nil, st.GetReady():
		return st, why
	case st.GetClusterId() == "":
		return st, problem{next: true, text: fmt.Sprintf("%s: member %d is blank: no cluster has taken it up yet; "+
			"kvnode add-learner adds it if it is new, kvnode recover helps if a majority of its cluster has restarted", addr, st.GetId())}
	case st.GetQuorumLost():
		return st, problem{code: exitFailed, text: fmt.Sprintf("%s: member %d will not become ready: %s; choose the best survivor with: %s",
			addr, st.GetId(), whyNotReady(st), recoverCommand(st))}
	}
	return st, problem{next: true, text: fmt.Sprintf("%s: member %d %s; look with: kvnode status --endpoints %s", addr, st.GetId(), whyNotReady(st), addr)}
}

// whyNotReady says how far a member of a cluster is, in words that follow its
// name.
func whyNotReady(st *raftkvv1.StatusResponse) string {
	switch {
	case st.GetQuorumLost():
		return "a majority of the voters is lost"
	case st.GetLeader() == 0:
		return "knows no leader; too few of the voters may be running"
	case st.GetRole() == raftkvv1.Role_ROLE_LEARNER && hasVote(st):
		return "catches up, and then takes over the vote that its restart has cost"
	}
	return fmt.Sprintf("has not caught up with its leader, member %d, or does not hear from it", st.GetLeader())
}

// hasVote reports whether the membership has the member as a voter. One that is
// put in the place of a voter which has restarted is a learner until it has
// caught up, but the membership shows what it will be.
func hasVote(st *raftkvv1.StatusResponse) bool {
	return slices.ContainsFunc(st.GetMembership().GetMembers(), func(m *raftkvv1.Member) bool {
		return m.GetId() == st.GetId() && m.GetRole() == raftkvv1.Role_ROLE_VOTER
	})
}

// recoverCommand asks all members what they have. Where their addresses would
// not fit in a line it leaves them to the person.
func recoverCommand(st *raftkvv1.StatusResponse) string {
	const command, widthMax = "kvnode recover --endpoints ", 90
	var addrs string
	for i, m := range st.GetMembership().GetMembers() {
		if i > 0 {
			addrs += ","
		}
		addrs += oneLine(m.GetAddr())
	}
	if addrs == "" || len(command)+len(addrs) > widthMax {
		addrs = "ALL-MEMBERS"
	}
	return command + addrs
}
