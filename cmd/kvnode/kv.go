package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// The largest value of the protocol. A member's own limit may be lower; it says
// so itself.
const valueBytesMax = 16 << 20

// keyArg is a key as an error names it. A long one is cut: the reader only has
// to recognise it.
func keyArg(key string) string { return fmt.Sprintf("%q", cut(key, 64)) }

// keyEcho is how the library names a call for a key.
func keyEcho(verb, key string) string {
	if len(key) > 64 {
		key = key[:64] + "..."
	}
	return fmt.Sprintf("%s %q", verb, key)
}

// condition is the --if-revision of a write.
type condition struct{ revision uint64 }

func (c *condition) register(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&c.revision, "if-revision", 0,
		"only if the key's revision is this one; 0: only if there is no such key")
}

// value is nil if there is no condition, because 0 is one.
func (c *condition) value(cmd *cobra.Command) *uint64 {
	if !cmd.Flags().Changed("if-revision") {
		return nil
	}
	return &c.revision
}

type revisionJSON struct {
	Revision uint64 `json:"revision"`
}

func (c *client) printRevision(w io.Writer, revision uint64) error {
	if c.json() {
		return writeJSON(w, revisionJSON{revision})
	}
	return writeText(w, "%d\n", revision)
}

func writeOf(verb, key string) operation {
	return operation{what: verb + " " + keyArg(key), echo: keyEcho(verb, key),
		look: "get the key before you try again", write: true}
}

func newPut() *cobra.Command {
	c, cond := &client{}, &condition{}
	cmd := &cobra.Command{
		Use:   "put KEY VALUE|-",
		Short: "Set a key and print the write's revision",
		Long: `Sets a key and prints the revision of the write: a number that only grows.
With - as VALUE the value is what standard input holds, every byte of it. A KEY
or VALUE that begins with a dash needs -- before it: kvnode put -- KEY -5`,
		Args: arguments(2, 2),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			value, err := valueArg(cmd.InOrStdin(), args[1])
			if err != nil {
				return err
			}
			req := &raftkvv1.PutRequest{Key: []byte(args[0]), Value: value, IfRevision: cond.value(cmd)}
			var resp *raftkvv1.PutResponse
			op := writeOf("put", args[0])
			err = c.do(ctx, op, func(ctx context.Context, l *link) (err error) {
				resp, err = raftkvv1.NewKVServiceClient(l.conn).Put(ctx, req)
				return err
			})
			if err != nil {
				return err
			}
			return c.printRevision(cmd.OutOrStdout(), resp.GetRevision())
		}),
	}
	c.register(cmd, defaultTimeout)
	cond.register(cmd)
	return cmd
}

// valueArg is the value that an argument stands for.
func valueArg(stdin io.Reader, arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	value, err := io.ReadAll(io.LimitReader(stdin, valueBytesMax+1))
	if err != nil {
		return nil, fail(exitFailed, "standard input: %v", err)
	}
	if len(value) > valueBytesMax {
		return nil, fail(exitFailed, "standard input has more than %d bytes (16 MiB), the most that a value can have; nothing was sent", valueBytesMax)
	}
	return value, nil
}

func newDelete() *cobra.Command {
	c, cond := &client{}, &condition{}
	cmd := &cobra.Command{
		Use:   "delete KEY",
		Short: "Remove a key and print the write's revision",
		Long: `Removes a key and prints the revision of the write, or the current one if there
is no such key: that is no error. With --if-revision it is one.`,
		Args: arguments(1, 1),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			req := &raftkvv1.DeleteRequest{Key: []byte(args[0]), IfRevision: cond.value(cmd)}
			var resp *raftkvv1.DeleteResponse
			op := writeOf("delete", args[0])
			err := c.do(ctx, op, func(ctx context.Context, l *link) (err error) {
				resp, err = raftkvv1.NewKVServiceClient(l.conn).Delete(ctx, req)
				return err
			})
			if err != nil {
				return err
			}
			return c.printRevision(cmd.OutOrStdout(), resp.GetRevision())
		}),
	}
	c.register(cmd, defaultTimeout)
	cond.register(cmd)
	return cmd
}
