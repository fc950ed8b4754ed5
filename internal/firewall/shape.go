package firewall

import (
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// campaignTransfer is the context of votes in a leadership transfer; raft does
// not export it.
const campaignTransfer = "CampaignTransfer"

// readCountBytes is the size of the context that heartbeats carry: raft numbers
// the reads that it has to confirm, and panics on anything shorter.
const readCountBytes = 8

// Admit checks all of a message that needs no state: that it came from whom the
// stream belongs to, is for us, has a type that peers send, and the shape that
// raft gives to this type.
func Admit(m *pb.Message, from, self uint64) error {
	if err := checkEnvelope(m, from, self); err != nil {
		return err
	}
	if m.Snapshot != nil || len(m.Responses) > 0 {
		return violation("%v with a snapshot or responses", m.GetType())
	}
	return checkShape(m)
}

// checkEnvelope checks what all types have in common. Raft takes a message from
// its own ID, or from the IDs that it keeps for its storage threads, for one of
// its own.
func checkEnvelope(m *pb.Message, from, self uint64) error {
	switch {
	case m.GetFrom() != from:
		return violation("from %d on the stream of %d", m.GetFrom(), from)
	case from == 0 || from == self || raft.IsLocalMsgTarget(from):
		return violation("from %d, which is no peer", from)
	case m.GetTo() != self:
		return violation("to %d, we are %d", m.GetTo(), self)
	case m.Vote != nil:
		return violation("%v with a vote", m.GetType())
	case hasUnknown(m):
		// Of a later version, perhaps: what they mean cannot be judged.
		return violation("unknown fields")
	case m.GetIndex() > indexMax || m.GetCommit() > indexMax:
		return violation("%v with index %d, commit %d", m.GetType(), m.GetIndex(), m.GetCommit())
	}
	return checkTerms(m)
}

// checkTerms checks that the message has a term, for raft takes one without for
// its own, and that its log term is not from the future. Only read requests
// have no term, because raft may pass them on.
func checkTerms(m *pb.Message) error {
	if isRead := m.GetType() == pb.MsgReadIndex; isRead != (m.GetTerm() == 0) {
		return violation("%v of term %d", m.GetType(), m.GetTerm())
	}
	if m.GetLogTerm() > m.GetTerm() {
		return violation("%v of term %d with log term %d", m.GetType(), m.GetTerm(), m.GetLogTerm())
	}
	return nil
}

// checkShape is also the list of the types that peers send: proposals are
// forwarded by our own protocol, snapshots have a stream of their own, and all
// else is raft talking to itself.
func checkShape(m *pb.Message) error {
	var contexts []int // the lengths that the context may have
	switch m.GetType() {
	case pb.MsgApp:
		if err := checkEntries(m); err != nil {
			return err
		}
	case pb.MsgReadIndex, pb.MsgReadIndexResp:
		if err := checkReadContext(m); err != nil {
			return err
		}
	case pb.MsgHeartbeat, pb.MsgHeartbeatResp:
		contexts = []int{readCountBytes}
	case pb.MsgVote:
		contexts = []int{len(campaignTransfer)}
	case pb.MsgAppResp:
		if m.GetRejectHint() > m.GetIndex() {
			return violation("rejection of index %d hints at %d", m.GetIndex(), m.GetRejectHint())
		}
	case pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgTimeoutNow:
	default:
		return violation("%v is not for peers", m.GetType())
	}
	if err := checkPayload(m); err != nil {
		return err
	}
	return checkContext(m, contexts)
}

// checkPayload refuses entries and hints on types that have none, so that
// nothing unchecked travels along.
func checkPayload(m *pb.Message) error {
	switch t := m.GetType(); {
	case t == pb.MsgApp || t == pb.MsgReadIndex || t == pb.MsgReadIndexResp:
		return nil // checked above
	case len(m.GetEntries()) > 0:
		return violation("%v with entries", t)
	case (t == pb.MsgVote || t == pb.MsgPreVote) && m.GetLogTerm() >= m.GetTerm():
		// A candidate campaigns for a term after all that are in its log.
		return violation("%v for term %d with log term %d", t, m.GetTerm(), m.GetLogTerm())
	}
	return nil
}

func checkContext(m *pb.Message, lengths []int) error {
	n := len(m.GetContext())
	if n == 0 {
		return nil
	}
	for _, l := range lengths {
		if n == l && (m.GetType() != pb.MsgVote || string(m.GetContext()) == campaignTransfer) {
			return nil
		}
	}
	return violation("%v with a context of %d bytes", m.GetType(), n)
}

// checkReadContext: raft looks at the first entry without counting them.
func checkReadContext(m *pb.Message) error {
	if n := len(m.GetEntries()); n != 1 || m.GetEntries()[0] == nil {
		return violation("%v with %d entries", m.GetType(), n)
	}
	e := m.GetEntries()[0]
	if n := len(e.GetData()); n == 0 || n > ReadContextBytesMax {
		return violation("%v with a context of %d bytes", m.GetType(), n)
	}
	if hasUnknown(e) {
		return violation("%v with unknown fields", m.GetType())
	}
	return nil
}

// checkEntries checks that the entries follow each other, which raft relies on
// when it cuts the slice, and that their terms can be those of a log. The
// log of every cluster begins with the snapshot that founded it, at index 1 or
// above. So nothing is appended to index 0: a joiner that took entries from
// there would have a log but no configuration.
func checkEntries(m *pb.Message) error {
	if m.GetIndex() == 0 || m.GetLogTerm() == 0 {
		return violation("entries after index %d of term %d", m.GetIndex(), m.GetLogTerm())
	}
	index, term := m.GetIndex(), m.GetLogTerm()
	for _, e := range m.GetEntries() {
		index++
		switch {
		case e == nil || e.GetIndex() != index:
			return violation("entry %d where %d should be", e.GetIndex(), index)
		case e.GetTerm() < term || e.GetTerm() > m.GetTerm():
			return violation("entry %d of term %d, after %d and in a message of %d",
				index, e.GetTerm(), term, m.GetTerm())
		}
		if err := checkEntry(e); err != nil {
			return err
		}
		term = e.GetTerm()
	}
	return nil
}

func checkEntry(e *pb.Entry) error {
	switch {
	case len(e.GetData()) > EntryBytesMax:
		return violation("entry %d of %d bytes", e.GetIndex(), len(e.GetData()))
	case hasUnknown(e):
		return violation("entry %d with unknown fields", e.GetIndex())
	case e.GetType() == pb.EntryNormal:
		return nil // what it says is for the state machine to check
	case e.GetType() != pb.EntryConfChangeV2:
		return violation("entry %d of type %v", e.GetIndex(), e.GetType()) // we only ever propose V2
	}
	return checkConfChange(e)
}

// checkConfChange checks that a change to the membership is of a kind that we
// propose: raft panics on kinds that it does not know, when it applies them.
// Whether the change is legal is decided at that moment too, by the roster,
// from what is replicated and so the same on all members. No data at all is the
// change by which raft leaves a joint configuration.
func checkConfChange(e *pb.Entry) error {
	cc := new(pb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return violation("entry %d with a malformed membership change: %v", e.GetIndex(), err)
	}
	switch {
	case hasUnknown(cc):
		return violation("membership change with unknown fields")
	case cc.GetTransition() != pb.ConfChangeTransitionAuto:
		return violation("membership change with transition %v", cc.GetTransition())
	case len(cc.GetChanges()) > 2*roster.MembersMax:
		return violation("membership change of %d members", len(cc.GetChanges()))
	}
	for _, c := range cc.GetChanges() {
		if err := checkSingle(c); err != nil {
			return err
		}
	}
	return nil
}

func checkSingle(c *pb.ConfChangeSingle) error {
	switch c.GetType() {
	case pb.ConfChangeAddNode, pb.ConfChangeRemoveNode, pb.ConfChangeAddLearnerNode:
	default:
		return violation("membership change of type %v", c.GetType())
	}
	if id := c.GetNodeId(); id == 0 || raft.IsLocalMsgTarget(id) || hasUnknown(c) {
		return violation("membership change for raft ID %d", id)
	}
	return nil
}

// hasUnknown reports whether one of the messages has fields that we do not
// know. Unknown numbers of an enum are no such fields: Go keeps them.
func hasUnknown(messages ...proto.Message) bool {
	return slices.ContainsFunc(messages, func(m proto.Message) bool {
		return len(m.ProtoReflect().GetUnknown()) > 0
	})
}
