package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

const (
	voter   = raftkvv1.Role_ROLE_VOTER
	learner = raftkvv1.Role_ROLE_LEARNER
)

func threeMembers() *raftkvv1.Membership {
	return &raftkvv1.Membership{Index: 9, Members: []*raftkvv1.Member{
		{Id: 1, Addr: "127.0.0.1:21001", Role: voter},
		{Id: 2, Addr: "127.0.0.1:21002", Role: voter},
		{Id: 3, Addr: "127.0.0.1:21003", Role: learner},
	}}
}

const threeMembersText = `ID  ADDRESS          ROLE
1   127.0.0.1:21001  voter
2   127.0.0.1:21002  voter
3   127.0.0.1:21003  learner
`

const threeMembersJSON = `{"membership_index":9,"joint":false,"members":[` +
	`{"id":1,"addr":"127.0.0.1:21001","role":"voter"},` +
	`{"id":2,"addr":"127.0.0.1:21002","role":"voter"},` +
	`{"id":3,"addr":"127.0.0.1:21003","role":"learner"}]}` + "\n"

func TestMembershipCommandsPrintMembership(t *testing.T) {
	var got fmt.Stringer
	f := &fake{
		add: func(_ context.Context, r *raftkvv1.AddLearnerRequest) (*raftkvv1.AddLearnerResponse, error) {
			got = r
			return &raftkvv1.AddLearnerResponse{Membership: threeMembers()}, nil
		},
		remove: func(_ context.Context, r *raftkvv1.RemoveLearnerRequest) (*raftkvv1.RemoveLearnerResponse, error) {
			got = r
			return &raftkvv1.RemoveLearnerResponse{Membership: threeMembers()}, nil
		},
		change: func(_ context.Context, r *raftkvv1.ChangeMembershipRequest) (*raftkvv1.ChangeMembershipResponse, error) {
			got = r
			return &raftkvv1.ChangeMembershipResponse{Membership: threeMembers()}, nil
		},
	}
	addr := f.start(t)
	tests := map[string]fmt.Stringer{
		"add-learner 3=127.0.0.1:21003":               &raftkvv1.AddLearnerRequest{Id: 3, Addr: "127.0.0.1:21003"},
		"remove-learner 4":                            &raftkvv1.RemoveLearnerRequest{Id: 4},
		"change-membership 1 2":                       &raftkvv1.ChangeMembershipRequest{Voters: []uint64{1, 2}},
		"change-membership 1 2 --retain --if-index 8": &raftkvv1.ChangeMembershipRequest{Voters: []uint64{1, 2}, Retain: true, IfIndex: 8},
	}
	for line, want := range tests {
		args := append(strings.Fields(line), "--endpoints", addr)
		kvnode(t, "", args...).check(t, exitDone, threeMembersText)
		if got.String() != want.String() {
			t.Errorf("%s sent %v; want %v", line, got, want)
		}
		kvnode(t, "", append(args, "-o", "json")...).check(t, exitDone, threeMembersJSON)
	}
}

func TestTransferLeaderSaysWhoLeads(t *testing.T) {
	f := &fake{move: func(_ context.Context, r *raftkvv1.TransferLeadershipRequest) (*raftkvv1.TransferLeadershipResponse, error) {
		if r.GetTo() != 2 {
			return nil, refusal(raftkvv1.Reason_REASON_NOT_MEMBER, notDone, "member 9: raftkv: not a member")
		}
		return &raftkvv1.TransferLeadershipResponse{}, nil
	}}
	addr := f.start(t)
	kvnode(t, "", "transfer-leader", "2", "--endpoints", addr).check(t, exitDone, "member 2 leads\n")
	kvnode(t, "", "transfer-leader", "2", "-o", "json", "--endpoints", addr).check(t, exitDone, `{"leader":2}`+"\n")
	kvnode(t, "", "transfer-leader", "9", "--endpoints", addr).check(t, exitFailed, "", "transfer-leader 9", "member 9: not a member")
}

func TestInterruptedChangeMayComplete(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{add: func(ctx context.Context, _ *raftkvv1.AddLearnerRequest) (*raftkvv1.AddLearnerResponse, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	kvnodeContext(ctx, "", "add-learner", "3=h:1", "--endpoints", f.start(t)).
		check(t, exitInterrupted, "", "add-learner 3=h:1", "may still take effect", "kvnode status")
}

func TestInitFoundsAndSecondInitIsQuiet(t *testing.T) {
	founded := &raftkvv1.Membership{Index: 1, Members: []*raftkvv1.Member{{Id: 1, Addr: "h:1", Role: voter}}}
	st := &raftkvv1.StatusResponse{Id: 1, Addr: "h:1", Role: raftkvv1.Role_ROLE_BLANK}
	f := &fake{
		status: func() *raftkvv1.StatusResponse { return st },
		init: func(context.Context, *raftkvv1.InitRequest) (*raftkvv1.InitResponse, error) {
			st = &raftkvv1.StatusResponse{ClusterId: "c", Id: 1, Addr: "h:1", Leader: 1, Membership: founded}
			return &raftkvv1.InitResponse{Membership: founded}, nil
		},
	}
	addr := f.start(t)
	const want = "ID  ADDRESS  ROLE\n1   h:1      voter\n"
	kvnode(t, "", "init", "--endpoints", addr).check(t, exitDone, want)
	kvnode(t, "", "init", "--endpoints", addr).check(t, exitDone, want, "already initialized with this membership")
	kvnode(t, "", "init", "1=h:1", "--endpoints", addr).check(t, exitDone, want, "already initialized")
	kvnode(t, "", "init", "1=h:1", "2=h:2", "--endpoints", addr).
		check(t, exitFailed, "", "already belongs to a cluster with another membership")
	if n := f.calls.Load(); n != 1 {
		t.Errorf("Init was called %d times; want 1", n)
	}
}

// The lowest ID coordinates founding; asking another one would wait for it.
func TestInitAsksLowestID(t *testing.T) {
	f := &fake{
		status: func() *raftkvv1.StatusResponse { return &raftkvv1.StatusResponse{} },
		init: func(_ context.Context, r *raftkvv1.InitRequest) (*raftkvv1.InitResponse, error) {
			return &raftkvv1.InitResponse{Membership: &raftkvv1.Membership{Members: r.GetMembers()}}, nil
		},
	}
	r := kvnode(t, "", "init", "4=h:4", "2="+f.start(t), "3=h:3", "-o", "json")
	if r.code != exitDone || f.calls.Load() != 1 {
		t.Errorf("code %d, %d calls, stderr %q; want member 2 to be asked", r.code, f.calls.Load(), r.stderr)
	}
}
