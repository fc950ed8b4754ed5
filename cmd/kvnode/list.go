package main

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func newList() *cobra.Command {
	c, reads := &client{}, &consistency{}
	req := &raftkvv1.ListRequest{}
	after := ""
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "Print keys and values in key order",
		Long: `Prints all keys that begin with PREFIX, in key order, as the store was at one
revision: a line each, key, tab, value. A key or value that a line cannot hold is
written in Go's quotes ("a\tb"); -o json is the form for programs. The next page
after --limit begins with --after LAST-KEY, and is of a later revision.`,
		Args: arguments(0, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Prefix = []byte(args[0])
			}
			req.After, req.Stale, req.MinRevision = []byte(after), reads.stale, reads.minRevision
			return c.list(ctx, reads, req, cmd.OutOrStdout())
		}),
	}
	c.register(cmd, defaultTimeout)
	reads.register(cmd)
	cmd.Flags().Uint64Var(&req.Limit, "limit", 0, "at most so many keys; 0: all")
	cmd.Flags().StringVar(&after, "after", "", "only keys greater than this one")
	return cmd
}

// list prints the answer as it arrives, because it may be larger than what this
// process should hold.
func (c *client) list(ctx context.Context, reads *consistency, req *raftkvv1.ListRequest, stdout io.Writer) error {
	out := bufio.NewWriter(stdout)
	op := reads.operation("list", string(req.GetPrefix()))
	return c.do(ctx, op, func(callCtx context.Context, l *link) error {
		stream, err := raftkvv1.NewKVServiceClient(l.conn).List(callCtx, req)
		if err != nil {
			return err
		}
		for printed := 0; ; {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return outputFailure(out.Flush())
			}
			if err != nil && printed > 0 {
				return c.incomplete(ctx, op, l, err, out)
			}
			if err != nil {
				return err
			}
			if err := c.printPart(out, resp); err != nil {
				return err
			}
			printed += len(resp.GetKvs())
		}
	})
}

func (c *client) printPart(out *bufio.Writer, resp *raftkvv1.ListResponse) error {
	for _, kv := range resp.GetKvs() {
		var err error
		if c.json() {
			err = writeJSON(out, newKeyValueJSON(kv))
		} else {
			err = writeText(out, "%s\t%s\n", quoteIfNeeded(kv.GetKey()), quoteIfNeeded(kv.GetValue()))
		}
		if err != nil {
			return err
		}
	}
	return outputFailure(out.Flush())
}

// incomplete ends a list half-way. It is final: another endpoint would begin
// again, at another revision, after lines that are already out.
func (c *client) incomplete(ctx context.Context, op operation, l *link, err error, out *bufio.Writer) error {
	if err := out.Flush(); err != nil {
		return outputFailure(err)
	}
	p := explain(op, l.addr, err, circumstances{sent: true, interrupted: ctx.Err() != nil, timeout: c.timeout})
	return fail(p.code, "%s: the list is incomplete: %s", op.what, p.text)
}
