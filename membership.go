package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
)

// A Member is a row of the membership.
type Member struct {
	ID   uint64
	Addr string // host:port
	Role Role   // Voter or Learner
}

// A Membership is what the cluster agreed on.
type Membership struct {
	Index   uint64   // log index of the change that made it; see IfIndex
	Members []Member // by ID
	Joint   bool     // a change is half-way: both the old and the new voters decide
}

// A MembershipOption changes how ChangeMembership works.
type MembershipOption func(*membershipOptions)

type membershipOptions struct {
	retain bool
	index  uint64
}

// Retain keeps voters that are dropped as learners.
func Retain() MembershipOption { return func(o *membershipOptions) { o.retain = true } }

// IfIndex lets ChangeMembership take effect only if the membership's index is
// still i, as Status shows it. Otherwise it returns ErrMembershipChanged.
func IfIndex(i uint64) MembershipOption { return func(o *membershipOptions) { o.index = i } }

// AddLearner adds a process as a member without a vote and returns when it has
// caught up; Status on the leader shows how far it is. The process must run at
// addr, with that member ID and in no cluster yet. When ctx ends first, the
// learner stays a member, and the same call again waits on.
//
// If the member exists, but its process no longer answers, the new process takes
// its place, at whatever address, with its role: then AddLearner returns when the
// member votes again, if it did before. Where a member restarts at its address,
// that happens without a call.
//
// Not done: ErrInvalid, ErrMembershipRefused (nothing usable answers at addr),
// ErrMemberAlive (the member still answers at another address), and as in Put
// ErrNotInitialized, ErrQuorumLost, ErrClosed, ErrRemoved, ErrNoLeader.
// ErrLearnerTooSlow: added, but it cannot keep up. ErrLearnerNotFound: added, but
// removed again by somebody else. May be done: ErrOutcomeUnknown.
func (n *Node) AddLearner(ctx context.Context, id uint64, addr string) (Membership, error) {
	what := fmt.Sprintf("add learner %d at %s", id, addr)
	if id == 0 || id > roster.IDMax {
		return Membership{}, wrap(what, fmt.Errorf("%w: member ID; want 1 to %d", ErrInvalid, roster.IDMax))
	}
	if err := checkAddr(addr); err != nil {
		return Membership{}, wrap(what, fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	return n.change(ctx, what, &membership.Request{
		Kind: membership.AddLearner, Member: roster.Member{RaftID: roster.RaftID(id, 0), Addr: addr},
	})
}

// RemoveLearner removes a learner from the cluster. Its process stops with
// ErrRemoved when it learns of it. Not done: ErrLearnerNotFound,
// ErrMembershipRefused (a voter), and as in AddLearner. May be done:
// ErrOutcomeUnknown.
func (n *Node) RemoveLearner(ctx context.Context, id uint64) (Membership, error) {
	return n.change(ctx, fmt.Sprintf("remove learner %d", id), &membership.Request{Kind: membership.RemoveLearner, Target: id})
}

// ChangeMembership makes exactly the given members voters. New voters must be
// learners; it waits until they have caught up. Voters that are dropped leave
// the cluster, or stay as learners with Retain. Learners that are not named
// stay. Old and new voters agree on the change together (joint consensus), so
// any set may follow on any other. When the leader is dropped it first hands
// over. A call that removes its own node returns success; then the node stops
// with ErrRemoved.
//
// Not done: ErrInvalid (no voters), ErrLearnerNotFound, ErrQuorumAtRisk,
// ErrMembershipChanged, ErrMembershipRefused (another change is under way), and
// as in AddLearner. May be done: ErrOutcomeUnknown.
func (n *Node) ChangeMembership(ctx context.Context, voters []uint64, opts ...MembershipOption) (Membership, error) {
	var o membershipOptions
	for _, opt := range opts {
		opt(&o)
	}
	r := &membership.Request{Kind: membership.SetVoters, Retain: o.retain, IfIndex: o.index}
	r.Voters = slices.Compact(slices.Sorted(slices.Values(voters)))
	what := fmt.Sprintf("change membership to voters %v", r.Voters)
	if len(r.Voters) == 0 {
		return Membership{}, wrap(what, fmt.Errorf("%w: a cluster needs a voter", ErrInvalid))
	}
	return n.change(ctx, what, r)
}

// TransferLeadership hands leadership over to a voter and returns when it
// leads. Not done: ErrNotMember, ErrMembershipRefused (a learner, a member that
// does not answer), and as in AddLearner. May be done: ErrOutcomeUnknown, also
// with ErrMembershipRefused if the member did not take over in time.
func (n *Node) TransferLeadership(ctx context.Context, to uint64) error {
	_, err := n.change(ctx, fmt.Sprintf("transfer leadership to %d", to), &membership.Request{Kind: membership.Transfer, Target: to})
	return err
}

// change carries out a request on whatever member leads. The request keeps its
// ID over all tries, so it takes effect once.
func (n *Node) change(ctx context.Context, what string, r *membership.Request) (Membership, error) {
	if err := n.enter(ctx); err != nil {
		return Membership{}, wrap(what, err)
	}
	defer n.calls.leave()
	r.ID = randomID()
	defer n.tellIfSlow("membership change: waits for a leader, for its turn, or for members to catch up", "change", what)()
	now, err := n.changeSomewhere(ctx, r)
	if err != nil {
		return Membership{}, wrap(what, err)
	}
	return membershipOf(now), nil
}

// changeSomewhere tries a request until it is answered by a leader.
func (n *Node) changeSomewhere(ctx context.Context, r *membership.Request) (*roster.Roster, error) {
	sent := false
	for {
		v := n.view.Load()
		if v.lost != nil && !sent {
			return nil, v.lost
		}
		if v.leader.RaftID != 0 {
			sent = true
			now, err := n.changeAt(ctx, v, r)
			if !isRetryable(err) {
				return now, err
			}
		}
		if v := n.view.Load(); isInForce(v.roster, r) {
			return v.roster, nil // and the answer was lost
		}
		if err := n.pause(ctx, v, n.cfg.Timing.Heartbeat); err != nil {
			return nil, n.unfinished(ctx, sent)
		}
	}
}

// isInForce reports whether a roster shows all that a request asks for. Adding a
// learner asks for more: that it catches up.
func isInForce(now *roster.Roster, r *membership.Request) bool {
	return r.Kind != membership.AddLearner && now.HasChange(r.ID) && !now.IsJoint()
}

// changeAt tries a request on the leader of a view.
func (n *Node) changeAt(ctx context.Context, v *view, r *membership.Request) (*roster.Roster, error) {
	if v.leader.RaftID == v.raftID {
		return n.changeHere(ctx, r)
	}
	return n.changeThere(ctx, v.leader.RaftID, r)
}

// isRetryable reports whether a request has to be tried again: there was no
// leader, or it is not known what became of the request.
func isRetryable(err error) bool {
	return errors.Is(err, membership.ErrNotLeader) || errors.Is(err, ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded)
}

// pause waits for a newer view than v, or for so long.
func (n *Node) pause(ctx context.Context, v *view, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-v.nextc:
	case <-timer.C:
	case <-ctx.Done():
	case <-n.stop.c:
		return n.stopped()
	}
	return ctx.Err()
}

// unfinished is the error of a request that was cut short.
func (n *Node) unfinished(ctx context.Context, sent bool) error {
	cause := n.stopped()
	if ctx.Err() != nil {
		cause = fault.Ended(ctx)
		if !sent {
			return n.noLeader(ctx)
		}
	}
	if !sent {
		return cause
	}
	text := fmt.Sprintf("%v while the change was under way; it may still take effect, Status shows it", cause)
	if lost := n.view.Load().lost; lost != nil {
		return fault.New(text+"; "+lost.Error(), ErrOutcomeUnknown, ErrQuorumLost, cause)
	}
	return fault.New(text, ErrOutcomeUnknown, cause)
}

// changeHere has this node's worker carry out a request.
func (n *Node) changeHere(ctx context.Context, request *membership.Request) (*roster.Roster, error) {
	r := *request // the worker keeps notes in it
	if r.Kind == membership.AddLearner {
		r.Member.Nonce, r.Probe = n.probe(ctx, r.Member.ID(), r.Member.Addr)
	}
	c := make(chan changeResult, 1)
	r.Done = func(now *roster.Roster, err error) { c <- changeResult{now, err} }
	n.post(func(l *loop) {
		if !l.Leads() || ctx.Err() != nil { // nobody waits any more, or was told something else meanwhile
			r.Done(nil, membership.ErrNotLeader)
			return
		}
		l.change.worker.Submit(&r)
	})
	select {
	case res := <-c:
		return res.now, res.err
	case <-ctx.Done():
		n.post(func(l *loop) { l.change.worker.Abandon(&r) })
		return nil, n.unfinished(ctx, true)
	case <-n.stop.c:
		return nil, n.unfinished(ctx, true)
	}
}

// changeThere sends a request to the leader. It gives up on one that leads no
// longer: the connection may need many seconds to notice that nobody is there.
func (n *Node) changeThere(ctx context.Context, leader uint64, r *membership.Request) (*roster.Roster, error) {
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	c := make(chan changeResult, 1)
	n.start(func() { // ends with the attempt
		now, err := n.transport.forwardRequest(attempt, leader, r)
		c <- changeResult{now, err}
	})
	for {
		v := n.view.Load()
		if v.leader.RaftID != leader {
			return nil, membership.ErrNotLeader
		}
		select {
		case res := <-c:
			if res.err != nil && ctx.Err() != nil {
				return nil, n.unfinished(ctx, true)
			}
			return res.now, res.err
		case <-v.nextc:
		case <-n.stop.c:
			return nil, n.unfinished(ctx, true)
		}
	}
}

// A changeResult is the answer to a request.
type changeResult struct {
	now *roster.Roster
	err error
}

// handOver passes leadership on before this node stops, if it can.
func (n *Node) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timing.Election)
	defer cancel()
	to := uint64(0)
	if n.do(func(l *loop) { to = l.successor() }) != nil || to == 0 {
		return
	}
	_, err := n.changeHere(ctx, &membership.Request{ID: randomID(), Kind: membership.Transfer, Target: to})
	if err == nil || errors.Is(err, membership.ErrNotLeader) { // another leads: that is what was asked for
		n.logger.Info("handed leadership over before stopping", "to", to)
		return
	}
	n.logger.Warn("stops without handing leadership over", "to", to, "err", err)
}

// membershipOf translates a roster for callers. A member that is being replaced
// has one row: where its new incarnation runs, with the role of the old one.
func membershipOf(r *roster.Roster) Membership {
	m := Membership{Index: r.Index, Joint: r.IsJoint()}
	for _, row := range r.Members {
		if newest, _ := r.Newest(row.ID()); newest != row {
			continue
		}
		role := Learner
		if _, replaces := r.Replaced(row); replaces || r.IsVoter(row.RaftID) {
			role = Voter
		}
		m.Members = append(m.Members, Member{ID: row.ID(), Addr: row.Addr, Role: role})
	}
	return m
}

// votersText writes the voters for people.
func votersText(r *roster.Roster) string {
	var words []string
	for _, m := range r.Members {
		if r.IsVoter(m.RaftID) {
			words = append(words, fmt.Sprintf("%d at %s", m.ID(), m.Addr))
		}
	}
	return strings.Join(words, ", ")
}
