package main

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

const (
	notDone = raftkvv1.Outcome_OUTCOME_NOT_DONE
	unknown = raftkvv1.Outcome_OUTCOME_UNKNOWN
)

func TestEachReasonHasItsExitCode(t *testing.T) {
	tests := []struct {
		reason raftkvv1.Reason
		code   int
		want   string
	}{
		{raftkvv1.Reason_REASON_INVALID, exitUsage, "text"},
		{raftkvv1.Reason_REASON_TOO_LARGE, exitFailed, "text"},
		{raftkvv1.Reason_REASON_OVERLOADED, exitFailed, "try again later"},
		{raftkvv1.Reason_REASON_REVISION_MISMATCH, exitNotMet, "get the key again"},
		{raftkvv1.Reason_REASON_NO_LEADER, exitUnreachable, "kvnode status --endpoints"},
		{raftkvv1.Reason_REASON_CLOSED, exitUnreachable, "another member"},
		{raftkvv1.Reason_REASON_REMOVED, exitUnreachable, "another member"},
		{raftkvv1.Reason_REASON_NOT_INITIALIZED, exitUnreachable, "kvnode init --endpoints"},
		{raftkvv1.Reason_REASON_MEMBERSHIP_CHANGED, exitNotMet, "kvnode status --endpoints"},
		{raftkvv1.Reason_REASON_QUORUM_AT_RISK, exitFailed, "missing voters"},
		{raftkvv1.Reason_REASON_QUORUM_LOST, exitFailed, "kvnode recover --endpoints"},
		{raftkvv1.Reason(999), exitFailed, "text"},
	}
	for _, tt := range tests {
		t.Run(tt.reason.String(), func(t *testing.T) {
			addr := refusing(tt.reason, notDone, `put "k": the text: context deadline exceeded`).start(t)
			r := kvnode(t, "", "put", "k", "v", "--endpoints", addr)
			r.check(t, tt.code, "", `put "k"`, addr, tt.want, "the text")
			if strings.Count(r.stderr, "put") != 1 {
				t.Errorf("stderr is %q: it names the call twice", r.stderr)
			}
		})
	}
}

func TestLibraryTextIsForPeople(t *testing.T) {
	err := refusal(raftkvv1.Reason_REASON_NO_LEADER, notDone, `put "k": context deadline exceeded while waiting for a leader`)
	p := explain(writeOf("put", "k"), "h:1", err, circumstances{sent: true})
	const want = "h:1: time ran out while waiting for a leader; not done; look with: kvnode status --endpoints h:1"
	if p.text != want || p.code != exitUnreachable {
		t.Errorf("got %q; want %q", p.text, want)
	}
}

func TestEveryReasonHasAdvice(t *testing.T) {
	for number, name := range raftkvv1.Reason_name {
		reason := raftkvv1.Reason(number)
		if _, ok := advices[reason]; !ok && reason != raftkvv1.Reason_REASON_UNSPECIFIED && reason != raftkvv1.Reason_REASON_OUTCOME_UNKNOWN {
			t.Errorf("%s has none", name)
		}
	}
}

func TestPlainStatusHasItsExitCode(t *testing.T) {
	tests := []struct {
		err  error
		code int
		want string
	}{
		{status.Error(codes.PermissionDenied, "not you"), exitDenied, "denied: not you"},
		{status.Error(codes.Unauthenticated, "who?"), exitDenied, "denied: who?"},
		{status.Error(codes.Unimplemented, "x"), exitFailed, "of this version"},
		{status.Error(codes.InvalidArgument, "bad key"), exitUsage, "bad key"},
		{status.Error(codes.ResourceExhausted, "too much\nat once"), exitFailed, "too much at once"},
		{status.Error(codes.Internal, "oops"), exitFailed, "outcome unknown"},
	}
	for _, tt := range tests {
		f := &fake{put: func(context.Context, *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) { return nil, tt.err }}
		kvnode(t, "", "put", "k", "v", "--endpoints", f.start(t)).check(t, tt.code, "", tt.want)
	}
}

func TestNextEndpointAnswers(t *testing.T) {
	good := holding("v").start(t)
	firsts := map[string]string{
		"refused": refusedAddr(t),
		"silent":  silentAddr(t),
		"blank":   refusing(raftkvv1.Reason_REASON_NOT_INITIALIZED, notDone, "not initialized").start(t),
		"closed":  refusing(raftkvv1.Reason_REASON_CLOSED, notDone, "node closed").start(t),
		"removed": refusing(raftkvv1.Reason_REASON_REMOVED, notDone, "node removed").start(t),
		"leader":  refusing(raftkvv1.Reason_REASON_NO_LEADER, notDone, "no leader").start(t),
	}
	for name, first := range firsts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flags := []string{"--endpoints", first + "," + good, "--timeout", "600ms"}
			kvnode(t, "", append(flags, "put", "k", "v")...).check(t, exitDone, "7\n")
			kvnode(t, "", append(flags, "get", "k")...).check(t, exitDone, "v\n")
		})
	}
}

// A member that is cut off would keep a call until its time is over.
func TestMemberWithoutLeaderIsAskedLast(t *testing.T) {
	cut := refusing(raftkvv1.Reason_REASON_NO_LEADER, notDone, "no leader")
	cut.status = func() *raftkvv1.StatusResponse { return &raftkvv1.StatusResponse{ClusterId: "c", Id: 3} }
	endpoints := cut.start(t) + "," + holding("v").start(t)
	kvnode(t, "", "get", "k", "--endpoints", endpoints).check(t, exitDone, "v\n")
	if n := cut.calls.Load(); n != 0 {
		t.Errorf("the member without a leader got %d calls; want 0", n)
	}
	alone := cut.start(t)
	kvnode(t, "", "get", "k", "--endpoints", refusedAddr(t)+","+alone).
		check(t, exitUnreachable, "", "no leader", alone, "(tried ")
}

func TestMostTellingErrorIsReported(t *testing.T) {
	blank := refusing(raftkvv1.Reason_REASON_NOT_INITIALIZED, notDone, "not initialized").start(t)
	leaderless := refusing(raftkvv1.Reason_REASON_NO_LEADER, notDone, "no leader").start(t)
	refused := refusedAddr(t)
	kvnode(t, "", "get", "k", "--endpoints", refused+","+blank+","+leaderless).
		check(t, exitUnreachable, "", leaderless+": no leader")
	kvnode(t, "", "get", "k", "--endpoints", refused+","+blank).check(t, exitUnreachable, "", blank+": not initialized")
	kvnode(t, "", "get", "k", "--endpoints", refused).check(t, exitUnreachable, "", refused+" refused the connection; is a node running there?")
}

// After a recovery the other survivors of the old cluster still call it lost.
func TestNextEndpointAnswersAfterLostMajority(t *testing.T) {
	lost := refusing(raftkvv1.Reason_REASON_QUORUM_LOST, notDone, "a majority of the voters is lost").start(t)
	kvnode(t, "", "put", "k", "v", "--endpoints", lost+","+holding("v").start(t)).check(t, exitDone, "7\n")
	leaderless := refusing(raftkvv1.Reason_REASON_NO_LEADER, notDone, "no leader").start(t)
	kvnode(t, "", "put", "k", "v", "--endpoints", leaderless+","+lost).
		check(t, exitFailed, "", lost+": a majority of the voters is lost; not done; nothing works again before a person acts", "kvnode recover --endpoints "+lost)
}

func TestUnknownOutcomeOfLostMajorityNamesBoth(t *testing.T) {
	addr := refusing(raftkvv1.Reason_REASON_QUORUM_LOST, unknown, "a majority of the voters is lost").start(t)
	kvnode(t, "", "put", "k", "v", "--endpoints", addr).
		check(t, exitFailed, "", "kvnode recover --endpoints "+addr, "outcome unknown", "get the key")
}

func TestUnreachableEndpointsAreNamed(t *testing.T) {
	silent := silentAddr(t)
	kvnode(t, "", "get", "k", "--timeout", "100ms", "--endpoints", silent).
		check(t, exitUnreachable, "", silent+" accepts connections but does not answer")
	kvnode(t, "", "get", "k", "--timeout", "1s", "--endpoints", "no-such-host.invalid:1").
		check(t, exitUnreachable, "", "no-such-host.invalid:1")
}

// lostAfter is a member whose connection breaks when a request has arrived.
func lostAfter() *fake {
	f := holding("v")
	f.put = func(ctx context.Context, _ *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
		go f.server.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.get = func(ctx context.Context, _ *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) {
		go f.server.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f
}

// An endpoint is dialed as it is: in a URL the zone would be half an escape.
func TestEndpointMayHaveZone(t *testing.T) {
	_, err := connect(t.Context(), "[fe80::1%zone]:21001", connectTimeoutMax)
	if err == nil || strings.Contains(err.Error(), "invalid URL") {
		t.Errorf("connect gives %v; want an error of the network", err)
	}
}

func TestWriteThatWasSentIsNotSentAgain(t *testing.T) {
	second := holding("v")
	lost := lostAfter().start(t)
	kvnode(t, "", "put", "k", "v", "--endpoints", lost+","+second.start(t)).
		check(t, exitFailed, "", `put "k"`, lost, "the connection was lost", "outcome unknown", "get the key")
	if n := second.calls.Load(); n != 0 {
		t.Errorf("the second endpoint got %d calls; want 0", n)
	}
}

func TestReadThatWasSentIsSentAgain(t *testing.T) {
	endpoints := lostAfter().start(t) + "," + holding("v").start(t)
	kvnode(t, "", "get", "k", "--endpoints", endpoints).check(t, exitDone, "v\n")
}

// A member that says itself that it does not know is believed.
func TestMembersUnknownOutcomeIsFinal(t *testing.T) {
	for _, reason := range []raftkvv1.Reason{raftkvv1.Reason_REASON_OUTCOME_UNKNOWN, raftkvv1.Reason_REASON_CLOSED} {
		second := holding("v")
		first := refusing(reason, unknown, "the node stopped").start(t)
		kvnode(t, "", "put", "k", "v", "--endpoints", first+","+second.start(t)).
			check(t, exitFailed, "", "the node stopped", "outcome unknown")
		if n := second.calls.Load(); n != 0 {
			t.Errorf("%v: the second endpoint got %d calls; want 0", reason, n)
		}
	}
}

// slow never answers.
func slow(arrived func()) *fake {
	return &fake{
		put: func(ctx context.Context, _ *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
			arrived()
			<-ctx.Done()
			return nil, ctx.Err()
		},
		get: func(ctx context.Context, _ *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) {
			arrived()
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
}

func TestTimeoutSaysWhatItMeans(t *testing.T) {
	addr := slow(func() {}).start(t)
	kvnode(t, "", "get", "k", "--timeout", "100ms", "--endpoints", addr).
		check(t, exitUnreachable, "", "no answer within 100ms", addr, "kvnode status")
	kvnode(t, "", "put", "k", "v", "--timeout", "100ms", "--endpoints", addr).
		check(t, exitFailed, "", "no answer within 100ms", "outcome unknown")
}

func TestInterruptedSaysWhatItMeans(t *testing.T) {
	for command, want := range map[string]string{"get k": "interrupted", "put k v": "it may still take effect"} {
		ctx, cancel := context.WithCancel(t.Context())
		addr := slow(cancel).start(t)
		args := append(strings.Fields(command), "--endpoints", addr)
		kvnodeContext(ctx, "", args...).check(t, exitInterrupted, "", want)
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	kvnodeContext(ctx, "", "put", "k", "v", "--endpoints", silentAddr(t)).check(t, exitInterrupted, "", "interrupted")
}
