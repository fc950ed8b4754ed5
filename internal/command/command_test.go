package command

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kvpb "example.com/raftkv/proto/raftkv/v1"
)

func encode(h Header, commands ...Command) []byte {
	buf := h.Append(nil)
	for i := range commands {
		buf = commands[i].Append(buf)
	}
	return buf
}

func toProto(h Header, commands ...Command) *kvpb.Batch {
	b := &kvpb.Batch{
		Version: Version, Origin: h.Origin, FirstSequence: h.First, AnsweredTo: h.AnsweredTo,
	}
	for _, c := range commands {
		p := new(kvpb.Command)
		switch c.Op {
		case Put:
			p.Op = &kvpb.Command_Put{Put: &kvpb.Put{Key: c.Key, Value: c.Value}}
		case Delete:
			p.Op = &kvpb.Command_Delete{Delete: &kvpb.Delete{Key: c.Key}}
		}
		if c.Conditional {
			p.IfRevision = proto.Uint64(c.IfRevision)
		}
		b.Commands = append(b.Commands, p)
	}
	return b
}

func fromProto(b *kvpb.Batch) (Header, []Command) {
	var commands []Command
	for _, p := range b.GetCommands() {
		c := Command{IfRevision: p.GetIfRevision(), Conditional: p.IfRevision != nil}
		switch op := p.GetOp().(type) {
		case *kvpb.Command_Put:
			c.Op, c.Key, c.Value = Put, op.Put.GetKey(), op.Put.GetValue()
		case *kvpb.Command_Delete:
			c.Op, c.Key = Delete, op.Delete.GetKey()
		}
		commands = append(commands, c)
	}
	return Header{Origin: b.GetOrigin(), First: b.GetFirstSequence(), AnsweredTo: b.GetAnsweredTo()}, commands
}

func sameCommand(a, b Command) bool {
	return a.Op == b.Op && bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) &&
		a.IfRevision == b.IfRevision && a.Conditional == b.Conditional
}

// checkSame fails unless a parsed batch is what is wanted.
func checkSame(t *testing.T, got Batch, h Header, want []Command) {
	t.Helper()
	if got.Header != h || got.Len() != len(want) {
		t.Fatalf("got %+v with %d commands, want %+v with %d", got.Header, got.Len(), h, len(want))
	}
	i := 0
	for seq, c := range got.All() {
		if seq != h.First+uint64(i) || !sameCommand(c, want[i]) {
			t.Fatalf("command %d is %d %+v, want %+v", i, seq, c, want[i])
		}
		i++
	}
	if i != len(want) {
		t.Fatalf("All yields %d commands, want %d", i, len(want))
	}
}

// parseBoth parses in both ways, which must agree. What ParseInto finds in its
// slice must leave no trace.
func parseBoth(t *testing.T, data []byte) (Batch, error) {
	t.Helper()
	b, err := Parse(data)
	dirty := Command{Delete, []byte("old"), []byte("old"), 9, true}
	into, commands, errInto := ParseInto([]Command{dirty, dirty, dirty}[:1], data)
	if fmt.Sprint(err) != fmt.Sprint(errInto) {
		t.Fatalf("Parse returns %v, ParseInto %v", err, errInto)
	}
	if err != nil {
		return b, err
	}
	if into.Header != b.Header || into.Len() != b.Len() || len(commands) != 1+b.Len() || !sameCommand(commands[0], dirty) {
		t.Fatalf("Parse finds %+v with %d commands, ParseInto %+v with %d", b.Header, b.Len(), into.Header, len(commands)-1)
	}
	for number, c := range b.All() {
		if other := commands[1+number-b.First]; !sameCommand(c, other) {
			t.Fatalf("All has %+v as number %d, ParseInto %+v", c, number, other)
		}
	}
	return b, nil
}

func randomCommand(rng *rand.Rand) Command {
	c := Command{Op: Put, Key: randomBytes(rng, 1+rng.IntN(300)), Value: randomBytes(rng, rng.IntN(300))}
	if rng.IntN(3) == 0 {
		c.Op, c.Value = Delete, nil
	}
	if rng.IntN(2) == 0 {
		c.Conditional, c.IfRevision = true, rng.Uint64()>>rng.IntN(65)
	}
	return c
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestEncodingIsTheGeneratedCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		h := Header{Origin: 1 + rng.Uint64N(1<<40), First: 1 + rng.Uint64N(1<<40)}
		h.AnsweredTo = rng.Uint64N(h.First)
		commands := make([]Command, 1+rng.IntN(20))
		size := HeaderBytes
		for i := range commands {
			commands[i] = randomCommand(rng)
			size += commands[i].Size()
		}
		data := encode(h, commands...)
		if len(data) != size {
			t.Fatalf("the encoding has %d bytes, want %d as Size says", len(data), size)
		}
		var p kvpb.Batch
		if err := proto.Unmarshal(data, &p); err != nil {
			t.Fatalf("Unmarshal: %v", err)
		}
		if want := toProto(h, commands...); !proto.Equal(&p, want) {
			t.Fatalf("Unmarshal = %v, want %v", &p, want)
		}
		generated, err := proto.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{data, generated} {
			b, err := parseBoth(t, data)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			checkSame(t, b, h, commands)
		}
	}
}

func TestSizesAtVarintBordersAreExact(t *testing.T) {
	for _, n := range []int{1, 115, 116, 117, 118, 119, 120, 127, 128, 129, 16370, 16383, 16384, KeyBytesMax} {
		for _, conditional := range []bool{false, true} {
			for _, op := range []Op{Put, Delete} {
				c := Command{Op: op, Key: make([]byte, n), Conditional: conditional}
				if got, want := len(c.Append(nil)), c.Size(); got != want {
					t.Errorf("%v of a %d byte key takes %d bytes, Size says %d", op, n, got, want)
				}
			}
		}
	}
	if got := len((Header{}).Append(nil)); got != HeaderBytes {
		t.Errorf("a header takes %d bytes, HeaderBytes says %d", got, HeaderBytes)
	}
}

func TestCommandsAtTheLimitsAreAccepted(t *testing.T) {
	large := Command{Op: Put, Key: make([]byte, KeyBytesMax), Value: make([]byte, ValueBytesMax), Conditional: true}
	if got, want := large.Size(), KeyBytesMax+ValueBytesMax+OverheadMax; got != want {
		t.Errorf("the largest command takes %d bytes, want %d", got, want)
	}
	b, err := Parse(large.Append(Header{Origin: 1, First: 1}.Append(make([]byte, 0, HeaderBytes+large.Size()))))
	if err != nil {
		t.Fatalf("largest command: %v", err)
	}
	checkSame(t, b, Header{Origin: 1, First: 1}, []Command{large})

	many := make([]Command, BatchCommandsMax)
	for i := range many {
		many[i] = Command{Op: Delete, Key: []byte{1}}
	}
	last := Header{Origin: math.MaxUint64, First: math.MaxUint64 - BatchCommandsMax, AnsweredTo: 7}
	if b, err = Parse(encode(last, many...)); err != nil {
		t.Fatalf("most commands with the highest numbers: %v", err)
	}
	checkSame(t, b, last, many)
}

// raw builds messages field by field.
type raw []byte

func (r raw) varint(num protowire.Number, v uint64) raw {
	return protowire.AppendVarint(protowire.AppendTag(r, num, protowire.VarintType), v)
}
func (r raw) fixed(num protowire.Number, v uint64) raw { return appendFixed(r, num, v) }
func (r raw) bytes(num protowire.Number, b []byte) raw {
	return append(appendLen(r, num, len(b)), b...)
}

// refusals are batches that Parse refuses, by what is wrong with them.
func refusals() map[string]struct {
	data []byte
	want error
} {
	// Clipped, so that what extends one of them twice does not overwrite itself.
	head := slices.Clip(raw(Header{Origin: 1, First: 5, AnsweredTo: 3}.Append(nil)))
	key := slices.Clip(raw{}.bytes(opKey, []byte("k")))
	put := slices.Clip(raw{}.bytes(1, key))
	with := func(command raw) raw { return head.bytes(batchCommands, command) }
	many := head
	for range BatchCommandsMax + 1 {
		many = many.bytes(batchCommands, put)
	}
	c := Command{Op: Put, Key: []byte("k")}
	return map[string]struct {
		data []byte
		want error
	}{
		"empty":                    {nil, ErrMalformed},
		"no version":               {head[2:], ErrMalformed},
		"version is fixed64":       {raw{}.fixed(batchVersion, 1), ErrMalformed},
		"version 0":                {append(raw{}.varint(batchVersion, 0), head[2:]...), ErrVersion},
		"version 2":                {append(raw{}.varint(batchVersion, 2), "nonsense"...), ErrVersion},
		"version twice":            {raw{}.varint(batchVersion, 1).varint(batchVersion, 1), ErrMalformed},
		"no commands":              {head, ErrMalformed},
		"no origin":                {encode(Header{First: 1}, c), ErrMalformed},
		"no first":                 {encode(Header{Origin: 1}, c), ErrMalformed},
		"answered its own":         {encode(Header{Origin: 1, First: 5, AnsweredTo: 5}, c), ErrMalformed},
		"numbers overflow":         {encode(Header{Origin: 1, First: math.MaxUint64}, c), ErrMalformed},
		"origin twice":             {raw{}.varint(batchVersion, 1).fixed(batchOrigin, 1).fixed(batchOrigin, 1), ErrMalformed},
		"first before origin":      {raw{}.varint(batchVersion, 1).fixed(batchFirst, 1).fixed(batchOrigin, 1), ErrMalformed},
		"origin is a varint":       {raw{}.varint(batchVersion, 1).varint(batchOrigin, 1), ErrMalformed},
		"unknown header field":     {head.varint(5, 1).bytes(batchCommands, put), ErrVersion},
		"unknown field at the end": {with(put).varint(16, 1), ErrVersion},
		"header after commands":    {with(put).fixed(batchOrigin, 1), ErrMalformed},
		"command is fixed64":       {head.fixed(batchCommands, 1), ErrMalformed},
		"empty command":            {with(nil), ErrMalformed},
		"condition alone":          {with(raw{}.fixed(commandIfRevision, 1)), ErrMalformed},
		"unknown operation":        {with(raw{}.bytes(4, key)), ErrVersion},
		"operation of a group":     {with(raw{0x23, 0x24}), ErrVersion},
		"two operations":           {with(append(put, put...)), ErrMalformed},
		"put is a varint":          {with(raw{}.varint(1, 1)), ErrMalformed},
		"two conditions":           {with(put.fixed(commandIfRevision, 1).fixed(commandIfRevision, 1)), ErrMalformed},
		"condition is a varint":    {with(put.varint(commandIfRevision, 1)), ErrMalformed},
		"put without key":          {with(raw{}.bytes(1, raw{}.bytes(opValue, []byte("v")))), ErrMalformed},
		"put with two keys":        {with(raw{}.bytes(1, append(key, key...))), ErrMalformed},
		"key is a varint":          {with(raw{}.bytes(1, raw{}.varint(opKey, 1))), ErrMalformed},
		"unknown field of a put":   {with(raw{}.bytes(1, key.varint(3, 1))), ErrVersion},
		"delete with value":        {with(raw{}.bytes(2, key.bytes(opValue, []byte("v")))), ErrVersion},
		"empty key":                {with(raw{}.bytes(2, raw{}.bytes(opKey, nil))), ErrMalformed},
		"key too long":             {with(raw{}.bytes(2, raw{}.bytes(opKey, make([]byte, KeyBytesMax+1)))), ErrMalformed},
		"too many commands":        {many, ErrMalformed},
	}
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, c := range refusals() {
		t.Run(name, func(t *testing.T) {
			if _, err := parseBoth(t, c.data); !errors.Is(err, c.want) {
				t.Errorf("Parse = %v, want %v", err, c.want)
			}
		})
	}
}

func TestParseRefusesAValueThatIsTooLong(t *testing.T) {
	c := Command{Op: Put, Key: []byte("k"), Value: make([]byte, ValueBytesMax+1)}
	if _, err := Parse(encode(Header{Origin: 1, First: 1}, c)); !errors.Is(err, ErrMalformed) {
		t.Errorf("Parse = %v, want %v", err, ErrMalformed)
	}
}

func TestParseRefusesEveryTruncation(t *testing.T) {
	data := encode(Header{Origin: 1, First: 1}, Command{Op: Put, Key: []byte("key"), Value: []byte("value"), Conditional: true})
	for n := range data {
		if _, err := Parse(data[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse of %d of %d bytes = %v, want %v", n, len(data), err, ErrMalformed)
		}
	}
}

func TestParseAndAllDoNotAllocate(t *testing.T) {
	commands := make([]Command, 100)
	for i := range commands {
		commands[i] = Command{Op: Put, Key: fmt.Append(nil, "key", i), Value: make([]byte, 100)}
	}
	data := encode(Header{Origin: 1, First: 1}, commands...)
	allocs := testing.AllocsPerRun(20, func() {
		b, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, c := range b.All() {
			n += len(c.Key)
		}
	})
	if allocs > 0 {
		t.Errorf("parsing 100 commands allocates %v times", allocs)
	}
}

func TestAllStopsWhenTheCallerDoes(t *testing.T) {
	b, err := Parse(encode(Header{Origin: 1, First: 8}, Command{Op: Put, Key: []byte("a")}, Command{Op: Put, Key: []byte("b")}))
	if err != nil {
		t.Fatal(err)
	}
	for seq := range b.All() {
		if seq != 8 {
			t.Fatalf("sequence number %d, want 8 alone", seq)
		}
		break
	}
}

func TestAppendPanicsOnAnUnknownOperation(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a command without operation was encoded")
		}
	}()
	(&Command{Key: []byte("k")}).Append(nil)
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1, 100, BatchCommandsMax} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			commands := make([]Command, n)
			for i := range commands {
				commands[i] = Command{Op: Put, Key: fmt.Append(nil, "key", i), Value: make([]byte, 128)}
			}
			data := encode(Header{Origin: 1, First: 1}, commands...)
			var into []Command
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if _, into, err = ParseInto(into[:0], data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	c := Command{Op: Put, Key: []byte("some/key/of/usual/length"), Value: make([]byte, 128)}
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = c.Append(buf[:0])
	}
}
