package main

import (
	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// statusJSON is the one object of status -o json. Its names are an interface
// that programs build on.
type statusJSON struct {
	ID              uint64             `json:"id"`
	Addr            string             `json:"addr"`
	Role            string             `json:"role"`
	Leader          uint64             `json:"leader"` // 0 if none is known
	Term            uint64             `json:"term"`
	Commit          uint64             `json:"commit"`
	Applied         uint64             `json:"applied"`
	Revision        uint64             `json:"revision"`
	StateHash       string             `json:"state_hash"` // a number would lose digits in many languages
	Ready           bool               `json:"ready"`
	QuorumLost      bool               `json:"quorum_lost"`
	LastTerm        uint64             `json:"last_term"`
	LastIndex       uint64             `json:"last_index"`
	SpareVoters     *uint32            `json:"spare_voters,omitempty"` // only the leader knows
	ClusterID       string             `json:"cluster_id"`
	MembershipIndex uint64             `json:"membership_index"`
	Joint           bool               `json:"joint"`
	Members         []memberStatusJSON `json:"members"`
	RefusedMessages uint64             `json:"refused_messages"`
}

// memberStatusJSON has progress only where the leader has told it.
type memberStatusJSON struct {
	memberJSON
	*progressJSON
}

type progressJSON struct {
	Match         uint64 `json:"match"`
	Lag           uint64 `json:"lag"`
	LastContactMs int64  `json:"last_contact_ms"` // -1: never
	State         string `json:"state"`
}

func newStatusJSON(st *raftkvv1.StatusResponse) statusJSON {
	m := st.GetMembership()
	out := statusJSON{
		ID: st.GetId(), Addr: st.GetAddr(), Role: roleName(st.GetRole()), Leader: st.GetLeader(),
		Term: st.GetTerm(), Commit: st.GetCommit(), Applied: st.GetApplied(), Revision: st.GetRevision(),
		StateHash: hashText(st), Ready: st.GetReady(), QuorumLost: st.GetQuorumLost(),
		LastTerm: st.GetLastTerm(), LastIndex: st.GetLastIndex(), SpareVoters: st.SpareVoters, ClusterID: st.GetClusterId(),
		MembershipIndex: m.GetIndex(), Joint: m.GetJoint(), Members: []memberStatusJSON{},
		RefusedMessages: st.GetRefusedMessages(),
	}
	for _, m := range m.GetMembers() {
		row := memberStatusJSON{memberJSON: memberJSON{m.GetId(), m.GetAddr(), roleName(m.GetRole())}}
		if p := peerOf(st, m.GetId()); p != nil {
			row.progressJSON = &progressJSON{p.GetMatch(), p.GetLag(), p.GetLastContactMs(), p.GetState()}
		}
		out.Members = append(out.Members, row)
	}
	return out
}
