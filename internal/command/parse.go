package command

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Batch is a parsed and checked batch. It aliases the bytes that it was
// parsed from, so those must not change.
type Batch struct {
	Header
	count    int
	commands []byte // fields of the message Batch, each a command
}

// Parse checks a batch from the log: everything, so that applying it cannot
// fail half-way. Errors wrap ErrVersion or ErrMalformed.
//
// It accepts less than a protobuf parser would: header fields in ascending
// order before the commands, no field twice. What it accepts it understands as
// a protobuf parser does.
//
// Every command is read on every member, so there is a short way for what Append
// writes: take. It knows one form of a command and judges nothing; whatever else
// there is goes the long way.
func Parse(data []byte) (Batch, error) {
	b, _, err := parse(data, nil, false)
	return b, err
}

// ParseInto is Parse and All in one: it appends the commands to a slice. After
// an error the slice has some of them.
func ParseInto(commands []Command, data []byte) (Batch, []Command, error) {
	return parse(data, commands, true)
}

func parse(data []byte, commands []Command, keep bool) (Batch, []Command, error) {
	var b Batch
	rest, err := b.takeHeader(data), error(nil)
	if rest == nil {
		b = Batch{}
		if rest, err = b.parseHeader(data); err != nil {
			return Batch{}, commands, err
		}
	}
	b.commands = rest
	c := new(Command)
	for len(rest) > 0 {
		if b.count == BatchCommandsMax {
			return Batch{}, commands, malformed("more than %d commands", BatchCommandsMax)
		}
		if keep {
			if len(commands) == cap(commands) {
				commands = append(commands, Command{})
			} else {
				commands = commands[:len(commands)+1] // all of it is written below
			}
			c = &commands[len(commands)-1]
		}
		if n := c.take(rest); n > 0 {
			rest = rest[n:]
		} else if *c, rest, err = nextCommand(rest); err != nil {
			return Batch{}, commands, fmt.Errorf("command %d: %w", b.count, err)
		}
		b.count++
	}
	if b.count == 0 {
		return Batch{}, commands, malformed("no commands")
	}
	if b.First > math.MaxUint64-uint64(b.count) {
		return Batch{}, commands, malformed("%d commands from number %d", b.count, b.First)
	}
	return b, commands, nil
}

// takeHeader is to parseHeader as take is to nextCommand: it takes off a legal
// header in the form of Append, and returns nil if it is another.
func (b *Batch) takeHeader(data []byte) (rest []byte) {
	if len(data) <= HeaderBytes || data[0] != versionTag || data[1] != Version || data[2] != originTag ||
		data[2+9] != firstTag || data[2+2*9] != answeredToTag || data[HeaderBytes] != commandsTag {
		return nil
	}
	b.Origin = binary.LittleEndian.Uint64(data[3:])
	b.First = binary.LittleEndian.Uint64(data[3+9:])
	b.AnsweredTo = binary.LittleEndian.Uint64(data[3+2*9:])
	if b.Origin == 0 || b.First == 0 || b.AnsweredTo >= b.First {
		return nil
	}
	return data[HeaderBytes:]
}

// parseHeader takes the header off a batch. The version comes before all else,
// because it says what all else means.
func (b *Batch) parseHeader(data []byte) (rest []byte, err error) {
	f, rest, err := nextField(data)
	if err != nil {
		return nil, err
	}
	if f.num != batchVersion || f.typ != protowire.VarintType {
		return nil, malformed("no version")
	}
	if f.num64 != Version {
		return nil, fmt.Errorf("format version %d: %w", f.num64, ErrVersion)
	}
	last := protowire.Number(batchVersion)
	for len(rest) > 0 {
		f, after, err := nextField(rest)
		if err != nil {
			return nil, err
		}
		if f.num == batchCommands {
			break
		}
		if err := b.parseHeaderField(f, last); err != nil {
			return nil, err
		}
		last, rest = f.num, after
	}
	if b.Origin == 0 || b.First == 0 || b.AnsweredTo >= b.First {
		return nil, malformed("header %+v", b.Header)
	}
	return rest, nil
}

func (b *Batch) parseHeaderField(f field, last protowire.Number) error {
	var to *uint64
	switch f.num {
	case batchVersion: // refused below: it comes once, and first
	case batchOrigin:
		to = &b.Origin
	case batchFirst:
		to = &b.First
	case batchAnsweredTo:
		to = &b.AnsweredTo
	default:
		return fmt.Errorf("field %d of a batch: %w", f.num, ErrVersion)
	}
	if f.num <= last || f.typ != protowire.Fixed64Type {
		return malformed("field %d of type %d after field %d", f.num, f.typ, last)
	}
	*to = f.num64
	return nil
}

// Len returns the number of commands.
func (b Batch) Len() int { return b.count }

// All returns the commands with their sequence numbers. Their keys and values
// alias the batch.
func (b Batch) All() iter.Seq2[uint64, Command] {
	return func(yield func(uint64, Command) bool) {
		number := b.First
		for rest := b.commands; len(rest) > 0; number++ {
			var c Command
			var err error
			if n := c.take(rest); n > 0 {
				rest = rest[n:]
			} else if c, rest, err = nextCommand(rest); err != nil {
				panic(fmt.Sprintf("raftkv: BUG: a checked batch has changed: %v", err))
			}
			if !yield(number, c) {
				return
			}
		}
	}
}

// The tags as they stand in front of what Append writes.
const (
	versionTag     = batchVersion<<3 | byte(protowire.VarintType)
	originTag      = batchOrigin<<3 | byte(protowire.Fixed64Type)
	firstTag       = batchFirst<<3 | byte(protowire.Fixed64Type)
	answeredToTag  = batchAnsweredTo<<3 | byte(protowire.Fixed64Type)
	commandsTag    = batchCommands<<3 | byte(protowire.BytesType)
	putTag         = byte(Put)<<3 | byte(protowire.BytesType)
	deleteTag      = byte(Delete)<<3 | byte(protowire.BytesType)
	keyTag         = opKey<<3 | byte(protowire.BytesType)
	valueTag       = opValue<<3 | byte(protowire.BytesType)
	ifRevisionTag  = commandIfRevision<<3 | byte(protowire.Fixed64Type)
	conditionBytes = tagBytes + 8
)

// take reads a command in the form of Append, the legal lengths included, and
// returns how many bytes it takes. It returns 0 if the command has another
// form, which may be legal or not.
func (c *Command) take(data []byte) int {
	body, at, ok := lengthAfter(commandsTag, data, 0)
	if !ok || body > len(data)-at || at == len(data) {
		return 0
	}
	end, op := at+body, data[at]
	opBytes, at, ok := lengthAfter(op, data, at)
	if !ok || op != putTag && op != deleteTag || opBytes > end-at {
		return 0
	}
	opEnd := at + opBytes
	keyBytes, at, ok := lengthAfter(keyTag, data[:opEnd], at)
	if !ok || keyBytes == 0 || keyBytes > KeyBytesMax || keyBytes > opEnd-at {
		return 0
	}
	c.Op, c.Key, c.Value = Op(op>>3), data[at:at+keyBytes:at+keyBytes], nil
	at += keyBytes
	if at < opEnd {
		var valueBytes int
		valueBytes, at, ok = lengthAfter(valueTag, data[:opEnd], at)
		if !ok || op != putTag || valueBytes > ValueBytesMax || valueBytes != opEnd-at {
			return 0
		}
		c.Value = data[at:opEnd:opEnd]
	}
	switch {
	case opEnd == end:
		c.IfRevision, c.Conditional = 0, false
	case end-opEnd == conditionBytes && data[opEnd] == ifRevisionTag:
		c.IfRevision, c.Conditional = binary.LittleEndian.Uint64(data[opEnd+tagBytes:end]), true
	default:
		return 0
	}
	return end
}

// lengthAfter reads a tag and a length of at most four bytes, which is more than
// the largest command needs. It returns the length and what it is the length of.
func lengthAfter(tag byte, data []byte, at int) (n, begin int, ok bool) {
	if len(data)-at < 2 || data[at] != tag {
		return 0, 0, false
	}
	n = int(data[at+1])
	if n < 0x80 {
		return n, at + 2, true
	}
	n &= 0x7f
	for i := 2; i <= 4 && i < len(data)-at; i++ {
		b := data[at+i]
		n |= int(b&0x7f) << (7 * (i - 1))
		if b < 0x80 {
			return n, at + i + 1, true
		}
	}
	return 0, 0, false
}

// nextCommand takes a command off the commands of a batch.
func nextCommand(data []byte) (c Command, rest []byte, err error) {
	f, rest, err := nextField(data)
	if err != nil {
		return Command{}, nil, err
	}
	switch {
	case f.num != batchCommands && f.num > batchAnsweredTo:
		return Command{}, nil, fmt.Errorf("field %d of a batch: %w", f.num, ErrVersion)
	case f.num != batchCommands || f.typ != protowire.BytesType:
		return Command{}, nil, malformed("field %d of type %d after the header", f.num, f.typ)
	}
	for body := f.bytes; len(body) > 0; {
		if f, body, err = nextField(body); err != nil {
			return Command{}, nil, err
		}
		if err := c.parseField(f); err != nil {
			return Command{}, nil, err
		}
	}
	if c.Op == 0 {
		return Command{}, nil, malformed("command without an operation")
	}
	return c, rest, nil
}

func (c *Command) parseField(f field) error {
	switch {
	case f.num == protowire.Number(Put) || f.num == protowire.Number(Delete):
		if f.typ != protowire.BytesType || c.Op != 0 {
			return malformed("operation %d of type %d after %v", f.num, f.typ, c.Op)
		}
		c.Op = Op(f.num)
		return c.parseOp(f.bytes)
	case f.num != commandIfRevision:
		return fmt.Errorf("field %d of a command: %w", f.num, ErrVersion)
	case f.typ != protowire.Fixed64Type || c.Conditional:
		return malformed("condition of type %d", f.typ)
	}
	c.IfRevision, c.Conditional = f.num64, true
	return nil
}

// parseOp reads a Put or Delete message.
func (c *Command) parseOp(body []byte) error {
	for len(body) > 0 {
		f, rest, err := nextField(body)
		if err != nil {
			return err
		}
		switch {
		case f.num != opKey && (f.num != opValue || c.Op != Put):
			return fmt.Errorf("field %d of a %v: %w", f.num, c.Op, ErrVersion)
		case f.typ != protowire.BytesType:
			return malformed("field %d of a %v of type %d", f.num, c.Op, f.typ)
		case f.num == opKey && c.Key == nil:
			c.Key = f.bytes
		case f.num == opValue && c.Value == nil:
			c.Value = f.bytes
		default:
			return malformed("field %d of a %v comes twice", f.num, c.Op)
		}
		body = rest
	}
	if len(c.Key) == 0 || len(c.Key) > KeyBytesMax || len(c.Value) > ValueBytesMax {
		return malformed("key of %d bytes, value of %d", len(c.Key), len(c.Value))
	}
	return nil
}

// A field is one field of a message; which of num64 and bytes holds its value
// depends on its type.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	num64 uint64
	bytes []byte // never nil if the type is bytes; no capacity beyond its length
}

// nextField takes a field off a message. Types that the format does not use
// are left for the caller to refuse by number or type; the rest is then
// meaningless.
func nextField(data []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(data)
	if n < 0 {
		return field{}, nil, malformed("bad tag")
	}
	f, rest = field{num: num, typ: typ}, data[n:]
	switch typ {
	case protowire.VarintType:
		f.num64, n = protowire.ConsumeVarint(rest)
	case protowire.Fixed64Type:
		f.num64, n = protowire.ConsumeFixed64(rest)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(rest)
		f.bytes = f.bytes[:len(f.bytes):len(f.bytes)]
	default:
		n = 0
	}
	if n < 0 {
		return field{}, nil, malformed("field %d is cut off", num)
	}
	return f, rest[n:], nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrMalformed)...)
}
