// Package firewall decides which raft messages from a peer may reach
// RawNode.Step. Raft trusts its peers: of some 60 malformed or forged messages
// tried against v3.7.0, 25 killed the process and a dozen more changed terms,
// votes or the log without a word. What passes here does neither.
//
// A message is checked twice, once internal/frame has decoded it. Admit needs no
// state, so receivers call it on their own goroutines; Check needs raft's state,
// so the loop calls it right before Step. Snapshots have a pair of their own,
// because they arrive by another way and never on the message stream.
//
// The firewall cannot unmask a member that lies within the rules, say with an
// acknowledgement of entries that it has not got: raft does not tolerate
// byzantine members. Nor does it know who the sender is: the transport binds a
// stream to a member when it is opened, and passes that member's raft ID.
package firewall

import (
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	// EntryBytesMax is more than the largest data of one entry that the protocol
	// knows, a batch of one command with a value of 16 MiB, and so much less than
	// a frame of 32 MiB that the entry always travels.
	EntryBytesMax = 20 << 20
	// ReadContextBytesMax bounds the context by which a reader knows its request.
	ReadContextBytesMax = 64
	// SnapshotBytesMax bounds a message with a snapshot: it carries a
	// configuration, of MembersMax IDs in four lists, and no state.
	SnapshotBytesMax = 64 << 10
	// SnapshotDataBytesMax bounds what such a message says beside that.
	SnapshotDataBytesMax = 4 << 10
)

const (
	// termsAheadMax is how far a peer's term may be ahead of ours. With PreVote
	// a term takes a majority, so that an honest peer would need an election a
	// second for twelve days. Without the bound one message with the highest
	// term would kill us at our next election, when the term overflows.
	termsAheadMax = 1 << 20
	// firstTermMax is the same for a process that has never been in a term: a
	// joiner takes the cluster's term, whatever it is. A thousand elections a
	// second reach it in 35 years.
	firstTermMax = 1 << 40
	// indexMax keeps arithmetic on indexes from wrapping around.
	indexMax = 1 << 62
)

// A Violation says that a peer broke the protocol. Honest peers never do, so
// the stream that the message came by should be closed.
type Violation struct {
	Reason string
}

// Error returns the reason.
func (v *Violation) Error() string { return "raftkv: raft message refused: " + v.Reason }

func violation(format string, args ...any) error {
	return &Violation{Reason: fmt.Sprintf(format, args...)}
}

// ErrDrop marks a message that an honest peer may send and that still must not
// be stepped. Raft repeats what matters, so the message is dropped and the
// stream stays.
var ErrDrop = errors.New("raftkv: raft message dropped")

// A View is what Check knows of the raft state, as of right before Step. Last
// and TermAt may stop at what is saved: nothing that an honest peer says rests
// on more, since saving comes before sending. But what is saved must be in
// raft's log still; see Rewrites.
type View struct {
	Self     uint64 // our raft ID
	Term     uint64
	Lead     uint64 // the leader that raft knows in Term, 0 if none; Self if we lead
	Last     uint64 // the last index of our log
	Commit   uint64
	ReadsMax uint64 // the highest read confirmation asked for in Term; see Reads

	// TermAt returns the term of an entry of our log, false if it is not there.
	TermAt func(index uint64) (term uint64, ok bool)
	// IsVoter reports whether a raft ID votes in the configuration in force.
	IsVoter func(raftID uint64) bool
}

func (v *View) leads() bool { return v.Lead == v.Self }

// Check decides whether a message that was admitted may be stepped now. The
// error is a *Violation, or satisfies errors.Is for ErrDrop.
//
// Messages of earlier terms always pass: the network may have kept them, and
// raft ignores them or answers with its own term.
func Check(m *pb.Message, v *View) error {
	if m.GetType() == pb.MsgReadIndex { // carries no term
		return checkReadIndex(v)
	}
	if err := checkTerm(m, v); err != nil || m.GetTerm() < v.Term {
		return err
	}
	if err := checkLeader(m, v); err != nil {
		return err
	}
	switch m.GetType() {
	case pb.MsgApp:
		return checkApp(m, v)
	case pb.MsgHeartbeat:
		return checkHeartbeat(m, v)
	case pb.MsgTimeoutNow:
		return checkTimeoutNow(m, v)
	case pb.MsgAppResp:
		return checkAppResp(m, v)
	case pb.MsgHeartbeatResp:
		return checkHeartbeatResp(m, v)
	case pb.MsgVote:
		return checkVote(m, v)
	}
	return nil
}

// Rewrites reports whether a message that passed would, once stepped, replace
// entries that are saved. Until the next Ready is saved raft's log is then
// another one than that which a View shows, and may be shorter: the loop must do
// that Ready before it checks another message. It happens after a change of
// leader, to followers with entries that did not commit.
func Rewrites(m *pb.Message, v *View) bool {
	if m.GetTerm() < v.Term {
		return false
	}
	if m.GetType() == pb.MsgSnap {
		return true
	}
	for _, e := range m.GetEntries() {
		if e.GetIndex() > v.Last {
			return false
		}
		if term, ok := v.TermAt(e.GetIndex()); ok && term != e.GetTerm() {
			return m.GetType() == pb.MsgApp
		}
	}
	return false
}

// checkReadIndex drops requests that we cannot answer. Raft would pass them on
// to the leader in the name of the peer that sent them, and the leader's
// firewall would take that for an impersonation.
func checkReadIndex(v *View) error {
	if !v.leads() {
		return fmt.Errorf("read request to a member that does not lead: %w", ErrDrop)
	}
	return nil
}

func checkTerm(m *pb.Message, v *View) error {
	limit := v.Term + termsAheadMax
	if v.Term == 0 {
		limit = firstTermMax
	}
	if m.GetTerm() > limit {
		return violation("%v of term %d, ours is %d", m.GetType(), m.GetTerm(), v.Term)
	}
	return nil
}

// checkLeader refuses what only the leader of a term sends when it comes from
// somebody else: a term has one leader (thesis §3.4).
func checkLeader(m *pb.Message, v *View) error {
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap, pb.MsgTimeoutNow, pb.MsgReadIndexResp:
		if m.GetTerm() == v.Term && v.Lead != 0 && v.Lead != m.GetFrom() {
			return violation("%v from %d, but %d leads term %d", m.GetType(), m.GetFrom(), v.Lead, v.Term)
		}
	}
	return nil
}

// checkApp refuses entries that contradict committed ones: whoever leads our
// term or a later one has all that we know to be committed, in the same terms
// (leader completeness, thesis §3.6.3).
func checkApp(m *pb.Message, v *View) error {
	if err := checkCommitted(m.GetIndex(), m.GetLogTerm(), v); err != nil {
		return err
	}
	for _, e := range m.GetEntries() {
		if e.GetIndex() > v.Commit {
			break
		}
		if err := checkCommitted(e.GetIndex(), e.GetTerm(), v); err != nil {
			return err
		}
	}
	return nil
}

func checkCommitted(index, term uint64, v *View) error {
	if index > v.Commit {
		return nil
	}
	if ours, ok := v.TermAt(index); ok && ours != term {
		return violation("entry %d of term %d, but it is committed with term %d", index, term, ours)
	}
	return nil
}

// checkHeartbeat refuses a commit index beyond our log, at which raft panics. A
// leader tells a follower no higher index than the follower has acknowledged to
// it, so either the leader lies or we have lost what we acknowledged.
func checkHeartbeat(m *pb.Message, v *View) error {
	if m.GetCommit() > v.Last {
		return violation("heartbeat commits %d, our log ends at %d", m.GetCommit(), v.Last)
	}
	return nil
}

// checkTimeoutNow refuses the call to campaign from a leader we never heard of:
// it goes to a follower that has acknowledged the leader's whole log, and so
// knows its term.
func checkTimeoutNow(m *pb.Message, v *View) error {
	if m.GetTerm() > v.Term {
		return violation("%v of term %d, ours is %d", m.GetType(), m.GetTerm(), v.Term)
	}
	return nil
}

// checkAppResp refuses answers to what we never sent: raft would take the index
// for replicated and panic when it looks for the entry.
func checkAppResp(m *pb.Message, v *View) error {
	if v.leads() && m.GetTerm() == v.Term && m.GetIndex() > v.Last {
		return violation("%v for index %d, our log ends at %d", m.GetType(), m.GetIndex(), v.Last)
	}
	return nil
}

// checkHeartbeatResp refuses the confirmation of reads that we never asked to
// confirm: it would confirm later ones without asking, and two such lies panic.
func checkHeartbeatResp(m *pb.Message, v *View) error {
	if !v.leads() || m.GetTerm() != v.Term || len(m.GetContext()) == 0 {
		return nil
	}
	if n := ReadCount(m.GetContext()); n > v.ReadsMax {
		return violation("confirmation of read %d, only %d were asked for", n, v.ReadsMax)
	}
	return nil
}

// checkVote drops forced votes for members that have no vote. A transfer's
// candidate does not wait for followers' leases to run out, so it is not for
// everybody; but a member that lags may not know yet that the candidate votes.
func checkVote(m *pb.Message, v *View) error {
	if len(m.GetContext()) > 0 && m.GetTerm() > v.Term && !v.IsVoter(m.GetFrom()) {
		return fmt.Errorf("leadership transfer to %d, which has no vote here: %w", m.GetFrom(), ErrDrop)
	}
	return nil
}
