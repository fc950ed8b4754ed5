package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// fake is a member that answers what a test wants. What is nil is unimplemented.
type fake struct {
	raftkvv1.UnimplementedKVServiceServer
	raftkvv1.UnimplementedClusterServiceServer

	put    func(context.Context, *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error)
	get    func(context.Context, *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error)
	del    func(context.Context, *raftkvv1.DeleteRequest) (*raftkvv1.DeleteResponse, error)
	list   func(*raftkvv1.ListRequest, grpc.ServerStreamingServer[raftkvv1.ListResponse]) error
	init   func(context.Context, *raftkvv1.InitRequest) (*raftkvv1.InitResponse, error)
	add    func(context.Context, *raftkvv1.AddLearnerRequest) (*raftkvv1.AddLearnerResponse, error)
	remove func(context.Context, *raftkvv1.RemoveLearnerRequest) (*raftkvv1.RemoveLearnerResponse, error)
	change func(context.Context, *raftkvv1.ChangeMembershipRequest) (*raftkvv1.ChangeMembershipResponse, error)
	move   func(context.Context, *raftkvv1.TransferLeadershipRequest) (*raftkvv1.TransferLeadershipResponse, error)
	rescue func(context.Context, *raftkvv1.RecoverRequest) (*raftkvv1.RecoverResponse, error)
	status func() *raftkvv1.StatusResponse

	refuse error // what Status answers instead

	calls  atomic.Int64 // all but Status
	server *grpc.Server
}

// start serves until the test ends and returns the address.
func (f *fake) start(t *testing.T) string {
	t.Helper()
	return f.startAt(t, "127.0.0.1:0")
}

func (f *fake) startAt(t *testing.T, addr string) string {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Error(err) // not Fatal: also called beside the test
		return addr
	}
	f.server = grpc.NewServer(grpc.MaxRecvMsgSize(messageBytesMax))
	raftkvv1.RegisterKVServiceServer(f.server, f)
	raftkvv1.RegisterClusterServiceServer(f.server, f)
	go func() { _ = f.server.Serve(lis) }() // until Stop, below; then its error says nothing
	t.Cleanup(f.server.Stop)
	return lis.Addr().String()
}

func answer[Req, Resp any](f *fake, ctx context.Context, req Req, h func(context.Context, Req) (Resp, error)) (Resp, error) {
	f.calls.Add(1)
	if h == nil {
		return *new(Resp), status.Error(codes.Unimplemented, "not in this test")
	}
	return h(ctx, req)
}

func (f *fake) Put(ctx context.Context, r *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
	return answer(f, ctx, r, f.put)
}

func (f *fake) Get(ctx context.Context, r *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) {
	return answer(f, ctx, r, f.get)
}

func (f *fake) Delete(ctx context.Context, r *raftkvv1.DeleteRequest) (*raftkvv1.DeleteResponse, error) {
	return answer(f, ctx, r, f.del)
}

func (f *fake) List(r *raftkvv1.ListRequest, s grpc.ServerStreamingServer[raftkvv1.ListResponse]) error {
	f.calls.Add(1)
	return f.list(r, s)
}

func (f *fake) Init(ctx context.Context, r *raftkvv1.InitRequest) (*raftkvv1.InitResponse, error) {
	return answer(f, ctx, r, f.init)
}

func (f *fake) AddLearner(ctx context.Context, r *raftkvv1.AddLearnerRequest) (*raftkvv1.AddLearnerResponse, error) {
	return answer(f, ctx, r, f.add)
}

func (f *fake) RemoveLearner(ctx context.Context, r *raftkvv1.RemoveLearnerRequest) (*raftkvv1.RemoveLearnerResponse, error) {
	return answer(f, ctx, r, f.remove)
}

func (f *fake) ChangeMembership(ctx context.Context, r *raftkvv1.ChangeMembershipRequest) (*raftkvv1.ChangeMembershipResponse, error) {
	return answer(f, ctx, r, f.change)
}

func (f *fake) TransferLeadership(ctx context.Context, r *raftkvv1.TransferLeadershipRequest) (*raftkvv1.TransferLeadershipResponse, error) {
	return answer(f, ctx, r, f.move)
}

func (f *fake) Recover(ctx context.Context, r *raftkvv1.RecoverRequest) (*raftkvv1.RecoverResponse, error) {
	return answer(f, ctx, r, f.rescue)
}

// Status answers as a follower of member 1 unless the test says otherwise.
func (f *fake) Status(context.Context, *raftkvv1.StatusRequest) (*raftkvv1.StatusResponse, error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	if f.status == nil {
		return &raftkvv1.StatusResponse{ClusterId: "c", Id: 2, Leader: 1}, nil
	}
	return f.status(), nil
}

// refusing is a member that answers every Put and Get with one reason.
func refusing(reason raftkvv1.Reason, outcome raftkvv1.Outcome, text string) *fake {
	err := refusal(reason, outcome, text)
	return &fake{
		put: func(context.Context, *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) { return nil, err },
		get: func(context.Context, *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) { return nil, err },
	}
}

func refusal(reason raftkvv1.Reason, outcome raftkvv1.Outcome, text string) error {
	st, err := status.New(codes.FailedPrecondition, text).WithDetails(&raftkvv1.ErrorDetail{Reason: reason, Outcome: outcome})
	if err != nil {
		return err
	}
	return st.Err()
}

// holding is a member that has the key "k".
func holding(value string) *fake {
	return &fake{
		put: func(context.Context, *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
			return &raftkvv1.PutResponse{Revision: 7}, nil
		},
		get: func(_ context.Context, r *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) {
			if string(r.GetKey()) != "k" {
				return &raftkvv1.GetResponse{}, nil
			}
			return &raftkvv1.GetResponse{Kv: &raftkvv1.KeyValue{Key: r.GetKey(), Value: []byte(value), Revision: 7}}, nil
		},
	}
}

// refusedAddr is an address where nobody listens.
func refusedAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

// silentAddr accepts connections and never says a word, as a stopped process
// does.
func silentAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	return lis.Addr().String()
}

// result is what a command line has led to.
type result struct {
	code           int
	stdout, stderr string
}

func kvnode(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return kvnodeContext(t.Context(), stdin, args...)
}

func kvnodeContext(ctx context.Context, stdin string, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// check compares the code and all of stdout, and wants each part in stderr.
func (r result) check(t *testing.T, code int, stdout string, stderr ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code is %d; want %d (stderr: %s)", r.code, code, r.stderr)
	}
	if r.stdout != stdout {
		t.Errorf("stdout is %q; want %q", r.stdout, stdout)
	}
	for _, part := range stderr {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("stderr is %q; want %q in it", r.stderr, part)
		}
	}
	if code != exitDone && (!strings.HasPrefix(r.stderr, "kvnode: ") || strings.Count(r.stderr, "\n") != 1) {
		t.Errorf("stderr is %q; want one line that begins with kvnode:", r.stderr)
	}
	if strings.Contains(r.stderr, "context ") || strings.Contains(r.stderr, "rpc error") {
		t.Errorf("stderr is %q: not for people", r.stderr)
	}
}
