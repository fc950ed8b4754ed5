package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"example.com/raftkv"
)

// The library's defaults, repeated so that help can show them.
const (
	defaultHeartbeat = 100 * time.Millisecond
	defaultElection  = time.Second
)

// serve is what the flags say about the node to run.
type serve struct {
	id                  uint64
	addr, listen        string
	cluster             string
	members             []string
	heartbeat, election time.Duration
	log                 logging
}

func newServe() *cobra.Command {
	s := &serve{}
	cmd := &cobra.Command{
		Use:   "serve --id ID [--addr HOST:PORT]",
		Short: "Run a node",
		Long: `Runs a node until SIGINT or SIGTERM, which hand leadership over and stop it
cleanly; a second one stops it at once. "kvnode --id ID" is the same.

A node begins without a cluster. With --members, the same list on every member and
on every start, the members found their cluster by themselves. Without, see "kvnode
init" and "kvnode add-learner".

Everything is in memory: a member that restarts, with the same flags, comes back
empty. Its cluster puts it in the place of the one that was lost, with the same
role, within seconds. Restart one member at a time, and wait for it with "kvnode
status --wait-ready" before the next: when a majority of the voters is lost, all
is lost. To move a member, stop it, start it elsewhere and "kvnode add-learner" it.`,
		Args:                  arguments(0, 0),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	s.register(cmd)
	return cmd
}

func (s *serve) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Uint64Var(&s.id, "id", 0, "member ID, from 1 to 2^31-1, the same over restarts")
	f.StringVar(&s.addr, "addr", defaultEndpoint, "host:port that other members and clients dial")
	f.StringVar(&s.listen, "listen", "", "host:port to listen on, if not --addr")
	f.StringSliceVar(&s.members, "members", nil, "found a cluster of these: ID=ADDR,...")
	f.StringVar(&s.cluster, "cluster", "", "name of the cluster; members of others are refused")
	f.DurationVar(&s.heartbeat, "heartbeat", defaultHeartbeat, "how often a leader shows that it lives")
	f.DurationVar(&s.election, "election", defaultElection, "how long to wait for a leader before an election")
	s.log.register(cmd, "info")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
}

// run starts the node and stays until it has ended.
func (s *serve) run(cmd *cobra.Command) error {
	members, err := s.parseMembers(cmd.Flags().Changed("addr"))
	if err != nil {
		return err
	}
	cfg, err := s.config(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	sup := newSupervisor(cmd.ErrOrStderr())
	defer sup.release()
	node, err := raftkv.Start(cfg)
	if err != nil {
		return startFailure(err, s.listensOn())
	}
	sup.announce(s, node, len(members) > 0)
	return sup.supervise(cmd.Context(), node, members)
}

// parseMembers reads --members. The node's own row gives the address if --addr
// does not, so that all members can be started with all but the same line.
func (s *serve) parseMembers(addrGiven bool) ([]raftkv.Member, error) {
	rows, err := parseMembers(s.members)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	var members []raftkv.Member
	own := ""
	for _, m := range rows {
		members = append(members, raftkv.Member{ID: m.GetId(), Addr: m.GetAddr(), Role: raftkv.Voter})
		if m.GetId() == s.id {
			own = m.GetAddr()
		}
	}
	switch {
	case own == "":
		return nil, usageFailure("--members does not name this member, --id %d", s.id)
	case !addrGiven:
		s.addr = own
	case own != s.addr:
		return nil, usageFailure("--members has %s for member %d, but --addr is %s", own, s.id, s.addr)
	}
	return members, nil
}

func (s *serve) config(ctx context.Context, stderr io.Writer) (raftkv.Config, error) {
	if s.id == 0 || s.id > memberIDMax {
		return raftkv.Config{}, usageFailure("serve needs --id, a number from 1 to %d that no other member has", memberIDMax)
	}
	if err := checkDialable(s.addr); err != nil {
		return raftkv.Config{}, err
	}
	logger, err := s.log.logger(stderr)
	if err != nil {
		return raftkv.Config{}, err
	}
	cfg := raftkv.Config{ID: s.id, Addr: s.addr, Cluster: s.cluster, Logger: logger,
		Timing: timing(s.heartbeat, s.election), Register: reflect}
	if s.listen != "" {
		cfg.Listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.listen)
		if err != nil {
			return raftkv.Config{}, startFailure(err, s.listen)
		}
	}
	return cfg, nil
}

func (s *serve) listensOn() string {
	if s.listen != "" {
		return s.listen
	}
	return s.addr
}

// checkDialable refuses what one can listen on but nobody can dial.
func checkDialable(addr string) error {
	if err := checkAddr(addr); err != nil {
		return usageFailure("--addr: %v", err)
	}
	host, _, _ := net.SplitHostPort(addr) // checked above
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return usageFailure("--addr %s is no address that others can dial; give one, and --listen %s beside it", addr, addr)
	}
	return nil
}

// timing derives the tick, which only has to divide both. Half of the greatest
// common divisor makes the library's default from its defaults.
func timing(heartbeat, election time.Duration) raftkv.Timing {
	a, b := heartbeat, election
	for b > 0 {
		a, b = b, a%b
	}
	return raftkv.Timing{Tick: max(a/2, time.Millisecond), Heartbeat: heartbeat, Election: election}
}

// startFailure says why a node could not start and what to do about it.
func startFailure(err error, addr string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fail(exitFailed, "%s is in use: another node or program listens there; stop it, or choose another address", addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fail(exitFailed, "%s is no address of this machine; to listen on another one than --addr, use --listen", addr)
	case errors.Is(err, syscall.EACCES):
		return fail(exitDenied, "%s: no permission to listen there; choose a port from 1024 on", addr)
	case errors.Is(err, raftkv.ErrInvalid):
		return usageFailure("%s", libraryText(err))
	}
	return fail(exitFailed, "cannot start: %s", libraryText(err))
}

// logging is how the node's log is written to standard error.
type logging struct {
	level, format string
	least         slog.LevelVar
}

func (l *logging) register(cmd *cobra.Command, level string) {
	cmd.Flags().StringVar(&l.level, "log-level", level, "debug, info, warn or error")
	cmd.Flags().StringVar(&l.format, "log-format", "text", "text or json")
}

// silence drops everything from now on.
func (l *logging) silence() { l.least.Set(math.MaxInt) }

func (l *logging) logger(stderr io.Writer) (*slog.Logger, error) {
	if err := l.least.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usageFailure("--log-level is %q; want debug, info, warn or error", l.level)
	}
	options := &slog.HandlerOptions{Level: &l.least}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(stderr, options)), nil
	}
	return nil, usageFailure("--log-format is %q; want text or json", l.format)
}
