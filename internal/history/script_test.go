package history

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// run records a history that is written down, one line an event, or several in
// a line with semicolons:
//
//	1 put a x = 3             client 1 puts x to key a; revision 3
//	1 put a x if 2 = mismatch 3
//	1 put a x                 only the call; the return follows:
//	1 = unknown               or notdone, or what belongs to the kind
//	1 get a = x@3             or none; with "stale" or "min 2" before the =
//	1 list = 3 a:x@3 b:y@1    the store's revision and the items
func run(t *testing.T, script string) *Recorder {
	t.Helper()
	r := new(Recorder)
	open := make(map[int]ID)
	for n, line := range strings.FieldsFunc(script, func(c rune) bool { return c == '\n' || c == ';' }) {
		ask, answer, hasAnswer := strings.Cut(line, "=")
		words := strings.Fields(ask)
		if len(words) == 0 {
			continue
		}
		client, err := strconv.Atoi(words[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(words) > 1 {
			open[client] = r.Begin(client, parseOp(t, words[1:]), int64(n))
		}
		if hasAnswer {
			r.End(open[client], parseResult(t, r.ops[open[client]].Op, strings.Fields(answer)), int64(n))
		}
	}
	return r
}

func parseOp(t *testing.T, words []string) Op {
	t.Helper()
	op := Op{Kind: map[string]Kind{"put": Put, "del": Delete, "get": Get, "list": List}[words[0]]}
	rest := words[1:]
	if op.Kind != List {
		op.Key, rest = rest[0], rest[1:]
	}
	if op.Kind == Put {
		op.Value, rest = rest[0], rest[1:]
	}
	for len(rest) > 0 {
		switch rest[0] {
		case "stale":
			op.Stale = true
			rest = rest[1:]
			continue
		case "if":
			op.Conditional, op.IfRevision = true, number(t, rest[1])
		case "min":
			op.MinRevision = number(t, rest[1])
		case "prefix":
			op.Key = rest[1]
		case "after":
			op.After = rest[1]
		case "limit":
			op.Limit = int(number(t, rest[1]))
		default:
			t.Fatalf("what is %q?", rest)
		}
		rest = rest[2:]
	}
	return op
}

func parseResult(t *testing.T, op Op, words []string) Result {
	t.Helper()
	switch words[0] {
	case "unknown":
		return Result{Outcome: Unknown}
	case "notdone":
		return Result{Outcome: NotDone}
	case "none":
		return Result{Outcome: NotFound}
	case "mismatch":
		return Result{Outcome: Mismatch, Revision: number(t, words[1])}
	}
	r := Result{Outcome: OK}
	switch op.Kind {
	case Get:
		r.Value, r.Revision = parseVersion(t, words[0])
	case List:
		r.Revision = number(t, words[0])
		for _, word := range words[1:] {
			key, version, _ := strings.Cut(word, ":")
			item := Item{Key: key}
			item.Value, item.Revision = parseVersion(t, version)
			r.Items = append(r.Items, item)
		}
	default:
		r.Revision = number(t, words[0])
	}
	return r
}

func parseVersion(t *testing.T, word string) (value string, revision uint64) {
	t.Helper()
	value, text, _ := strings.Cut(word, "@")
	return value, number(t, text)
}

func number(t *testing.T, word string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		t.Fatal(fmt.Errorf("%q: %w", word, err))
	}
	return n
}
