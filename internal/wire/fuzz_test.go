package wire

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const detailURL = "type.googleapis.com/raftkv.v1.ErrorDetail"

// A status is what its detail says, or not ours at all. Nobody is told that
// nothing was done unless the detail says so, here or when the error is passed
// on to somebody else.
func FuzzFromStatus(f *testing.F) {
	for i, r := range rows {
		value, err := proto.Marshal(&kvpb.ErrorDetail{
			Reason: r.reason, Outcome: kvpb.Outcome(i % 4), LeaderId: 1, LeaderAddr: "n1:1",
		})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(detailURL, value, uint32(r.code), r.kind.Error())
	}
	f.Add(detailURL, []byte{8, 99, 16, 1, 34, 1, 'a'}, uint32(4), "")
	f.Add(detailURL, []byte{0xff}, uint32(0), "ok")
	f.Add("raftkv.v1.ErrorDetail", []byte{}, uint32(99), "raftkv: raftkv: x")
	f.Add("", []byte("x"), uint32(14), "Error while dialing: \"")
	f.Add(detailURL, []byte{16, 1}, uint32(1), strings.Repeat("\u00e4", textBytesMax))
	f.Fuzz(func(t *testing.T, url string, value []byte, code uint32, message string) {
		p := status.New(codes.Code(code), message).Proto()
		p.Details = []*anypb.Any{nil, {TypeUrl: url, Value: value}}
		err := status.ErrorProto(p)
		got, ok := FromStatus(err)
		d := Detail(err)
		if ok != (d != nil) || !ok && got != err {
			t.Fatalf("got %v, %v with the detail %v", got, ok, d)
		}
		if err != nil {
			_ = Text(err)
		}
		if !ok {
			return
		}
		unknown := d.GetOutcome() != kvpb.Outcome_OUTCOME_NOT_DONE || d.GetReason() == kvpb.Reason_REASON_OUTCOME_UNKNOWN
		if errors.Is(got, fault.ErrOutcomeUnknown) != unknown || got.Error() != message {
			t.Fatalf("got %v of %v", got, d)
		}
		if is := errors.Is(got, context.DeadlineExceeded); is != (codes.Code(code) == codes.DeadlineExceeded) {
			t.Fatalf("code %v is a deadline: %v", codes.Code(code), is)
		}
		checkPassedOn(t, got, d)
	})
}

// checkPassedOn sends an error that has arrived once more.
func checkPassedOn(t *testing.T, got error, d *kvpb.ErrorDetail) {
	t.Helper()
	sent := ToStatus(got, d.GetLeaderId(), d.GetLeaderAddr())
	again, ok := FromStatus(transmit(t, sent))
	if !ok {
		t.Fatalf("%v is not ours any more", got)
	}
	for _, kind := range all() {
		if errors.Is(got, kind) && !errors.Is(again, kind) {
			t.Fatalf("passed on, %v is %v no more, but %v", got, kind, again)
		}
	}
	if next := Detail(sent); next.GetLeaderId() != d.GetLeaderId() || len(next.GetLeaderAddr()) > textBytesMax {
		t.Fatalf("leader %v became %v", d, next)
	}
}
