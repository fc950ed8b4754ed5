package frame

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	"example.com/raftkv/internal/fault"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	sender   = 1<<32 | 1
	receiver = 2<<32 | 2
)

func heartbeat() *pb.Message {
	return &pb.Message{
		Type: pb.MsgHeartbeat.Enum(), To: new(uint64(receiver)), From: new(uint64(sender)), Term: new(uint64(5)),
		Commit: new(uint64(123456)), Context: []byte("12345678"),
	}
}

func appResp() *pb.Message {
	return &pb.Message{
		Type: pb.MsgAppResp.Enum(), To: new(uint64(receiver)), From: new(uint64(sender)), Term: new(uint64(5)),
		Index: new(uint64(123456)), Reject: new(true), RejectHint: new(uint64(0)),
	}
}

// app returns a message with n entries of a size.
func app(n, size int) *pb.Message {
	m := &pb.Message{
		Type: pb.MsgApp.Enum(), To: new(uint64(receiver)), From: new(uint64(sender)), Term: new(uint64(5)),
		LogTerm: new(uint64(4)), Index: new(uint64(1 << 20)), Commit: new(uint64(1 << 20)),
	}
	for i := range n {
		m.Entries = append(m.Entries, &pb.Entry{
			Term: new(uint64(5)), Index: new(uint64(1<<20 + i + 1)), Data: bytes.Repeat([]byte{byte(i)}, size),
		})
	}
	return m
}

// frames returns some of every kind, by name.
func frames() map[string]*Frame {
	large := bytes.Repeat([]byte("large"), 500)
	return map[string]*Frame{
		"ping":      {},
		"heartbeat": {Messages: []*pb.Message{heartbeat()}},
		"control":   {Messages: []*pb.Message{heartbeat(), appResp(), {}}, Refusals: []uint64{7, 0, math.MaxUint64}},
		"append":    {Messages: []*pb.Message{app(1, 3<<10)}},
		"appends":   {Messages: []*pb.Message{heartbeat(), app(3, 100), app(2, 2500), app(0, 0)}},
		"edges": {Messages: []*pb.Message{
			app(1, aliasBytesMin-1), app(2, aliasBytesMin), app(1, 0), {Context: large, Vote: new(uint64(0))},
			{Type: new(pb.MessageType(-1)), Entries: []*pb.Entry{{}, {Type: pb.EntryConfChangeV2.Enum()}}},
		}},
		"batches":  {Proposals: [][]byte{[]byte("batch"), {}, large, large}},
		"standing": {Standing: &kvpb.Standing{RosterIndex: 9, HearsLeader: true}},
		"all": {
			Messages: []*pb.Message{app(2, 2500)}, Proposals: [][]byte{large}, Refusals: []uint64{1},
			Standing: &kvpb.Standing{Asks: true},
		},
	}
}

// request returns a frame as generated code has it.
func request(t testing.TB, f *Frame) *kvpb.MessagesRequest {
	t.Helper()
	r := &kvpb.MessagesRequest{Proposals: f.Proposals, Standing: f.Standing}
	for _, m := range f.Messages {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		r.Messages = append(r.Messages, data)
	}
	for _, first := range f.Refusals {
		r.Refusals = append(r.Refusals, &kvpb.Refusal{FirstSequence: first})
	}
	return r
}

func encode(t testing.TB, f *Frame) []byte {
	t.Helper()
	buffers, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	defer buffers.Free()
	return buffers.Materialize()
}

// seal appends a checksum to what shall be in front of one.
func seal(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(append(slices.Clone(body), tagChecksum), checksum.Of(body))
}

// equal reports whether two frames say the same, and tell what is set from what
// is not.
func equal(a, b *Frame) bool {
	return slices.EqualFunc(a.Messages, b.Messages, func(a, b *pb.Message) bool { return proto.Equal(a, b) }) &&
		slices.EqualFunc(a.Proposals, b.Proposals, bytes.Equal) && slices.Equal(a.Refusals, b.Refusals) &&
		proto.Equal(a.Standing, b.Standing)
}

// TestGeneratedCodeReadsFrames, and finds the same checksum.
func TestGeneratedCodeReadsFrames(t *testing.T) {
	for name, f := range frames() {
		want, got := request(t, f), new(kvpb.MessagesRequest)
		if err := proto.Unmarshal(encode(t, f), got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checksum.Seal(want)
		if !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestWhatWasEncodedIsDecoded(t *testing.T) {
	for name, f := range frames() {
		got, err := Decode(encode(t, f))
		if err != nil || !equal(&got, f) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, f)
		}
	}
}

// TestGeneratedCodeWritesFrames if the last of what it writes is the checksum.
func TestGeneratedCodeWritesFrames(t *testing.T) {
	for name, f := range frames() {
		if f.Standing != nil || name == "ping" {
			continue // comes after the checksum; a checksum of 0 is not written
		}
		r := request(t, f)
		checksum.Seal(r)
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(data)
		if err != nil || !equal(&got, f) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, f)
		}
	}
}

// TestEveryFlippedBitIsFound, and every byte that is lost or comes.
func TestEveryFlippedBitIsFound(t *testing.T) {
	for name, f := range frames() {
		data := encode(t, f)
		refused := func(damaged []byte, how string, at int) {
			if _, err := Decode(damaged); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: %s %d: %v, want an ErrInvalid", name, how, at, err)
			}
		}
		for bit := range 8 * len(data) {
			data[bit/8] ^= 1 << (bit % 8)
			refused(data, "flipped bit", bit)
			data[bit/8] ^= 1 << (bit % 8)
		}
		for i := range min(len(data), 1000) {
			refused(data[:i], "cut to", i)
			refused(data[i+1:], "without the first", i+1)
			refused(slices.Delete(slices.Clone(data), i, i+1), "lost byte", i)
			refused(slices.Insert(slices.Clone(data), i, 0), "zero before", i)
		}
		refused(append(data, 0), "zero after", len(data))
	}
}

// TestPayloadsAreNotCopied to be sent, if that is worth while.
func TestPayloadsAreNotCopied(t *testing.T) {
	data := make([]byte, aliasBytesMin)
	f := &Frame{
		Messages:  []*pb.Message{{Context: data, Entries: []*pb.Entry{{Data: data}, {Data: data[1:]}}}, {Entries: []*pb.Entry{{Data: data}}}},
		Proposals: [][]byte{data, data[1:]},
	}
	buffers, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	same := 0
	for _, b := range buffers {
		if unsafe.SliceData(b.ReadOnlyData()) == unsafe.SliceData(data) {
			same++
		}
	}
	if same != 4 || len(buffers) != 9 {
		t.Errorf("%d of %d buffers are payloads, want 4 of 9", same, len(buffers))
	}
}

// TestEncodingChangesNothing: others read the messages meanwhile.
func TestEncodingChangesNothing(t *testing.T) {
	for name, f := range frames() {
		before := &Frame{Proposals: slices.Clone(f.Proposals), Refusals: slices.Clone(f.Refusals), Standing: f.Standing}
		for _, m := range f.Messages {
			before.Messages = append(before.Messages, proto.Clone(m).(*pb.Message))
		}
		first := encode(t, f)
		if second := encode(t, f); !bytes.Equal(first, second) || !equal(f, before) {
			t.Errorf("%s: is %v after encoding, was %v", name, f, before)
		}
	}
}

// TestBuffersAreFreed wherever the frame's own bytes are.
func TestBuffersAreFreed(t *testing.T) {
	for name, messages := range map[string][]*pb.Message{
		"small": {heartbeat()}, "small, cut": {app(3, aliasBytesMin)},
		"pooled": {app(100, 100)}, "pooled, cut": {app(3, aliasBytesMin), app(100, 100), app(3, aliasBytesMin)},
		"large": {app(100, 1000)}, "large, cut": {app(100, 1000), app(1, aliasBytesMin)},
	} {
		f := &Frame{Messages: messages}
		buffers, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		buffers.Ref() // as gRPC does
		buffers.Free()
		if got, err := Decode(buffers.Materialize()); err != nil || !equal(&got, f) {
			t.Errorf("%s: %v, or another frame", name, err)
		}
		buffers.Free() // panics if there is no reference any more
	}
}

// TestDecodedPayloadsAlias the frame, and cannot grow into what follows.
func TestDecodedPayloadsAlias(t *testing.T) {
	for name, f := range frames() {
		data := encode(t, f)
		before := bytes.Clone(data)
		got, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		begin := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
		inside := func(payload []byte) {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(payload)))
			if len(payload) != cap(payload) {
				t.Errorf("%s: payload of %d bytes with room for %d", name, len(payload), cap(payload))
			}
			if len(payload) > 0 && (at < begin || at+uintptr(len(payload)) > begin+uintptr(len(data))) {
				t.Errorf("%s: payload of %d bytes is a copy", name, len(payload))
			}
		}
		for _, m := range got.Messages {
			inside(m.Context)
			for _, e := range m.Entries {
				inside(e.Data)
			}
			_ = append(m.Entries, nil) // raft does
		}
		for _, p := range got.Proposals {
			inside(p)
			_ = append(p, 0xff)
		}
		if !bytes.Equal(data, before) || !equal(&got, f) {
			t.Errorf("%s: the frame has changed", name)
		}
	}
}

func field(num protowire.Number, value ...byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), value)
}

// TestWhatIsUnknownOrMalformedIsRefused though its checksum is right.
func TestWhatIsUnknownOrMalformedIsRefused(t *testing.T) {
	number := func(num protowire.Number) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), 1)
	}
	group := func(num protowire.Number) []byte {
		return protowire.AppendTag(protowire.AppendTag(nil, num, protowire.StartGroupType), num, protowire.EndGroupType)
	}
	inFrame := map[string][]byte{
		"hello": field(1), "another checksum": protowire.AppendFixed32([]byte{tagChecksum}, 0),
		"unknown field": field(7), "number for bytes": number(2), "group": group(2), "unknown group": group(99),
		"fixed64": protowire.AppendFixed64(protowire.AppendTag(nil, 8, protowire.Fixed64Type), 1),
		"cut off": {tagMessages, 9, 1}, "cut off tag": {0x80}, "no length": {tagMessages}, "field 0": {2, 0},
		"length of 2^63": append([]byte{tagMessages}, protowire.AppendVarint(nil, 1<<63)...),
		"endless length": append([]byte{tagMessages}, bytes.Repeat([]byte{0xff}, 20)...),
		"standing":       field(6, 0x80), "refusal": field(4, number(2)...), "refusal cut off": field(4, 8),
	}
	for name, data := range map[string][]byte{
		"snapshot": field(9), "responses": field(14), "unknown field": number(15), "bytes for a number": field(2),
		"number for bytes": number(12), "group": group(7), "cut off": {tagContext, 4}, "no value": {tagTo},
		"endless number": append([]byte{tagTo}, bytes.Repeat([]byte{0xff}, 20)...),
	} {
		inFrame["message: "+name] = field(2, data...)
	}
	for name, data := range map[string][]byte{
		"unknown field": number(5), "bytes for a number": field(2), "number for bytes": number(4), "group": group(1),
		"cut off": {tagEntryData, 4},
	} {
		inFrame["entry: "+name] = field(2, field(7, data...)...)
	}
	for name, body := range inFrame {
		for _, body := range [][]byte{body, append(field(2), body...), append(bytes.Clone(body), field(2, number(3)...)...)} {
			if got, err := Decode(seal(body)); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: got %v, %v, want an ErrInvalid", name, got, err)
			}
		}
	}
}

// TestFramesAreBounded: nothing decodes to many times its size, and what is too
// much is refused before memory is spent on it.
func TestFramesAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		most int
		body func(n int) []byte
	}{
		"messages": {MessagesMax, func(n int) []byte { return bytes.Repeat(field(2), n) }},
		"batches":  {BatchesMax, func(n int) []byte { return bytes.Repeat(field(3), n) }},
		"refusals": {RefusalsMax, func(n int) []byte { return bytes.Repeat(field(4), n) }},
		"entries":  {EntriesMax, func(n int) []byte { return field(2, bytes.Repeat(field(7), n)...) }},
		"entries of many messages": {EntriesMax, func(n int) []byte {
			one := field(2, bytes.Repeat(field(7), EntriesMax/8)...)
			return append(bytes.Repeat(one, 8), field(2, bytes.Repeat(field(7), n-EntriesMax)...)...)
		}},
	} {
		if _, err := Decode(seal(c.body(c.most))); err != nil {
			t.Errorf("%s: %d are refused: %v", name, c.most, err)
		}
		data := seal(c.body(c.most + 1))
		// In bytes: how many allocations an error takes is a matter of fmt and, under
		// the race detector, of chance.
		const runs, bytesMax = 10, 16 << 10
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			if _, err := Decode(data); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: %d are accepted, want an ErrInvalid", name, c.most+1)
			}
		}
		runtime.ReadMemStats(&after)
		if bytes := (after.TotalAlloc - before.TotalAlloc) / runs; bytes > bytesMax {
			t.Errorf("%s: %d bytes for a refused frame, want %d at most", name, bytes, bytesMax)
		}
	}
}

// TestWhatStreamsDoNotCarryIsNotSent: it would be lost without a word.
func TestWhatStreamsDoNotCarryIsNotSent(t *testing.T) {
	for _, m := range []*pb.Message{{Snapshot: &pb.Snapshot{}}, {Responses: []*pb.Message{{}}}} {
		if _, err := (&Frame{Messages: []*pb.Message{heartbeat(), m}}).Encode(); err == nil {
			t.Errorf("%v was encoded, want an error", m)
		}
	}
}

func TestAllocations(t *testing.T) {
	for name, c := range map[string]struct {
		frame          *Frame
		encode, decode float64
	}{
		// One for the frame's own bytes, one to have gRPC know them, one for the list.
		"ping":      {&Frame{}, 3, 0},
		"heartbeat": {&Frame{Messages: []*pb.Message{heartbeat()}}, 3, 2},
		"append":    {&Frame{Messages: []*pb.Message{app(1, 10<<10)}}, 6, 4},
		"appends":   {&Frame{Messages: []*pb.Message{app(64, 128), app(64, 128), heartbeat()}}, 5, 4},
	} {
		data := encode(t, c.frame)
		if got := testing.AllocsPerRun(100, func() {
			buffers, err := c.frame.Encode()
			if err != nil {
				t.Error(err)
			}
			buffers.Free()
		}); got > c.encode {
			t.Errorf("%s: %v allocations to encode, want %v", name, got, c.encode)
		}
		if got := testing.AllocsPerRun(100, func() {
			if _, err := Decode(data); err != nil {
				t.Error(err)
			}
		}); got > c.decode {
			t.Errorf("%s: %v allocations to decode, want %v", name, got, c.decode)
		}
	}
}

// TestCodecLeavesAllElseToProtobuf: the stream begins with a hello.
func TestCodecLeavesAllElseToProtobuf(t *testing.T) {
	c := encoding.GetCodecV2(name)
	if c == nil || !registered {
		t.Fatal("the codec is not registered")
	}
	want := &kvpb.MessagesRequest{Hello: &kvpb.Hello{ToId: 2}}
	buffers, err := c.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := new(kvpb.MessagesRequest)
	if err := c.Unmarshal(buffers, got); err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := c.Marshal("text"); err == nil {
		t.Error("a string was marshalled")
	}
}

// TestCodecReceivesBytesOfTheirOwn: gRPC uses its buffers again.
func TestCodecReceivesBytesOfTheirOwn(t *testing.T) {
	buffers, err := codec{}.Marshal(&Frame{Messages: []*pb.Message{app(3, 1000)}})
	if err != nil {
		t.Fatal(err)
	}
	want := buffers.Materialize()
	for n := range 40 {
		var received mem.BufferSlice
		for part := range slices.Chunk(want, 1+len(want)/(n+1)) {
			received = append(received, mem.SliceBuffer(bytes.Clone(part)))
		}
		var got Bytes
		if err := (codec{}).Unmarshal(received, &got); err != nil {
			t.Fatal(err)
		}
		for _, b := range received {
			clear(b.ReadOnlyData())
		}
		if !bytes.Equal(got, want) {
			t.Errorf("bytes that came in %d parts are gRPC's, or others", len(received))
		}
	}
}

func TestIsSpoken(t *testing.T) {
	for contentType, want := range map[string]bool{"application/grpc+raftkv": true, "application/grpc": false, "application/grpc+proto": false} {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("content-type", contentType))
		if got := IsSpoken(ctx); got != want {
			t.Errorf("IsSpoken with %s = %v, want %v", contentType, got, want)
		}
	}
	if IsSpoken(context.Background()) {
		t.Error("IsSpoken without a stream = true")
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	for want, body := range map[string][]byte{
		"unknown field of a frame, number 1":     field(1),
		"unknown field of a message, number 9":   field(2, field(9)...),
		"malformed field of an entry":            field(2, field(7, tagEntryData, 4)...),
		fmt.Sprint(MessagesMax+1, " messages"):   bytes.Repeat(field(2), MessagesMax+1),
		"unknown field of a refusal, number 2":   field(4, field(2)...),
		"malformed standing":                     field(6, 0x80),
		"malformed field of a frame":             {tagMessages, 9},
		"malformed field of a message":           field(2, tagContext, 9),
		"malformed field of a refusal":           field(4, tagFirstSequence),
		"unknown field of an entry, number 4094": field(2, field(7, field(4094)...)...),
	} {
		if _, err := Decode(seal(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
