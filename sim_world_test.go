package raftkv

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"time"

	"example.com/raftkv/internal/mix"
)

// The world of the simulator: virtual time, one source of randomness, and the
// trace. It runs the production loop, applier, storage, membership worker,
// outbox and reads of several processes on one goroutine. An event is a
// function with a time; events of the same time run in the order in which they
// were made. Nothing in it looks at a clock, starts a goroutine or depends on
// the order of a map, so a seed is a run: the trace hash tells.

// A world is one run of one seed.
type world struct {
	seed  uint64
	rnd   *rand.Rand
	plan  plan
	now   time.Duration // since the beginning
	seq   uint64
	queue []simEvent // a heap by (at, seq)

	procs   []*process // by place, the current one at each address; nil while down
	places  []*place
	paths   [][]*path // by place from, place to
	facts   *facts    // what must hold
	hist    *judge
	ops     operator
	faults  nemesis
	nets    netStats
	revived *revival // the recovery, nil if there was none
	count   *counts
	trace   trace
}

type simEvent struct {
	at  time.Duration
	seq uint64
	do  func()
}

// A violation is a broken invariant. It ends the run as a panic of its own, so
// that no code in between can go on.
type violation struct{ text string }

func (w *world) fail(format string, args ...any) {
	panic(violation{fmt.Sprintf(format, args...)})
}

// at has a function called at a time. An earlier time is now.
func (w *world) at(t time.Duration, do func()) {
	w.seq++
	w.queue = append(w.queue, simEvent{max(t, w.now), w.seq, do})
	for i := len(w.queue) - 1; i > 0; {
		parent := (i - 1) / 2
		if !w.queue[i].before(&w.queue[parent]) {
			return
		}
		w.queue[i], w.queue[parent] = w.queue[parent], w.queue[i]
		i = parent
	}
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+d, do) }

func (e *simEvent) before(o *simEvent) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

// pop takes the first event off the heap.
func (w *world) pop() simEvent {
	first, last := w.queue[0], len(w.queue)-1
	w.queue[0] = w.queue[last]
	w.queue[last] = simEvent{}
	w.queue = w.queue[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if w.queue[child].before(&w.queue[least]) {
				least = child
			}
		}
		if least == i {
			return first
		}
		w.queue[i], w.queue[least] = w.queue[least], w.queue[i]
		i = least
	}
}

// runUntil lets time pass.
func (w *world) runUntil(t time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= t {
		e := w.pop()
		w.now = e.at
		e.do()
	}
	w.now = t
}

// runWhile lets time pass while a condition holds, at most until a time. It
// reports whether the condition ended.
func (w *world) runWhile(until time.Duration, every time.Duration, holds func() bool) bool {
	for holds() {
		if w.now >= until {
			return false
		}
		w.runUntil(min(w.now+every, until))
	}
	return true
}

// guarded runs a phase and returns the violation that ended it, if one did.
func (w *world) guarded(phase func()) (broken string) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case violation:
			broken = p.text
		default:
			broken = fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	phase()
	return ""
}

// between returns a random duration in [lo, hi).
func (w *world) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(w.rnd.Int64N(int64(hi-lo)))
}

// about returns a random duration with a mean: exponential, as what comes
// without memory is.
func (w *world) about(mean time.Duration) time.Duration {
	return time.Duration(w.rnd.ExpFloat64() * float64(mean))
}

func (w *world) chance(p float64) bool { return w.rnd.Float64() < p }

// A trace is what happened: a hash over everything and the last lines.
type trace struct {
	hash  uint64
	all   bool // print every line
	lines [1 << 12]traceLine
	n     int
}

type traceLine struct {
	at      time.Duration
	who     uint64
	kind    string
	a, b, c uint64
	text    string
}

// note puts an event into the trace. The kind is a constant.
func (w *world) note(who uint64, kind string, a, b, c uint64) { w.noteText(who, kind, a, b, c, "") }

func (w *world) noteText(who uint64, kind string, a, b, c uint64, text string) {
	t := &w.trace
	h := mix.Uint64(t.hash, uint64(w.now)^who<<48)
	h = mix.Uint64(h, a)
	h = mix.Uint64(h, b)
	t.hash = mix.Uint64(h, c+uint64(len(kind))<<56)
	l := &t.lines[t.n%len(t.lines)]
	*l = traceLine{w.now, who, kind, a, b, c, text}
	t.n++
	if t.all {
		fmt.Println(l.String())
	}
}

// mixIn puts bytes into the trace hash.
func (w *world) mixIn(b []byte) { w.trace.hash = mix.Bytes(w.trace.hash, b) }

// tail returns the last lines that are not mere traffic.
func (t *trace) tail(n int) string {
	var lines []string
	for i := t.n - 1; i >= 0 && i > t.n-len(t.lines) && len(lines) < n; i-- {
		if l := &t.lines[i%len(t.lines)]; !l.isTraffic() {
			lines = append(lines, l.String())
		}
	}
	var b strings.Builder
	for i := len(lines) - 1; i >= 0; i-- {
		b.WriteString(lines[i])
		b.WriteByte('\n')
	}
	return b.String()
}

func (l *traceLine) isTraffic() bool {
	switch l.kind {
	case "frame", "tick", "MsgHeartbeat", "MsgHeartbeatResp", "MsgApp", "MsgAppResp", "MsgReadIndex", "MsgReadIndexResp", "begin", "end", "apply", "hello":
		return true
	}
	return false
}

func (l *traceLine) String() string {
	return fmt.Sprintf("%12.6fs  %d  %-18s %x %x %x %s", l.at.Seconds(), l.who, l.kind, l.a, l.b, l.c, l.text)
}
