package raftkv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/keyspace"
	"example.com/raftkv/internal/memory"
	"example.com/raftkv/internal/roster"
)

// A Config says who a node is. ID and Addr are needed; the zero value of every
// other field means its default.
type Config struct {
	// ID is the member ID: chosen by the user, unique in the cluster, the same
	// over restarts. From 1 to 2^31-1.
	ID uint64

	// Addr is the host:port that peers and clients dial, and the one that the
	// node listens on unless there is a Listener. With a Listener it may be
	// empty: then it is the Listener's.
	Addr string

	// Cluster is a name of up to 255 bytes. Members of differently named
	// clusters refuse each other. Default: the empty name.
	Cluster string

	// Listener is used instead of listening on Addr. The node closes it.
	Listener net.Listener

	// Dialer is used instead of TCP to reach other members: for tests and
	// tunnels. It must return when its context ends.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)

	// Register is called with the node's gRPC server before it serves, to add
	// services of the caller's own, as kvnode adds reflection.
	Register func(*grpc.Server)

	// Logger takes the node's messages. Default: silence.
	Logger *slog.Logger

	Timing Timing
	Limits Limits
}

// Timing sets the pace of the cluster. All members should have the same.
type Timing struct {
	// Tick is the unit that the others are rounded to. Default 50 ms.
	Tick time.Duration

	// Heartbeat is how often a leader tells its followers that it lives: a
	// multiple of Tick. Default 100 ms.
	Heartbeat time.Duration

	// Election is how long a follower waits for a leader before it stands for
	// election: a multiple of Tick, at least 5 heartbeats. A leader that falls
	// silent is replaced after one to two times this long; one whose process
	// dies, as soon as the others find that its address refuses them. Default 1 s.
	Election time.Duration
}

// Limits bound what a node takes and keeps. They apply to calls on this node;
// what other members have let in is always replicated.
type Limits struct {
	// MaxKeyBytes bounds a key. Default 4 KiB, at most 64 KiB.
	MaxKeyBytes int

	// MaxValueBytes bounds a value. Default 1 MiB, at most 16 MiB.
	MaxValueBytes int

	// MaxPendingBytes bounds the writes called on this node that wait for their
	// answer. Past it calls get ErrOverloaded. Default 64 MiB; at least one
	// value fits.
	MaxPendingBytes int64

	// MaxLogBytes bounds the log that is kept for members that lag: past it
	// they are sent the whole state instead. While the state is on its way the
	// log may grow to four times as much. Default 64 MiB.
	MaxLogBytes int64

	// MaxStateBytes bounds keys and values with what storing them costs. Past
	// it Put gets ErrOverloaded. Default: half of the memory that the machine
	// or the control group has.
	MaxStateBytes int64
}

const (
	clusterNameBytesMax = 255
	heartbeatsMin       = 5 // in an election timeout; etcd enforces the same
	batchBytesMax       = 1 << 20
	applyBytesMax       = 64 << 20 // entries that wait for the applier
)

func defaultTo[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// withDefaults returns the configuration with every default filled in, or an
// error that names the field which is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.Listener != nil {
		defaultTo(&c.Addr, c.Listener.Addr().String())
	}
	defaultTo(&c.Logger, slog.New(slog.DiscardHandler))
	defaultTo(&c.Timing.Tick, 50*time.Millisecond)
	defaultTo(&c.Timing.Heartbeat, 2*c.Timing.Tick)
	defaultTo(&c.Timing.Election, 10*c.Timing.Heartbeat)
	defaultTo(&c.Limits.MaxKeyBytes, 4<<10)
	defaultTo(&c.Limits.MaxValueBytes, 1<<20)
	defaultTo(&c.Limits.MaxPendingBytes, 64<<20)
	defaultTo(&c.Limits.MaxLogBytes, 64<<20)
	defaultTo(&c.Limits.MaxStateBytes, memory.Total()/2)
	if err := errors.Join(c.checkIdentity(), c.Timing.check(), c.Limits.check()); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (c *Config) checkIdentity() error {
	switch {
	case c.ID == 0 || c.ID > roster.IDMax:
		return fmt.Errorf("%w: Config.ID is %d; want 1 to %d", ErrInvalid, c.ID, roster.IDMax)
	case checkAddr(c.Addr) != nil:
		return fmt.Errorf("%w: Config.Addr: %w", ErrInvalid, checkAddr(c.Addr))
	case len(c.Cluster) > clusterNameBytesMax || !utf8.ValidString(c.Cluster):
		return fmt.Errorf("%w: Config.Cluster must be UTF-8 of at most %d bytes", ErrInvalid, clusterNameBytesMax)
	}
	return nil
}

// checkAddr wants host:port, both given: an address that others can dial.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is no host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	if host == "" || len(addr) > roster.AddrBytesMax || !utf8.ValidString(addr) {
		return fmt.Errorf("%q has no host that others can dial", addr)
	}
	return nil
}

func (t Timing) check() error {
	switch {
	case t.Tick < time.Millisecond:
		return fmt.Errorf("%w: Timing.Tick is %v; want at least 1ms", ErrInvalid, t.Tick)
	case t.Heartbeat < t.Tick || t.Heartbeat%t.Tick != 0:
		return fmt.Errorf("%w: Timing.Heartbeat is %v; want a multiple of Tick, %v", ErrInvalid, t.Heartbeat, t.Tick)
	case t.Election < heartbeatsMin*t.Heartbeat || t.Election%t.Tick != 0:
		return fmt.Errorf("%w: Timing.Election is %v; want a multiple of Tick and at least %d heartbeats of %v",
			ErrInvalid, t.Election, heartbeatsMin, t.Heartbeat)
	case t.Election > time.Hour:
		return fmt.Errorf("%w: Timing.Election is %v; want at most 1h", ErrInvalid, t.Election)
	}
	return nil
}

func (t Timing) heartbeatTicks() int { return int(t.Heartbeat / t.Tick) }
func (t Timing) electionTicks() int  { return int(t.Election / t.Tick) }

func (l Limits) check() error {
	largest := keyspace.Cost(l.MaxKeyBytes, l.MaxValueBytes)
	switch {
	case l.MaxKeyBytes < 1 || l.MaxKeyBytes > command.KeyBytesMax:
		return fmt.Errorf("%w: Limits.MaxKeyBytes is %d; want 1 to %d", ErrInvalid, l.MaxKeyBytes, command.KeyBytesMax)
	case l.MaxValueBytes < 1 || l.MaxValueBytes > command.ValueBytesMax:
		return fmt.Errorf("%w: Limits.MaxValueBytes is %d; want 1 to %d", ErrInvalid, l.MaxValueBytes, command.ValueBytesMax)
	case l.MaxPendingBytes < largest:
		return fmt.Errorf("%w: Limits.MaxPendingBytes is %d; want room for one write, %d", ErrInvalid, l.MaxPendingBytes, largest)
	case l.MaxLogBytes < 64<<10:
		return fmt.Errorf("%w: Limits.MaxLogBytes is %d; want at least 64 KiB", ErrInvalid, l.MaxLogBytes)
	case l.MaxStateBytes < largest:
		return fmt.Errorf("%w: Limits.MaxStateBytes is %d; want room for one write, %d", ErrInvalid, l.MaxStateBytes, largest)
	}
	return nil
}
