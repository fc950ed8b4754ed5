package command

import (
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
func Parse(data []byte) (Batch, error) {
	var b Batch
	rest, err := b.parseHeader(data)
	if err != nil {
		return Batch{}, err
	}
	b.commands = rest
	for len(rest) > 0 {
		if b.count == BatchCommandsMax {
			return Batch{}, malformed("more than %d commands", BatchCommandsMax)
		}
		if _, rest, err = nextCommand(rest); err != nil {
			return Batch{}, fmt.Errorf("command %d: %w", b.count, err)
		}
		b.count++
	}
	if b.count == 0 {
		return Batch{}, malformed("no commands")
	}
	if b.First > math.MaxUint64-uint64(b.count) {
		return Batch{}, malformed("%d commands from number %d", b.count, b.First)
	}
	return b, nil
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
		seq, rest := b.First, b.commands
		for len(rest) > 0 {
			c, after, err := nextCommand(rest)
			if err != nil {
				panic(fmt.Sprintf("raftkv: BUG: a checked batch has changed: %v", err))
			}
			if !yield(seq, c) {
				return
			}
			seq, rest = seq+1, after
		}
	}
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
