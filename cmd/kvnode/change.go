package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

const lookAtStatus = "look with: kvnode status"

// change runs one membership change and prints what it has led to.
func (c *client) change(ctx context.Context, cmd *cobra.Command, what, echo string,
	f func(context.Context, raftkvv1.ClusterServiceClient) (*raftkvv1.Membership, error)) error {
	var m *raftkvv1.Membership
	op := operation{what: what, echo: echo, look: lookAtStatus, write: true}
	defer c.tellWhileWaiting(ctx, cmd.ErrOrStderr(), what, c.whyChangeWaits)()
	err := c.do(ctx, op, func(ctx context.Context, l *link) (err error) {
		m, err = f(ctx, raftkvv1.NewClusterServiceClient(l.conn))
		return err
	})
	if err != nil {
		return err
	}
	return c.printMembership(cmd.OutOrStdout(), m)
}

func newAddLearner() *cobra.Command {
	c := &client{}
	cmd := &cobra.Command{
		Use:   "add-learner ID=ADDR",
		Short: "Add a member without a vote and wait until it has caught up",
		Long: `Adds a running node that belongs to no cluster as a member without a vote, waits
until it has caught up, and prints the membership. change-membership then gives
it a vote. Interrupting it does not undo it; "kvnode status" shows where it is.`,
		Args: arguments(1, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			m, err := parseMember(args[0])
			if err != nil {
				return err
			}
			echo := fmt.Sprintf("add learner %d at %s", m.GetId(), m.GetAddr())
			return c.change(ctx, cmd, "add-learner "+args[0], echo, func(ctx context.Context, cl raftkvv1.ClusterServiceClient) (*raftkvv1.Membership, error) {
				resp, err := cl.AddLearner(ctx, &raftkvv1.AddLearnerRequest{Id: m.GetId(), Addr: m.GetAddr()})
				return resp.GetMembership(), err
			})
		}),
	}
	c.register(cmd, longTimeout)
	return cmd
}

func newRemoveLearner() *cobra.Command {
	c := &client{}
	cmd := &cobra.Command{
		Use:   "remove-learner ID",
		Short: "Remove a member that has no vote",
		Long: `Removes a member that has no vote and prints the membership. A voter is removed
by change-membership with the IDs of the others.`,
		Args: arguments(1, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			echo := fmt.Sprintf("remove learner %d", id)
			return c.change(ctx, cmd, "remove-learner "+args[0], echo, func(ctx context.Context, cl raftkvv1.ClusterServiceClient) (*raftkvv1.Membership, error) {
				resp, err := cl.RemoveLearner(ctx, &raftkvv1.RemoveLearnerRequest{Id: id})
				return resp.GetMembership(), err
			})
		}),
	}
	c.register(cmd, defaultTimeout)
	return cmd
}

func newChangeMembership() *cobra.Command {
	c, req := &client{}, &raftkvv1.ChangeMembershipRequest{}
	cmd := &cobra.Command{
		Use:   "change-membership ID ...",
		Short: "Make exactly these members the voters",
		Long: `Makes exactly the members with these IDs the voters and prints the membership.
A new voter must be a learner first (add-learner). A voter that is not named
leaves the cluster, or stays as a learner with --retain. Learners that are not
named stay. Interrupting it does not undo it; "kvnode status" shows where it is.`,
		Args: arguments(1, -1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				id, err := parseID(arg)
				if err != nil {
					return err
				}
				req.Voters = append(req.Voters, id)
			}
			what := "change-membership " + strings.Join(args, " ")
			echo := fmt.Sprintf("change membership to voters %v", slices.Compact(slices.Sorted(slices.Values(req.Voters))))
			return c.change(ctx, cmd, what, echo, func(ctx context.Context, cl raftkvv1.ClusterServiceClient) (*raftkvv1.Membership, error) {
				resp, err := cl.ChangeMembership(ctx, req)
				return resp.GetMembership(), err
			})
		}),
	}
	c.register(cmd, longTimeout)
	cmd.Flags().BoolVar(&req.Retain, "retain", false, "voters that are not named stay as learners")
	cmd.Flags().Uint64Var(&req.IfIndex, "if-index", 0,
		"only if the membership's index is this one (membership_index in status -o json)")
	return cmd
}

func newTransferLeader() *cobra.Command {
	c := &client{}
	cmd := &cobra.Command{
		Use:   "transfer-leader ID",
		Short: "Hand leadership over to a voter",
		Args:  arguments(1, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			op := operation{what: "transfer-leader " + args[0], echo: fmt.Sprintf("transfer leadership to %d", id), look: lookAtStatus, write: true}
			err = c.do(ctx, op, func(ctx context.Context, l *link) error {
				_, err := raftkvv1.NewClusterServiceClient(l.conn).TransferLeadership(ctx, &raftkvv1.TransferLeadershipRequest{To: id})
				return err
			})
			switch {
			case err != nil:
				return err
			case c.json():
				return writeJSON(cmd.OutOrStdout(), struct {
					Leader uint64 `json:"leader"`
				}{id})
			}
			return writeText(cmd.OutOrStdout(), "member %d leads\n", id)
		}),
	}
	c.register(cmd, defaultTimeout)
	return cmd
}
