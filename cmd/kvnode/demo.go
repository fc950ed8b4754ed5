package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"example.com/raftkv"
)

const (
	demoNodesMax       = 9
	demoStartupTimeout = 30 * time.Second
)

// demo is a cluster in one process, for people who want to see one.
type demo struct {
	count int
	port  uint16
	log   logging
	nodes []*raftkv.Node
}

func newDemo() *cobra.Command {
	d := &demo{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a cluster in this process, to try kvnode",
		Long: `Runs real nodes that talk over loopback, makes them a cluster, and prints how to
use it. Everything is in memory and gone when Ctrl-C ends it.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd) },
	}
	cmd.Flags().IntVar(&d.count, "nodes", 3, "how many nodes, from 1 to 9")
	cmd.Flags().Uint16Var(&d.port, "port", 21001, "the first node's port; the others have the next ones")
	d.log.register(cmd, "warn")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func (d *demo) run(cmd *cobra.Command) error {
	if d.count < 1 || d.count > demoNodesMax {
		return usageFailure("--nodes is %d; want 1 to %d", d.count, demoNodesMax)
	}
	if d.port == 0 || int(d.port)+d.count-1 > 1<<16-1 {
		return usageFailure("--port is %d; want room for %d ports up to 65535", d.port, d.count)
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer d.close()
	if err := d.start(ctx, cmd.ErrOrStderr()); err != nil {
		if ctx.Err() != nil {
			return fail(exitInterrupted, "demo: interrupted before the cluster was up")
		}
		return err
	}
	if err := writeText(cmd.OutOrStdout(), "%s", d.welcome()); err != nil {
		return err
	}
	return d.wait(ctx, cmd.ErrOrStderr())
}

func (d *demo) addr(i int) string { return fmt.Sprintf("127.0.0.1:%d", int(d.port)+i) }

// start starts all nodes and waits until all are members and have caught up.
func (d *demo) start(ctx context.Context, stderr io.Writer) error {
	logger, err := d.log.logger(stderr)
	if err != nil {
		return err
	}
	var members []raftkv.Member
	for i := range d.count {
		id := uint64(i + 1)
		node, err := raftkv.Start(raftkv.Config{ID: id, Addr: d.addr(i), Cluster: "demo", Logger: logger, Register: reflect})
		if errors.Is(err, syscall.EADDRINUSE) {
			return fail(exitFailed, "demo: port %d is in use; choose others with --port, for example: kvnode demo --port %d",
				int(d.port)+i, d.otherPort())
		}
		if err != nil {
			return startFailure(err, d.addr(i))
		}
		d.nodes = append(d.nodes, node)
		members = append(members, raftkv.Member{ID: id, Addr: d.addr(i), Role: raftkv.Voter})
	}
	ctx, cancel := context.WithTimeout(ctx, demoStartupTimeout)
	defer cancel()
	// Member 1 has the lowest ID and so founds the cluster for all.
	if err := d.nodes[0].Init(ctx, members...); err != nil {
		return fail(exitFailed, "demo: the cluster could not be founded: %s", libraryText(err))
	}
	for i, node := range d.nodes {
		if err := node.Ready(ctx); err != nil {
			return fail(exitFailed, "demo: member %d did not become ready: %s", i+1, libraryText(err))
		}
	}
	return nil
}

// otherPort is a suggestion that stays in the range.
func (d *demo) otherPort() int {
	if d.port < 50000 {
		return int(d.port) + 1000
	}
	return int(d.port) - 1000
}

func (d *demo) welcome() string {
	var addrs []string
	for i := range d.nodes {
		addrs = append(addrs, d.addr(i))
	}
	flag := ""
	if d.port != 21001 {
		flag = " --endpoints " + addrs[0]
	}
	last := addrs[len(addrs)-1]
	return fmt.Sprintf(`A cluster of %d runs at %s

In another terminal:
  kvnode put greeting hello%[3]s
  kvnode get greeting --endpoints %[4]s
  kvnode list%[3]s
  kvnode status%[3]s

Ctrl-C ends it.
`, d.count, strings.Join(addrs, " "), flag, last)
}

// wait returns when the person has seen enough, or a node has stopped by itself.
func (d *demo) wait(ctx context.Context, stderr io.Writer) error {
	failed := make(chan error, len(d.nodes)) // so that no goroutine waits for a reader
	for i, node := range d.nodes {
		go func() { // ends at the latest with d.close
			<-node.Done()
			failed <- fmt.Errorf("member %d has stopped: %w", i+1, node.Err())
		}()
	}
	for range d.nodes {
		select {
		case <-ctx.Done():
			fmt.Fprintln(stderr, "kvnode: stopping")
			return nil
		case err := <-failed:
			if !errors.Is(err, raftkv.ErrRemoved) {
				return fail(exitFailed, "demo: %s", libraryText(err))
			}
			fmt.Fprintf(stderr, "kvnode: %s\n", libraryText(err))
		}
	}
	return fail(exitFailed, "demo: all members have been removed")
}

// close stops all at once. Handing leadership over from node to node would only
// make the person wait: nothing is left to lead afterwards. That each sees the
// others go is no news then.
func (d *demo) close() {
	d.log.silence()
	for _, node := range d.nodes {
		_ = node.Close() // nothing to do about it: the process ends
	}
}
