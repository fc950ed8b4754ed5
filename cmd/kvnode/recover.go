package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func newRecover() *cobra.Command {
	c, yes := &client{}, false
	cmd := &cobra.Command{
		Use:   "recover [--yes]",
		Short: "Go on with one survivor after a majority of the voters was lost",
		Long: `The last resort after a majority of the voters has lost its memory, or is gone for
good. It makes one survivor, alone, a new cluster with all that it has. What only
the lost members had is lost, acknowledged or not.

Without --yes it changes nothing: it asks all endpoints, shows what each of them
has and which is the best of them, and exits 2. Name all members that still run:
  kvnode recover --endpoints 127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003
With --yes it recovers at the one endpoint that is given, prints the membership
and how to add the others again. A cluster that works refuses.`,
		Args: arguments(0, 0),
		RunE: c.body(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if !yes {
				return c.chooseSurvivor(ctx, cmd.OutOrStdout())
			}
			if len(c.endpoints) > 1 {
				return usageFailure("recover --yes wants one endpoint, the best survivor, and got %d; choose it with: kvnode recover --endpoints %s",
					len(c.endpoints), strings.Join(c.endpoints, ","))
			}
			return c.recover(ctx, cmd)
		}),
	}
	c.register(cmd, defaultTimeout)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it, at the one endpoint that is given")
	return cmd
}

// recover asks the one endpoint, once. What the membership was before it asks
// first, because afterwards nobody knows.
func (c *client) recover(ctx context.Context, cmd *cobra.Command) error {
	var before *raftkvv1.StatusResponse
	var now *raftkvv1.Membership
	op := operation{what: "recover", echo: "recover", look: lookAtStatus, write: true, local: true}
	err := c.do(ctx, op, func(ctx context.Context, l *link) (err error) {
		cluster := raftkvv1.NewClusterServiceClient(l.conn)
		before, err = cluster.Status(ctx, &raftkvv1.StatusRequest{})
		l.sent.Store(false) // nothing that changes anything
		if err != nil {
			return err
		}
		if before.GetClusterId() == "" {
			return fail(exitFailed, "recover: %s: not done: member %d belongs to no cluster and has nothing; choose a survivor with: kvnode recover --endpoints HOST:PORT,...",
				l.addr, before.GetId())
		}
		resp, err := cluster.Recover(ctx, &raftkvv1.RecoverRequest{})
		now = resp.GetMembership()
		return err
	})
	if err != nil {
		return err
	}
	if err := c.printMembership(cmd.OutOrStdout(), now); err != nil {
		return err
	}
	fmt.Fprint(cmd.ErrOrStderr(), recoveredText(c.endpoints[0], before))
	return nil
}

// recoveredText says how the cluster becomes what it was.
func recoveredText(addr string, before *raftkvv1.StatusResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kvnode: member %d alone is a new cluster now, with all that it had\n", before.GetId())
	voters := []uint64{before.GetId()}
	var others []string
	for _, m := range before.GetMembership().GetMembers() {
		if m.GetId() == before.GetId() {
			continue
		}
		others = append(others, fmt.Sprintf("  kvnode add-learner %d=%s --endpoints %s\n", m.GetId(), oneLine(m.GetAddr()), addr))
		if m.GetRole() == raftkvv1.Role_ROLE_VOTER {
			voters = append(voters, m.GetId())
		}
	}
	if len(others) == 0 {
		return b.String()
	}
	b.WriteString("kvnode: to add the others again, restart each that has not been restarted since, then:\n")
	b.WriteString(strings.Join(others, ""))
	if len(voters) > 1 {
		slices.Sort(voters)
		fmt.Fprintf(&b, "  kvnode change-membership %s --endpoints %s\n", words(voters), addr)
	}
	return b.String()
}

// words writes numbers with spaces between them.
func words(ids []uint64) string {
	var out []string
	for _, id := range ids {
		out = append(out, strconv.FormatUint(id, 10))
	}
	return strings.Join(out, " ")
}

// A survivor is an endpoint at which one might recover.
type survivor struct {
	addr string
	st   *raftkvv1.StatusResponse // nil if it did not answer
	why  problem                  // then: why not
}

// has reports whether it has data of a cluster.
func (s *survivor) has() bool { return s.st.GetClusterId() != "" && s.st.GetLastIndex() > 0 }

// better reports whether it has more of the log than another: an entry of a
// later term was written when all that was committed before was known (thesis
// §3.6.1, as in elections).
func (s *survivor) better(than *survivor) bool {
	if s.st.GetLastTerm() != than.st.GetLastTerm() {
		return s.st.GetLastTerm() > than.st.GetLastTerm()
	}
	return s.st.GetLastIndex() > than.st.GetLastIndex()
}

// chooseSurvivor changes nothing, and never succeeds: a script that leaves --yes
// out must not go on as if it had recovered.
func (c *client) chooseSurvivor(ctx context.Context, w io.Writer) error {
	var asked []*survivor
	for _, addr := range c.endpoints {
		st, why := askStatus(ctx, addr, c.share(connectTimeoutMax))
		if ctx.Err() != nil {
			return fail(exitInterrupted, "recover: interrupted; nothing was done")
		}
		asked = append(asked, &survivor{addr, st, why})
	}
	best, refusal := choose(asked)
	if err := c.printSurvivors(w, asked, best); err != nil {
		return err
	}
	if refusal != nil {
		return refusal
	}
	if !c.json() {
		if err := writeText(w, "\n%s", choiceText(asked, best)); err != nil {
			return err
		}
	}
	return usageFailure("recover: nothing was done, as --yes is missing; to make member %d a new cluster: kvnode recover --yes --endpoints %s",
		best.st.GetId(), best.addr)
}

// choose returns the survivor that has the most, or why there is none.
func choose(asked []*survivor) (best *survivor, refusal error) {
	answered := false
	for _, s := range asked {
		answered = answered || s.st != nil
		switch {
		case !s.has():
		case s.st.GetReady():
			return nil, fail(exitFailed, "recover: %s: member %d is ready, with member %d as leader: its cluster works, and there is nothing to recover",
				s.addr, s.st.GetId(), s.st.GetLeader())
		case best == nil:
			best = s
		case s.st.GetClusterId() != best.st.GetClusterId():
			return nil, fail(exitFailed, "recover: %s and %s belong to different clusters and cannot be compared; name the members of one (--endpoints)",
				best.addr, s.addr)
		case s.better(best):
			best = s
		}
	}
	switch {
	case best != nil:
		return best, nil
	case !answered:
		return nil, fail(asked[0].why.code, "recover: nothing was done: %s", asked[0].why.text)
	}
	return nil, fail(exitFailed, "recover: nothing to recover: none of those that answer belongs to a cluster; if no other member runs, all is lost: found a new cluster with kvnode init")
}

// choiceText says what the choice means: what is lost, and what might make it
// the wrong one.
func choiceText(asked []*survivor, best *survivor) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The best of these is member %d at %s: highest last term, then highest last index.\n", best.st.GetId(), best.addr)
	b.WriteString("Recovered there, the cluster goes on with all that its log holds, under another cluster\n" +
		"ID. What only other members had is lost, acknowledged or not.\n")
	if missing := unasked(asked, best); len(missing) > 0 {
		fmt.Fprintf(&b, "Without an answer, or not asked: %s. If one of them still runs it may have more:\nname all of them (--endpoints).\n", members(missing))
	}
	if !slices.ContainsFunc(asked, func(s *survivor) bool { return s.st.GetQuorumLost() }) {
		b.WriteString("There is no proof that a majority is lost: voters that are cut off or paused may come back\n" +
			"with all that they have. Recover only if they never will.\n")
	}
	return b.String()
}

// unasked returns the members of the best survivor's membership of whom nothing
// is known.
func unasked(asked []*survivor, best *survivor) []uint64 {
	var ids []uint64
	for _, m := range best.st.GetMembership().GetMembers() {
		known := func(s *survivor) bool { return s.st.GetId() == m.GetId() }
		if !slices.ContainsFunc(asked, known) {
			ids = append(ids, m.GetId())
		}
	}
	return ids
}

func members(ids []uint64) string {
	if len(ids) == 1 {
		return "member " + words(ids)
	}
	return "members " + strings.ReplaceAll(words(ids), " ", ", ")
}

type survivorJSON struct {
	Endpoint   string `json:"endpoint"`
	ID         uint64 `json:"id"` // 0 if it did not answer
	Role       string `json:"role"`
	ClusterID  string `json:"cluster_id"`
	Ready      bool   `json:"ready"`
	QuorumLost bool   `json:"quorum_lost"`
	LastTerm   uint64 `json:"last_term"`
	LastIndex  uint64 `json:"last_index"`
	Best       bool   `json:"best"`
	Error      string `json:"error,omitempty"`
}

func (c *client) printSurvivors(w io.Writer, asked []*survivor, best *survivor) error {
	if c.json() {
		for _, s := range asked {
			role := ""
			if s.st != nil {
				role = roleName(s.st.GetRole())
			}
			out := survivorJSON{s.addr, s.st.GetId(), role, s.st.GetClusterId(), s.st.GetReady(), s.st.GetQuorumLost(),
				s.st.GetLastTerm(), s.st.GetLastIndex(), s == best, s.why.text}
			if err := writeJSON(w, out); err != nil {
				return err
			}
		}
		return nil
	}
	rows := []string{"ENDPOINT\tMEMBER\tROLE\tMAJORITY\tLAST TERM\tLAST INDEX\tCHOICE"}
	for _, s := range asked {
		rows = append(rows, s.row(s == best))
	}
	return writeTable(w, rows)
}

func (s *survivor) row(best bool) string {
	if s.st == nil {
		return s.addr + "\t-\tno answer\t-\t-\t-\t-"
	}
	majority, term, index, mark := "-", "-", "-", "-"
	switch {
	case s.st.GetReady():
		majority = "works"
	case s.st.GetQuorumLost():
		majority = "lost"
	}
	if s.has() {
		term, index = grouped(s.st.GetLastTerm()), grouped(s.st.GetLastIndex())
	}
	if best {
		mark = "best"
	}
	return fmt.Sprintf("%s\t%d\t%s\t%s\t%s\t%s\t%s", s.addr, s.st.GetId(), roleName(s.st.GetRole()), majority, term, index, mark)
}
