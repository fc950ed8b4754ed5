package outbox

import (
	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
)

// A batch is a group of commands that share one entry of the log.
type batch struct {
	done chan struct{} // closed when resolved; nobody sends
	data []byte        // with room for the header in front
	ends []int         // where each command ends in data
	gone []bool        // abandoned before the batch was taken; may be short
	live int           // not abandoned

	first   uint64 // sequence number of the first command, 0 until taken
	kept    []int  // by position in the batch as sent: index of the command; nil if the same
	route   Route  // on which it was sent last; zero if it was cut off
	refused bool   // on that route
	retryAt uint64 // the tick at which to send it again
	tries   uint64

	results []dedup.Result // by position; written before done is closed
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
	index int
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

func (b *batch) isDone() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// Done is closed when the result is there.
func (t Ticket) Done() <-chan struct{} { return t.batch.done }

// Result returns the result. Only after Done.
func (t Ticket) Result() (dedup.Result, error) {
	if t.batch.err != nil {
		return dedup.Result{}, t.batch.err
	}
	return t.batch.results[t.index], nil
}
