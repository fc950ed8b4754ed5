// Command kvnode runs a node of a strongly consistent, replicated key-value
// store, and is the command line for clusters of them.
//
//	kvnode demo                               # three nodes to try, in one process
//	kvnode --id 1 --addr 127.0.0.1:21001      # a node
//	kvnode init                               # a cluster of it
//	kvnode put greeting hello
//	kvnode get greeting
//
// "kvnode help" lists the commands, "kvnode help exit-codes" what they exit
// with.
package main

import (
	"context"
	"io"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code. It is everything but
// the process, so that tests can call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	// nil would make cobra take os.Args.
	root.SetArgs(append([]string{}, args...))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.ExecuteContext(ctx))
}
