package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// The calls between members beside the stream of messages: who is there, a
// membership change for the leader, and founding. Client and server of each
// stand together.

// whileRunning returns a context that also ends when the transport stops, for
// calls to others that a caller's goroutine makes.
func (t *grpcTransport) whileRunning(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(t.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// whoIs asks who answers at an address.
func (t *grpcTransport) whoIs(ctx context.Context, addr string) (*kvpb.HelloResponse, error) {
	conn, err := t.dial(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing more to do about an error
	ctx, cancel := t.whileRunning(ctx, probeTimeout)
	defer cancel()
	var self *kvpb.Identity
	if err := t.node.do(func(l *loop) { self = l.identity() }); err != nil {
		return nil, err
	}
	req := &kvpb.HelloRequest{Hello: &kvpb.Hello{From: self}}
	checksum.Seal(req)
	resp, err := kvpb.NewPeerServiceClient(conn).Hello(ctx, req)
	if err != nil {
		return nil, err
	}
	return resp, checksum.Check(resp)
}

// refusal returns why a process wants to have nothing to do with this one, nil
// if the error says less than that: a process that is just stopping answers
// ErrClosed, which is about itself and must not reach a caller here.
func refusal(err error) error {
	told, ours := wire.FromStatus(err)
	if ours && (errors.Is(told, ErrMembershipRefused) || errors.Is(told, ErrInvalid)) {
		return told
	}
	return nil
}

// checkCall checks the checksum of a call. Its error is no status of ours, for
// that would tell the caller's caller that what it asked for is invalid. So the
// call has failed as if it had not arrived, and may be tried again.
func (t *grpcTransport) checkCall(req checksum.Message, hello *kvpb.Hello) error {
	err := checksum.Check(req)
	if err != nil {
		t.refused(hello, err)
	}
	return err
}

// Hello tells who this process is.
func (t *grpcTransport) Hello(ctx context.Context, req *kvpb.HelloRequest) (resp *kvpb.HelloResponse, err error) {
	if err := t.checkCall(req, req.GetHello()); err != nil {
		return nil, err
	}
	err = t.ask(func(l *loop) (err error) {
		resp, err = l.whoIs(req.GetHello())
		return err
	})
	if err != nil {
		return nil, t.node.status(err)
	}
	checksum.Seal(resp)
	return resp, nil
}

// probe asks who answers at an address before it is added under an ID. It
// returns the nonce of a process that may be added, or is added already.
func (n *Node) probe(ctx context.Context, id uint64, addr string) (nonce string, err error) {
	resp, err := n.transport.whoIs(ctx, addr)
	if err != nil {
		if told := refusal(err); told != nil {
			return "", told
		}
		return "", fmt.Errorf("%w: no member answers at %s: %s", ErrMembershipRefused, addr, wire.Text(err))
	}
	who, cluster := resp.GetIdentity(), n.view.Load().roster.ClusterID
	switch {
	case who.GetId() != id:
		return "", fmt.Errorf("%w: member %d answers at %s, not %d", ErrMembershipRefused, who.GetId(), addr, id)
	case len(who.GetClusterId()) > 0 && string(who.GetClusterId()) != cluster:
		return "", fmt.Errorf("%w: member %d at %s belongs to another cluster, %s", ErrMembershipRefused, id, addr, clusterIDText(string(who.GetClusterId())))
	case who.GetRaftId() != 0 && n.view.Load().roster.IsRemoved(who.GetRaftId()):
		return "", fmt.Errorf("%w: member %d at %s was removed and is about to stop; start it again first", ErrMembershipRefused, id, addr)
	case len(who.GetNonce()) != roster.NonceBytes:
		return "", fmt.Errorf("%w: member %d at %s says who it is in a malformed way", ErrMembershipRefused, id, addr)
	}
	return string(who.GetNonce()), nil
}

// forwardRequest has the leader carry out a request.
func (t *grpcTransport) forwardRequest(ctx context.Context, leader uint64, r *membership.Request) (*roster.Roster, error) {
	l := t.to(leader)
	if l == nil {
		return nil, membership.ErrNotLeader // the view is older than the links
	}
	req := requestProto(r)
	req.Hello = t.lockedHello(l.Member())
	checksum.Seal(req)
	resp, err := l.Client().Forward(ctx, req)
	if err != nil {
		if told, ours := wire.FromStatus(err); ours && !errors.Is(told, ErrClosed) && !errors.Is(told, ErrRemoved) {
			return nil, told
		}
		return nil, membership.ErrNotLeader // lost on the way: ask again, the request has an ID
	}
	if err := checksum.Check(resp); err != nil {
		return nil, membership.ErrNotLeader
	}
	return roster.FromProto(resp.GetRoster())
}

// Forward takes a membership change from a member that does not lead.
func (t *grpcTransport) Forward(ctx context.Context, req *kvpb.ForwardRequest) (*kvpb.ForwardResponse, error) {
	if err := t.checkCall(req, req.GetHello()); err != nil {
		return nil, err
	}
	r, err := requestFromProto(req)
	if err != nil {
		return nil, t.node.status(err)
	}
	var inForce *roster.Roster
	err = t.ask(func(l *loop) (err error) {
		inForce, err = l.welcomeRequest(req.GetHello(), r)
		return err
	})
	if err != nil {
		t.refused(req.GetHello(), err)
		return nil, t.node.status(membership.ErrNotLeader) // whom it takes for the leader is somebody else
	}
	if inForce == nil {
		if inForce, err = t.node.changeHere(ctx, r); err != nil {
			return nil, t.node.status(err)
		}
	}
	resp := &kvpb.ForwardResponse{Roster: inForce.Proto()}
	checksum.Seal(resp)
	return resp, nil
}

func requestProto(r *membership.Request) *kvpb.ForwardRequest {
	req := &kvpb.ForwardRequest{ChangeId: []byte(r.ID)}
	switch r.Kind {
	case membership.AddLearner:
		req.Change = &kvpb.ForwardRequest_AddLearner{AddLearner: &kvpb.AddLearnerRequest{Id: r.Member.ID(), Addr: r.Member.Addr}}
	case membership.RemoveLearner:
		req.Change = &kvpb.ForwardRequest_RemoveLearner{RemoveLearner: &kvpb.RemoveLearnerRequest{Id: r.Target}}
	case membership.SetVoters:
		req.Change = &kvpb.ForwardRequest_ChangeMembership{ChangeMembership: &kvpb.ChangeMembershipRequest{
			Voters: r.Voters, Retain: r.Retain, IfIndex: r.IfIndex,
		}}
	case membership.Transfer:
		req.Change = &kvpb.ForwardRequest_TransferLeadership{TransferLeadership: &kvpb.TransferLeadershipRequest{To: r.Target}}
	}
	return req
}

func requestFromProto(req *kvpb.ForwardRequest) (*membership.Request, error) {
	r := &membership.Request{ID: string(req.GetChangeId())}
	if len(r.ID) != roster.NonceBytes {
		return nil, fmt.Errorf("%w: malformed change ID", ErrInvalid)
	}
	switch c := req.GetChange().(type) {
	case *kvpb.ForwardRequest_AddLearner:
		r.Kind = membership.AddLearner
		r.Member = roster.Member{RaftID: roster.RaftID(c.AddLearner.GetId(), 0), Addr: c.AddLearner.GetAddr()}
		if id := c.AddLearner.GetId(); id == 0 || id > roster.IDMax || checkAddr(r.Member.Addr) != nil {
			return nil, fmt.Errorf("%w: malformed learner", ErrInvalid)
		}
	case *kvpb.ForwardRequest_RemoveLearner:
		r.Kind, r.Target = membership.RemoveLearner, c.RemoveLearner.GetId()
	case *kvpb.ForwardRequest_ChangeMembership:
		r.Kind = membership.SetVoters
		r.Voters = slices.Compact(slices.Sorted(slices.Values(c.ChangeMembership.GetVoters())))
		r.Retain, r.IfIndex = c.ChangeMembership.GetRetain(), c.ChangeMembership.GetIfIndex()
		if len(r.Voters) == 0 {
			return nil, fmt.Errorf("%w: a cluster needs a voter", ErrInvalid)
		}
	case *kvpb.ForwardRequest_TransferLeadership:
		r.Kind, r.Target = membership.Transfer, c.TransferLeadership.GetTo()
	default:
		return nil, fmt.Errorf("%w: unknown change", ErrInvalid)
	}
	return r, nil
}

// askToFound asks a member to take part in a founding. The stream holds it to
// its word.
func (t *grpcTransport) askToFound(ctx context.Context, m Member, hello *kvpb.Hello, r *roster.Roster) (
	s grpc.BidiStreamingClient[kvpb.FoundRequest, kvpb.FoundResponse], closeConn func(), err error,
) {
	conn, err := t.dial(m.Addr)
	if err != nil {
		return nil, nil, err
	}
	closeConn = func() { _ = conn.Close() } // nothing more to do about an error
	if s, err = kvpb.NewPeerServiceClient(conn).Found(ctx); err == nil {
		req := &kvpb.FoundRequest{Hello: hello, Roster: r.Proto()}
		checksum.Seal(req)
		if err = s.Send(req); err == nil {
			_, err = s.Recv()
		}
	}
	if err != nil {
		closeConn()
		return nil, nil, err
	}
	return s, closeConn, nil
}

// Found takes part in a founding.
func (t *grpcTransport) Found(s grpc.BidiStreamingServer[kvpb.FoundRequest, kvpb.FoundResponse]) error {
	req, err := first(s.Recv)
	if err != nil {
		return t.node.status(err)
	}
	if err := t.checkCall(req, req.GetHello()); err != nil {
		return err
	}
	r, err := roster.FromProto(req.GetRoster())
	if err != nil {
		return t.node.status(fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	if err := t.ask(func(l *loop) error { return l.bind(req.GetHello(), r) }); err != nil {
		t.refused(req.GetHello(), err)
		return t.node.status(err)
	}
	hello := req.GetHello()
	defer t.node.post(func(l *loop) { l.unbind(r) })
	if err := s.Send(&kvpb.FoundResponse{}); err != nil {
		return err
	}
	if req, err = s.Recv(); err != nil || !req.GetCommit() {
		return err // the coordinator gave up: nothing was founded
	}
	if err := t.checkCall(req, hello); err != nil {
		return err
	}
	if err := t.ask(func(l *loop) error { return l.found(r) }); err != nil {
		return t.node.status(err)
	}
	return s.Send(&kvpb.FoundResponse{})
}
