// Package membership is the leader's worker for membership changes: it takes
// requests, decides whether and when each may go into the log, and follows it
// until it is in force.
package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/roster"
)

// ErrNotLeader says that this node cannot go on with a request, because it does
// not lead or no longer does, or must be told anew who answers at an address. Try
// the same request on the leader.
var ErrNotLeader = errors.New("raftkv: not the leader")

// lagEntriesMax is how far behind a learner may be and still be called caught
// up: what a leader sends in one or two round trips.
const lagEntriesMax = 16

// A Progress is what the leader knows of another member.
type Progress struct {
	Match      uint64 // up to where its log is known to agree
	Replicates bool   // its log agrees and it is sent entries as they come
	Answers    bool   // it was heard of within an election timeout
	Silent     bool   // it was not, although this node has led for longer than that
	TooSlow    bool   // it was sent snapshots again and again and fell behind each
}

// A Raft is what the worker needs of the loop.
type Raft interface {
	// Roster returns the membership in force.
	Roster() *roster.Roster
	// Leads reports whether this node leads and has committed in its term.
	Leads() bool
	// Self returns this node's raft ID.
	Self() uint64
	// Last returns the last index of the log.
	Last() uint64
	// Progress returns what is known of a member.
	Progress(raftID uint64) Progress
	// InPlace returns the nonce of the process that was met where an incarnation
	// should answer, empty if none was.
	InPlace(raftID uint64) string
	// Propose puts a change into the log.
	Propose(cc *pb.ConfChangeV2) error
	// IsPending reports whether a proposed change has not been decided yet.
	IsPending() bool
	// Transfer asks raft to hand leadership over.
	Transfer(raftID uint64)
}

// A Kind is what a request asks for.
type Kind uint8

// The kinds of requests.
const (
	AddLearner Kind = iota + 1
	RemoveLearner
	SetVoters
	Transfer
)

// A Request is one call that changes the membership or the leader.
type Request struct {
	ID      string // names the request over all its retries; roster.NonceBytes
	Kind    Kind
	Member  roster.Member // AddLearner: raft ID without number, address, nonce
	Probe   error         // AddLearner: why no usable process answers there, if so
	Target  uint64        // RemoveLearner, Transfer: member ID
	Voters  []uint64      // SetVoters: member IDs, ascending
	Retain  bool          // SetVoters: dropped voters stay as learners
	IfIndex uint64        // SetVoters: only if this is the membership's index

	// Done is called once with the membership in force or an error.
	Done func(*roster.Roster, error)

	deadline uint64 // Transfer: the tick at which to give up, 0 if not begun
}

// A Worker carries out requests on the leader. One change at a time is in the
// log; requests that wait for a learner to catch up do not hold up others. It
// belongs to the loop's goroutine. When no request can go on, it replaces members
// that came back blank; see replace.
//
// A request is a loop of: look at the membership in force; done, impossible, or
// not yet; if possible, propose; when that has been decided, look again. Nothing
// is remembered of a proposal, so that what raft silently turns into nothing
// (etcd-io/raft#354) is only tried again, and what another leader did for the
// same request is found in the roster.
type Worker struct {
	raft          Raft
	electionTicks uint64
	now           uint64            // the tick of the latest Step
	queue         []*Request        // in the order of their arrival
	rounds        map[uint64]round  // by raft ID of those that catch up
	voters        *Request          // the first in the queue that sets voters, while stepping
	revived       map[uint64]uint64 // by raft ID of an old incarnation that answers: since which tick
}

// A round is the time in which a learner gets all that the log held when the
// round began (thesis §4.2.1).
type round struct {
	last  uint64 // the log's last index then
	since uint64 // the tick
}

// New returns a worker.
func New(raft Raft, electionTicks uint64) *Worker {
	return &Worker{raft: raft, electionTicks: electionTicks, rounds: make(map[uint64]round), revived: make(map[uint64]uint64)}
}

// Submit takes a request. A request with the ID of an earlier one takes its
// place: the call was tried again.
func (w *Worker) Submit(r *Request) {
	w.cancel(r.ID, ErrNotLeader)
	w.queue = append(w.queue, r)
}

// Abandon forgets a request that nobody waits for. What is in the log stays
// there.
func (w *Worker) Abandon(r *Request) {
	w.queue = slices.DeleteFunc(w.queue, func(other *Request) bool { return other == r })
}

// cancel ends a request with an error.
func (w *Worker) cancel(id string, err error) {
	w.queue = slices.DeleteFunc(w.queue, func(r *Request) bool {
		if r.ID != id {
			return false
		}
		r.Done(nil, err)
		return true
	})
}

// Fail ends all requests with an error.
func (w *Worker) Fail(err error) {
	queue := w.queue
	w.queue = nil
	for _, r := range queue {
		r.Done(nil, err)
	}
}

// Refused ends a request whose change was in the log and could not take effect.
func (w *Worker) Refused(id string, err error) {
	if !w.raft.Roster().HasChange(id) { // else it is a copy of one that did
		w.cancel(id, err)
	}
}

// IsIdle reports whether there is nothing to do.
func (w *Worker) IsIdle() bool { return !w.HasRequests() && !w.mayReplace() }

// HasRequests reports whether calls wait.
func (w *Worker) HasRequests() bool { return len(w.queue) > 0 }

// Step carries every request as far as it goes. It is called after anything
// that may matter to one: a message, a tick, a decided change.
func (w *Worker) Step(now uint64) {
	w.now = now
	if w.IsIdle() {
		clear(w.rounds)
		return
	}
	if !w.raft.Leads() {
		w.stepDown()
		clear(w.revived)
		return
	}
	queue := w.queue
	w.queue, w.voters = nil, nil
	for _, r := range queue {
		if r.Kind != Transfer && w.raft.IsPending() && !w.raft.Roster().HasChange(r.ID) {
			w.queue = append(w.queue, r) // it may be this one's: what is refused now could still take effect
			continue
		}
		if done, err := w.step(r, now); done || err != nil {
			r.Done(w.raft.Roster(), err)
		} else {
			w.queue = append(w.queue, r)
		}
	}
	w.replace()
}

// stepDown hands all requests back, except those that are in force: a leader
// that removed itself no longer leads.
func (w *Worker) stepDown() {
	queue, now := w.queue, w.raft.Roster()
	w.queue = nil
	for _, r := range queue {
		if r.Kind != AddLearner && now.HasChange(r.ID) && !now.IsJoint() {
			r.Done(now, nil)
		} else {
			r.Done(now, ErrNotLeader)
		}
	}
}

func (w *Worker) step(r *Request, now uint64) (done bool, err error) {
	switch r.Kind {
	case AddLearner:
		return w.addLearner(r)
	case RemoveLearner:
		return w.removeLearner(r)
	case SetVoters:
		return w.setVoters(r)
	case Transfer:
		return w.transfer(r, now)
	}
	return false, fmt.Errorf("%w: unknown request", fault.ErrInvalid)
}

func (w *Worker) addLearner(r *Request) (bool, error) {
	id, now := r.Member.ID(), w.raft.Roster()
	m, ok := now.Newest(id)
	if !ok {
		if now.HasChange(r.ID) {
			return false, fmt.Errorf("%w: member %d was added and removed again meanwhile", fault.ErrLearnerNotFound, id)
		}
		if r.Probe != nil {
			return false, r.Probe
		}
		w.propose(now.AddLearner(r.ID, id, r.Member.Addr, r.Member.Nonce))
		return false, nil
	}
	p, same := w.raft.Progress(m.RaftID), m.Addr == r.Member.Addr
	switch {
	case now.HasChange(r.ID): // this request has added it, whatever answers there by now
	case same && (m.Nonce == r.Member.Nonce || p.Answers && r.Probe != nil):
	case !same && p.Answers:
		return false, fmt.Errorf("%w: member %d runs at %s", fault.ErrMemberAlive, id, m.Addr)
	case p.Answers: // not the process that was met: it may be the next already
		return false, ErrNotLeader
	case !p.Silent:
		return false, nil // too early to say
	case r.Probe != nil:
		return false, r.Probe
	default:
		w.propose(now.Replace(r.ID, m, r.Member.Addr, r.Member.Nonce))
		return false, nil
	}
	if p.TooSlow {
		return false, fmt.Errorf("%w: member %d at %s", fault.ErrLearnerTooSlow, id, m.Addr)
	}
	_, replaces := now.Replaced(m)
	return w.hasCaughtUp(m.RaftID, p) && !replaces, nil
}

// hasCaughtUp reports whether a learner is as good as level: it lacks a few
// entries at most, or it got what it lacked within an election timeout. The
// second is for a log that grows by more than a few in a round trip, which
// nobody can ever be level with (thesis §4.2.1).
func (w *Worker) hasCaughtUp(raftID uint64, p Progress) bool {
	last := w.raft.Last()
	if !p.Replicates || !p.Answers {
		delete(w.rounds, raftID)
		return false
	}
	if p.Match+lagEntriesMax >= last {
		return true
	}
	r, ok := w.rounds[raftID]
	if ok && p.Match >= r.last && w.now-r.since <= w.electionTicks {
		return true
	}
	if !ok || p.Match >= r.last {
		w.rounds[raftID] = round{last, w.now}
	}
	return false
}

func (w *Worker) removeLearner(r *Request) (bool, error) {
	now := w.raft.Roster()
	if now.HasChange(r.ID) {
		return !now.IsJoint(), nil
	}
	m, ok := now.Newest(r.Target)
	if !ok {
		return false, fmt.Errorf("%w: member %d is not in the membership", fault.ErrLearnerNotFound, r.Target)
	}
	if _, replaces := now.Replaced(m); replaces || now.IsVoter(m.RaftID) {
		return false, fmt.Errorf("%w: member %d is a voter; change the membership to voters without it", fault.ErrMembershipRefused, r.Target)
	}
	w.propose(now.Remove(r.ID, m.RaftID))
	return false, nil
}

func (w *Worker) setVoters(r *Request) (bool, error) {
	now := w.raft.Roster()
	if w.voters != nil && !now.HasChange(r.ID) {
		return false, fmt.Errorf("%w: a change to voters %s is under way; wait for it", fault.ErrMembershipRefused, list(w.voters.Voters))
	}
	w.voters = r
	if now.HasChange(r.ID) {
		return !now.IsJoint(), nil
	}
	if r.IfIndex != 0 && r.IfIndex != now.Index {
		return false, fmt.Errorf("%w: its index is %d, not %d", fault.ErrMembershipChanged, now.Index, r.IfIndex)
	}
	voters, err := w.raftIDs(now, r.Voters)
	if err != nil {
		return false, err
	}
	cc := now.SetVoters(r.ID, voters, r.Retain, r.IfIndex)
	if cc == nil {
		return !now.IsJoint(), nil
	}
	if answers, err := w.haveQuorum(voters); err != nil || !answers {
		return false, err
	}
	if !w.haveCaughtUp(now, voters) {
		return false, nil
	}
	if !slices.Contains(voters, w.raft.Self()) {
		if to := w.Successor(voters); to != 0 {
			w.raft.Transfer(to) // it goes on there: the caller tries again when we no longer lead
			return false, nil
		}
		// No old voter stays: raft steps down when the change is in force.
	}
	w.propose(cc)
	return false, nil
}

// raftIDs translates member IDs.
func (w *Worker) raftIDs(now *roster.Roster, ids []uint64) ([]uint64, error) {
	var raftIDs, missing []uint64
	for _, id := range ids {
		if m, ok := now.Newest(id); ok {
			raftIDs = append(raftIDs, m.RaftID)
		} else {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: member %s is not in the membership; add it as a learner first", fault.ErrLearnerNotFound, list(missing))
	}
	return raftIDs, nil
}

// haveQuorum reports whether enough of the voters-to-be answer, and refuses
// them if too few do (etcd's strict reconfiguration check). A new leader has not
// heard of all yet: then it is too early to say.
func (w *Worker) haveQuorum(voters []uint64) (bool, error) {
	var answer int
	var silent []uint64
	for _, v := range voters {
		switch p := w.raft.Progress(v); {
		case p.Answers:
			answer++
		case p.Silent:
			silent = append(silent, roster.MemberID(v))
		}
	}
	quorum := len(voters)/2 + 1
	if len(voters)-len(silent) < quorum {
		return false, fmt.Errorf("%w: of voters-to-be, member %s does not answer, and %d of %d must", fault.ErrQuorumAtRisk, list(silent), quorum, len(voters))
	}
	return answer >= quorum, nil
}

func (w *Worker) haveCaughtUp(now *roster.Roster, voters []uint64) bool {
	for _, v := range voters {
		if !now.IsVoter(v) && !w.hasCaughtUp(v, w.raft.Progress(v)) {
			return false
		}
	}
	return true
}

// Successor returns the raft ID of the best leader among candidates other than
// this node: a voter that answers and has the most of the log; 0 if there is
// none.
func (w *Worker) Successor(candidates []uint64) uint64 {
	var best, match uint64
	now := w.raft.Roster()
	for _, v := range candidates {
		if p := w.raft.Progress(v); v != w.raft.Self() && now.IsVoter(v) && p.Answers && p.Match > match {
			best, match = v, p.Match
		}
	}
	return best
}

// propose puts a change into the log once nothing else is under way there.
func (w *Worker) propose(cc *pb.ConfChangeV2) {
	if w.raft.Roster().IsJoint() || w.raft.IsPending() {
		return // look again when it is decided
	}
	_ = w.raft.Propose(cc) // dropped during a transfer of leadership: look again
}

func (w *Worker) transfer(r *Request, tick uint64) (bool, error) {
	now := w.raft.Roster()
	m, ok := now.Newest(r.Target)
	p := w.raft.Progress(m.RaftID)
	switch {
	case !ok:
		return false, fmt.Errorf("%w: member %d is not in the membership", fault.ErrNotMember, r.Target)
	case m.RaftID == w.raft.Self():
		return true, nil
	case !now.IsVoter(m.RaftID):
		return false, fmt.Errorf("%w: member %d is a learner and cannot lead", fault.ErrMembershipRefused, r.Target)
	case r.deadline == 0 && p.Silent: // later it may take over all the same
		return false, fmt.Errorf("%w: member %d at %s does not answer", fault.ErrMembershipRefused, r.Target, m.Addr)
	case r.deadline == 0 && !p.Answers:
		return false, nil // too early to say
	case r.deadline == 0:
		r.deadline = tick + w.electionTicks // as long as raft itself tries
		w.raft.Transfer(m.RaftID)
	case tick > r.deadline:
		// It was asked to, and may do so yet.
		return false, fault.New(fmt.Sprintf("member %d at %s did not take over within an election timeout, and may yet", r.Target, m.Addr),
			fault.ErrMembershipRefused, fault.ErrOutcomeUnknown)
	}
	return false, nil
}

// list writes member IDs as a person would.
func list(ids []uint64) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = fmt.Sprint(id)
	}
	return strings.Join(words, ", ")
}
