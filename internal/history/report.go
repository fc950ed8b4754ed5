package history

import (
	"fmt"
	"strings"
	"time"
)

// A Report says how much was checked. A test should hold it to a floor: one in
// which nothing happened finds no violation either.
type Report struct {
	Keys  int
	Took  time.Duration // by the clock that the test has, virtual in a bubble
	count [kinds][outcomes]int
}

// Count returns the number of operations of a kind with an outcome. Those that
// were still open count as unknown.
func (r Report) Count(k Kind, o Outcome) int { return r.count[k][o] }

// Total returns the number of operations.
func (r Report) Total() int {
	n := 0
	for _, byOutcome := range r.count {
		for _, c := range byOutcome {
			n += c
		}
	}
	return n
}

// String returns the report in one line.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations on %d keys checked in %v", r.Total(), r.Keys, r.Took.Round(time.Microsecond))
	for k, byOutcome := range r.count {
		var parts []string
		for o, n := range byOutcome {
			if n > 0 {
				parts = append(parts, fmt.Sprintf("%d %v", n, Outcome(o)))
			}
		}
		if len(parts) > 0 {
			fmt.Fprintf(&b, "; %v: %s", Kind(k), strings.Join(parts, ", "))
		}
	}
	return b.String()
}
