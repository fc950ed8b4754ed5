package main

import (
	"context"
	"strings"
	"testing"
	"time"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// survivorOf answers as a member whose majority is lost.
func survivorOf(id, term, index uint64) *fake {
	m := threeMembers()
	m.Members[2].Role = voter
	return &fake{
		status: func() *raftkvv1.StatusResponse {
			return &raftkvv1.StatusResponse{ClusterId: "c", Id: id, Role: raftkvv1.Role_ROLE_CANDIDATE, QuorumLost: true,
				LastTerm: term, LastIndex: index, Membership: m}
		},
		rescue: func(context.Context, *raftkvv1.RecoverRequest) (*raftkvv1.RecoverResponse, error) {
			return &raftkvv1.RecoverResponse{Membership: &raftkvv1.Membership{Index: 9, Members: m.GetMembers()[id-1 : id]}}, nil
		},
	}
}

func blank(id uint64) *fake {
	return statusOf(&raftkvv1.StatusResponse{Id: id, Role: raftkvv1.Role_ROLE_BLANK})
}

func TestRecoverWithoutYesShowsAndChangesNothing(t *testing.T) {
	t.Setenv("KVNODE_YES", "true") // no variable may mean it in a person's place
	long, late, empty := survivorOf(1, 6, 9999), survivorOf(2, 7, 1234), blank(3)
	a, b, c := long.start(t), late.start(t), empty.start(t)
	r := kvnode(t, "", "recover", "--endpoints", a+","+b+","+c)
	pad := strings.Repeat(" ", len(a)-len("ENDPOINT"))
	r.check(t, exitUsage, `ENDPOINT`+pad+`  MEMBER  ROLE       MAJORITY  LAST TERM  LAST INDEX  CHOICE
`+a+`  1       candidate  lost      6          9,999       -
`+b+`  2       candidate  lost      7          1,234       best
`+c+`  3       blank      -         -          -           -

The best of these is member 2 at `+b+`: highest last term, then highest last index.
Recovered there, the cluster goes on with all that its log holds, under another cluster
ID. What only other members had is lost, acknowledged or not.
`, "nothing was done", "kvnode recover --yes --endpoints "+b)
	if n := long.calls.Load() + late.calls.Load() + empty.calls.Load(); n != 0 {
		t.Errorf("%d calls; want 0", n)
	}
	r = kvnode(t, "", "recover", "-o", "json", "--endpoints", b+","+refusedAddr(t))
	first, second, _ := strings.Cut(r.stdout, "\n")
	if want := `{"endpoint":"` + b + `","id":2,"role":"candidate","cluster_id":"c","ready":false,"quorum_lost":true,"last_term":7,"last_index":1234,"best":true}`; first != want {
		t.Errorf("stdout is %s; want %s", first, want)
	}
	if !strings.Contains(second, `"id":0`) || !strings.Contains(second, `"best":false,"error":"127.0.0.1:`) || r.code != exitUsage {
		t.Errorf("stdout is %s, code %d", second, r.code)
	}
}

// The longer log wins only within a term, wherever it stands in the list.
func TestRecoverChoosesByTermThenIndex(t *testing.T) {
	first, last := survivorOf(1, 7, 20).start(t), survivorOf(3, 7, 30).start(t)
	older := survivorOf(2, 6, 99).start(t)
	for _, endpoints := range []string{first + "," + older + "," + last, last + "," + first + "," + older} {
		r := kvnode(t, "", "recover", "--endpoints", endpoints)
		if r.code != exitUsage || !strings.Contains(r.stderr, "--yes --endpoints "+last) {
			t.Errorf("code %d, stderr %q; want %s", r.code, r.stderr, last)
		}
	}
}

func TestRecoverSaysWhatMakesTheChoiceDoubtful(t *testing.T) {
	silent := survivorOf(1, 7, 20)
	st := silent.status()
	st.QuorumLost = false
	addr, refused := statusOf(st).start(t), refusedAddr(t)
	r := kvnode(t, "", "recover", "--endpoints", addr+","+refused)
	for _, want := range []string{refused + "  -       no answer", "not asked: members 2, 3.", "There is no proof that a majority is lost"} {
		if r.code != exitUsage || !strings.Contains(r.stdout, want) {
			t.Errorf("code %d, stdout %q; want %q in it", r.code, r.stdout, want)
		}
	}
}

func TestRecoverFindsNobodyToRecover(t *testing.T) {
	other := survivorOf(2, 1, 1)
	st := other.status()
	st.ClusterId = "d"
	tests := map[string]struct {
		endpoints []string
		code      int
		want      string
	}{
		"works":     {[]string{survivorOf(2, 1, 1).start(t), statusOf(leaderStatus()).start(t)}, exitFailed, "its cluster works"},
		"blank":     {[]string{blank(1).start(t), blank(2).start(t)}, exitFailed, "nothing to recover"},
		"nobody":    {[]string{refusedAddr(t), refusedAddr(t)}, exitUnreachable, "refused the connection"},
		"different": {[]string{survivorOf(1, 1, 1).start(t), statusOf(st).start(t)}, exitFailed, "different clusters"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := kvnode(t, "", "recover", "--endpoints", strings.Join(tt.endpoints, ","))
			r.check(t, tt.code, r.stdout, tt.want)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	kvnodeContext(ctx, "", "recover", "--endpoints", silentAddr(t)).check(t, exitInterrupted, "", "nothing was done")
}

func TestRecoverWithYesSaysHowToGoOn(t *testing.T) {
	f := survivorOf(2, 7, 1234)
	addr := f.start(t)
	r := kvnode(t, "", "recover", "--yes", "--endpoints", addr)
	r.check(t, exitDone, "ID  ADDRESS          ROLE\n2   127.0.0.1:21002  voter\n",
		"member 2 alone is a new cluster now",
		"  kvnode add-learner 1=127.0.0.1:21001 --endpoints "+addr+"\n  kvnode add-learner 3=127.0.0.1:21003 --endpoints "+addr+
			"\n  kvnode change-membership 1 2 3 --endpoints "+addr+"\n")
	if n := f.calls.Load(); n != 1 {
		t.Errorf("Recover was called %d times; want 1", n)
	}
	kvnode(t, "", "recover", "--yes", "-o", "json", "--endpoints", addr).
		check(t, exitDone, `{"membership_index":9,"joint":false,"members":[{"id":2,"addr":"127.0.0.1:21002","role":"voter"}]}`+"\n")
}

func TestRecoverWithYesRefused(t *testing.T) {
	works := survivorOf(1, 1, 1)
	works.rescue = func(context.Context, *raftkvv1.RecoverRequest) (*raftkvv1.RecoverResponse, error) {
		return nil, refusal(raftkvv1.Reason_REASON_MEMBERSHIP_REFUSED, notDone,
			"recover: membership change refused: member 2 leads and answers, so no majority is lost")
	}
	addr := works.start(t)
	kvnode(t, "", "recover", "--yes", "--endpoints", addr).
		check(t, exitFailed, "", "recover: "+addr+": refused: member 2 leads and answers, so no majority is lost")
	addr = blank(3).start(t)
	kvnode(t, "", "recover", "--yes", "--endpoints", addr).
		check(t, exitFailed, "", "member 3 belongs to no cluster and has nothing", "kvnode recover --endpoints")
}

// Nothing tells whether a recovery whose answer is lost was done, and to do it
// again would make a third cluster.
func TestRecoverIsSentOnce(t *testing.T) {
	f := survivorOf(1, 1, 1)
	f.rescue = func(ctx context.Context, _ *raftkvv1.RecoverRequest) (*raftkvv1.RecoverResponse, error) {
		go f.server.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	addr := f.start(t)
	kvnode(t, "", "recover", "--yes", "--endpoints", addr).check(t, exitFailed, "", "outcome unknown", "kvnode status")
	if n := f.calls.Load(); n != 1 {
		t.Errorf("Recover was called %d times; want 1", n)
	}
}

// TestRecoverEndToEnd loses two of three voters at once, finds out, goes on with
// the third and has three again. Processes with --members stay up when they hear
// that the new cluster does not have them, as they have to be there to be added.
func TestRecoverEndToEnd(t *testing.T) {
	t.Run("init", func(t *testing.T) {
		p := startProcesses(t, 3)
		p.on(1, "init")
		p.join(1, 2, 3)
		p.recoverFirst()
	})
	t.Run("members", func(t *testing.T) { startMembers(t, 3).recoverFirst() })
}

func (p *processes) recoverFirst() {
	t := p.t
	t.Helper()
	p.on(1, "put", "greeting", "hello")
	p.wantSameState()
	if _, err := p.try(2, "recover", "--yes"); err == nil || !strings.Contains(err.Error(), "leads and answers, so no majority is lost") {
		t.Errorf("recover of a cluster that works: %v", err)
	}
	p.kill(2)
	p.kill(3)
	p.start(2)
	p.start(3)
	p.await(10*time.Second, "the survivor says that a majority is lost", func() bool {
		return strings.Contains(p.on(1, "status"), "no: a majority of the voters is lost")
	})
	_, err := p.try(1, "put", "greeting", "lost")
	if err == nil || !strings.Contains(err.Error(), "exit status 1: ") || !strings.Contains(err.Error(), "kvnode recover --endpoints "+p.addrs[1]+"") {
		t.Errorf("put without a majority: %v", err)
	}
	_, err = p.try(1, "status", "--wait-ready")
	if err == nil || !strings.Contains(err.Error(), "exit status 1: ") || !strings.Contains(err.Error(), "member 1 will not become ready") {
		t.Errorf("status --wait-ready without a majority: %v", err)
	}
	p.want(1, "hello\n", "get", "greeting", "--stale")
	_, err = p.try(1, "recover")
	if err == nil || !strings.Contains(err.Error(), "exit status 2: ") || !strings.Contains(err.Error(), "kvnode recover --yes --endpoints "+p.addrs[1]) {
		t.Errorf("recover without --yes: %v", err)
	}
	p.on(1, "recover", "--yes")
	p.want(1, "hello\n", "get", "greeting")
	p.join(1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		p.on(id, "status", "--wait-ready", "--timeout", "20s")
		p.want(id, "hello\n", "get", "greeting")
	}
	p.on(3, "put", "greeting", "hello again")
	p.wantSameState()
}
