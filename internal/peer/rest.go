package peer

import (
	"time"

	"example.com/raftkv/internal/frame"
)

const (
	// A frame with so many bytes of old entries is one of many: raft fills its
	// messages. A voter that is spared gets less of them at once, as long as its link
	// is free; else it gets a third more than is written, and needs no more.
	restBytesMin = FrameBytesMax * 3 / 4
	restIdle     = 10 * time.Millisecond // without a commit; then nobody writes
	restStep     = time.Millisecond      // between two looks at what is committed

	// oldRateMin is how many bytes of old entries are sent in a second at least, however
	// few are written: a whole log of 64 MiB takes 7 s, and a receiver that applies
	// two million commands a second is busy for a fortieth of that.
	oldRateMin = 10 << 20
)

// A pace is how fast a link sends old entries while others are committed here.
//
// Nobody waits for a member that has to catch up, but whoever writes shares the
// processors with what it takes to send old entries and, if the member is on the
// same machine, to apply a million of them a second. So it gets them in proportion to
// what is committed meanwhile, a third more: it comes nearer with every write, and the
// log that is kept for it does not grow. Without writes nobody rests, and with few
// not for long.
//
// Only appends rest. Heartbeats go on, or else the member would soon take its leader
// for dead; so do answers to reads, and what is forwarded.
type pace struct {
	events Events
	target int64     // appends rest until so much is
	end    time.Time // or until then

	committed int64     // what was when isBusy last looked
	busy      time.Time // when it last had risen
}

// rests reports whether appends shall wait.
func (p *pace) rests() bool {
	return p.isBusy() && p.committed < p.target && time.Now().Before(p.end)
}

// sent begins a rest if the frame that was sent had many old entries. By how much the
// rest before was too long, because it was looked at late, this one is shorter.
func (p *pace) sent(f *frame.Frame) {
	if bytes := int64(oldBytes(f)); bytes >= restBytesMin {
		now, share := p.events.Committed(), bytes*3/4
		p.target = min(max(p.target, now-share), now) + share
		p.end = time.Now().Add(time.Duration(bytes) * time.Second / oldRateMin)
	}
}

// isBusy reports whether something was committed of late.
func (p *pace) isBusy() bool {
	if now := p.events.Committed(); now != p.committed {
		p.committed, p.busy = now, time.Now()
	}
	return time.Since(p.busy) < restIdle
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
