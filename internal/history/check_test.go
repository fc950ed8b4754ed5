package history

import (
	"strings"
	"testing"
	"time"
)

func TestLegalHistoriesPass(t *testing.T) {
	for name, script := range map[string]string{
		"nothing":                        ``,
		"one after another":              `1 put a x = 1; 2 get a = x@1; 1 del a = 2; 2 get a = none; 1 list = 2`,
		"overlapping writes, any order":  `1 put a x; 2 put a y; 1 = 2; 2 = 1; 3 get a = x@2`,
		"a read overlaps a write":        `1 put a x = 1; 1 put a y; 2 get a = y@2; 3 get a = y@2; 1 = 2`,
		"old and new while it lasts":     `1 put a x = 1; 1 put a y; 2 get a = x@1; 2 get a = y@2; 1 = 2`,
		"a write that hangs":             `1 put a x; 2 put a y = 1; 2 put b z = 2; 3 get a = y@1; 1 = 3; 3 get a = x@3`,
		"unknown, late":                  `1 put a x = unknown; 2 put a y = 1; 2 get a = y@1; 2 get a = x@2`,
		"unknown, never":                 `1 put a x = unknown; 2 put a y = 1; 2 get a = y@1; 2 list = 1 a:y@1`,
		"unknown, replaced unseen":       `1 put a x = unknown; 2 put a y = 2; 2 get a = y@2; 2 list = 2 a:y@2`,
		"unknown, still open":            `1 put a x; 2 get a = none; 2 get a = x@1`,
		"unknown delete":                 `1 put a x = 1; 2 del a = unknown; 1 get a = x@1; 1 get a = none; 1 list = 2`,
		"unknown delete, never":          `1 put a x = 1; 2 del a = unknown; 1 get a = x@1; 1 list = 1 a:x@1`,
		"unknown makes a mismatch":       `1 put a x = 1; 2 put a y = unknown; 1 put a z if 1 = mismatch 2`,
		"unknown delete, then create":    `1 put a x = 1; 2 del a = unknown; 1 put a y if 0 = 3; 1 get a = y@3`,
		"unknown create and its removal": `1 put a x if 0 = unknown; 2 del a = 2; 2 get a = none; 2 list = 2`,
		"unknown on condition":           `1 put a x = 1; 2 put a y if 1 = unknown; 1 put a z if 1 = mismatch 2; 1 del a = 3; 1 list = 3`,
		"gone between two puts":          `1 put a x = 1; 2 get a; 1 del a if 1 = 2; 1 put a y = 3; 3 del a = unknown; 2 = none; 1 get a = y@3`,
		"not done":                       `1 put a x = notdone; 2 get a = none; 2 list = 0`,
		"failed reads":                   `1 get a = unknown; 1 list = notdone; 1 get b`,
		"conditions":                     `1 put a x if 0 = 1; 1 put a y if 0 = mismatch 1; 1 put a z if 1 = 2; 2 put a q if 1 = mismatch 2; 1 del a if 2 = 3; 1 del a if 2 = mismatch 3`,
		"delete of nothing":              `1 put a x = 1; 2 del b = 1; 2 del b if 0 = 1; 2 del b if 1 = mismatch 1`,
		"two deletes, one in vain":       `1 put a x = 1; 1 del a; 2 del a; 1 = 2; 2 = 2; 1 list = 2`,
		"delete in vain after another":   `1 put a x = 1; 1 del a = 2; 2 put b y = 3; 2 del a = 3`,
		"stale reads":                    `1 put a x = 1; 1 put a y = 2; 2 get a stale = x@1; 2 get a stale = none; 2 get a min 2 = y@2; 2 get a min 1 = x@1; 2 list stale = 1 a:x@1`,
		"stale read shows unknown":       `1 put a x = unknown; 2 get a stale = x@1; 2 get a = x@1`,
		"pages":                          `1 put a x = 1; 1 put b y = 2; 1 put c z = 3; 2 list limit 1 = 3 a:x@1; 2 list after a limit 1 = 3 b:y@2; 2 list prefix c = 3 c:z@3; 2 list prefix d = 3`,
		"revisions of others":            `1 put a x = 1; 2 put b y; 3 list = 2 a:x@1 b:y@2; 2 = 2`,
	} {
		if report, err := run(t, script).Check(time.Minute); err != nil {
			t.Errorf("%s:\n%s\nCheck() = %v, %v", name, script, report, err)
		}
	}
}

// illegal has a history for every class of violation, and what is said of it.
// What search does not find has an order for each key, and is wrong only in the
// revisions of several keys, in stale reads, or in form.
var illegal = []struct {
	name, script string
	want         string
	search       bool // the search alone finds it too
}{
	{"revision goes back", `1 put a x = 2; 1 put b y = 1`, "took revision 1, though 2 had been shown", false},
	{"revision shown by list", `1 put a x = unknown; 2 list = 1 a:x@1; 2 put a y = 1`, "two writes took revision 1", true},
	{"revision shown by get", `1 put a x; 2 get a = x@3; 2 put b y = 2; 1 = 3`, "took revision 2, though 3 had been shown", false},
	{"two writes at one revision", `1 put a x; 2 put b y; 1 = 1; 2 = 1`, "two writes took revision 1", false},
	{"value of nobody", `1 get a = x@1`, "nobody put there", true},
	{"value of another key", `1 put b x = 1; 1 get a = x@1`, "nobody put there", true},
	{"read before it was put", `1 get a = x@1; 1 put a x = 1`, "before it was put", true},
	{"other revision than acknowledged", `1 put a x = 1; 1 get a = x@2`, "it took effect twice, or", true},
	{"unknown twice", `1 put a x = unknown; 2 get a = x@1; 2 put a y = 2; 2 get a = x@3`, "it took effect twice", true},
	{"twice, unseen", `1 put a x = 1; 1 put a y = 3; 1 get a = y@3`, "nobody has taken revision 2", false},
	{"twice, one unknown", `1 put a x = unknown; 2 put a y = 3; 2 get a = y@3`, "but 2 revisions, and 1 writes", false},
	{"unknown came too late for the revision", `1 put a x = 2; 2 put a y = unknown; 1 list = 2 a:x@2`, "nobody has taken revision 1", false},
	{"not done, but there", `1 put a x = notdone; 2 get a = x@1`, "was not to take effect", true},
	{"not done, but counted", `1 put a x = notdone; 1 put a y = 2`, "or one that was not to", false},
	{"mismatch, but there", `1 put a x = 1; 1 put a y if 2 = mismatch 1; 2 get a = y@2`, "was not to take effect", true},
	{"stale get", `1 put a x = 1; 1 put a y = 2; 2 get a = x@1`, "shows revision 1, though it had changed", true},
	{"stale get after get", `1 put a x = 1; 1 put a y; 2 get a = y@2; 3 get a = x@1; 1 = 2`, "shows revision 1, though it had changed", true},
	{"stale get after list", `1 put a x = 1; 1 put a y; 2 list = 2 a:y@2; 3 get a = x@1; 1 = 2`, "shows revision 1, though it had changed", true},
	{"stale get by another key", `1 put a x = 1; 2 put a y; 1 put b z = 3; 3 get a = x@1; 2 = 2`, "shows revision 1, though it had changed", true},
	{"deleted, but there", `1 put a x = 1; 1 del a = 2; 2 get a = x@1`, "shows revision 1, though it had changed", true},
	{"set, but not found", `1 put a x = 1; 2 get a = none`, "is not found, though", true},
	{"not found before the delete", `1 put a x = 1; 2 get a = none; 1 del a = 2`, "is not found, though", true},
	{"not found, delete for another revision", `1 put a x = 1; 1 put a y = 2; 2 del a if 1 = unknown; 1 get a = none`, "is not found, though", true},
	{"list goes back", `1 put a x = 1; 1 put b y = 2; 2 list = 1 a:x@1`, "the store shows revision 1", true},
	{"list misses a key", `1 put a x = 1; 2 list = 1`, "there is no key", true},
	{"lost in the end", `1 put a x = 1; 1 put b y = 2; 2 list = 2 b:y@2`, "there is no key", true},
	{"list is a mixture", `1 put a x = 1; 1 put a y; 1 = 2; 2 list = 2 a:x@1`, "shows revision 1, though", true},
	{"list from the future", `1 put a x; 2 put b y = 1; 2 list = 1 a:x@2 b:y@1; 1 = 2`, "a List at revision 1 shows", true},
	{"list out of order", `1 put a x = 1; 1 put b y = 2; 2 list = 2 b:y@2 a:x@1`, "out of order", false},
	{"list too long", `1 put a x = 1; 1 put b y = 2; 2 list limit 1 = 2 a:x@1 b:y@2`, "out of order", false},
	{"page misses a key", `1 put a x = 1; 1 put b y = 2; 2 list after a limit 1 = 2`, "there is no key", true},
	{"condition of an old revision", `1 put a x = 1; 1 put a y = 2; 1 put a z if 1 = 3`, "changed between", true},
	{"condition of another key", `1 put a x = 1; 1 put b y if 1 = 2`, "which another took", true},
	{"condition of a later revision", `1 put a x; 2 put a y if 2 = 1; 1 = 2`, "condition of a later one", true},
	{"created twice", `1 put a x if 0 = 1; 2 put a y if 0 = 2`, "there is no key", true},
	{"condition held", `1 put a x = 1; 1 put a y if 1 = mismatch 1`, "though the condition held", true},
	{"condition of absence held", `1 put a x if 0 = mismatch 0`, "though the condition held", true},
	{"mismatch goes back", `1 put a x = 1; 1 put a y = 2; 1 put a z if 1 = mismatch 1`, "the store shows revision 1", true},
	{"mismatch before the unknown write", `1 put a x = 1; 1 put a y if 1 = mismatch 1; 2 put a z = unknown`, "though the condition held", true},
	{"mismatch without condition", `1 put a x = mismatch 0`, "without a condition", true},
	{"delete in vain, but it is there", `1 put a x; 2 del a = 1; 1 = 1`, "there is no key", true},
	{"delete goes back", `1 put a x = 1; 1 put b y = 2; 1 del a = 1`, "the store shows revision 1", true},
	{"stale read of what never was", `1 put a x = notdone; 2 get a stale = x@1`, "was not to take effect", false},
	{"stale read below its minimum", `1 put a x = 1; 1 put a y = 2; 2 get a min 2 = x@1`, "shows revision 1, though", false},
	{"stale not found below its minimum", `1 put a x = 1; 2 get a min 1 = none`, "is not found", false},
	{"stale list below its minimum", `1 put a x = 1; 1 put b y = 2; 2 list min 2 = 1 a:x@1`, "below its minimum", false},
	{"stale list is a mixture", `1 put a x = 1; 1 put a y = 2; 2 list stale = 2 a:x@1`, "shows revision 1, though", false},
	{"revision 0", `1 put a x = 0`, "revision 0", true},
	{"get of revision 0", `1 put a x = unknown; 1 get a = x@0`, "revision 0", true},
	{"list of revision 0", `1 put a x = unknown; 1 list = 1 a:x@0`, "revision 0", true},
	{"one value twice", `1 put a x = 1; 1 put b x = 2`, "the test is wrong", false},
	{"not found by a put", `1 put a x = none`, "it is no Get", true},
	// What overlaps needs the search.
	{"found, gone, found", `1 put a x = 1; 2 del a; 1 get a = none; 1 get a = x@1; 2 = unknown`, "not linearizable", true},
	{"gone for one, there for the next", `1 put a x = 1; 2 del a; 3 get a = none; 4 get a = x@1; 2 = 2`, "not linearizable", true},
	{"unknown not yet there, but gone", `1 put a x = 1; 2 del a if 1; 3 get a = none; 3 put a y if 1; 3 = unknown; 3 get a = x@1; 2 = 2`, "not linearizable", true},
}

func TestIllegalHistoriesAreReported(t *testing.T) {
	for _, test := range illegal {
		report, err := run(t, test.script).Check(time.Minute)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s:\n%s\nCheck() = %v, %v; want %q", test.name, test.script, report, err, test.want)
		}
	}
}

// searchAlone is Check without what the sweeps find.
func (r *Recorder) searchAlone() error {
	c := newChecker(r.ops, r.last, r.startRevision)
	c.bindValues()
	c.orderRevisions()
	c.checkOrder()
	c.settleClaims()
	c.checkKeys()
	return c.search(time.Minute)
}

func TestSearchFindsMostWithoutTheSweeps(t *testing.T) {
	for _, test := range illegal {
		r := run(t, test.script)
		if err := r.searchAlone(); (err != nil) != test.search {
			t.Errorf("%s:\n%s\nsearch: %v; want an error: %v", test.name, test.script, err, test.search)
		}
	}
}

func TestMessagesNameTheOperations(t *testing.T) {
	_, err := run(t, `1 put a x = 1; 1 put a y = 2; 2 get a = x@1`).Check(time.Minute)
	if err == nil {
		t.Fatal("Check() = nil")
	}
	for _, want := range []string{
		`client 1 [1ns, 1ns]: put "a"="y": ok, revision 2`,
		`client 2 [2ns, 2ns]: get "a": ok, "x", revision 1`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Check() = %v, want %q in it", err, want)
		}
	}
}
