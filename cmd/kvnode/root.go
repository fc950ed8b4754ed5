package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

const (
	groupRun     = "run"
	groupKeys    = "keys"
	groupCluster = "cluster"
)

const rootLong = `kvnode runs a node of a strongly consistent, replicated key-value store and is
the command line for clusters of them.

  kvnode demo                               three nodes to try, in one process
  kvnode --id 1 --addr 127.0.0.1:21001      run a node; "kvnode serve" is the same
  kvnode init                               make the node at 127.0.0.1:21001 a cluster
  kvnode put greeting hello
  kvnode get greeting

Every flag can also be given as a variable of the environment, in capitals and
with KVNODE_ in front: KVNODE_ENDPOINTS for --endpoints. The flag wins.`

// newRoot returns the whole command tree. The root itself serves when it is
// given any flag: the shortest way to start a node.
func newRoot() *cobra.Command {
	s := &serve{}
	root := &cobra.Command{
		Use:           "kvnode",
		Short:         "A replicated key-value store: node and command line",
		Long:          rootLong,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		// Before anything else of a command, because a variable counts as its flag.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return bindEnv(cmd) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return cmd.Help()
			}
			return s.run(cmd)
		},
	}
	s.register(root)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(flagFailure)
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a node:"},
		&cobra.Group{ID: groupKeys, Title: "Keys:"},
		&cobra.Group{ID: groupCluster, Title: "Cluster:"},
	)
	add(root, groupRun, newServe(), newDemo())
	add(root, groupKeys, newPut(), newGet(), newDelete(), newList())
	add(root, groupCluster, newInit(), newAddLearner(), newRemoveLearner(),
		newChangeMembership(), newTransferLeader(), newStatus(), newRecover())
	add(root, "", newVersion(), newExitCodes())
	root.SetHelpCommand(newHelp())
	return root
}

func add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// newHelp replaces cobra's help command, which exits 0 for topics that do not
// exist.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show help for a command or a topic",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageFailure("no help for %q; see: kvnode help", strings.Join(args, " "))
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// arguments wants from min to max arguments; max < 0 means any number.
func arguments(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return usageFailure("%s: an argument is missing; usage: %s", cmd.Name(), cmd.UseLine())
		case max >= 0 && len(args) > max:
			return usageFailure("%s: %q is one argument too many; usage: %s", cmd.Name(), args[max], cmd.UseLine())
		}
		return nil
	}
}

func flagFailure(cmd *cobra.Command, err error) error {
	hint := fmt.Sprintf("see: %s --help", cmd.CommandPath())
	if strings.HasPrefix(err.Error(), "unknown shorthand flag") {
		hint = "write -- before an argument that begins with a dash; " + hint
	}
	return usageFailure("%v; %s", err, hint)
}
