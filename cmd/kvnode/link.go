package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

const (
	connectTimeoutMax = time.Second
	probeTimeoutMax   = 500 * time.Millisecond

	// The largest frame of the protocol; gRPC's own default would refuse values
	// that the store accepts.
	messageBytesMax = 32 << 20
)

// A link is a connection to one endpoint that was up when connect returned.
type link struct {
	addr string
	conn *grpc.ClientConn

	// sent says whether the request of the call under way was given to the
	// network: from then on nobody but the member knows what became of it.
	// Written by gRPC's goroutines.
	sent atomic.Bool
	// dialed is the last thing that dialing said, nil if it went well. Written
	// by gRPC's goroutines.
	dialed atomic.Pointer[error]
}

// connect waits until the endpoint has answered as a gRPC server, so that a
// call which is started afterwards was either sent or never will be.
func connect(ctx context.Context, addr string, timeout time.Duration) (*link, error) {
	l := &link{addr: addr}
	// Escaped, because the target is a URL: the zone of [fe80::1%eth0]:21001 is no
	// escape in it.
	conn, err := grpc.NewClient("passthrough:///"+url.PathEscape(addr),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(l.dial),
		grpc.WithStatsHandler(sentHandler{l}),
		// Neither a proxy nor DNS may say what a call does or where it goes.
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax), grpc.MaxCallSendMsgSize(messageBytesMax)))
	if err != nil {
		return nil, err
	}
	l.conn = conn
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.TransientFailure || !conn.WaitForStateChange(ctx, state) {
			l.close()
			return nil, l.unreachable(timeout)
		}
	}
	return l, nil
}

func (l *link) close() {
	_ = l.conn.Close() // fails only if it is closed already
}

func (l *link) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	l.dialed.Store(&err)
	return conn, err
}

// unreachable says in words why there is no connection.
func (l *link) unreachable(timeout time.Duration) error {
	err := l.dialed.Load()
	switch {
	case err == nil, errors.Is(*err, context.DeadlineExceeded), errors.Is(*err, context.Canceled):
		return fmt.Errorf("%s did not accept a connection within %v; is the address right, and a node running there?", l.addr, timeout)
	case *err == nil:
		return fmt.Errorf("%s accepts connections but does not answer; is it a kvnode, and does it run?", l.addr)
	case errors.Is(*err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s refused the connection; is a node running there? (--endpoints or KVNODE_ENDPOINTS)", l.addr)
	}
	if dns, ok := errors.AsType[*net.DNSError](*err); ok {
		return fmt.Errorf("%s is unknown: %s; is the name right? (--endpoints or KVNODE_ENDPOINTS)", l.addr, dns.Err)
	}
	return fmt.Errorf("%s cannot be reached: %w (--endpoints or KVNODE_ENDPOINTS)", l.addr, *err)
}

// knowsLeader asks the member whether it sees a leader. One that cannot say
// counts as if it did: the call itself will tell.
func (l *link) knowsLeader(ctx context.Context, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	st, err := raftkvv1.NewClusterServiceClient(l.conn).Status(ctx, &raftkvv1.StatusRequest{})
	return err != nil || st.GetLeader() != 0
}

// sentHandler notes on its link that a request was given to the network.
type sentHandler struct{ *link }

func (h sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (h sentHandler) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.Begin:
		// Also of an attempt that gRPC repeats by itself, which it does only if
		// the member certainly has not seen the one before.
		h.sent.Store(false)
	case *stats.OutHeader, *stats.OutPayload:
		h.sent.Store(true)
	}
}

func (h sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (h sentHandler) HandleConn(context.Context, stats.ConnStats) {}
