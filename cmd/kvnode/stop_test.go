package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/raftkv"
	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// membersAt returns voters 1 to n, of which the first leads at addr.
func membersAt(addr string, n int) raftkv.Membership {
	m := raftkv.Membership{Members: []raftkv.Member{{ID: 1, Addr: addr}}}
	for id := uint64(2); id <= uint64(n); id++ {
		m.Members = append(m.Members, raftkv.Member{ID: id, Addr: "h:1"})
	}
	return m
}

func TestCostOfStopping(t *testing.T) {
	tight := statusOf(&raftkvv1.StatusResponse{SpareVoters: new(uint32)}).start(t)
	relaxed := statusOf(&raftkvv1.StatusResponse{SpareVoters: new(uint32(1))}).start(t)
	deposed := statusOf(&raftkvv1.StatusResponse{}).start(t)
	withLearner := membersAt("h:1", 2)
	withLearner.Members[1].Role = raftkv.Learner
	tests := map[string]struct {
		st   raftkv.Status
		want string // "" if nothing is to be said
	}{
		"blank":             {raftkv.Status{ID: 1, Role: raftkv.Blank, SpareVoters: -1}, ""},
		"learner":           {raftkv.Status{ID: 4, Role: raftkv.Learner, Leader: 1, SpareVoters: -1, Membership: membersAt(tight, 3)}, ""},
		"leader, none":      {raftkv.Status{ID: 1, Role: raftkv.Leader, Leader: 1, Membership: membersAt("h:1", 3)}, "too few of the 3"},
		"leader, one":       {raftkv.Status{ID: 1, Role: raftkv.Leader, Leader: 1, SpareVoters: 1, Membership: membersAt("h:1", 3)}, ""},
		"follower, none":    {raftkv.Status{ID: 2, Role: raftkv.Follower, Leader: 1, SpareVoters: -1, Membership: membersAt(tight, 3)}, "too few of the 3"},
		"follower, one":     {raftkv.Status{ID: 2, Role: raftkv.Follower, Leader: 1, SpareVoters: -1, Membership: membersAt(relaxed, 3)}, ""},
		"follower, deposed": {raftkv.Status{ID: 2, Role: raftkv.Follower, Leader: 1, SpareVoters: -1, Membership: membersAt(deposed, 3)}, ""},
		"follower, alone":   {raftkv.Status{ID: 2, Role: raftkv.Follower, SpareVoters: -1, Membership: membersAt(tight, 3)}, "knows no leader"},
		"follower, guest":   {raftkv.Status{ID: 2, Role: raftkv.Follower, Leader: 9, SpareVoters: -1, Membership: membersAt(tight, 3)}, ""},
		"only member":       {raftkv.Status{ID: 1, Role: raftkv.Leader, Leader: 1, Membership: membersAt("h:1", 1)}, "the only member"},
		"only voter":        {raftkv.Status{ID: 1, Role: raftkv.Leader, Leader: 1, Membership: withLearner}, "the only voter"},
		"lost":              {raftkv.Status{ID: 2, Role: raftkv.Follower, QuorumLost: true, SpareVoters: -1, Membership: membersAt("h:1", 3)}, "lost already"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := costOfStopping(t.Context(), tt.st)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q; want %q", got, tt.want)
			}
		})
	}
}

// A leader that hangs must not keep a node from stopping.
func TestCostOfStoppingDoesNotWait(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), stopCheckMax)
	defer cancel()
	begin := time.Now()
	st := raftkv.Status{ID: 2, Role: raftkv.Follower, Leader: 1, SpareVoters: -1, Membership: membersAt(silentAddr(t), 3)}
	if got := costOfStopping(ctx, st); got != "" {
		t.Errorf("got %q; want nothing", got)
	}
	if took := time.Since(begin); took > stopCheckMax+time.Second {
		t.Errorf("took %v", took)
	}
}

// Neither a question without an answer nor one that ignores its time keeps a node
// from stopping, and a second signal is heard at once.
func TestWarningDoesNotDelayTheStop(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hangs := func(context.Context) string { <-release; return "never said" }
	var stderr bytes.Buffer
	s := &supervisor{stderr: &stderr, signalc: make(chan os.Signal, 1)}
	begin := time.Now()
	if s.warn(t.Context(), hangs) || time.Since(begin) > stopCheckMax+time.Second {
		t.Errorf("impatient, or not done after %v", time.Since(begin))
	}
	s.signalc <- syscall.SIGTERM
	if !s.warn(t.Context(), hangs) {
		t.Error("the second signal was not heard")
	}
	if s.warn(t.Context(), func(context.Context) string { return "the cost" }) || stderr.String() != "kvnode: warning: the cost\n" {
		t.Errorf("stderr is %q", stderr.String())
	}
}

// stopCleanly stops a process as an operator does, and returns what it said.
func (p *processes) stopCleanly(id uint64) (log string) {
	p.t.Helper()
	proc := p.procs[id]
	delete(p.procs, id)
	if err := proc.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := proc.cmd.Wait(); err != nil {
		p.t.Errorf("member %d, stopped by SIGTERM: %v\n%s", id, err, proc.log)
	}
	return proc.log.String()
}

// TestStopWarnsWhenNoVoterCanBeSpared stops one after another of three voters: it
// is only with the second that the majority goes, and with the last that all does.
func TestStopWarnsWhenNoVoterCanBeSpared(t *testing.T) {
	p := startProcesses(t, 3)
	p.on(1, "init")
	p.join(1, 2, 3)
	leader := p.leader()
	followers := slices.DeleteFunc(p.ids(), func(id uint64) bool { return id == leader })
	p.kill(followers[0])
	p.await(10*time.Second, "the leader has no voter to spare", func() bool {
		return strings.Contains(p.on(leader, "status"), "no voter can be spared")
	})
	begin := time.Now()
	log := p.stopCleanly(followers[1])
	if took := time.Since(begin); took > shutdownTimeout {
		t.Errorf("the stop took %v", took)
	}
	const want = "kvnode: warning: without this voter too few of the 3 are left for a majority"
	if !strings.Contains(log, want) || strings.Index(log, want) > strings.Index(log, "kvnode: stopped") {
		t.Errorf("the log has no %q before it stops:\n%s", want, log)
	}
}

func TestStopOfTheOnlyMemberWarns(t *testing.T) {
	p := startProcesses(t, 1)
	p.on(1, "init")
	if log := p.stopCleanly(1); !strings.Contains(log, "warning: this is the only member") {
		t.Errorf("it did not warn:\n%s", log)
	}
}
