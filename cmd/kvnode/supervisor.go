package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"example.com/raftkv"
)

const (
	// How long a stopping node may take to hand leadership over and to finish
	// its callers.
	shutdownTimeout = 5 * time.Second

	// How often a person is reminded that a node waits for others.
	reminderInterval = 10 * time.Second
)

// A supervisor takes a node from its start to its end: signals, --members, and
// what it tells the person.
type supervisor struct {
	stderr io.Writer
	// signalc is sent to by the runtime until release; two fit, because the
	// second one has a meaning of its own.
	signalc chan os.Signal
}

// newSupervisor catches signals, before the node starts: one that comes while it
// does must not be lost.
func newSupervisor(stderr io.Writer) *supervisor {
	s := &supervisor{stderr: stderr, signalc: make(chan os.Signal, 2)}
	signal.Notify(s.signalc, syscall.SIGINT, syscall.SIGTERM)
	return s
}

func (s *supervisor) release() { signal.Stop(s.signalc) }

func (s *supervisor) say(format string, args ...any) {
	fmt.Fprintf(s.stderr, "kvnode: "+format+"\n", args...)
}

// announce says that the node listens and what a person may do next.
func (s *supervisor) announce(sv *serve, node *raftkv.Node, founding bool) {
	listens := fmt.Sprintf("member %d listens on %s", sv.id, sv.listensOn())
	switch {
	case founding:
		s.say("%s; it waits for the others of --members %s", listens, strings.Join(sv.members, ","))
	case node.Status().ClusterID == "":
		s.say("%s; it belongs to no cluster yet: found one with: kvnode init --endpoints %s", listens, sv.addr)
		s.say("or add it to one: kvnode add-learner %d=%s --endpoints A-MEMBER-OF-IT", sv.id, sv.addr)
		s.say("a member that has restarted needs neither: its cluster takes it up again")
	default:
		s.say("%s", listens)
	}
}

// supervise stays until the node has stopped, for whatever reason.
func (s *supervisor) supervise(ctx context.Context, node *raftkv.Node, members []raftkv.Member) error {
	initCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	initc := s.found(initCtx, node, members)
	reminder := time.NewTicker(reminderInterval)
	defer reminder.Stop()
	for {
		select {
		case <-node.Done():
			return s.ended(node)
		case err := <-initc:
			if errors.Is(err, raftkv.ErrNotMember) {
				s.say("--members: %s", strings.TrimPrefix(libraryText(err), "init: "))
				s.say("member %d waits to be added: kvnode add-learner ID=ADDR --endpoints A-MEMBER-OF-IT", node.Status().ID)
				initc = nil
				continue
			}
			if err != nil && !errors.Is(err, raftkv.ErrClosed) && !errors.Is(err, raftkv.ErrRemoved) {
				_ = node.Close() // the reason that counts is err
				return fail(exitFailed, "--members: %s; %s", strings.TrimPrefix(libraryText(err), "init: "), foundingHint(err))
			}
			if err == nil {
				s.say("member %d belongs to its cluster", node.Status().ID)
			}
			initc = nil
		case <-reminder.C:
			if initc != nil {
				s.say("still waiting for the others of --members: all must run, with the same list; if a majority of them has restarted, see: kvnode help recover")
			}
		case sig := <-s.signalc:
			return s.stop(node, sig == syscall.SIGINT)
		case <-ctx.Done():
			return s.stop(node, true)
		}
	}
}

// found calls Init in the background; nil members mean that there is nothing to
// do. The goroutine ends with the context or the node.
func (s *supervisor) found(ctx context.Context, node *raftkv.Node, members []raftkv.Member) <-chan error {
	if len(members) == 0 {
		return nil
	}
	initc := make(chan error, 1) // so that the goroutine never waits for a reader
	go func() { initc <- node.Init(ctx, members...) }()
	return initc
}

func foundingHint(err error) string {
	switch {
	case errors.Is(err, raftkv.ErrAlreadyInitialized):
		return "it belongs to another cluster than --members says; look with: kvnode status"
	}
	return "all members need the same list"
}

// ended reports a node that stopped without a signal.
func (s *supervisor) ended(node *raftkv.Node) error {
	err := node.Err()
	_ = node.Close() // stopped already; err is what counts
	if errors.Is(err, raftkv.ErrRemoved) {
		s.say("member %d was removed from its cluster and has stopped", node.Status().ID)
		return nil
	}
	return fail(exitFailed, "the node has stopped: %s", libraryText(err))
}

// stop stops the node cleanly, or at once when a second signal comes.
func (s *supervisor) stop(node *raftkv.Node, interrupted bool) error {
	s.say("stopping; once more stops at once")
	// Not the command's context: that may have ended, which is why we are here.
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	err := s.shutdown(ctx, node)
	_ = node.Close() // also after Shutdown, which may have run out of time
	switch {
	case interrupted:
		return fail(exitInterrupted, "stopped")
	case err != nil:
		return fail(exitFailed, "not stopped cleanly: %s", libraryText(err))
	}
	s.say("stopped")
	return nil
}

// shutdown returns early when a second signal comes.
func (s *supervisor) shutdown(ctx context.Context, node *raftkv.Node) error {
	cost := func(ctx context.Context) string { return costOfStopping(ctx, node.Status()) }
	if !s.warn(ctx, cost) {
		stopped := make(chan error, 1) // so that the goroutine never waits for a reader
		go func() { stopped <- node.Shutdown(ctx) }()
		select {
		case err := <-stopped:
			return err
		case <-s.signalc:
		}
	}
	return errors.New("stopped at once")
}

// libraryText is an error of the library without the prefix that says so.
func libraryText(err error) string { return strings.ReplaceAll(err.Error(), "raftkv: ", "") }
