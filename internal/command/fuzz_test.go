package command

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What Parse accepts, the generated code understands in the same way. And what
// the generated code understands and the format allows, Parse accepts as Append
// writes it.
func FuzzParse(f *testing.F) {
	for _, c := range refusals() {
		if len(c.data) < 1000 {
			f.Add(c.data)
		}
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for range 10 {
		f.Add(encode(Header{Origin: 1, First: 2, AnsweredTo: 1}, randomCommand(rng), randomCommand(rng)))
	}
	f.Add(encode(Header{Origin: math.MaxUint64, First: math.MaxUint64 - 1}, Command{Op: Delete, Key: []byte("k")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := new(kvpb.Batch)
		errGenerated := proto.Unmarshal(data, p)
		h, want := fromProto(p)
		before := bytes.Clone(data)
		b, err := parseBoth(t, data)
		if !bytes.Equal(data, before) {
			t.Fatal("Parse has changed its input")
		}
		switch {
		case err == nil && errGenerated != nil:
			t.Fatalf("the generated code refuses it: %v", errGenerated)
		case err == nil:
			checkSame(t, b, h, want)
			checkAliases(t, b)
			if !isLegal(p, h, want) {
				t.Fatalf("accepted %v", p)
			}
		case !errors.Is(err, ErrVersion) && !errors.Is(err, ErrMalformed):
			t.Fatalf("an error of another kind: %v", err)
		}
		if errGenerated != nil || !isLegal(p, h, want) {
			return
		}
		again, err := Parse(encode(h, want...))
		if err != nil {
			t.Fatalf("Parse refuses what Append makes of %v: %v", p, err)
		}
		checkSame(t, again, h, want)
	})
}

// checkAliases fails if somebody who appends to a key or value would write into
// the batch.
func checkAliases(t *testing.T, b Batch) {
	t.Helper()
	for seq, c := range b.All() {
		if cap(c.Key) != len(c.Key) || cap(c.Value) != len(c.Value) {
			t.Fatalf("command %d: key of %d bytes with capacity %d, value of %d with %d",
				seq, len(c.Key), cap(c.Key), len(c.Value), cap(c.Value))
		}
	}
}

// isLegal says, in other words than Parse, what a batch must be.
func isLegal(p *kvpb.Batch, h Header, commands []Command) bool {
	n := uint64(len(commands))
	if p.GetVersion() != Version || len(p.ProtoReflect().GetUnknown()) > 0 || n == 0 || n > BatchCommandsMax ||
		h.Origin == 0 || h.AnsweredTo >= h.First || h.First+n < h.First {
		return false
	}
	for i, c := range commands {
		unknown := p.GetCommands()[i].ProtoReflect().GetUnknown()
		if c.Op == 0 || len(unknown) > 0 || len(c.Key) == 0 || len(c.Key) > KeyBytesMax || len(c.Value) > ValueBytesMax {
			return false
		}
	}
	return true
}
