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
	Ready     bool   // a member in force, caught up, and a leader that answers is known

	QuorumLost bool   // there is proof that a majority of the voters is lost; see Recover
	LastTerm   uint64 // of the last entry of the log, committed or not
	LastIndex  uint64 // of that entry

	// SpareVoters is, on the leader, how many of the voters that answer can stop
	// without the loss of the quorum; -1 elsewhere. At 0, what stops next takes
	// the cluster with it, and with two voters it is never more.
	SpareVoters int

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
	s := Status{SpareVoters: -1}
	_ = n.do(func(l *loop) { s = l.status() }) // on a stopped node, what follows is all there is
	v := n.view.Load()
	s.ID, s.Addr = n.cfg.ID, n.cfg.Addr
	s.Role, s.Ready, s.QuorumLost = roleOf(v), v.ready, v.lost != nil
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
	s.RefusedMessages, s.SpareVoters = l.links.refused, l.spareVoters()
	if l.raw == nil {
		return s
	}
	s.Commit, s.LastIndex = l.raw.BasicStatus().GetCommit(), l.Last()
	s.LastTerm, _ = l.log.Term(s.LastIndex) // the last entry is always there
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
	leads   bool           // leader is this node, and it has committed in its term
	ready   bool           // as Status has it
	lost    error          // why the quorum is lost, nil if there is no proof of that
	state   raft.StateType
	term    uint64
	gone    bool
	nextc   chan struct{} // closed when there is a newer view
}

func (l *loop) publish() {
	v := &view{
		raftID: l.raftID, roster: l.roster, founded: l.founded, leads: l.lead.ready, ready: l.health.ready, lost: l.health.lost,
		state: l.lead.state, term: l.lead.term, gone: l.change.gone != 0, nextc: make(chan struct{}),
	}
	if m, ok := l.roster.Lookup(l.lead.raftID); ok {
		v.leader = m
	} else if g, ok := l.links.guests[l.lead.raftID]; ok {
		v.leader = g
	}
	l.show(v)
}
