package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func leaderStatus() *raftkvv1.StatusResponse {
	return &raftkvv1.StatusResponse{
		ClusterId: "0123456789abcdef0123456789abcdef", Id: 1, Addr: "127.0.0.1:21001",
		Role: raftkvv1.Role_ROLE_LEADER, Leader: 1, Term: 7, Commit: 185753, Applied: 185752,
		Revision: 12, StateHash: 0xff, Ready: true, LastTerm: 7, LastIndex: 185754, SpareVoters: new(uint32), Membership: threeMembers(),
		Peers: []*raftkvv1.PeerStatus{
			{Id: 2, Match: 185752, LastContactMs: 3, State: "replicate"},
			{Id: 3, Match: 180872, Lag: 4880, LastContactMs: -1, State: "snapshot"},
		},
	}
}

func statusOf(st *raftkvv1.StatusResponse) *fake {
	return &fake{status: func() *raftkvv1.StatusResponse { return st }}
}

func TestStatusOfLeaderShowsProgress(t *testing.T) {
	addr := statusOf(leaderStatus()).start(t)
	kvnode(t, "", "status", "--endpoints", addr).check(t, exitDone, `cluster   0123456789abcdef0123456789abcdef
asked     member 1 at `+addr+`: leader
ready     yes
log       term 7, commit 185753, last 185754 of term 7
state     revision 12, hash 00000000000000ff at index 185752
members   index 9, two voters: the loss of either stops the cluster

ID  ADDRESS          ROLE      MATCH    BEHIND  STATE      SEEN
1   127.0.0.1:21001  leader    185,752  -       -          -
2   127.0.0.1:21002  follower  185,752  0       replicate  3ms
3   127.0.0.1:21003  learner   180,872  4,880   snapshot   never
`)
	kvnode(t, "", "status", "-o", "json", "--endpoints", addr).check(t, exitDone,
		`{"id":1,"addr":"127.0.0.1:21001","role":"leader","leader":1,"term":7,"commit":185753,"applied":185752,`+
			`"revision":12,"state_hash":"00000000000000ff","ready":true,"quorum_lost":false,"last_term":7,"last_index":185754,"spare_voters":0,"cluster_id":"0123456789abcdef0123456789abcdef",`+
			`"membership_index":9,"joint":false,"members":[`+
			`{"id":1,"addr":"127.0.0.1:21001","role":"voter"},`+
			`{"id":2,"addr":"127.0.0.1:21002","role":"voter","match":185752,"lag":0,"last_contact_ms":3,"state":"replicate"},`+
			`{"id":3,"addr":"127.0.0.1:21003","role":"learner","match":180872,"lag":4880,"last_contact_ms":-1,"state":"snapshot"}`+
			`],"refused_messages":0}`+"\n")
}

func TestStatusOfOthersSaysWhoLeads(t *testing.T) {
	st := leaderStatus()
	st.Id, st.Role, st.Peers = 2, raftkvv1.Role_ROLE_FOLLOWER, nil
	r := kvnode(t, "", "status", "--endpoints", statusOf(st).start(t))
	if !strings.Contains(r.stdout, "follower, member 1 at 127.0.0.1:21001 leads\n") {
		t.Errorf("stdout is %q", r.stdout)
	}
	st.Leader = 0
	r = kvnode(t, "", "status", "--endpoints", statusOf(st).start(t))
	if !strings.Contains(r.stdout, "follower, knows no leader\n") || !strings.Contains(r.stdout, "21001  voter ") {
		t.Errorf("stdout is %q", r.stdout)
	}
}

func TestStatusWarnsOfWhatPeopleOverlook(t *testing.T) {
	three := leaderStatus().GetMembership()
	three.Members[2].Role = voter
	tests := map[string]struct {
		st   *raftkvv1.StatusResponse
		want string
	}{
		"lost": {&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, QuorumLost: true, Membership: three},
			"ready     no: a majority of the voters is lost; stale reads go on; choose the best survivor with\n" +
				"          kvnode recover --endpoints 127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003\n"},
		"none to spare": {&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, Leader: 1, SpareVoters: new(uint32), Membership: three},
			"no voter can be spared"},
		"no leader": {&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, Membership: three}, "ready     no: it knows no leader"},
		"behind":    {&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, Leader: 2, Membership: three}, "ready     no: it has not caught up"},
		"replaced": {&raftkvv1.StatusResponse{ClusterId: "c", Id: 1, Leader: 2, Role: learner, Membership: three},
			"ready     no: it catches up, and then takes over the vote"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := kvnode(t, "", "status", "--endpoints", statusOf(tt.st).start(t))
			if !strings.Contains(r.stdout, tt.want) {
				t.Errorf("stdout is %q; want %q in it", r.stdout, tt.want)
			}
		})
	}
	spare := leaderStatus()
	spare.GetMembership().Members[2].Role, spare.SpareVoters = voter, new(uint32(1))
	r := kvnode(t, "", "status", "--endpoints", statusOf(spare).start(t))
	if !strings.Contains(r.stdout, "members   index 9\n") {
		t.Errorf("stdout is %q; want no warning", r.stdout)
	}
}

// Only the leader knows; a number from another member would be made up.
func TestSpareVotersOnlyWhereKnown(t *testing.T) {
	st := leaderStatus()
	st.Id, st.SpareVoters = 2, nil
	addr := statusOf(st).start(t)
	for _, args := range [][]string{{"status", "-o", "json"}, {"status"}} {
		if r := kvnode(t, "", append(args, "--endpoints", addr)...); strings.Contains(r.stdout, "spare") {
			t.Errorf("%v: stdout is %q", args, r.stdout)
		}
	}
}

func TestStatusOfBlankMember(t *testing.T) {
	addr := statusOf(&raftkvv1.StatusResponse{Id: 4, Addr: "h:4", Role: raftkvv1.Role_ROLE_BLANK}).start(t)
	kvnode(t, "", "status", "--endpoints", addr).check(t, exitDone, "member 4 at "+addr+" belongs to no cluster yet\n")
	r := kvnode(t, "", "status", "-o", "json", "--endpoints", addr)
	if !strings.Contains(r.stdout, `"role":"blank"`) || !strings.Contains(r.stdout, `"members":[]`) {
		t.Errorf("stdout is %q", r.stdout)
	}
}

func TestStatusFits100Columns(t *testing.T) {
	st := leaderStatus()
	st.Commit, st.Applied, st.Term, st.Revision = 1<<40, 1<<40, 1<<20, 1<<40
	st.LastIndex, st.LastTerm, st.Ready, st.QuorumLost = 1<<40, 1<<20, false, true
	st.Id, st.Leader = memberIDMax, memberIDMax
	for i, m := range st.GetMembership().GetMembers() {
		m.Id = memberIDMax - uint64(i)
		m.Addr = strings.Repeat("long-name.", 9) + "example.com:21001"
	}
	for i, p := range st.GetPeers() {
		p.Id, p.Match, p.Lag, p.LastContactMs = memberIDMax-uint64(i+1), 1<<32, 1<<20, 86400000
	}
	text, err := statusText("127.0.0.1:21001", st)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(line) - 1; n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestWatchPrintsLinesUntilInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := statusOf(leaderStatus())
	inner := f.status
	asked := 0
	f.status = func() *raftkvv1.StatusResponse {
		if asked++; asked == 2 {
			cancel()
		}
		return inner()
	}
	r := kvnodeContext(ctx, "", "status", "--watch", "--endpoints", f.start(t))
	if r.code != exitDone || strings.Count(r.stdout, "\n") != 1 || !strings.Contains(r.stdout, "id=1 role=leader leader=1 term=7") ||
		!strings.HasSuffix(r.stdout, "ready=true quorum_lost=false last_term=7 last_index=185754 spare_voters=0\n") {
		t.Errorf("code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

// Watching is most useful when something is wrong.
func TestWatchGoesOnWithoutAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	addr := refusedAddr(t)
	r := kvnodeContext(ctx, "", "status", "--watch", "--endpoints", addr)
	r.check(t, exitDone, "", addr+" refused the connection")
}

func TestWatchScreenIsRedrawn(t *testing.T) {
	addr := statusOf(leaderStatus()).start(t)
	c := &client{endpoints: []string{addr}, timeout: time.Second}
	var out bytes.Buffer
	if err := c.watchScreen(t.Context(), &out, nil); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.HasPrefix(got, clearScreen) || !strings.Contains(got, "185,752") {
		t.Errorf("the screen is %q", got)
	}
	out.Reset()
	c.endpoints = []string{refusedAddr(t)}
	if err := c.watchScreen(t.Context(), &out, nil); err != nil || !strings.Contains(out.String(), "refused") {
		t.Errorf("the screen is %q, the error %v", out.String(), err)
	}
}
