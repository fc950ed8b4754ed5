package simnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs f in a synctest bubble, which fails when f leaves a goroutine,
// with a network whose invariants are checked at the end.
func inBubble(t *testing.T, f func(t *testing.T, n *Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		f(t, n)
		synctest.Wait()
		n.check(t)
	})
}

// check holds the network to the invariants in the comment of link.
func (n *Network) check(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.links {
		for _, e := range []*end{&k.dialer, &k.accepter} {
			size, flying := 0, 0
			for _, data := range e.in.inbox {
				size += len(data)
			}
			for i, s := range e.in.flight {
				size += len(s.data)
				flying += len(s.data)
				if i > 0 && s.due.Before(e.in.flight[i-1].due) {
					t.Errorf("%s->%s: segment %d is due before its predecessor",
						e.remote, e.local, i)
				}
			}
			if size != e.in.bytes || size > bufferBytesMax {
				t.Errorf("%s->%s: bytes = %d, want %d, at most %d",
					e.remote, e.local, e.in.bytes, size, bufferBytesMax)
			}
			if flying != e.in.flying {
				t.Errorf("%s->%s: flying = %d, want %d", e.remote, e.local, e.in.flying, flying)
			}
			if len(e.in.flight) > 0 && e.in.timer == nil && !e.in.stalled {
				t.Errorf("%s->%s: a flight without a timer", e.remote, e.local)
			}
		}
	}
}

// connect returns the two ends of a connection from a to b, closed with the
// test, as is the listener.
func connect(t *testing.T, n *Network, a, b string) (dialed, accepted net.Conn) {
	t.Helper()
	l := listen(t, n, b)
	dialed, err := n.Dial(t.Context(), a, b)
	if err != nil {
		t.Fatalf("Dial(%s, %s): %v", a, b, err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatalf("Accept at %s: %v", b, err)
	}
	t.Cleanup(func() { closeAll(dialed, accepted) })
	return dialed, accepted
}

func listen(t *testing.T, n *Network, addr string) net.Listener {
	t.Helper()
	l, err := n.Listen(addr)
	if err != nil {
		t.Fatalf("Listen(%s): %v", addr, err)
	}
	t.Cleanup(func() { closeAll(l) })
	return l
}

func closeAll(closers ...io.Closer) {
	for _, c := range closers {
		_ = c.Close() // a test may have closed it already
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if count, err := c.Write([]byte(s)); count != len(s) || err != nil {
		t.Fatalf("Write(%q) = %d, %v", s, count, err)
	}
}

func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// wantNothing fails when something can be read within a minute.
func wantNothing(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	count, err := c.Read(got)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read = %q, %v; want nothing before the deadline", got[:count], err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func wantElapsed(t *testing.T, since time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(since); got != want {
		t.Fatalf("took %v, want %v", got, want)
	}
}

func TestBytesArriveWholeAndInOrderBothWays(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Delay("a", "b", 3*time.Millisecond)
		var wg sync.WaitGroup
		for i, pair := range [][2]net.Conn{{a, b}, {b, a}} {
			seed := uint64(i + 1)
			sent := make([]byte, 5*bufferBytesMax+i)
			_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(sent) // never fails
			wg.Go(func() { writeInPieces(t, pair[0], sent, seed) })
			wg.Go(func() {
				got := make([]byte, len(sent))
				if _, err := io.ReadFull(pair[1], got); err != nil {
					t.Errorf("seed %d: read: %v", seed, err)
				}
				if !bytes.Equal(got, sent) {
					t.Errorf("seed %d: other bytes arrived than were sent", seed)
				}
			})
		}
		wg.Wait()
	})
}

func writeInPieces(t *testing.T, c net.Conn, data []byte, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	for len(data) > 0 {
		count := min(len(data), 1+random.IntN(200_000))
		if _, err := c.Write(data[:count]); err != nil {
			t.Errorf("seed %d: write: %v", seed, err)
			return
		}
		data = data[count:]
	}
}

func TestConcurrentWritesDoNotInterleave(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		const size = bufferBytesMax + 1 // more than fits, so that each one waits
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if _, err := a.Write(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					t.Errorf("write: %v", err)
				}
			})
		}
		for range 4 {
			got := make([]byte, size)
			if _, err := io.ReadFull(b, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytes.Repeat(got[:1], size)) {
				t.Error("one Write arrived mixed with another")
			}
		}
		wg.Wait()
	})
}

func TestWriteBlocksWhenTheBufferIsFull(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		start := time.Now()
		if err := a.SetWriteDeadline(start.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		count, err := a.Write(make([]byte, bufferBytesMax+1))
		if count != bufferBytesMax || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Write = %d, %v; want %d and the deadline", count, err, bufferBytesMax)
		}
		wantElapsed(t, start, time.Second)
		n.check(t)

		if err := a.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { _, err := a.Write([]byte("x")); done <- err }()
		time.Sleep(time.Hour)
		wantRead(t, b, "\x00")
		if err := <-done; err != nil {
			t.Fatalf("Write after a Read made room: %v", err)
		}
		wantElapsed(t, start, time.Second+time.Hour)
	})
}

func TestAddressesAreTheLogicalOnes(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		got := fmt.Sprintf("%v %v %v %v",
			a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
		if want := "a b b a"; got != want {
			t.Errorf("addresses = %q, want %q", got, want)
		}
	})
}

func TestDialIsRefusedWhereNobodyListens(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		start := time.Now()
		_, err := n.Dialer("a")(t.Context(), "b")
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("Dial = %v, want ECONNREFUSED", err)
		}
		wantElapsed(t, start, 0)

		l := listen(t, n, "b")
		if _, err := n.Listen("b"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second Listen = %v, want EADDRINUSE", err)
		}
		closeAll(l)
		if _, err := n.Dial(t.Context(), "a", "b"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial after Close = %v, want ECONNREFUSED", err)
		}
		listen(t, n, "b") // the address is free again
		if _, err := n.Listen(""); err == nil {
			t.Error("Listen without an address succeeded")
		}
	})
}

func TestListenerCloseEndsAcceptAndResetsTheBacklog(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		l := listen(t, n, "b")
		kept, err := n.Dial(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(kept, accepted)

		acceptErr := make(chan error)
		go func() { _, err := l.Accept(); acceptErr <- err }()
		synctest.Wait()
		closeAll(l)
		if err := <-acceptErr; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v, want net.ErrClosed", err)
		}
		write(t, kept, "still here")
		wantRead(t, accepted, "still here")

		l = listen(t, n, "b")
		waiting, err := n.Dial(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(waiting)
		closeAll(l)
		if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read on a connection never accepted = %v, want ECONNRESET", err)
		}
	})
}

func TestDialWaitsWhileTheBacklogIsFull(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		l := listen(t, n, "b")
		for range backlogMax {
			c, err := n.Dial(t.Context(), "a", "b")
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(c)
		}
		dialErr := make(chan error)
		dial := func() {
			c, err := n.Dial(t.Context(), "a", "b")
			if err == nil {
				defer closeAll(c)
			}
			dialErr <- err
		}
		start := time.Now()
		go dial()
		time.Sleep(time.Minute)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		closeAll(c)
		if err := <-dialErr; err != nil {
			t.Errorf("Dial = %v, want success after an Accept", err)
		}
		wantElapsed(t, start, time.Minute)

		go dial()
		synctest.Wait()
		closeAll(l)
		if err := <-dialErr; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial = %v, want ECONNREFUSED after Close", err)
		}
	})
}

func TestCloseLetsThePeerDrainAndThenEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		n.Delay("a", "b", time.Second)
		a, b := connect(t, n, "a", "b")
		write(t, a, "last words")
		write(t, b, "never read")
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		got, err := io.ReadAll(b)
		if string(got) != "last words" || err != nil {
			t.Fatalf("ReadAll = %q, %v; want the last words and EOF", got, err)
		}
		wantElapsed(t, start, time.Second)
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after the peer closed = %v, want EPIPE", err)
		}
		for name, call := range map[string]func() error{
			"Read":        func() error { _, err := a.Read(make([]byte, 1)); return err },
			"Write":       func() error { _, err := a.Write([]byte("x")); return err },
			"SetDeadline": func() error { return a.SetDeadline(time.Now()) },
			"Close":       a.Close,
		} {
			if err := call(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after Close = %v, want net.ErrClosed", name, err)
			}
		}
	})
}

func TestCloseUnblocksOwnReadAndWriteAndThePeersWrite(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		errc := make(chan error, 3)
		full := make([]byte, bufferBytesMax+1)
		go func() { _, err := a.Read(make([]byte, 1)); errc <- err }()
		go func() { _, err := a.Write(full); errc <- err }()
		synctest.Wait()
		closeAll(a)
		for range 2 {
			if err := <-errc; !errors.Is(err, net.ErrClosed) {
				t.Errorf("a blocked call returned %v, want net.ErrClosed", err)
			}
		}

		c, d := connect(t, n, "c", "d")
		go func() { _, err := c.Write(full); errc <- err }()
		synctest.Wait()
		closeAll(d)
		if err := <-errc; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the peer's blocked Write returned %v, want EPIPE", err)
		}
		closeAll(b, c)
		if len(n.links) != 0 {
			t.Errorf("%d links left after all ends were closed", len(n.links))
		}
	})
}

func TestDeadlinesInterruptMoveAndReset(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		wantNothing(t, a)

		// Setting a deadline fails only on a closed end, and nothing closes them here.
		start := time.Now()
		errc := make(chan error)
		go func() { _, err := a.Read(make([]byte, 1)); errc <- err }()
		_ = a.SetReadDeadline(start.Add(time.Hour))
		synctest.Wait()
		_ = a.SetReadDeadline(start.Add(time.Minute))
		err := <-errc
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("Read = %v, want a timeout", err)
		}
		wantElapsed(t, start, time.Minute)

		write(t, b, "x")
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read past the deadline = %v, want it to fail although data is there", err)
		}
		_ = a.SetDeadline(time.Time{})
		wantRead(t, a, "x")
		_ = a.SetDeadline(time.Now())
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write past the deadline = %v", err)
		}
		_ = b.SetReadDeadline(time.Now().Add(time.Hour))
		time.Sleep(2 * time.Hour)
		_ = b.SetReadDeadline(time.Time{})
		wantNothing(t, b)
	})
}
