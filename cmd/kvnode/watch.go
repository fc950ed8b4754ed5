package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

const (
	watchInterval = time.Second
	clearScreen   = "\x1b[H\x1b[2J"
)

// watch shows the status every second until it is interrupted, which is its
// ordinary end and not a failure. An endpoint that does not answer is shown,
// too: watching a cluster is most useful when something is wrong.
func (c *client) watch(ctx context.Context, cmd *cobra.Command) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	show := c.watchLine
	if isTerminal(cmd.OutOrStdout()) && !c.json() {
		show = c.watchScreen
	}
	for {
		if err := show(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// watchScreen fetches before it clears, so that the screen does not flicker.
func (c *client) watchScreen(ctx context.Context, stdout, _ io.Writer) error {
	st, addr, err := c.status(ctx)
	if ctx.Err() != nil {
		return nil
	}
	text := ""
	if err == nil {
		if text, err = statusText(addr, st); err != nil {
			return err
		}
	} else {
		text = oneLine(err.Error()) + "\n"
	}
	return writeText(stdout, "%s%s  every %v, Ctrl-C ends\n\n%s",
		clearScreen, time.Now().Format(time.TimeOnly), watchInterval, text)
}

func (c *client) watchLine(ctx context.Context, stdout, stderr io.Writer) error {
	st, addr, err := c.status(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvnode: %s\n", oneLine(err.Error()))
		return nil
	}
	if c.json() {
		return writeJSON(stdout, newStatusJSON(st))
	}
	spare := ""
	if st.SpareVoters != nil {
		spare = fmt.Sprintf(" spare_voters=%d", st.GetSpareVoters())
	}
	return writeText(stdout, "%s %s id=%d role=%s leader=%d term=%d commit=%d applied=%d revision=%d members=%d"+
		" ready=%t quorum_lost=%t last_term=%d last_index=%d%s\n",
		time.Now().Format(time.TimeOnly), addr, st.GetId(), roleName(st.GetRole()), st.GetLeader(), st.GetTerm(),
		st.GetCommit(), st.GetApplied(), st.GetRevision(), len(st.GetMembership().GetMembers()),
		st.GetReady(), st.GetQuorumLost(), st.GetLastTerm(), st.GetLastIndex(), spare)
}

// isTerminal says whether a person is likely to look at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
