package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const envPrefix = "KVNODE_"

// commandLineOnly are flags without a variable.
var commandLineOnly = []string{"help", "version", "yes"}

// envName is the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// bindEnv sets each flag that the command line leaves out from its variable. A
// flag that is given wins without a word, because a variable is often set for
// other calls. An empty variable counts as none, because many tools cannot
// unset one. What a person must mean at that moment has no variable: --yes.
func bindEnv(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := os.Getenv(envName(f.Name))
		if f.Changed || value == "" || failed != nil || slices.Contains(commandLineOnly, f.Name) {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			failed = usageFailure("%s in the environment: %v", envName(f.Name), err)
		}
	})
	return failed
}
