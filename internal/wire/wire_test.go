package wire

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// transmit sends an error over the wire: what a client gets is decoded bytes.
func transmit(t testing.TB, err error) error {
	t.Helper()
	data, merr := proto.Marshal(status.Convert(err).Proto())
	if merr != nil {
		t.Fatal(merr)
	}
	p := status.New(codes.OK, "").Proto()
	if uerr := proto.Unmarshal(data, p); uerr != nil {
		t.Fatal(uerr)
	}
	return status.ErrorProto(p)
}

// all are the errors that a remote caller may test for.
func all() []error {
	kinds := []error{context.DeadlineExceeded, context.Canceled}
	for _, r := range rows {
		kinds = append(kinds, r.kind)
	}
	return kinds
}

func TestEverySentinelRoundTrips(t *testing.T) {
	for _, r := range rows {
		sent := ToStatus(fmt.Errorf("raftkv: put %q: %w", "k", r.kind), 7, "n7:1")
		if got := status.Code(sent); got != r.code {
			t.Errorf("%v: got code %v, want %v", r.kind, got, r.code)
		}
		d := Detail(transmit(t, sent))
		if d.GetReason() != r.reason || d.GetLeaderId() != 7 || d.GetLeaderAddr() != "n7:1" {
			t.Errorf("%v: got detail %v, want reason %v and leader 7 at n7:1", r.kind, d, r.reason)
		}
		got, ok := FromStatus(transmit(t, sent))
		if !ok {
			t.Fatalf("%v: got no detail", r.kind)
		}
		for _, kind := range all() {
			if errors.Is(got, kind) != (kind == r.kind) {
				t.Errorf("%v: errors.Is(%v) = %v", r.kind, kind, errors.Is(got, kind))
			}
		}
		want := `put "k": ` + strings.TrimPrefix(r.kind.Error(), "raftkv: ")
		if got.Error() != want {
			t.Errorf("got text %q, want %q", got, want)
		}
		if again, _ := FromStatus(transmit(t, ToStatus(got, 0, ""))); again.Error() != want || !errors.Is(again, r.kind) {
			t.Errorf("%v: got %v after a second member, want the same", r.kind, again)
		}
	}
}

// The table has every sentinel, by its source, and every reason.
func TestTableIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../fault/fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	sentinels := 0
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || !strings.HasPrefix(lit.Value, `"raftkv: `) {
			return true
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		sentinels++
		inTable := slices.ContainsFunc(rows, func(r row) bool { return r.kind.Error() == text })
		if inTable == (text == fault.ErrNotFound.Error()) {
			t.Errorf("%q: in the table: %v", text, inTable)
		}
		return true
	})
	if sentinels != len(rows)+1 {
		t.Errorf("found %d sentinels in the source, the table has %d", sentinels, len(rows))
	}
	for number, name := range kvpb.Reason_name {
		n := 0
		for _, r := range rows {
			if int32(r.reason) == number {
				n++
			}
		}
		if want := min(int(number), 1); n != want {
			t.Errorf("%s is in the table %d times, want %d", name, n, want)
		}
	}
}

func TestMostTellingReasonWins(t *testing.T) {
	for _, c := range []struct {
		kinds   []error
		reason  kvpb.Reason
		code    codes.Code
		outcome kvpb.Outcome
	}{
		{[]error{fault.ErrNoLeader, context.DeadlineExceeded},
			kvpb.Reason_REASON_NO_LEADER, codes.DeadlineExceeded, kvpb.Outcome_OUTCOME_NOT_DONE},
		{[]error{fault.ErrNoLeader, context.Canceled},
			kvpb.Reason_REASON_NO_LEADER, codes.Canceled, kvpb.Outcome_OUTCOME_NOT_DONE},
		{[]error{fault.ErrOutcomeUnknown, context.DeadlineExceeded},
			kvpb.Reason_REASON_OUTCOME_UNKNOWN, codes.DeadlineExceeded, kvpb.Outcome_OUTCOME_UNKNOWN},
		{[]error{fault.ErrOutcomeUnknown, fault.ErrRemoved},
			kvpb.Reason_REASON_REMOVED, codes.Unknown, kvpb.Outcome_OUTCOME_UNKNOWN},
		// Not Unavailable: a proxy would send the write once more.
		{[]error{fault.ErrOutcomeUnknown, fault.ErrClosed},
			kvpb.Reason_REASON_CLOSED, codes.Unknown, kvpb.Outcome_OUTCOME_UNKNOWN},
		{[]error{fault.ErrClosed, fault.ErrRemoved},
			kvpb.Reason_REASON_REMOVED, codes.FailedPrecondition, kvpb.Outcome_OUTCOME_NOT_DONE},
		{[]error{fault.ErrInvalid, fault.ErrTooLarge},
			kvpb.Reason_REASON_TOO_LARGE, codes.InvalidArgument, kvpb.Outcome_OUTCOME_NOT_DONE},
		{[]error{fault.ErrMembershipRefused, fault.ErrQuorumAtRisk},
			kvpb.Reason_REASON_QUORUM_AT_RISK, codes.FailedPrecondition, kvpb.Outcome_OUTCOME_NOT_DONE},
	} {
		sent := ToStatus(fault.New("text", c.kinds...), 0, "")
		d := Detail(sent)
		if d.GetReason() != c.reason || d.GetOutcome() != c.outcome || status.Code(sent) != c.code {
			t.Errorf("%v: got %v, %v, %v, want %v, %v, %v", c.kinds,
				d.GetReason(), status.Code(sent), d.GetOutcome(), c.reason, c.code, c.outcome)
		}
		got, _ := FromStatus(transmit(t, sent))
		if errors.Is(got, fault.ErrOutcomeUnknown) != (c.outcome == kvpb.Outcome_OUTCOME_UNKNOWN) {
			t.Errorf("%v: got kinds %v", c.kinds, got.(*fault.Error).Kinds)
		}
		for _, ctx := range []error{context.DeadlineExceeded, context.Canceled} {
			if errors.Is(got, ctx) != slices.Contains(c.kinds, ctx) {
				t.Errorf("%v: errors.Is(%v) = %v", c.kinds, ctx, errors.Is(got, ctx))
			}
		}
	}
}

// An error that nobody classified is a bug, and may have done anything.
func TestUnclassifiedErrorIsInternal(t *testing.T) {
	for _, err := range []error{errors.New("boom"), fault.ErrNotFound} {
		sent := ToStatus(err, 0, "")
		if status.Code(sent) != codes.Internal {
			t.Errorf("%v: got %v, want Internal", err, status.Code(sent))
		}
		if got, ok := FromStatus(transmit(t, sent)); !ok || !errors.Is(got, fault.ErrOutcomeUnknown) {
			t.Errorf("%v: got %v, %v, want an unknown outcome", err, got, ok)
		}
	}
}

func TestStatusesAndNilStay(t *testing.T) {
	if got := ToStatus(nil, 1, "a"); got != nil {
		t.Errorf("got %v, want nil", got)
	}
	err := status.Error(codes.Unimplemented, "no such method")
	if got := ToStatus(err, 1, "a"); got != err {
		t.Errorf("got %v, want %v", got, err)
	}
}

func TestForeignErrorsAreNotOurs(t *testing.T) {
	other, err := status.New(codes.Unavailable, "proxy").WithDetails(durationpb.New(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		nil, errors.New("plain"), context.Canceled, status.Error(codes.Unavailable, "connection refused"), other.Err(),
	} {
		got, ok := FromStatus(err)
		if ok || got != err || Detail(err) != nil {
			t.Errorf("%v: got %v, %v, want the error itself", err, got, ok)
		}
	}
}

// What wraps a status stays out of its text, and does not hide it.
func TestWrappedStatusIsFound(t *testing.T) {
	got, ok := FromStatus(fmt.Errorf("dial: %w", ToStatus(fault.ErrOverloaded, 0, "")))
	if !ok || got.Error() != "overloaded" || !errors.Is(got, fault.ErrOverloaded) {
		t.Errorf("got %v, %v, want overloaded", got, ok)
	}
}

// A server of a later version, or a hostile one, is never taken to say that
// nothing was done unless it says so.
func TestUnknownDetailIsAnUnknownOutcome(t *testing.T) {
	for _, d := range []*kvpb.ErrorDetail{
		{}, {Reason: 99, Outcome: 99}, {Reason: -1, Outcome: -1}, {Reason: kvpb.Reason_REASON_OVERLOADED},
		{Reason: kvpb.Reason_REASON_OUTCOME_UNKNOWN, Outcome: kvpb.Outcome_OUTCOME_NOT_DONE},
	} {
		st, err := status.New(codes.Internal, "x").WithDetails(d)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := FromStatus(transmit(t, st.Err())); !ok || !errors.Is(got, fault.ErrOutcomeUnknown) {
			t.Errorf("%v: got %v, %v, want an unknown outcome", d, got, ok)
		}
	}
}

// Whatever is in an error, its status can be sent and is small.
func TestTextFitsIntoHeaders(t *testing.T) {
	for _, s := range []string{
		"\xff\xfe", strings.Repeat("ä", textBytesMax), "a" + strings.Repeat("ä", textBytesMax), strings.Repeat("\xff", 64<<10),
	} {
		sent := ToStatus(fault.New(s, fault.ErrInvalid), 1, s)
		if d := Detail(transmit(t, sent)); d.GetReason() != kvpb.Reason_REASON_INVALID {
			t.Errorf("%.10q: got detail %v, want ours", s, d)
		}
		if size := proto.Size(status.Convert(sent).Proto()); size > 3*textBytesMax {
			t.Errorf("%.10q: got a status of %d bytes", s, size)
		}
	}
}

func TestRedundantPrefixesGo(t *testing.T) {
	err := fmt.Errorf("raftkv: put: %w", fmt.Errorf("raftkv: forward: %w", fault.ErrOverloaded))
	if got, want := status.Convert(ToStatus(err, 0, "")).Message(), "put: forward: overloaded"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
