// Package command is the format of the log's normal entries: batches of
// commands of one origin, as the message Batch in command.proto describes them.
//
// It is made by hand because every write passes through it on every member:
// callers encode their command alone, the batcher joins the encodings behind a
// header, and the applier reads each command once, without an allocation.
package command

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Version is the version of the format, the first field of every batch.
const Version = 1

// What receivers accept. They are part of the protocol and the same on all
// members; a member's limits lower only what is admitted on it, so that
// members with different settings can read each other's entries.
const (
	KeyBytesMax      = 64 << 10
	ValueBytesMax    = 16 << 20
	BatchCommandsMax = 4096
)

var (
	// ErrVersion says that a newer member wrote a batch. The node must stop:
	// to skip what it does not know would make its state diverge.
	ErrVersion = errors.New("raftkv: unknown batch format or command")
	// ErrMalformed says that no member writes such a batch.
	ErrMalformed = errors.New("raftkv: malformed batch")
)

// An Op is what a command does.
type Op uint8

// The operations; the values are the fields of the message Command.
const (
	Put    Op = 1
	Delete Op = 2
)

// String returns the operation's name.
func (o Op) String() string {
	switch o {
	case Put:
		return "put"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// A Command changes one key.
type Command struct {
	Op          Op
	Key         []byte
	Value       []byte // of a Put
	IfRevision  uint64 // if Conditional: the revision the key must have, 0 for no such key
	Conditional bool
}

// The fields of the messages. Numbers below 16 make tags of one byte.
const (
	tagBytes = 1

	batchVersion    = 1
	batchOrigin     = 2
	batchFirst      = 3
	batchAnsweredTo = 4
	batchCommands   = 15

	commandIfRevision = 3 // 1 and 2 are the operations

	opKey   = 1
	opValue = 2
)

// OverheadMax is the most that a command takes in a batch beside its key and
// value: the field and the operation with lengths of four bytes each, the key
// with one of three, the value with one of four, and the condition.
const OverheadMax = (tagBytes + 4) + (tagBytes + 4) + (tagBytes + 3) + (tagBytes + 4) + (tagBytes + 8)

// Size returns how many bytes the command takes in a batch.
func (c *Command) Size() int { return fieldSize(c.bodySize()) }

// Append appends the command as a field of a batch. What Size returns is what
// it appends. It does not check the limits: the caller who admits a command
// does.
func (c *Command) Append(buf []byte) []byte {
	if c.Op != Put && c.Op != Delete {
		panic(fmt.Sprintf("raftkv: BUG: command with %v", c.Op))
	}
	buf = appendLen(buf, batchCommands, c.bodySize())
	buf = appendLen(buf, protowire.Number(c.Op), c.opSize())
	buf = append(appendLen(buf, opKey, len(c.Key)), c.Key...)
	if c.Op == Put && len(c.Value) > 0 {
		buf = append(appendLen(buf, opValue, len(c.Value)), c.Value...)
	}
	if c.Conditional {
		buf = appendFixed(buf, commandIfRevision, c.IfRevision)
	}
	return buf
}

func (c *Command) bodySize() int {
	n := fieldSize(c.opSize())
	if c.Conditional {
		n += tagBytes + 8
	}
	return n
}

// opSize is the size of the Put or Delete message. As in every proto3 encoding
// an empty value takes no bytes.
func (c *Command) opSize() int {
	n := fieldSize(len(c.Key))
	if c.Op == Put && len(c.Value) > 0 {
		n += fieldSize(len(c.Value))
	}
	return n
}

// A Header opens a batch.
type Header struct {
	Origin     uint64 // the raft ID of the member that took the commands
	First      uint64 // the sequence number of the first command
	AnsweredTo uint64 // all numbers of the origin up to it are answered or abandoned
}

// HeaderBytes is the size of a header, version included.
const HeaderBytes = tagBytes + 1 + 3*(tagBytes+8)

// Append appends the header; the commands follow it.
func (h Header) Append(buf []byte) []byte {
	buf = protowire.AppendTag(buf, batchVersion, protowire.VarintType)
	buf = protowire.AppendVarint(buf, Version)
	buf = appendFixed(buf, batchOrigin, h.Origin)
	buf = appendFixed(buf, batchFirst, h.First)
	return appendFixed(buf, batchAnsweredTo, h.AnsweredTo)
}

func fieldSize(n int) int { return tagBytes + protowire.SizeBytes(n) }

func appendLen(buf []byte, num protowire.Number, n int) []byte {
	buf = protowire.AppendTag(buf, num, protowire.BytesType)
	return protowire.AppendVarint(buf, uint64(n))
}

func appendFixed(buf []byte, num protowire.Number, v uint64) []byte {
	buf = protowire.AppendTag(buf, num, protowire.Fixed64Type)
	return protowire.AppendFixed64(buf, v)
}
