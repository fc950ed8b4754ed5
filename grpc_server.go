package raftkv

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/wire"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	connectionsMax = 4096     // open at once; later ones wait to be accepted
	streamsMax     = 1024     // calls under way on one connection
	headerBytesMax = 16 << 10 // of one call
	handshakeMax   = 5 * time.Second
	// windowBytes is what one side of a connection may send before the other has
	// read it: gRPC's own limit. Left to itself gRPC begins with less and measures,
	// with a ping beside nearly every frame, which costs a third of the time of a
	// call on a network that is faster than a ping.
	windowBytes    = 16 << 20
	streamWorkers  = 256                    // goroutines kept for calls; more calls start their own
	answerTime     = 100 * time.Millisecond // kept for the answer before a deadline
	listFrameBytes = 256 << 10              // of keys and values in one ListResponse
	listFrameKeys  = 1024
)

// newServer returns the gRPC server with all services of a node. What its
// defaults leave open is closed here (reliability section 3.3).
func (n *Node) newServer() *grpc.Server {
	s := grpc.NewServer(
		grpc.ConnectionTimeout(handshakeMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(streamsMax), grpc.MaxHeaderListSize(headerBytesMax),
		grpc.MaxRecvMsgSize(frameBytesMax), grpc.MaxSendMsgSize(frameBytesMax),
		grpc.WaitForHandlers(true), grpc.NumStreamWorkers(streamWorkers),
		grpc.InitialWindowSize(windowBytes), grpc.InitialConnWindowSize(windowBytes),
		grpc.UnaryInterceptor(n.interceptUnary), grpc.StreamInterceptor(n.interceptStream),
	)
	healthpb.RegisterHealthServer(s, n.health)
	kvpb.RegisterKVServiceServer(s, &kvServer{node: n})
	kvpb.RegisterClusterServiceServer(s, &clusterServer{node: n})
	kvpb.RegisterPeerServiceServer(s, n.transport)
	if n.cfg.Register != nil {
		n.cfg.Register(s)
	}
	return s
}

// serve serves until the server is stopped.
func (n *Node) serve() {
	err := n.server.Serve(netutil.LimitListener(n.listener, connectionsMax))
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		n.stopFor(fmt.Errorf("raftkv: serve: %w", err))
	}
}

// showHealth says whether this node can be expected to answer: whether it is
// ready.
func (n *Node) showHealth(v *view) {
	state := healthpb.HealthCheckResponse_NOT_SERVING
	if v.ready {
		state = healthpb.HealthCheckResponse_SERVING
	}
	for _, name := range []string{"", kvpb.KVService_ServiceDesc.ServiceName, kvpb.ClusterService_ServiceDesc.ServiceName} {
		n.health.SetServingStatus(name, state)
	}
}

// interceptUnary turns a panic in a handler into a stopped node, and ends calls
// a little before their deadline.
func (n *Node) interceptUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer n.guardHandler(&err)
	ctx, cancel := early(ctx)
	defer cancel()
	return handler(ctx, req)
}

func (n *Node) interceptStream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer n.guardHandler(&err)
	ctx, cancel := early(s.Context())
	defer cancel()
	return handler(srv, &earlyStream{s, ctx})
}

// early returns a context that ends before the call's deadline does. At the
// deadline gRPC resets the stream on both sides, and the answer that says what
// was waited for, and whether anything was done, would never arrive.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, answerTime)))
}

type earlyStream struct {
	grpc.ServerStream
	ctx context.Context // stands for the stream's own
}

func (s *earlyStream) Context() context.Context { return s.ctx }

func (n *Node) guardHandler(err *error) {
	if p := recover(); p != nil {
		n.logger.Error("panic in a call; the node stops", "panic", p, "stack", string(debug.Stack()))
		n.stopFor(fmt.Errorf("raftkv: BUG: panic: %v", p))
		*err = n.status(ErrClosed)
	}
}

// status turns an error into that of a gRPC call: it says where the leader is.
func (n *Node) status(err error) error {
	if errors.Is(err, membership.ErrNotLeader) {
		err = fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	leader := n.view.Load().leader
	return wire.ToStatus(err, leader.ID(), leader.Addr)
}

// answer completes a client's call: on an error it also sets the trailer.
func (n *Node) answer(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if addr := n.view.Load().leader.Addr; addr != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(wire.TrailerLeader, addr)) // fails only outside of a call
	}
	return n.status(err)
}

type kvServer struct {
	kvpb.UnimplementedKVServiceServer
	node *Node
}

func writeOptionsOf(revision *uint64) []WriteOption {
	if revision == nil {
		return nil
	}
	return []WriteOption{IfRevision(*revision)}
}

func (s *kvServer) Put(ctx context.Context, req *kvpb.PutRequest) (*kvpb.PutResponse, error) {
	revision, err := s.node.Put(ctx, textOf(req.GetKey()), req.GetValue(), writeOptionsOf(req.IfRevision)...)
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.PutResponse{Revision: revision}, nil
}

func (s *kvServer) Delete(ctx context.Context, req *kvpb.DeleteRequest) (*kvpb.DeleteResponse, error) {
	revision, err := s.node.Delete(ctx, textOf(req.GetKey()), writeOptionsOf(req.IfRevision)...)
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.DeleteResponse{Revision: revision}, nil
}

func readOptionsOf(stale bool, revision uint64) []ReadOption {
	var opts []ReadOption
	if stale {
		opts = append(opts, Stale())
	}
	if revision != 0 {
		opts = append(opts, MinRevision(revision))
	}
	return opts
}

func (s *kvServer) Get(ctx context.Context, req *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	kv, err := s.node.Get(ctx, textOf(req.GetKey()), readOptionsOf(req.GetStale(), req.GetMinRevision())...)
	if errors.Is(err, ErrNotFound) {
		return &kvpb.GetResponse{}, nil
	}
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.GetResponse{Kv: &kvpb.KeyValue{Key: req.GetKey(), Value: kv.Value, Revision: kv.Revision}}, nil
}

// textOf returns bytes that nobody changes as a string. Those of a request are:
// gRPC makes a message for each call and forgets it.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (kv KeyValue) proto() *kvpb.KeyValue {
	return &kvpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, Revision: kv.Revision}
}

func (s *kvServer) List(req *kvpb.ListRequest, stream grpc.ServerStreamingServer[kvpb.ListResponse]) error {
	opts := readOptionsOf(req.GetStale(), req.GetMinRevision())
	opts = append(opts, After(string(req.GetAfter())), Limit(int(min(req.GetLimit(), 1<<31-1))))
	listing, err := s.node.List(stream.Context(), string(req.GetPrefix()), opts...)
	if err != nil {
		return s.node.answer(stream.Context(), err)
	}
	resp, bytes := &kvpb.ListResponse{Revision: listing.Revision}, 0
	for kv := range listing.All() {
		if size := len(kv.Key) + len(kv.Value); len(resp.Kvs) == listFrameKeys || bytes > 0 && bytes+size > listFrameBytes {
			if err := stream.Send(resp); err != nil {
				return err
			}
			resp, bytes = &kvpb.ListResponse{Revision: listing.Revision}, 0
		}
		resp.Kvs = append(resp.Kvs, kv.proto())
		bytes += len(kv.Key) + len(kv.Value)
	}
	return stream.Send(resp)
}

type clusterServer struct {
	kvpb.UnimplementedClusterServiceServer
	node *Node
}

func (s *clusterServer) Init(ctx context.Context, req *kvpb.InitRequest) (*kvpb.InitResponse, error) {
	var members []Member
	for _, m := range req.GetMembers() {
		role := Voter
		if m.GetRole() == kvpb.Role_ROLE_LEARNER {
			role = Learner
		}
		members = append(members, Member{ID: m.GetId(), Addr: m.GetAddr(), Role: role})
	}
	if err := s.node.Init(ctx, members...); err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.InitResponse{Membership: membershipOf(s.node.view.Load().roster).proto()}, nil
}

func (s *clusterServer) Recover(ctx context.Context, _ *kvpb.RecoverRequest) (*kvpb.RecoverResponse, error) {
	m, err := s.node.Recover(ctx)
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.RecoverResponse{Membership: m.proto()}, nil
}

func (s *clusterServer) AddLearner(ctx context.Context, req *kvpb.AddLearnerRequest) (*kvpb.AddLearnerResponse, error) {
	m, err := s.node.AddLearner(ctx, req.GetId(), req.GetAddr())
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.AddLearnerResponse{Membership: m.proto()}, nil
}

func (s *clusterServer) RemoveLearner(ctx context.Context, req *kvpb.RemoveLearnerRequest) (*kvpb.RemoveLearnerResponse, error) {
	m, err := s.node.RemoveLearner(ctx, req.GetId())
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.RemoveLearnerResponse{Membership: m.proto()}, nil
}

func (s *clusterServer) ChangeMembership(ctx context.Context, req *kvpb.ChangeMembershipRequest) (*kvpb.ChangeMembershipResponse, error) {
	opts := []MembershipOption{IfIndex(req.GetIfIndex())}
	if req.GetRetain() {
		opts = append(opts, Retain())
	}
	m, err := s.node.ChangeMembership(ctx, req.GetVoters(), opts...)
	if err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.ChangeMembershipResponse{Membership: m.proto()}, nil
}

func (s *clusterServer) TransferLeadership(ctx context.Context, req *kvpb.TransferLeadershipRequest) (*kvpb.TransferLeadershipResponse, error) {
	if err := s.node.TransferLeadership(ctx, req.GetTo()); err != nil {
		return nil, s.node.answer(ctx, err)
	}
	return &kvpb.TransferLeadershipResponse{}, nil
}

func (s *clusterServer) Status(context.Context, *kvpb.StatusRequest) (*kvpb.StatusResponse, error) {
	return s.node.Status().proto(), nil
}

func (s Status) proto() *kvpb.StatusResponse {
	resp := &kvpb.StatusResponse{
		ClusterId: s.ClusterID, Id: s.ID, Addr: s.Addr, Role: s.Role.proto(), Leader: s.Leader, Term: s.Term,
		Commit: s.Commit, Applied: s.Applied, Revision: s.Revision, StateHash: s.StateHash,
		Membership: s.Membership.proto(), RefusedMessages: s.RefusedMessages,
		Ready: s.Ready, QuorumLost: s.QuorumLost, LastTerm: s.LastTerm, LastIndex: s.LastIndex,
	}
	if s.SpareVoters >= 0 {
		resp.SpareVoters = proto.Uint32(uint32(s.SpareVoters))
	}
	for _, p := range s.Peers {
		contact := int64(-1)
		if p.LastContact >= 0 {
			contact = p.LastContact.Milliseconds()
		}
		resp.Peers = append(resp.Peers, &kvpb.PeerStatus{Id: p.ID, Match: p.Match, Lag: p.Lag, LastContactMs: contact, State: p.State})
	}
	return resp
}

func (r Role) proto() kvpb.Role {
	roles := [...]kvpb.Role{
		Voter: kvpb.Role_ROLE_VOTER, Learner: kvpb.Role_ROLE_LEARNER, Follower: kvpb.Role_ROLE_FOLLOWER,
		Candidate: kvpb.Role_ROLE_CANDIDATE, Leader: kvpb.Role_ROLE_LEADER, Blank: kvpb.Role_ROLE_BLANK,
	}
	return roles[r]
}

func (m Member) proto() *kvpb.Member {
	return &kvpb.Member{Id: m.ID, Addr: m.Addr, Role: m.Role.proto()}
}

func (m Membership) proto() *kvpb.Membership {
	p := &kvpb.Membership{Index: m.Index, Joint: m.Joint}
	for _, row := range m.Members {
		p.Members = append(p.Members, row.proto())
	}
	return p
}
