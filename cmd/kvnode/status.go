package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func newStatus() *cobra.Command {
	c, watch, waitReady := &client{}, false, false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster as one member sees it",
		Long: `Shows the cluster as the first endpoint sees it that answers. Only the leader
knows how far the others are. With --watch: again every second until interrupted,
redrawn on a terminal, otherwise a line each.

With --wait-ready: waits until the member at the one endpoint is ready, up to a
minute or --timeout, and then shows it. Ready is a member that has caught up, knows
a leader that answers and, if it has restarted, has its vote again; so whoever
restarts all members waits for each before the next:
  for id in 1 2 3; do
    systemctl restart kvnode@$id
    kvnode status --wait-ready --endpoints 127.0.0.1:2100$id || break
  done
It exits 4 if the time is over first, and 1 at once if a majority is lost.`,
		Args: arguments(0, 0),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			switch {
			case watch && waitReady:
				return usageFailure("--watch and --wait-ready exclude each other")
			case waitReady:
				return c.statusWhenReady(ctx, cmd)
			case watch:
				return c.watch(ctx, cmd)
			}
			st, addr, err := c.status(ctx)
			if err != nil {
				return err
			}
			return c.printStatus(cmd.OutOrStdout(), addr, st)
		}),
	}
	c.register(cmd, defaultTimeout)
	cmd.Flags().BoolVar(&watch, "watch", false, "again every second until interrupted")
	cmd.Flags().BoolVar(&waitReady, "wait-ready", false, "first wait until the member is ready, a minute unless --timeout says otherwise")
	return cmd
}

// status asks the first endpoint that answers and says which that was.
func (c *client) status(ctx context.Context) (st *raftkvv1.StatusResponse, addr string, err error) {
	err = c.do(ctx, operation{what: "status", local: true}, func(ctx context.Context, l *link) (err error) {
		st, err = raftkvv1.NewClusterServiceClient(l.conn).Status(ctx, &raftkvv1.StatusRequest{})
		addr = l.addr
		return err
	})
	return st, addr, err
}

func (c *client) printStatus(w io.Writer, addr string, st *raftkvv1.StatusResponse) error {
	if c.json() {
		return writeJSON(w, newStatusJSON(st))
	}
	text, err := statusText(addr, st)
	if err != nil {
		return err
	}
	return writeText(w, "%s", text)
}

const (
	// What a terminal shows without breaking lines.
	columnsMax = 100

	// An address in running text; the table below has all of it.
	addrWidthMax = 38
)

func statusText(addr string, st *raftkvv1.StatusResponse) (string, error) {
	var b bytes.Buffer
	if st.GetClusterId() == "" {
		fmt.Fprintf(&b, "member %d at %s belongs to no cluster yet\n", st.GetId(), addr)
		return b.String(), nil
	}
	m := st.GetMembership()
	fmt.Fprintf(&b, "cluster   %s\n", oneLine(st.GetClusterId()))
	fmt.Fprintf(&b, "asked     member %d at %s: %s%s\n", st.GetId(), addr, roleName(st.GetRole()), leaderText(st))
	fmt.Fprintf(&b, "ready     %s\n", readyText(st))
	fmt.Fprintf(&b, "log       term %d, commit %d, last %d of term %d\n", st.GetTerm(), st.GetCommit(), st.GetLastIndex(), st.GetLastTerm())
	fmt.Fprintf(&b, "state     revision %d, hash %s at index %d\n", st.GetRevision(), hashText(st), st.GetApplied())
	fmt.Fprintf(&b, "members   index %d%s\n\n", m.GetIndex(), membershipNote(st))
	table, err := memberTable(st)
	return b.String() + table, err
}

// memberTable cuts the addresses only if, and only so far as, the table would
// not fit otherwise.
func memberTable(st *raftkvv1.StatusResponse) (string, error) {
	longest := 0
	for _, m := range st.GetMembership().GetMembers() {
		longest = max(longest, utf8.RuneCountInString(oneLine(m.GetAddr())))
	}
	var b bytes.Buffer
	if err := writeTable(&b, memberRows(st, longest)); err != nil {
		return "", err
	}
	excess := 0
	for line := range strings.Lines(b.String()) {
		excess = max(excess, utf8.RuneCountInString(strings.TrimSuffix(line, "\n"))-columnsMax)
	}
	if excess == 0 {
		return b.String(), nil
	}
	b.Reset()
	err := writeTable(&b, memberRows(st, max(longest-excess, 1)))
	return b.String(), err
}

func hashText(st *raftkvv1.StatusResponse) string { return fmt.Sprintf("%016x", st.GetStateHash()) }

// leaderText says where the leader is; it is the one that knows the others'
// progress.
func leaderText(st *raftkvv1.StatusResponse) string {
	if st.GetLeader() == 0 {
		return ", knows no leader"
	}
	if st.GetLeader() == st.GetId() {
		return ""
	}
	for _, m := range st.GetMembership().GetMembers() {
		if m.GetId() == st.GetLeader() {
			return fmt.Sprintf(", member %d at %s leads", m.GetId(), cut(oneLine(m.GetAddr()), addrWidthMax))
		}
	}
	return fmt.Sprintf(", member %d leads", st.GetLeader())
}

// readyText says what to do about the one thing that does not pass by itself.
func readyText(st *raftkvv1.StatusResponse) string {
	switch {
	case st.GetReady():
		return "yes"
	case st.GetQuorumLost():
		return "no: a majority of the voters is lost; stale reads go on; choose the best survivor with\n          " + recoverCommand(st)
	}
	return "no: it " + whyNotReady(st)
}

// membershipNote warns of what people overlook in a list of members.
func membershipNote(st *raftkvv1.StatusResponse) string {
	m := st.GetMembership()
	if m.GetJoint() {
		return ", a change is half-way"
	}
	voters := 0
	for _, m := range m.GetMembers() {
		if m.GetRole() == raftkvv1.Role_ROLE_VOTER {
			voters++
		}
	}
	switch {
	case voters == 2:
		return ", two voters: the loss of either stops the cluster"
	case voters > 2 && st.SpareVoters != nil && st.GetSpareVoters() == 0:
		return ", no voter can be spared: stop none before the others are back"
	}
	return ""
}

func memberRows(st *raftkvv1.StatusResponse, addrWidth int) []string {
	rows := []string{"ID\tADDRESS\tROLE\tMATCH\tBEHIND\tSTATE\tSEEN"}
	for _, m := range st.GetMembership().GetMembers() {
		match, lag, state, seen := "-", "-", "-", "-"
		if m.GetId() == st.GetId() {
			match = grouped(st.GetApplied())
		} else if p := peerOf(st, m.GetId()); p != nil {
			match, lag, state, seen = grouped(p.GetMatch()), grouped(p.GetLag()), p.GetState(), seenText(p)
		}
		rows = append(rows, fmt.Sprintf("%d\t%s\t%s\t%s\t%s\t%s\t%s",
			m.GetId(), cut(oneLine(m.GetAddr()), addrWidth), memberRole(st, m), match, lag, cut(oneLine(state), 12), seen))
	}
	return rows
}

// memberRole tells the leader from the other voters, which the membership does
// not.
func memberRole(st *raftkvv1.StatusResponse, m *raftkvv1.Member) string {
	switch {
	case m.GetId() == st.GetLeader():
		return "leader"
	case m.GetRole() == raftkvv1.Role_ROLE_VOTER && st.GetLeader() != 0:
		return "follower"
	}
	return roleName(m.GetRole())
}

func peerOf(st *raftkvv1.StatusResponse, id uint64) *raftkvv1.PeerStatus {
	for _, p := range st.GetPeers() {
		if p.GetId() == id {
			return p
		}
	}
	return nil
}

func seenText(p *raftkvv1.PeerStatus) string {
	if p.GetLastContactMs() < 0 {
		return "never"
	}
	d := time.Duration(p.GetLastContactMs()) * time.Millisecond
	if d >= 10*time.Second {
		d = d.Round(time.Second)
	}
	return d.String()
}
