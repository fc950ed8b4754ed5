package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/raftkv/internal/wire"
	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// circumstances are what the client knows of a failed call beside its error.
type circumstances struct {
	sent        bool
	interrupted bool
	timeout     time.Duration
}

// advice is what a reason for failure means for the exit code and the person.
type advice struct {
	code   int
	next   bool // another endpoint may be asked
	weight int
	hint   string // %s is the endpoint
}

// recoverHint names one endpoint, but means all that are left.
const recoverHint = "nothing works again before a person acts: kvnode recover --endpoints %s (and all other members)"

var advices = map[raftkvv1.Reason]advice{
	raftkvv1.Reason_REASON_INVALID:             {code: exitUsage},
	raftkvv1.Reason_REASON_TOO_LARGE:           {code: exitFailed},
	raftkvv1.Reason_REASON_OVERLOADED:          {code: exitFailed, hint: "not done: try again later, or delete keys if it is the state that is full"},
	raftkvv1.Reason_REASON_REVISION_MISMATCH:   {code: exitNotMet, hint: "not done: get the key again and decide anew"},
	raftkvv1.Reason_REASON_NO_LEADER:           {code: exitUnreachable, next: true, weight: weightAnswered, hint: "not done; look with: kvnode status --endpoints %s"},
	raftkvv1.Reason_REASON_QUORUM_LOST:         {code: exitFailed, next: true, weight: weightLost, hint: "not done; " + recoverHint},
	raftkvv1.Reason_REASON_CLOSED:              {code: exitUnreachable, next: true, weight: weightStopping, hint: "not done: try again, or ask another member (--endpoints)"},
	raftkvv1.Reason_REASON_REMOVED:             {code: exitUnreachable, next: true, weight: weightStopping, hint: "not done: ask another member (--endpoints)"},
	raftkvv1.Reason_REASON_NOT_INITIALIZED:     {code: exitUnreachable, next: true, weight: weightBlank, hint: "not done: found a cluster with kvnode init --endpoints %s, or add this member to one with kvnode add-learner"},
	raftkvv1.Reason_REASON_ALREADY_INITIALIZED: {code: exitFailed, hint: "look with: kvnode status --endpoints %s"},
	raftkvv1.Reason_REASON_NOT_MEMBER:          {code: exitFailed, hint: "see who is with: kvnode status --endpoints %s"},
	raftkvv1.Reason_REASON_MEMBER_ALIVE:        {code: exitFailed, hint: "stop the process that has this ID, or use another ID"},
	raftkvv1.Reason_REASON_LEARNER_NOT_FOUND:   {code: exitFailed, hint: "a new voter must be a learner first: kvnode add-learner ID=ADDR"},
	raftkvv1.Reason_REASON_LEARNER_TOO_SLOW:    {code: exitFailed, hint: "it goes on trying; look with: kvnode status --endpoints %s"},
	raftkvv1.Reason_REASON_QUORUM_AT_RISK:      {code: exitFailed, hint: "not done: start the missing voters first; look with: kvnode status --endpoints %s"},
	raftkvv1.Reason_REASON_MEMBERSHIP_CHANGED:  {code: exitNotMet, hint: "not done: look with kvnode status --endpoints %s and decide anew"},
	raftkvv1.Reason_REASON_MEMBERSHIP_REFUSED:  {code: exitFailed},
}

// explain turns the error of a call into what a person needs to know.
func explain(op operation, addr string, err error, c circumstances) problem {
	st := status.Convert(err)
	detail := wire.Detail(err)
	switch {
	case c.interrupted:
		return interrupted(op, addr, c)
	case detail.GetOutcome() == raftkvv1.Outcome_OUTCOME_UNKNOWN && op.write:
		return outcomeUnknown(op, addr, message(op, st)+lostHint(addr, detail))
	case detail.GetReason() != raftkvv1.Reason_REASON_UNSPECIFIED:
		return advise(op, addr, st, detail)
	}
	return explainCode(op, addr, st, c)
}

// forPeople removes from a member's text what only programmers understand.
var forPeople = strings.NewReplacer("raftkv: ", "",
	"recover: membership change refused: ", "refused: ",
	"; Init founds one, AddLearner on a member of another joins it", "",
	": context deadline exceeded while", ": time ran out while", ": context canceled while", ": the call was cancelled while",
	": context deadline exceeded", "", "context deadline exceeded", "the time was over",
	": context canceled", "", "context canceled", "the call was cancelled")

func message(op operation, st *status.Status) string {
	return strings.TrimPrefix(forPeople.Replace(st.Message()), op.echo+": ")
}

func advise(op operation, addr string, st *status.Status, d *raftkvv1.ErrorDetail) problem {
	a, ok := advices[d.GetReason()]
	if !ok {
		a = advice{code: exitFailed}
	}
	if d.GetReason() == raftkvv1.Reason_REASON_NOT_INITIALIZED && op.blank != "" {
		a.hint = op.blank
	}
	text := fmt.Sprintf("%s: %s", addr, message(op, st))
	if a.hint != "" {
		text += "; " + strings.ReplaceAll(a.hint, "%s", addr)
	}
	return problem{code: a.code, text: text, next: a.next, weight: a.weight}
}

func outcomeUnknown(op operation, addr, why string) problem {
	return problem{code: exitFailed, text: fmt.Sprintf(
		"%s: %s; outcome unknown: it may have taken effect or may yet; %s", addr, why, op.look)}
}

// lostHint goes before what else there is to do: nothing can be looked up before
// the cluster works again.
func lostHint(addr string, d *raftkvv1.ErrorDetail) string {
	if d.GetReason() != raftkvv1.Reason_REASON_QUORUM_LOST {
		return ""
	}
	return "; " + strings.ReplaceAll(recoverHint, "%s", addr)
}

func interrupted(op operation, addr string, c circumstances) problem {
	text := "interrupted"
	if op.write && c.sent {
		text = fmt.Sprintf("%s: interrupted; outcome unknown: it may still take effect; %s", addr, op.look)
	}
	return problem{code: exitInterrupted, text: text}
}

// explainCode is for errors that no member has explained: those of gRPC itself
// and of programs in between.
func explainCode(op operation, addr string, st *status.Status, c circumstances) problem {
	code, why := exitUnreachable, ""
	switch st.Code() {
	case codes.PermissionDenied, codes.Unauthenticated:
		return problem{code: exitDenied, text: fmt.Sprintf("%s: denied: %s", addr, message(op, st))}
	case codes.Unimplemented:
		return problem{code: exitFailed, text: fmt.Sprintf("%s does not know this call; is it a kvnode of this version?", addr)}
	case codes.InvalidArgument:
		return problem{code: exitUsage, text: fmt.Sprintf("%s: %s", addr, message(op, st))}
	case codes.ResourceExhausted:
		return problem{code: exitFailed, text: fmt.Sprintf("%s: %s", addr, message(op, st))}
	case codes.DeadlineExceeded:
		why = fmt.Sprintf("no answer within %v", c.timeout)
	case codes.Unavailable, codes.Canceled:
		why = fmt.Sprintf("the connection was lost (%s)", message(op, st))
	default:
		code = exitFailed
		why = fmt.Sprintf("%s (%s)", message(op, st), st.Code())
	}
	if op.write && c.sent {
		return outcomeUnknown(op, addr, why)
	}
	return problem{code: code, next: true, weight: weightSilent,
		text: fmt.Sprintf("%s: %s; look with: kvnode status --endpoints %s", addr, why, addr)}
}
