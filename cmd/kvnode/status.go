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
	c, watch := &client{}, false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster as one member sees it",
		Long: `Shows the cluster as the first endpoint sees it that answers. Only the leader
knows how far the others are. With --watch: again every second until interrupted,
redrawn on a terminal, otherwise a line each.`,
		Args: arguments(0, 0),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if watch {
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
	fmt.Fprintf(&b, "log       term %d, commit %d, applied %d\n", st.GetTerm(), st.GetCommit(), st.GetApplied())
	fmt.Fprintf(&b, "state     revision %d, hash %s at index %d\n", st.GetRevision(), hashText(st), st.GetApplied())
	fmt.Fprintf(&b, "members   index %d%s\n\n", m.GetIndex(), membershipNote(m))
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

// membershipNote warns of what people overlook in a list of members.
func membershipNote(m *raftkvv1.Membership) string {
	if m.GetJoint() {
		return ", a change is half-way"
	}
	voters := 0
	for _, m := range m.GetMembers() {
		if m.GetRole() == raftkvv1.Role_ROLE_VOTER {
			voters++
		}
	}
	if voters == 2 {
		return ", two voters: the loss of either stops the cluster"
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
