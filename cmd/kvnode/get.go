package main

import (
	"context"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// consistency is how old an answer may be: by default, not at all.
type consistency struct {
	stale       bool
	minRevision uint64
}

func (r *consistency) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.stale, "stale", false,
		"the member's own state, however old; works without a leader")
	cmd.Flags().Uint64Var(&r.minRevision, "min-revision", 0,
		"the member's own state once it has this revision")
}

// operation: a member answers a stale read alone.
func (r *consistency) operation(verb, key string) operation {
	return operation{what: verb + " " + keyArg(key), echo: keyEcho(verb, key), local: r.stale || r.minRevision > 0}
}

type keyValueJSON struct {
	Key      any    `json:"key"`
	Value    any    `json:"value"`
	Revision uint64 `json:"revision"`
}

func newKeyValueJSON(kv *raftkvv1.KeyValue) keyValueJSON {
	return keyValueJSON{jsonBytes(kv.GetKey()), jsonBytes(kv.GetValue()), kv.GetRevision()}
}

func newGet() *cobra.Command {
	c, reads, raw := &client{}, &consistency{}, false
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long: `Prints the value of a key and a newline; with --raw the bytes alone. The answer is
never older than the call, unless --stale or --min-revision allow it.
If there is no such key, it prints nothing on standard output and exits 3.`,
		Args: arguments(1, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if raw && c.json() {
				return usageFailure("--raw and -o json exclude each other")
			}
			kv, addr, err := c.get(ctx, reads, args[0])
			switch {
			case err != nil:
				return err
			case kv == nil:
				return fail(exitNotMet, "get %s: %s: no such key", keyArg(args[0]), addr)
			case c.json():
				return writeJSON(cmd.OutOrStdout(), newKeyValueJSON(kv))
			case raw:
				return writeText(cmd.OutOrStdout(), "%s", kv.GetValue())
			}
			return writeText(cmd.OutOrStdout(), "%s\n", kv.GetValue())
		}),
	}
	c.register(cmd, defaultTimeout)
	reads.register(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "no newline after the value")
	return cmd
}

// get reads one key and says which member answered; nil if there is none.
func (c *client) get(ctx context.Context, reads *consistency, key string) (kv *raftkvv1.KeyValue, addr string, err error) {
	req := &raftkvv1.GetRequest{Key: []byte(key), Stale: reads.stale, MinRevision: reads.minRevision}
	err = c.do(ctx, reads.operation("get", key), func(ctx context.Context, l *link) error {
		resp, err := raftkvv1.NewKVServiceClient(l.conn).Get(ctx, req)
		kv, addr = resp.GetKv(), l.addr
		return err
	})
	return kv, addr, err
}
