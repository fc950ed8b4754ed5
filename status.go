package raftkv

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"example.com/raftkv/internal/roster"
)

// A Role is a member's part in the cluster.
type Role int

// Voter and Learner are what the membership says; a Status shows a voter as
// Follower, Candidate or Leader, and a process without a cluster as Blank.
const (
	Voter     Role = iota // has a vote
	Learner               // receives the log, but has no vote
	Follower              // a voter that follows a leader or waits for one
	Candidate             // a voter that asks for votes
	Leader                // the leader
	Blank                 // belongs to no cluster yet
)

func (r Role) String() string {
	names := [...]string{"voter", "learner", "follower", "candidate", "leader", "blank"}
	if r < 0 || int(r) >= len(names) {
		return fmt.Sprintf("Role(%d)", int(r))
	}
	return names[r]
}

// A Status is how one member sees the cluster.
type Status struct {
	ClusterID string // 32 hexadecimal digits; empty while Blank
	ID        uint64
	Addr      string
	Role      Role
	Leader    uint64 // its member ID, 0 if none is known
	Term      uint64
	Commit    uint64 // index of the last entry known to be committed
	Applied   uint64 // index of the last entry that the state shows
	Revision  uint64 // of the store at Applied
	StateHash uint64 // of the whole state at Applied; equal on all members

	Membership      Membership
	Peers           []PeerStatus // on the leader: the other members, by ID
	RefusedMessages uint64       // from peers, that the message firewall held back
}

// A PeerStatus is what the leader knows of another member.
type PeerStatus struct {
	ID          uint64
	Match       uint64        // index up to which its log agrees with the leader's
	Lag         uint64        // how many entries of the leader's log it lacks
	LastContact time.Duration // since the last message from it; negative if there was none
	State       string        // probe, replicate or snapshot, as raft calls them
}

// Status returns how this node sees the cluster. It asks nobody and does not
// wait. After the node has stopped it returns what it last knew.
func (n *Node) Status() Status {
	var s Status
	_ = n.do(func(l *loop) { s = l.status() }) // on a stopped node, what follows is all there is
	v := n.view.Load()
	s.ID, s.Addr = n.cfg.ID, n.cfg.Addr
	s.Role = roleOf(v)
	s.Leader, s.Term = v.leader.ID(), v.term
	if v.raftID != 0 {
		s.ClusterID = clusterIDText(v.roster.ClusterID)
		s.Membership = membershipOf(v.roster)
	}
	s.Applied, s.Revision, s.StateHash = n.fsm.status()
	s.Commit = max(s.Commit, s.Applied)
	return s
}

func roleOf(v *view) Role {
	switch {
	case v.raftID == 0:
		return Blank
	case !v.roster.IsVoter(v.raftID):
		return Learner
	case v.state == raft.StateLeader:
		return Leader
	case v.state == raft.StateCandidate || v.state == raft.StatePreCandidate:
		return Candidate
	}
	return Follower
}

// status returns what only the loop knows.
func (l *loop) status() (s Status) {
	s.RefusedMessages = l.links.refused
	if l.raw == nil {
		return s
	}
	s.Commit = l.raw.BasicStatus().GetCommit()
	if l.lead.raftID != l.raftID {
		return s
	}
	last := l.Last()
	l.raw.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == l.raftID {
			return
		}
		p := PeerStatus{ID: roster.MemberID(id), Match: pr.Match, Lag: last - pr.Match, LastContact: -1}
		if at, ok := l.links.contact[id]; ok {
			p.LastContact = time.Duration(l.now-at) * l.cfg.Timing.Tick
		}
		p.State = strings.ToLower(strings.TrimPrefix(pr.State.String(), "State"))
		s.Peers = append(s.Peers, p)
	})
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return int(a.ID) - int(b.ID) })
	return s
}

// A view is what callers may see of the loop: published after every change,
// immutable.
type view struct {
	raftID  uint64 // 0 while blank
	roster  *roster.Roster
	founded *roster.Roster // as in loop
	leader  roster.Member  // raft ID 0 if nobody known leads
	ready   bool           // leader is this node, and it has committed in its term
	state   raft.StateType
	term    uint64
	gone    bool
	nextc   chan struct{} // closed when there is a newer view
}

func (l *loop) publish() {
	v := &view{
		raftID: l.raftID, roster: l.roster, founded: l.founded, ready: l.lead.ready,
		state: l.lead.state, term: l.lead.term, gone: l.change.gone != 0, nextc: make(chan struct{}),
	}
	if m, ok := l.roster.Lookup(l.lead.raftID); ok {
		v.leader = m
	} else if g, ok := l.links.guests[l.lead.raftID]; ok {
		v.leader = g
	}
	l.show(v)
}
