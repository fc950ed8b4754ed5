package peer

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/simnet"
)

// catchUp is an append of so many bytes, of which the whole is committed or nothing.
func catchUp(bytes int, committed bool) *pb.Message {
	m := &pb.Message{
		Type: pb.MsgApp.Enum(), To: proto.Uint64(member.RaftID), Term: proto.Uint64(1), Index: proto.Uint64(10), Commit: proto.Uint64(10),
		Entries: []*pb.Entry{{Term: proto.Uint64(1), Index: proto.Uint64(11), Data: make([]byte, bytes)}},
	}
	if committed {
		m.Commit = proto.Uint64(11)
	}
	return m
}

// sending returns how long a link takes for some frames while so many bytes are
// committed each millisecond.
func sending(t *testing.T, frames int, m *pb.Message, perMillisecond int64) (took time.Duration) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		received := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.frames)
		}
		begin := time.Now()
		for want := received() + 1; frames > 0; {
			l.Send(m)
			for received() < want {
				r.committed.Add(perMillisecond)
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if time.Since(begin) > time.Minute {
					t.Fatalf("a minute has passed with %d frames to go", frames)
				}
			}
			want++
			frames--
		}
		took = time.Since(begin)
	})
	return took
}

// Who catches up gets a third more than is committed meanwhile, and all at once when
// nothing is.
func TestOldEntriesGiveWayToWrites(t *testing.T) {
	const frames, bytes = 10, FrameBytesMax - 1000
	const perMillisecond = bytes / 20 // so a frame each 15 ms
	old, current, small := catchUp(bytes, true), catchUp(bytes, false), catchUp(restBytesMin/2, true)
	if took, want := sending(t, frames, old, perMillisecond), (frames-1)*15*time.Millisecond; took < want || took > want*5/4 {
		t.Errorf("old entries beside writes took %v, want %v", took, want)
	}
	// The looks at what is committed come a millisecond apart; none of that is lost.
	if took, most := sending(t, 4*frames, old, bytes/3), 4*frames*23*time.Millisecond/10; took > most {
		t.Errorf("old entries beside many writes took %v, want at most %v", took, most)
	}
	for name, c := range map[string]struct {
		frames int
		m      *pb.Message
		per    int64
		want   time.Duration
	}{
		"old entries without writes":                          {frames, old, 0, 3 * restIdle},
		"entries that are not committed":                      {frames, current, perMillisecond, 2 * frames * time.Millisecond},
		"small old messages, of which a live stream has some": {frames, small, perMillisecond, 2 * frames * time.Millisecond},
	} {
		if took := sending(t, c.frames, c.m, c.per); took > c.want {
			t.Errorf("%s took %v, want at once", name, took)
		}
	}
}

// A few small writes do not hold back who catches up.
func TestOldEntriesDoNotWaitForFewWrites(t *testing.T) {
	const frames, bytes = 10, FrameBytesMax - 1000
	took := sending(t, frames, catchUp(bytes, true), 100)
	if want := frames * bytes * time.Second / oldRateMin; took > want*5/4 {
		t.Errorf("%d frames took %v, want %v", frames, took, want)
	}
}

// What is not an append, and what is forwarded, does not wait for the end of a rest:
// who hears no heartbeat for an election timeout has no leader.
func TestControlMessagesPassAtRest(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		s := serve(t, n)
		run(t, l)
		r.committed.Add(1)
		l.Send(catchUp(FrameBytesMax-1000, true))
		synctest.Wait()
		l.Send(catchUp(100, true))
		l.Send(heartbeat(1))
		l.Forward([]byte("batch"))
		synctest.Wait()
		s.mu.Lock()
		var got []string
		for _, f := range s.frames {
			got = append(got, names(&f)...)
			for _, p := range f.Proposals {
				got = append(got, string(p))
			}
		}
		s.mu.Unlock()
		if want := []string{"a11", "h1", "batch"}; !slices.Equal(got, want) {
			t.Errorf("%q arrived, want %q", got, want)
		}
	})
}

func TestRestEndsWithTheLink(t *testing.T) {
	linked(t, func(t *testing.T, n *simnet.Network, l *Link, r *recorder) {
		serve(t, n)
		end := run(t, l)
		r.committed.Add(1)
		l.Send(catchUp(FrameBytesMax-1000, true))
		synctest.Wait()
		begin := time.Now()
		end()
		if took := time.Since(begin); took > 0 {
			t.Errorf("the link ended after %v, want at once", took)
		}
	})
}
