package raftkv

import "example.com/raftkv/internal/fault"

// The errors that calls return, alone or wrapped: test with errors.Is. Each
// says whether the operation is certainly not done or may be done. The texts
// around them say more, are for people and may change.
var (
	// ErrNotFound: Get found no such key. Nothing is wrong; a Put creates it.
	ErrNotFound = fault.ErrNotFound

	// ErrRevisionMismatch: the key's revision is not the one that IfRevision
	// names. Not done. Get the key again and decide anew.
	ErrRevisionMismatch = fault.ErrRevisionMismatch

	// ErrOutcomeUnknown: the operation was sent and may have taken effect, or
	// may yet. Only the end of the context or of the node leads here, and Recover
	// on it. Read before trying again, or write with IfRevision.
	ErrOutcomeUnknown = fault.ErrOutcomeUnknown

	// ErrNoLeader: the context ended before a leader had taken the call, or had
	// confirmed the read; for a read that waits for a revision, before that had
	// arrived. Not done; try again. Too few voters may be running or reachable.
	ErrNoLeader = fault.ErrNoLeader

	// ErrQuorumLost: so many voters have restarted, and so lost their memory, that
	// those left are no majority. Not done, unless the error is also
	// ErrOutcomeUnknown. Nothing helps but Recover on the best survivor, or
	// starting all over; stale reads go on.
	ErrQuorumLost = fault.ErrQuorumLost

	// ErrOverloaded: a limit of Config.Limits, or the number of calls under
	// way, is reached. Not done. Try again later, slower, or delete something
	// if it is the state that is full.
	ErrOverloaded = fault.ErrOverloaded

	// ErrTooLarge: a key or a value is larger than the limit. Not done.
	ErrTooLarge = fault.ErrTooLarge

	// ErrInvalid: an argument or a field of Config is not allowed. Not done.
	ErrInvalid = fault.ErrInvalid

	// ErrClosed: the node is stopping or has stopped. Not done, unless the
	// error is also ErrOutcomeUnknown.
	ErrClosed = fault.ErrClosed

	// ErrRemoved: the node was removed from its cluster and has stopped. Close
	// it; a new node may be added in its place. Not done, unless the error is
	// also ErrOutcomeUnknown.
	ErrRemoved = fault.ErrRemoved

	// ErrNotInitialized: the node belongs to no cluster yet. Not done. Call
	// Init, or AddLearner on a member of the cluster that it shall join.
	ErrNotInitialized = fault.ErrNotInitialized

	// ErrAlreadyInitialized: the node belongs to a cluster whose membership is
	// another than Init asks for. Not done. See Status.
	ErrAlreadyInitialized = fault.ErrAlreadyInitialized

	// ErrNotMember: a member ID does not occur in the membership, or this
	// process is not the one that the cluster knows under its ID. Not done.
	// AddLearner makes it a member.
	ErrNotMember = fault.ErrNotMember

	// ErrMemberAlive: a process with this member ID belongs to the cluster and
	// still answers, at another address. Not done. Stop it, or use another ID.
	ErrMemberAlive = fault.ErrMemberAlive

	// ErrLearnerNotFound: a member ID is no learner, or a new voter is not in
	// the membership, or a learner was removed while it was waited for. Not
	// done. AddLearner comes first.
	ErrLearnerNotFound = fault.ErrLearnerNotFound

	// ErrLearnerTooSlow: the learner did not catch up although it was sent the
	// whole state several times. It stays a learner and goes on trying; raise
	// Limits.MaxLogBytes or write less.
	ErrLearnerTooSlow = fault.ErrLearnerTooSlow

	// ErrQuorumAtRisk: too many of the new voters do not answer, so that
	// nothing could be written after the change. Not done.
	ErrQuorumAtRisk = fault.ErrQuorumAtRisk

	// ErrMembershipChanged: the membership's index is not the one that IfIndex
	// names. Not done. Look at Status and decide anew.
	ErrMembershipChanged = fault.ErrMembershipChanged

	// ErrMembershipRefused: the change is not possible as things are; the text
	// names the member and the reason. Not done, unless the error is also
	// ErrOutcomeUnknown.
	ErrMembershipRefused = fault.ErrMembershipRefused
)
