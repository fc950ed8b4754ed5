package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

func TestPutSendsKeyValueAndCondition(t *testing.T) {
	var got *raftkvv1.PutRequest
	f := &fake{put: func(_ context.Context, r *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
		got = r
		return &raftkvv1.PutResponse{Revision: 12}, nil
	}}
	addr := f.start(t)
	kvnode(t, "", "put", "k", "v", "--endpoints", addr).check(t, exitDone, "12\n")
	if string(got.GetKey()) != "k" || string(got.GetValue()) != "v" || got.IfRevision != nil {
		t.Errorf("the request is %v", got)
	}
	// 0 is a condition, not the absence of one.
	kvnode(t, "in\n\x00", "put", "k", "-", "--if-revision", "0", "-o", "json", "--endpoints", addr).
		check(t, exitDone, `{"revision":12}`+"\n")
	if string(got.GetValue()) != "in\n\x00" || got.IfRevision == nil || got.GetIfRevision() != 0 {
		t.Errorf("the request is %v", got)
	}
	kvnode(t, "", "put", "--endpoints", addr, "--", "k", "-5").check(t, exitDone, "12\n")
	if string(got.GetValue()) != "-5" {
		t.Errorf("the value is %q; want -5", got.GetValue())
	}
}

func TestPutBoundsStandardInput(t *testing.T) {
	size := 0
	f := &fake{put: func(_ context.Context, r *raftkvv1.PutRequest) (*raftkvv1.PutResponse, error) {
		size = len(r.GetValue())
		return &raftkvv1.PutResponse{Revision: 1}, nil
	}}
	addr := f.start(t)
	var stdout, stderr bytes.Buffer
	args := []string{"put", "k", "-", "--endpoints", addr}
	if code := run(t.Context(), args, io.LimitReader(zeros{}, valueBytesMax), &stdout, &stderr); code != exitDone || size != valueBytesMax {
		t.Errorf("16 MiB: code %d, %d bytes arrived (%s)", code, size, stderr.String())
	}
	calls := f.calls.Load()
	if code := run(t.Context(), args, zeros{}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "16 MiB") {
		t.Errorf("endless input: code %d, stderr %q", code, stderr.String())
	}
	if f.calls.Load() != calls {
		t.Error("too large a value was sent")
	}
}

// zeros is an input without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestGetPrintsValue(t *testing.T) {
	addr := holding("a <b>\xff").start(t)
	kvnode(t, "", "get", "k", "--endpoints", addr).check(t, exitDone, "a <b>\xff\n")
	kvnode(t, "", "get", "k", "--raw", "--endpoints", addr).check(t, exitDone, "a <b>\xff")
	kvnode(t, "", "get", "k", "-o", "json", "--endpoints", addr).
		check(t, exitDone, `{"key":"k","value":{"base64":"YSA8Yj7/"},"revision":7}`+"\n")
	kvnode(t, "", "get", "other", "--endpoints", addr).check(t, exitNotMet, "", `get "other"`, addr, "no such key")
}

func TestGetPassesConsistency(t *testing.T) {
	var got *raftkvv1.GetRequest
	f := holding("v")
	inner := f.get
	f.get = func(ctx context.Context, r *raftkvv1.GetRequest) (*raftkvv1.GetResponse, error) {
		got = r
		return inner(ctx, r)
	}
	addr := f.start(t)
	kvnode(t, "", "get", "k", "--stale", "--min-revision", "9", "--endpoints", addr).check(t, exitDone, "v\n")
	if !got.GetStale() || got.GetMinRevision() != 9 {
		t.Errorf("the request is %v", got)
	}
}

func TestDeletePrintsRevision(t *testing.T) {
	f := &fake{del: func(_ context.Context, r *raftkvv1.DeleteRequest) (*raftkvv1.DeleteResponse, error) {
		return &raftkvv1.DeleteResponse{Revision: 8 + r.GetIfRevision()}, nil
	}}
	addr := f.start(t)
	kvnode(t, "", "delete", "k", "--endpoints", addr).check(t, exitDone, "8\n")
	kvnode(t, "", "delete", "k", "--if-revision", "1", "-o", "json", "--endpoints", addr).check(t, exitDone, `{"revision":9}`+"\n")
}

func listing(then error) *fake {
	return &fake{list: func(r *raftkvv1.ListRequest, s grpc.ServerStreamingServer[raftkvv1.ListResponse]) error {
		err := s.Send(&raftkvv1.ListResponse{Revision: 3, Kvs: []*raftkvv1.KeyValue{
			{Key: append(r.GetPrefix(), 'a'), Value: []byte("plain text"), Revision: 1},
			{Key: []byte("tab\there"), Value: []byte("\xff"), Revision: 2},
		}})
		if err != nil {
			return err
		}
		if then != nil {
			return then
		}
		return s.Send(&raftkvv1.ListResponse{Kvs: []*raftkvv1.KeyValue{{Key: []byte(`"q"`), Value: nil, Revision: 3}}})
	}}
}

func TestListPrintsALineForEachKey(t *testing.T) {
	addr := listing(nil).start(t)
	kvnode(t, "", "list", "p/", "--endpoints", addr).check(t, exitDone,
		"p/a\tplain text\n"+`"tab\there"`+"\t"+`"\xff"`+"\n"+`"\"q\""`+"\t\n")
	kvnode(t, "", "list", "-o", "json", "--endpoints", addr).check(t, exitDone,
		`{"key":"a","value":"plain text","revision":1}`+"\n"+
			`{"key":"tab\there","value":{"base64":"/w=="},"revision":2}`+"\n"+
			`{"key":"\"q\"","value":"","revision":3}`+"\n")
}

func TestListPassesPage(t *testing.T) {
	var got *raftkvv1.ListRequest
	f := &fake{list: func(r *raftkvv1.ListRequest, s grpc.ServerStreamingServer[raftkvv1.ListResponse]) error {
		got = r
		return s.Send(&raftkvv1.ListResponse{Revision: 3})
	}}
	kvnode(t, "", "list", "p", "--limit", "5", "--after", "pa", "--stale", "--endpoints", f.start(t)).check(t, exitDone, "")
	if got.GetLimit() != 5 || string(got.GetAfter()) != "pa" || string(got.GetPrefix()) != "p" || !got.GetStale() {
		t.Errorf("the request is %v", got)
	}
}

// A list that has begun must not begin again elsewhere: its lines are out.
func TestListThatBreaksOffSaysSo(t *testing.T) {
	lost := refusal(raftkvv1.Reason_REASON_CLOSED, raftkvv1.Outcome_OUTCOME_NOT_DONE, "raftkv: node closed")
	broken, whole := listing(lost).start(t), listing(nil)
	r := kvnode(t, "", "list", "--endpoints", broken+","+whole.start(t))
	r.check(t, exitUnreachable, "a\tplain text\n"+`"tab\there"`+"\t"+`"\xff"`+"\n", "the list is incomplete", broken)
	if whole.calls.Load() != 0 {
		t.Error("the list was asked for again")
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestFullDiskIsNoSuccess(t *testing.T) {
	addr, lists := holding("v").start(t), listing(nil).start(t)
	for _, args := range [][]string{{"get", "k", "--endpoints", addr}, {"put", "k", "v", "--endpoints", addr}, {"list", "--endpoints", lists}, {"version"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, nil, fullDisk{}, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "standard output") {
			t.Errorf("kvnode %v: code %d, stderr %q", args, code, stderr.String())
		}
	}
}
