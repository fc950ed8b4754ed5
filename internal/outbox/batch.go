package outbox

import (
	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
)

// A batch is a group of commands that share one entry of the log.
type batch struct {
	groups   []*group // of its commands, in order
	head     group    // the first: most batches have no other
	answered int      // how many groups are

	data []byte // with room for the header in front
	ends []int  // where each command ends in data
	gone []bool // abandoned before the batch was taken; may be short
	live int    // not abandoned

	first   uint64 // sequence number of the first command, 0 until taken
	kept    []int  // by position in the batch as sent: index of the command; nil if the same
	route   Route  // on which it was sent last; zero if it was cut off
	refused bool   // on that route
	lent    bool   // others may read data even when it is answered
	retryAt uint64 // the tick at which to send it again
	tries   uint64
}

// GroupMax is how many commands of a batch are answered together. The callers of
// one group go on while the applier is at the next.
const GroupMax = 16

// A group is some commands of a batch that follow each other.
type group struct {
	done    chan struct{}  // closed when they are answered; nobody sends
	results []dedup.Result // written before that
	err     error          // likewise
}

// A Batch is what is sent: encoded for the log, with its first number. Its data
// must not be changed.
type Batch struct {
	First uint64
	Data  []byte
}

// A Ticket stands for one command that waits.
type Ticket struct {
	batch *batch
	group *group
	index int // in the batch
}

// compact leaves only the commands whose callers still wait.
func (b *batch) compact() {
	data := make([]byte, command.HeaderBytes, len(b.data))
	start := command.HeaderBytes
	for i, end := range b.ends {
		if i >= len(b.gone) || !b.gone[i] {
			data = append(data, b.data[start:end]...)
			b.kept = append(b.kept, i)
		}
		start = end
	}
	b.data = data
}

func (b *batch) isDue(route Route, now uint64, local bool) bool {
	if b.route != route {
		return true
	}
	return (b.refused || !local) && b.retryAt <= now
}

func (b *batch) sentLen() int {
	if b.kept != nil {
		return len(b.kept)
	}
	return len(b.ends)
}

// add adds a command and returns its group.
func (b *batch) add(c *command.Command) *group {
	if len(b.ends)%GroupMax == 0 {
		g := &b.head
		if len(b.groups) > 0 {
			g = new(group)
		}
		g.done = make(chan struct{})
		b.groups = append(b.groups, g)
	}
	b.data = c.Append(b.data)
	b.ends = append(b.ends, len(b.data))
	b.live++
	return b.groups[len(b.groups)-1]
}

// answer answers the first so many groups that are not yet, with results by index or
// with an error.
func (b *batch) answer(groups int, results []dedup.Result, err error) {
	for ; b.answered < groups; b.answered++ {
		g := b.groups[b.answered]
		if g.err = err; err == nil {
			g.results = results[b.answered*GroupMax:]
		}
		close(g.done)
	}
}

func (b *batch) isDone() bool { return b.answered == len(b.groups) }

// Done is closed when the result is there.
func (t Ticket) Done() <-chan struct{} { return t.group.done }

// Result returns the result. Only after Done.
func (t Ticket) Result() (dedup.Result, error) {
	if t.group.err != nil {
		return dedup.Result{}, t.group.err
	}
	return t.group.results[t.index%GroupMax], nil
}
