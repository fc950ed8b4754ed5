package main

import (
	"context"
	"net"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const (
	defaultEndpoint = "127.0.0.1:21001"

	defaultTimeout = 5 * time.Second
	// Founding, catching up and changing voters wait for other processes.
	longTimeout = time.Minute
)

// client is what the flags of a client command say about how to reach a
// cluster and how to answer.
type client struct {
	endpoints []string
	timeout   time.Duration
	output    string
}

func (c *client) register(cmd *cobra.Command, timeout time.Duration) {
	f := cmd.Flags()
	f.StringSliceVar(&c.endpoints, "endpoints", []string{defaultEndpoint},
		"members to ask, in this order: host:port,...")
	f.DurationVar(&c.timeout, "timeout", timeout, "how long to wait for an answer")
	f.StringVarP(&c.output, "output", "o", "text", "text or json")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	_ = cmd.RegisterFlagCompletionFunc("output", // only fails for a flag that does not exist
		cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (c *client) json() bool { return c.output == "json" }

// body wraps what a command does: flags are checked first, and the context ends
// with a signal.
func (c *client) body(f func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := c.check(); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		// A second signal ends the process as it would end any other.
		context.AfterFunc(ctx, stop)
		return f(ctx, cmd, args)
	}
}

func (c *client) check() error {
	if c.output != "text" && c.output != "json" {
		return usageFailure("--output is %q; want text or json", c.output)
	}
	if c.timeout <= 0 {
		return usageFailure("--timeout is %v; want more than 0", c.timeout)
	}
	if len(c.endpoints) == 0 {
		return usageFailure("--endpoints is empty; want host:port,...")
	}
	for i, addr := range c.endpoints {
		c.endpoints[i] = strings.TrimSpace(addr)
		if err := checkAddr(c.endpoints[i]); err != nil {
			return usageFailure("--endpoints: %v", err)
		}
	}
	return nil
}

// checkAddr wants host:port, as an endpoint and as the address of a member.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || strings.ContainsAny(addr, "/ ") {
		return usageFailure("%q is not host:port; example: %s", addr, defaultEndpoint)
	}
	return nil
}
