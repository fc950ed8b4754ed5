package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	probeTimeout = 2 * time.Second
	foundTimeout = 10 * time.Second
	initRetry    = 200 * time.Millisecond
	foundersMax  = 15
)

// Init founds a cluster.
//
// Without members it founds a cluster of this process alone, whatever runs
// elsewhere. That is for a person, once; the others join by AddLearner and
// ChangeMembership.
//
// With members it is what every member's program calls on every start, with the
// same list, this member included. When all that are listed can be reached and
// belong to no cluster, they found one together, all or none; Init waits for
// that. The member with the lowest ID coordinates. If a listed member belongs
// to a cluster already that has this member ID, Init waits until that cluster has
// taken up this process, in place of the one that was lost by a restart if need
// be; if it does not have this member ID, Init returns ErrNotMember.
//
// Init on a member of a cluster returns nil if the list is the one that it was
// founded with or the membership in force, and else ErrAlreadyInitialized. On a
// member that a cluster has taken up, any list will do: it says with whom to
// found, and that is past. The other errors are ErrInvalid, ErrMembershipRefused
// (a listed process has another ID or cluster name), ErrClosed and the context's
// error with ErrNotInitialized. On an error nothing is founded, or the cluster
// that is comes up by itself. After ErrNotMember the node goes on, blank, and may
// be added.
func (n *Node) Init(ctx context.Context, members ...Member) error {
	if err := checkFounders(members, n.cfg.ID); err != nil {
		return wrap("init", err)
	}
	if ctx.Err() != nil {
		return wrap("init", fault.Ended(ctx))
	}
	if err := n.begin(); err != nil {
		return wrap("init", err)
	}
	defer n.calls.leave()
	alone := len(members) == 0
	if alone {
		members = []Member{{ID: n.cfg.ID, Addr: n.cfg.Addr}}
	}
	members = slices.SortedFunc(slices.Values(members), func(a, b Member) int { return int(a.ID) - int(b.ID) })
	return wrap("init", n.initWith(ctx, members, alone))
}

func checkFounders(members []Member, self uint64) error {
	seen := make(map[uint64]bool)
	for _, m := range members {
		switch {
		case m.ID == 0 || m.ID > roster.IDMax:
			return fmt.Errorf("%w: member ID %d; want 1 to %d", ErrInvalid, m.ID, roster.IDMax)
		case seen[m.ID]:
			return fmt.Errorf("%w: member %d is listed twice", ErrInvalid, m.ID)
		case m.Role != Voter:
			return fmt.Errorf("%w: member %d: founders vote; add learners afterwards", ErrInvalid, m.ID)
		case checkAddr(m.Addr) != nil:
			return fmt.Errorf("%w: member %d: %w", ErrInvalid, m.ID, checkAddr(m.Addr))
		}
		seen[m.ID] = true
	}
	switch {
	case len(members) > foundersMax:
		return fmt.Errorf("%w: %d founders; want at most %d", ErrInvalid, len(members), foundersMax)
	case len(members) > 0 && !seen[self]:
		return fmt.Errorf("%w: the list lacks member %d, which this is", ErrInvalid, self)
	}
	return nil
}

// initWith tries until this process is a member or never will be.
func (n *Node) initWith(ctx context.Context, members []Member, alone bool) error {
	defer n.tellIfSlow("init: waits until all listed members can be reached and belong to no cluster", "members", membersText(members))()
	var last error
	for {
		v := n.view.Load()
		if v.raftID != 0 {
			return checkFounded(v, members, alone)
		}
		done, err := n.tryInit(ctx, members)
		if done && n.view.Load().raftID == 0 { // else it was taken up while it asked
			return err
		}
		if err != nil && (last == nil || ctx.Err() == nil) {
			last = err // not what the end of the context cut short
		}
		if err := n.pause(ctx, v, initRetry); err != nil {
			return n.initUnfinished(ctx, last)
		}
	}
}

func (n *Node) initUnfinished(ctx context.Context, last error) error {
	if ctx.Err() == nil {
		return n.stopped()
	}
	text := fmt.Sprintf("%v before the cluster was founded", fault.Ended(ctx))
	if last != nil {
		text += ": " + last.Error()
	}
	return fault.New(text, ErrNotInitialized, fault.Ended(ctx))
}

// checkFounded compares the cluster that this process belongs to with what
// Init asks for.
func checkFounded(v *view, members []Member, alone bool) error {
	if v.founded == nil && !alone {
		return nil // taken up by a cluster: the list is for its founding, which others did
	}
	now := membershipOf(v.roster).Members
	if v.founded != nil && slices.Equal(membershipOf(v.founded).Members, members) || slices.Equal(now, members) {
		return nil
	}
	return fmt.Errorf("%w: the cluster has members %s, not %s", ErrAlreadyInitialized, membersText(now), membersText(members))
}

// tryInit makes one attempt. Done with an error is final; an error without done
// says what Init waits for.
func (n *Node) tryInit(ctx context.Context, members []Member) (done bool, err error) {
	nonces, err := n.askFounders(ctx, members)
	if err != nil {
		return !errors.Is(err, errWaiting), err
	}
	if members[0].ID != n.cfg.ID {
		return n.askCoordinator(ctx, members)
	}
	select {
	case n.foundingc <- struct{}{}:
		defer func() { <-n.foundingc }()
	case <-ctx.Done():
		return false, nil
	case <-n.stop.c:
		return false, nil
	}
	if n.view.Load().raftID != 0 {
		return false, nil // another Init was faster
	}
	return false, n.coordinate(ctx, members, nonces)
}

// errWaiting marks what may be different at the next attempt.
var errWaiting = errors.New("not yet")

// askFounders asks all listed members who they are and returns their nonces if
// all are blank.
func (n *Node) askFounders(ctx context.Context, members []Member) ([]string, error) {
	nonces, errs := make([]string, len(members)), make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if m.ID == n.cfg.ID {
			nonces[i] = n.loop.nonce // never changes
			continue
		}
		wg.Go(func() { nonces[i], errs[i] = n.askFounder(ctx, m) })
	}
	wg.Wait()
	var waiting error
	for _, err := range errs {
		if err != nil && !errors.Is(err, errWaiting) {
			return nil, err
		}
		if waiting == nil {
			waiting = err
		}
	}
	return nonces, waiting
}

func (n *Node) askFounder(ctx context.Context, m Member) (nonce string, err error) {
	resp, err := n.transport.whoIs(ctx, m.Addr)
	if err != nil {
		if told := refusal(err); told != nil {
			return "", told
		}
		return "", fault.New(fmt.Sprintf("member %d at %s: %s", m.ID, m.Addr, wire.Text(err)), errWaiting)
	}
	id := resp.GetIdentity()
	switch known := resp.GetMember(); {
	case id.GetId() != m.ID:
		return "", fmt.Errorf("%w: member %d answers at %s, not %d", ErrMembershipRefused, id.GetId(), m.Addr, m.ID)
	case len(id.GetClusterId()) == 0:
		return string(id.GetNonce()), nil
	case known == nil:
		return "", fmt.Errorf("%w: member %d at %s belongs to a cluster without member %d; add it there as a learner",
			ErrNotMember, m.ID, m.Addr, n.cfg.ID)
	case string(known.GetNonce()) != n.loop.nonce && known.GetAddr() != n.cfg.Addr:
		return "", fault.New(fmt.Sprintf("the cluster of member %d has member %d at %s, not at %s; if it has moved, AddLearner puts this process in its place",
			m.ID, n.cfg.ID, known.GetAddr(), n.cfg.Addr), errWaiting)
	}
	return "", fault.New(fmt.Sprintf("the cluster of member %d has not reached this process yet", m.ID), errWaiting)
}

// askCoordinator has the member with the lowest ID found the cluster: its
// program may not have called Init.
func (n *Node) askCoordinator(ctx context.Context, members []Member) (done bool, err error) {
	conn, err := n.transport.dial(members[0].Addr)
	if err != nil {
		return false, err
	}
	defer conn.Close() // nothing more to do about an error
	ctx, cancel := n.transport.whileRunning(ctx, foundTimeout)
	defer cancel()
	req := &kvpb.InitRequest{}
	for _, m := range members {
		req.Members = append(req.Members, m.proto())
	}
	if _, err = kvpb.NewClusterServiceClient(conn).Init(ctx, req); err == nil {
		return false, nil // the commit is on its way
	}
	told, ours := wire.FromStatus(err)
	if ours && errors.Is(told, ErrAlreadyInitialized) {
		return true, told
	}
	return false, fmt.Errorf("member %d at %s: %s", members[0].ID, members[0].Addr, wire.Text(err))
}

// coordinate founds the cluster: first all accept, then all are told that all
// have. Until the second step nothing has happened anywhere; a stream that ends
// before it frees its member. A member that misses the second step is greeted
// by the others, and joins with an empty log like any newcomer.
func (n *Node) coordinate(ctx context.Context, members []Member, nonces []string) error {
	ctx, cancel := n.transport.whileRunning(ctx, foundTimeout)
	defer cancel()
	founders := make([]roster.Member, len(members))
	for i, m := range members {
		founders[i] = roster.Member{RaftID: roster.RaftID(m.ID, 0), Addr: m.Addr, Nonce: nonces[i]}
	}
	r := roster.Found(randomID(), founders)
	var hello *kvpb.Hello
	err := n.doErr(func(l *loop) error {
		hello = &kvpb.Hello{From: l.identity()}
		return l.bind(hello, r)
	})
	if err != nil {
		return err
	}
	defer n.post(func(l *loop) { l.unbind(r) })
	var streams []grpc.BidiStreamingClient[kvpb.FoundRequest, kvpb.FoundResponse]
	for _, m := range members {
		if m.ID == n.cfg.ID {
			continue
		}
		s, closeConn, err := n.transport.askToFound(ctx, m, hello, r)
		if err != nil {
			return fmt.Errorf("member %d at %s: %s", m.ID, m.Addr, wire.Text(err))
		}
		defer closeConn()
		streams = append(streams, s)
	}
	if err := n.doErr(func(l *loop) error { return l.found(r) }); err != nil {
		return err
	}
	for _, s := range streams {
		if err := commitFounding(s); err != nil {
			n.logger.Warn("a founder did not hear that the cluster is founded; it will be greeted", "err", err)
		}
	}
	return nil
}

func commitFounding(s grpc.BidiStreamingClient[kvpb.FoundRequest, kvpb.FoundResponse]) error {
	req := &kvpb.FoundRequest{Commit: true}
	checksum.Seal(req)
	if err := s.Send(req); err != nil {
		return err
	}
	_, err := s.Recv()
	return err
}

func membersText(members []Member) string {
	text := ""
	for i, m := range members {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%d=%s", m.ID, m.Addr)
	}
	return text
}
