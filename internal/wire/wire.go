// Package wire turns errors into gRPC statuses and back. It is the only place
// where the two meet: everything else tests sentinels.
//
// What a status says is threefold. The code is for clients and proxies that
// know gRPC but not us, the text for people, and one ErrorDetail for everybody
// who wants to know: why the call failed (one reason), whether its operation may
// have happened (the outcome, which does not depend on the reason), and where
// the leader is.
package wire

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// TrailerLeader is the trailer that carries the leader's address, for clients
// that do not read details.
const TrailerLeader = "raftkv-leader"

// textBytesMax bounds the text of a status. It travels twice in headers, once
// escaped to up to three times its size, and receivers take 16 KiB of headers;
// an error may quote a key of 64 KiB.
const textBytesMax = 2 << 10

// A row is one sentinel with its names on the wire.
type row struct {
	kind   error
	reason kvpb.Reason
	code   codes.Code
}

// rows maps both ways. An error that satisfies several sentinels gets the
// reason of the first, so the order is from the most telling to the least:
// what is wrong with the call itself, what happened to the member or to the
// membership, then what only says that it did not work out now. OUTCOME_UNKNOWN
// is last because the outcome field says it beside any other reason.
//
// ErrNotFound is not here: a missing key is an absent field, and a server that
// sends it as an error has a bug, which Internal shows.
var rows = []row{
	{fault.ErrTooLarge, kvpb.Reason_REASON_TOO_LARGE, codes.InvalidArgument},
	{fault.ErrInvalid, kvpb.Reason_REASON_INVALID, codes.InvalidArgument},
	// The next one and ErrMembershipChanged are failed test-and-sets. For these
	// gRPC names Aborted: begin again from the read, and not from this call.
	{fault.ErrRevisionMismatch, kvpb.Reason_REASON_REVISION_MISMATCH, codes.Aborted},
	{fault.ErrRemoved, kvpb.Reason_REASON_REMOVED, codes.FailedPrecondition},
	// Not PermissionDenied: that is about who calls, this about who is called.
	{fault.ErrNotMember, kvpb.Reason_REASON_NOT_MEMBER, codes.FailedPrecondition},
	{fault.ErrAlreadyInitialized, kvpb.Reason_REASON_ALREADY_INITIALIZED, codes.AlreadyExists},
	{fault.ErrMemberAlive, kvpb.Reason_REASON_MEMBER_ALIVE, codes.FailedPrecondition},
	{fault.ErrLearnerNotFound, kvpb.Reason_REASON_LEARNER_NOT_FOUND, codes.NotFound},
	// What ran out is the log that can be kept for it.
	{fault.ErrLearnerTooSlow, kvpb.Reason_REASON_LEARNER_TOO_SLOW, codes.ResourceExhausted},
	{fault.ErrQuorumAtRisk, kvpb.Reason_REASON_QUORUM_AT_RISK, codes.FailedPrecondition},
	{fault.ErrMembershipChanged, kvpb.Reason_REASON_MEMBERSHIP_CHANGED, codes.Aborted},
	{fault.ErrMembershipRefused, kvpb.Reason_REASON_MEMBERSHIP_REFUSED, codes.FailedPrecondition},
	// Not Unavailable: to try again is of no use before a person has acted.
	{fault.ErrQuorumLost, kvpb.Reason_REASON_QUORUM_LOST, codes.FailedPrecondition},
	{fault.ErrNotInitialized, kvpb.Reason_REASON_NOT_INITIALIZED, codes.FailedPrecondition},
	{fault.ErrOverloaded, kvpb.Reason_REASON_OVERLOADED, codes.ResourceExhausted},
	{fault.ErrClosed, kvpb.Reason_REASON_CLOSED, codes.Unavailable},
	{fault.ErrNoLeader, kvpb.Reason_REASON_NO_LEADER, codes.Unavailable},
	{fault.ErrOutcomeUnknown, kvpb.Reason_REASON_OUTCOME_UNKNOWN, codes.Unknown},
}

// ToStatus returns the status error for an error of the Go API, nil for nil.
// The leader is the one that this member knows, 0 and "" if none. An error that
// is a status already, from gRPC or a handler, stays as it is.
//
// An error that satisfies no sentinel is a bug of ours. Nothing is known of its
// outcome, so that is what it says.
func ToStatus(err error, leaderID uint64, leaderAddr string) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	reason, code := classify(err)
	detail := &kvpb.ErrorDetail{
		Reason: reason, Outcome: outcome(err, reason),
		LeaderId: leaderID, LeaderAddr: text(leaderAddr),
	}
	st, derr := status.New(code, text(plain(err.Error()))).WithDetails(detail)
	if derr != nil {
		// Only a field that is no UTF-8 fails to marshal, or the code OK.
		return status.Error(codes.Internal, text(derr.Error()))
	}
	return st.Err()
}

// classify chooses reason and code. The caller's context goes before the code
// of the reason, because a client that set a deadline looks for it. An unknown
// outcome never has a code, such as Unavailable, upon which proxies and
// clients retry by themselves.
func classify(err error) (kvpb.Reason, codes.Code) {
	reason, code := kvpb.Reason_REASON_UNSPECIFIED, codes.Internal
	for _, r := range rows {
		if errors.Is(err, r.kind) {
			reason, code = r.reason, r.code
			break
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return reason, codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return reason, codes.Canceled
	case errors.Is(err, fault.ErrOutcomeUnknown):
		return reason, codes.Unknown
	}
	return reason, code
}

func outcome(err error, reason kvpb.Reason) kvpb.Outcome {
	if isContext := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled); isContext &&
		!errors.Is(err, fault.ErrOutcomeUnknown) {
		return kvpb.Outcome_OUTCOME_NOT_DONE // the API says so when a context cut something short that was begun
	}
	if errors.Is(err, fault.ErrOutcomeUnknown) || reason == kvpb.Reason_REASON_UNSPECIFIED {
		return kvpb.Outcome_OUTCOME_UNKNOWN
	}
	return kvpb.Outcome_OUTCOME_NOT_DONE
}

// plain removes the prefix that every sentinel and every wrapping repeats.
func plain(s string) string {
	return strings.ReplaceAll(strings.TrimPrefix(s, "raftkv: "), ": raftkv: ", ": ")
}

// text makes s fit for a status: protobuf refuses what is no UTF-8.
func text(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= textBytesMax {
		return s
	}
	n := textBytesMax - len("...")
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

// FromStatus returns the error that a status of ours stands for: its text, and
// all kinds that can be known from reason, outcome and code. It returns false,
// and the error itself, if there is no detail of ours in it: then the error is
// one of the transport, or from another server.
//
// Whatever does not plainly say that nothing was done is an ErrOutcomeUnknown.
func FromStatus(err error) (error, bool) {
	d := Detail(err)
	if d == nil {
		return err, false
	}
	st := statusOf(err)
	var kinds []error
	for _, r := range rows {
		if r.reason == d.GetReason() {
			kinds = append(kinds, r.kind)
		}
	}
	if d.GetOutcome() != kvpb.Outcome_OUTCOME_NOT_DONE && d.GetReason() != kvpb.Reason_REASON_OUTCOME_UNKNOWN {
		kinds = append(kinds, fault.ErrOutcomeUnknown)
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		kinds = append(kinds, context.DeadlineExceeded)
	case codes.Canceled:
		kinds = append(kinds, context.Canceled)
	}
	return fault.New(st.Message(), kinds...), true
}

// Detail returns our detail of a status error, nil if there is none. It says
// where the leader is, if the member that was called knew it.
func Detail(err error) *kvpb.ErrorDetail {
	st := statusOf(err)
	if st == nil {
		return nil
	}
	for _, d := range st.Details() {
		if d, ok := d.(*kvpb.ErrorDetail); ok {
			return d
		}
	}
	return nil
}

// statusOf returns the status in err's chain. Unlike status.FromError it keeps
// what was wrapped around it out of the message.
func statusOf(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil
	}
	return s.GRPCStatus()
}
