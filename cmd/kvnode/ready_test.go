package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// A member that restarts is blank, then a learner, then ready.
func TestWaitReadyWaits(t *testing.T) {
	var asked atomic.Int64
	f := &fake{status: func() *raftkvv1.StatusResponse {
		st := leaderStatus()
		switch asked.Add(1) {
		case 1:
			return &raftkvv1.StatusResponse{Id: 1}
		case 2:
			st.Ready, st.Role, st.Leader = false, learner, 2
		case 3:
			st.Ready, st.Leader = false, 0
		}
		return st
	}}
	addr := f.start(t)
	r := kvnode(t, "", "status", "--wait-ready", "--endpoints", addr)
	want := kvnode(t, "", "status", "--endpoints", addr)
	r.check(t, exitDone, want.stdout)
	if n := asked.Load(); n != 5 {
		t.Errorf("asked %d times; want 4, and once for comparison", n)
	}
	r = kvnode(t, "", "status", "--wait-ready", "-o", "json", "--endpoints", addr)
	if r.code != exitDone || !strings.HasPrefix(r.stdout, "{") {
		t.Errorf("code %d, stdout %q", r.code, r.stdout)
	}
}

// A process that has not started yet is not ready yet.
func TestWaitReadyWaitsForTheProcess(t *testing.T) {
	addr := refusedAddr(t)
	go func() {
		<-time.After(300 * time.Millisecond)
		statusOf(leaderStatus()).startAt(t, addr)
	}()
	r := kvnode(t, "", "status", "--wait-ready", "--timeout", "10s", "--endpoints", addr)
	if r.code != exitDone || !strings.Contains(r.stdout, "ready     yes") {
		t.Errorf("code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

func TestWaitReadySaysHowFarItIs(t *testing.T) {
	three := threeMembers()
	tests := map[string]struct {
		addr string
		want string
	}{
		"blank":    {statusOf(&raftkvv1.StatusResponse{Id: 3}).start(t), "member 3 is blank: no cluster has taken it up yet"},
		"replaced": {statusOf(&raftkvv1.StatusResponse{ClusterId: "c", Id: 2, Leader: 1, Role: learner, Membership: three}).start(t), "takes over the vote"},
		"learner":  {statusOf(&raftkvv1.StatusResponse{ClusterId: "c", Id: 3, Leader: 1, Role: learner, Membership: three}).start(t), "has not caught up with its leader, member 1"},
		"leader":   {statusOf(&raftkvv1.StatusResponse{ClusterId: "c", Id: 2, Membership: three}).start(t), "knows no leader"},
		"refused":  {refusedAddr(t), "refused the connection"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kvnode(t, "", "status", "--wait-ready", "--timeout", "300ms", "--endpoints", tt.addr).
				check(t, exitUnreachable, "", "status --wait-ready: not ready within 300ms: "+tt.addr, tt.want)
		})
	}
}

// What will never come is not waited for.
func TestWaitReadyFailsAtOnce(t *testing.T) {
	lost := statusOf(&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, QuorumLost: true, Membership: threeMembers()}).start(t)
	kvnode(t, "", "status", "--wait-ready", "--endpoints", lost).check(t, exitFailed, "", lost, "member 1 will not become ready",
		"a majority of the voters is lost", "kvnode recover --endpoints 127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003")
	denied := &fake{refuse: status.Error(codes.PermissionDenied, "not you")}
	kvnode(t, "", "status", "--wait-ready", "--endpoints", denied.start(t)).check(t, exitDenied, "", "denied: not you")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	kvnodeContext(ctx, "", "status", "--wait-ready", "--endpoints", refusedAddr(t)).check(t, exitInterrupted, "", "interrupted")
}

func TestWaitReadySaysWhatItWaitsFor(t *testing.T) {
	addr := statusOf(&raftkvv1.StatusResponse{Id: 3}).start(t)
	r := kvnode(t, "", "status", "--wait-ready", "--timeout", "3300ms", "--endpoints", addr)
	if !strings.Contains(r.stderr, "kvnode: status --wait-ready: still waiting (3.3s at most): "+addr+": member 3 is blank") {
		t.Errorf("stderr is %q", r.stderr)
	}
}

// A member that restarts is waited for, as a script that restarts all of them
// does; nothing is lost and no call fails.
func TestWaitReadyMakesRollingRestartsSafe(t *testing.T) {
	p := startProcesses(t, 3)
	p.on(1, "init")
	p.join(1, 2, 3)
	p.on(1, "put", "greeting", "hello")
	for id := uint64(1); id <= 3; id++ {
		log := p.stopCleanly(id)
		if strings.Contains(log, "warning") {
			t.Errorf("member %d, of three that run, has warned:\n%s", id, log)
		}
		p.start(id)
		out := p.on(id, "status", "--wait-ready", "--timeout", "20s")
		if !strings.Contains(out, "ready     yes") {
			t.Errorf("status --wait-ready = %s", out)
		}
		p.on(id, "put", fmt.Sprintf("after %d", id), "yes")
	}
	for id := uint64(1); id <= 3; id++ {
		p.want(id, "hello\n", "get", "greeting")
	}
	p.wantSameState()
}
