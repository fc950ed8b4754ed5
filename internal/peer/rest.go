package peer

import (
	"context"
	"time"

	"example.com/raftkv/internal/frame"
)

const (
	// A frame with so many bytes of old entries is one of many: raft fills its
	// messages.
	restBytesMin = FrameBytesMax / 4
	restIdle     = 10 * time.Millisecond // without a commit; then nobody writes
	restMax      = 25 * time.Millisecond // 40 MB/s; heartbeats wait, too
)

// rest makes a pause after a frame of old entries, while others are committed here.
//
// Nobody waits for a member that has to catch up, but whoever writes shares the
// processors with what it takes to send old entries and, if the member is on the
// same machine, to apply a million of them a second. So it gets them in proportion to
// what is committed meanwhile, a half more: it comes nearer with every write, and the
// log that is kept for it does not grow. Without writes nobody rests, and with few not
// for long.
func (l *Link) rest(ctx context.Context, f *frame.Frame) {
	bytes := oldBytes(f)
	if bytes < restBytesMin {
		return
	}
	ticker, end := time.NewTicker(time.Millisecond), time.NewTimer(restMax)
	defer ticker.Stop()
	defer end.Stop()
	for target := l.events.Committed() + int64(bytes)*2/3; l.isBusy() && l.committed < target; {
		select {
		case <-ticker.C:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// isBusy reports whether something was committed of late.
func (l *Link) isBusy() bool {
	if now := l.events.Committed(); now != l.committed {
		l.committed, l.busy = now, time.Now()
	}
	return time.Since(l.busy) < restIdle
}

// oldBytes returns the bytes of entries that are committed without who gets them.
func oldBytes(f *frame.Frame) (bytes int) {
	for _, m := range f.Messages {
		if n := uint64(len(m.GetEntries())); n > 0 && m.GetCommit() >= m.GetIndex()+n {
			bytes += messageBytes(m)
		}
	}
	return bytes
}
