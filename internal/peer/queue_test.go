package peer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/frame"
)

func newQueue() *queue { return &queue{wakec: make(chan struct{}, 1)} }

// heartbeat returns a control message that carries a number.
func heartbeat(n int) *pb.Message {
	return &pb.Message{Type: pb.MsgHeartbeat.Enum(), Commit: proto.Uint64(uint64(n))}
}

// appendOf returns a message with one entry of a size, that carries a number.
func appendOf(n, size int) *pb.Message {
	return &pb.Message{Type: pb.MsgApp.Enum(), Commit: proto.Uint64(uint64(n)), Entries: []*pb.Entry{{Data: make([]byte, size)}}}
}

// take returns the next frame as its receiver has it, nil if there is none.
func take(t *testing.T, q *queue) *frame.Frame {
	t.Helper()
	f := new(frame.Frame)
	if !q.take(f, true) {
		return nil
	}
	got, _ := transfer(t, f)
	return got
}

// transfer encodes and decodes a frame, and returns its size too.
func transfer(t *testing.T, f *frame.Frame) (got *frame.Frame, size int) {
	t.Helper()
	buffers, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := frame.Decode(buffers.Materialize())
	if err != nil {
		t.Fatal(err)
	}
	return &decoded, buffers.Len()
}

// names writes a frame's messages as "h1 a2": kind and number.
func names(f *frame.Frame) []string {
	var out []string
	for _, m := range f.Messages {
		kind := "h"
		if m.GetType() == pb.MsgApp {
			kind = "a"
		}
		out = append(out, fmt.Sprint(kind, m.GetCommit()))
	}
	return out
}

func wantBytes(t *testing.T, q *queue) {
	t.Helper()
	want := 0
	for _, m := range q.appends {
		want += messageBytes(m)
	}
	for _, p := range q.proposals {
		want += len(p)
	}
	if q.bytes != want {
		t.Errorf("the queue counts %d bytes and has %d", q.bytes, want)
	}
}

func TestEmptyQueueHasNoFrame(t *testing.T) {
	if f := take(t, newQueue()); f != nil {
		t.Errorf("take = %v, want nil", f)
	}
}

func TestControlGoesAheadOfAppendsAndEachKeepsItsOrder(t *testing.T) {
	q := newQueue()
	for i := range 3 {
		q.addMessage(appendOf(i, 10))
		q.addMessage(heartbeat(i))
		q.addProposal([]byte{byte(i)})
		q.addRefusal(uint64(i))
	}
	f := take(t, q)
	if got, want := fmt.Sprint(names(f)), "[h0 h1 h2 a0 a1 a2]"; got != want {
		t.Errorf("messages %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(f.Proposals), "[[0] [1] [2]]"; got != want {
		t.Errorf("proposals %s, want %s", got, want)
	}
	for i, first := range f.Refusals {
		if first != uint64(i) {
			t.Errorf("refusal %d is of %d", i, first)
		}
	}
	if len(f.Refusals) != 3 || take(t, q) != nil {
		t.Errorf("%d refusals, or a second frame, want 3 and none", len(f.Refusals))
	}
	wantBytes(t, q)
}

func TestControlOvertakesAppendsThatWait(t *testing.T) {
	q := newQueue()
	for i := range 4 {
		q.addMessage(appendOf(i, FrameBytesMax/2+1))
	}
	if got := fmt.Sprint(names(take(t, q))); got != "[a0]" {
		t.Errorf("first frame %s, want [a0]", got)
	}
	q.addMessage(heartbeat(9))
	if got := fmt.Sprint(names(take(t, q))); got != "[h9 a1]" {
		t.Errorf("second frame %s, want [h9 a1]", got)
	}
}

func TestMessageArrivesUnchanged(t *testing.T) {
	q := newQueue()
	m := appendOf(3, 5)
	m.Entries[0].Index, m.Entries[0].Term = proto.Uint64(7), proto.Uint64(2)
	copy(m.Entries[0].Data, "hello")
	q.addMessage(m)
	if got := take(t, q).Messages[0]; !proto.Equal(got, m) {
		t.Errorf("got %v, want %v", got, m)
	}
}

func TestFramesKeepToTheirSize(t *testing.T) {
	const seed = 5
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	q := newQueue()
	added := 0
	for range 300 {
		q.addMessage(appendOf(added, rng.IntN(40_000)))
		q.addProposal(make([]byte, rng.IntN(20_000)))
		added++
	}
	appends, proposals, frames := 0, 0, 0
	for f := take(t, q); f != nil; f = take(t, q) {
		if _, size := transfer(t, f); size > FrameBytesMax+4*len(f.Proposals) {
			t.Errorf("frame of %d bytes, want at most %d", size, FrameBytesMax)
		}
		for _, name := range names(f) {
			if want := fmt.Sprint("a", appends); name != want {
				t.Fatalf("message %s, want %s", name, want)
			}
			appends++
		}
		proposals += len(f.Proposals)
		frames++
		wantBytes(t, q)
	}
	if appends != added || proposals != added || frames < 9 {
		t.Errorf("%d appends and %d proposals of %d in %d frames, want all in at least 9", appends, proposals, added, frames)
	}
}

func TestLargeMessageHasAFrameOfItsOwn(t *testing.T) {
	q := newQueue()
	q.addMessage(appendOf(1, 10))
	q.addMessage(appendOf(2, 5*FrameBytesMax))
	q.addMessage(appendOf(3, 10))
	q.addProposal(make([]byte, 3*FrameBytesMax))
	for _, want := range []string{"[a1]", "[a2]", "[a3]"} {
		f := take(t, q)
		if got := fmt.Sprint(names(f)); got != want || len(f.Proposals) != 0 {
			t.Errorf("frame %s with %d proposals, want %s alone", got, len(f.Proposals), want)
		}
	}
	if f := take(t, q); len(f.Proposals) != 1 {
		t.Errorf("last frame %v, want the proposal", f)
	}
	wantBytes(t, q)
}

func TestFramesHoldABoundedNumberOfMessages(t *testing.T) {
	q := newQueue()
	for i := range frame.MessagesMax + 10 {
		q.addMessage(heartbeat(i))
	}
	q.addMessage(appendOf(0, 1))
	if got := len(take(t, q).Messages); got != frame.MessagesMax {
		t.Errorf("the first frame has %d messages, want %d", got, frame.MessagesMax)
	}
	if got := len(take(t, q).Messages); got != 11 {
		t.Errorf("the second frame has %d messages, want 11", got)
	}
}

func TestQueueIsBoundedByCount(t *testing.T) {
	for name, c := range map[string]struct {
		most int
		add  func(q *queue) bool
		len  func(q *queue) int
	}{
		"control":   {controlMax, func(q *queue) bool { return q.addMessage(heartbeat(0)) }, func(q *queue) int { return len(q.control) }},
		"appends":   {appendsMax, func(q *queue) bool { return q.addMessage(appendOf(0, 0)) }, func(q *queue) int { return len(q.appends) }},
		"proposals": {appendsMax, func(q *queue) bool { return q.addProposal([]byte{1}) }, func(q *queue) int { return len(q.proposals) }},
		"refusals":  {controlMax, func(q *queue) bool { return q.addRefusal(1) }, func(q *queue) int { return len(q.refusals) }},
	} {
		q := newQueue()
		for i := range c.most {
			if c.add(q) {
				t.Fatalf("%s: number %d overflows, want room for %d", name, i, c.most)
			}
		}
		if !c.add(q) || c.add(q) || c.len(q) != c.most {
			t.Errorf("%s: the queue took %d, or did not report the first that it dropped, once", name, c.len(q))
		}
	}
}

func TestQueueIsBoundedByBytes(t *testing.T) {
	q := newQueue()
	const size = 8 << 20
	data := make([]byte, size)
	shared := func(n int) *pb.Message { // no memory for each
		return &pb.Message{Type: pb.MsgApp.Enum(), Commit: proto.Uint64(uint64(n)), Entries: []*pb.Entry{{Data: data}}}
	}
	n := 0
	for ; !q.addMessage(shared(n)); n++ {
	}
	if n != queueBytesMax/size-1 { // each is a little larger than its data
		t.Errorf("the queue took %d messages of %d bytes, want %d", n, size, queueBytesMax/size-1)
	}
	if q.addMessage(heartbeat(1)) || len(q.control) != 1 {
		t.Error("a control message was dropped for want of bytes")
	}
	wantBytes(t, q)
}

func TestEmptyQueueTakesAnySize(t *testing.T) {
	q := newQueue()
	huge := make([]byte, queueBytesMax+1)
	if q.addProposal(huge) {
		t.Error("an empty queue dropped a large batch")
	}
	if !q.addProposal([]byte{1}) {
		t.Error("a queue beyond its bytes took another batch")
	}
}

func TestOverflowIsReportedOncePerIncident(t *testing.T) {
	q := newQueue()
	fill := func() {
		for len(q.refusals) < controlMax {
			q.addRefusal(1)
		}
	}
	fill()
	reports := 0
	for range 10 {
		if q.addRefusal(1) {
			reports++
		}
	}
	if reports != 1 {
		t.Errorf("%d reports of one overflow, want 1", reports)
	}
	take(t, q)
	fill()
	if !q.addRefusal(1) {
		t.Error("a second incident, after the queue had been empty, was not reported")
	}
	q.drop()
	fill()
	if !q.addRefusal(1) {
		t.Error("an incident after a drop was not reported")
	}
}

func TestOverflowGoesOnUntilTheQueueIsEmpty(t *testing.T) {
	q := newQueue()
	for i := range controlMax + 1 {
		q.addMessage(heartbeat(i))
	}
	take(t, q)
	for range frame.MessagesMax {
		q.addMessage(heartbeat(0))
	}
	if q.addMessage(heartbeat(0)) {
		t.Error("the same overflow was reported twice")
	}
}

func TestDropEmptiesTheQueue(t *testing.T) {
	for name, add := range map[string]func(q *queue){
		"control":  func(q *queue) { q.addMessage(heartbeat(1)) },
		"append":   func(q *queue) { q.addMessage(appendOf(1, 100)) },
		"proposal": func(q *queue) { q.addProposal([]byte("batch")) },
		"refusal":  func(q *queue) { q.addRefusal(1) },
	} {
		q := newQueue()
		if q.drop() {
			t.Error("drop of an empty queue = true")
		}
		add(q)
		if !q.drop() {
			t.Errorf("%s: drop = false, want true", name)
		}
		if f := take(t, q); f != nil || q.bytes != 0 {
			t.Errorf("%s: %v and %d bytes are left", name, f, q.bytes)
		}
	}
}

func TestAddWakesTheSender(t *testing.T) {
	q := newQueue()
	for range 3 {
		q.addMessage(heartbeat(1))
	}
	select {
	case <-q.wakec:
	default:
		t.Fatal("no wake-up")
	}
	select {
	case <-q.wakec:
		t.Error("a second wake-up is pending, one covers all")
	default:
	}
}

func TestProposalIsNotCopied(t *testing.T) {
	q := newQueue()
	batch := []byte("batch")
	q.addProposal(batch)
	var f frame.Frame
	q.take(&f, true)
	if got := f.Proposals[0]; !bytes.Equal(got, batch) || &got[0] != &batch[0] {
		t.Errorf("proposal %q, want the same bytes", got)
	}
}
