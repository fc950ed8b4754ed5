package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func newInit() *cobra.Command {
	c := &client{}
	cmd := &cobra.Command{
		Use:   "init [ID=ADDR ...]",
		Short: "Found a cluster of the node at the endpoint, or of all that are listed",
		Long: `Without arguments: makes the node at the endpoint a cluster of one. Others join by
add-learner and change-membership. Do it once, to one node.

With arguments: founds a cluster of all that are listed, once all are reachable
and belong to no cluster. It asks the one with the lowest ID, unless --endpoints
says otherwise.

Prints the membership. If that is already the membership, it says so and exits 0.
A member that has restarted needs no init: its cluster takes it up again.`,
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			members, err := parseMembers(args)
			if err != nil {
				return err
			}
			if len(members) > 0 && !cmd.Flags().Changed("endpoints") {
				// The lowest ID coordinates; the others would wait for it.
				c.endpoints = []string{slices.MinFunc(members, byID).GetAddr()}
			}
			stop := c.tellWhileWaiting(ctx, cmd.ErrOrStderr(), "init", c.whyInitWaits(members))
			m, already, err := c.init(ctx, members)
			stop()
			if err != nil {
				return err
			}
			if already {
				fmt.Fprintln(cmd.ErrOrStderr(), "kvnode: already initialized with this membership")
			}
			return c.printMembership(cmd.OutOrStdout(), m)
		}),
	}
	c.register(cmd, longTimeout)
	return cmd
}

func byID(a, b *raftkvv1.Member) int { return cmp.Compare(a.GetId(), b.GetId()) }

// init founds a cluster and returns its membership. It looks first whether the
// cluster exists, because a person who repeats the command wants to know.
func (c *client) init(ctx context.Context, members []*raftkvv1.Member) (m *raftkvv1.Membership, already bool, err error) {
	op := operation{what: "init", echo: "init", look: "run kvnode init again: that does no harm", write: true, local: true,
		blank: "not done: all that are listed must run and belong to no cluster"}
	err = c.do(ctx, op, func(ctx context.Context, l *link) error {
		cluster := raftkvv1.NewClusterServiceClient(l.conn)
		st, err := cluster.Status(ctx, &raftkvv1.StatusRequest{})
		if err != nil {
			return err
		}
		l.sent.Store(false)
		if st.GetClusterId() != "" {
			m, already = st.GetMembership(), true
			return sameMembership(l.addr, st, members)
		}
		resp, err := cluster.Init(ctx, &raftkvv1.InitRequest{Members: members})
		m = resp.GetMembership()
		return err
	})
	return m, already, err
}

// sameMembership accepts a cluster that is what init was to make: these voters
// at these addresses, or the asked node alone. Learners count, too: they came
// later, so it is not this command that made the cluster.
func sameMembership(addr string, st *raftkvv1.StatusResponse, want []*raftkvv1.Member) error {
	if len(want) == 0 {
		want = []*raftkvv1.Member{{Id: st.GetId(), Addr: st.GetAddr()}}
	}
	have := slices.SortedFunc(slices.Values(st.GetMembership().GetMembers()), byID)
	want = slices.SortedFunc(slices.Values(want), byID)
	same := slices.EqualFunc(have, want, func(h, w *raftkvv1.Member) bool {
		return h.GetId() == w.GetId() && h.GetAddr() == w.GetAddr() && h.GetRole() == raftkvv1.Role_ROLE_VOTER
	})
	if !same {
		return fail(exitFailed, "init: %s already belongs to a cluster with another membership; look with: kvnode status --endpoints %s", addr, addr)
	}
	return nil
}
