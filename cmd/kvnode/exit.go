package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
)

// What kvnode exits with. One meaning per number; exitCodesLong says it to
// people.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotMet      = 3
	exitUnreachable = 4
	exitDenied      = 5
	exitInterrupted = 130
)

const exitCodesLong = `What kvnode exits with:

    0  Done. For serve also: stopped cleanly by SIGTERM, or removed from its
       cluster. For demo and status --watch also: interrupted while running.
    1  Failed. A write may have this code although it took effect or may yet;
       the message then says "outcome unknown". Also when a majority of the
       voters is lost: see "kvnode help recover".
    2  Wrong usage: an unknown command or flag, or an argument that is not
       allowed. Also recover without --yes. Nothing was done.
    3  Get: no such key. With --if-revision or --if-index: the condition was not
       met. Nothing was done.
    4  No leader, or no endpoint reachable. Nothing was done; trying again may
       help. For status --wait-ready: not ready in time.
    5  Denied.
  130  Interrupted. What had been sent may still take effect. For serve: stopped
       cleanly by SIGINT.`

// A failure is an error for a person, with the code to exit with.
type failure struct {
	code int
	text string
}

// Error returns the text, a complete line without "kvnode: ".
func (f *failure) Error() string { return f.text }

func fail(code int, format string, args ...any) error {
	return &failure{code: code, text: fmt.Sprintf(format, args...)}
}

func usageFailure(format string, args ...any) error { return fail(exitUsage, format, args...) }

// report prints an error as one line and returns the code to exit with. An
// error that is no failure is one of cobra's, which are all about usage.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	code := exitUsage
	if f, ok := errors.AsType[*failure](err); ok {
		code = f.code
	}
	fmt.Fprintf(stderr, "kvnode: %s\n", oneLine(err.Error()))
	return code
}

// oneLine joins lines, cobra's "Did you mean this?" block among them, and hides
// what is not printable: part of a text may come from the network, and there are
// more characters than the control characters of ASCII that move a cursor or
// turn the direction of what follows.
func oneLine(text string) string {
	text, names, ok := strings.Cut(text, "\n\nDid you mean this?\n")
	if ok {
		text += "; did you mean " + strings.Join(strings.Fields(names), " or ") + "?"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.TrimSpace(text))
}

// newExitCodes returns a help topic: a command that cannot be run.
func newExitCodes() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What kvnode exits with", Long: exitCodesLong}
}
