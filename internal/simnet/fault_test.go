package simnet

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestCutStallsOneDirectionAndHealDeliversInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		write(t, a, "before ")
		n.Cut("a", "b")
		write(t, a, "during ")
		write(t, a, "and ")
		wantRead(t, b, "before ") // it had arrived
		wantNothing(t, b)
		write(t, b, "the other way")
		wantRead(t, a, "the other way")
		n.check(t)

		n.Heal("b", "a") // not the one that is cut
		wantNothing(t, b)
		n.Heal("a", "b")
		write(t, a, "after")
		wantRead(t, b, "during and after")
	})
}

func TestCutHidesAClose(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Cut("a", "b")
		closeAll(a)
		wantNothing(t, b)
		write(t, b, "into the void")
		n.Heal("a", "b")
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read after Heal = %v, want io.EOF", err)
		}
	})
}

func TestCutWriterBlocksWhenTheBufferIsFull(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Cut("a", "b")
		done := make(chan error)
		go func() { _, err := a.Write(make([]byte, 3*bufferBytesMax)); done <- err }()
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Fatalf("Write of three buffers returned %v over a cut", err)
		default:
		}
		n.Heal("a", "b")
		if _, err := io.ReadFull(b, make([]byte, 3*bufferBytesMax)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestDialHangsOverACut(t *testing.T) {
	for _, cut := range []string{"there", "back", "isolated"} {
		t.Run(cut, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *Network) {
				listen(t, n, "b")
				heal := func() { n.Rejoin("b") }
				switch cut {
				case "there":
					n.Cut("a", "b")
					heal = func() { n.Heal("a", "b") }
				case "back":
					n.Cut("b", "a")
					heal = func() { n.Heal("b", "a") }
				case "isolated":
					n.Isolate("b")
				}
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err := n.Dial(ctx, "a", "b")
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("Dial = %v, want the context's error", err)
				}
				wantElapsed(t, start, 20*time.Second)

				time.AfterFunc(time.Hour, heal)
				c, err := n.Dial(t.Context(), "a", "b")
				if err != nil {
					t.Fatalf("Dial = %v, want success when healed", err)
				}
				closeAll(c)
				wantElapsed(t, start, time.Hour+20*time.Second)
			})
		})
	}
}

func TestIsolateCutsEverybodyButItself(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		ab, ba := connect(t, n, "a", "b")
		cb, bc := connect(t, n, "c", "d")
		aa1, aa2 := connect(t, n, "a", "a")
		n.Isolate("a")
		write(t, ab, "from a")
		write(t, ba, "to a")
		wantNothing(t, ab)
		wantNothing(t, ba)
		write(t, cb, "others")
		wantRead(t, bc, "others")
		write(t, aa1, "self")
		wantRead(t, aa2, "self")

		n.Cut("b", "a")
		n.Rejoin("a")
		wantRead(t, ba, "from a")
		wantNothing(t, ab) // Rejoin leaves cuts alone
		n.Heal("b", "a")
		wantRead(t, ab, "to a")
	})
}

func TestDelayIsOneWayAndKeepsOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		start := time.Now()
		n.Delay("a", "b", time.Second)
		write(t, a, "slow ")
		n.Delay("a", "b", 0)
		write(t, a, "does not overtake")
		write(t, b, "quick")
		wantRead(t, a, "quick")
		wantElapsed(t, start, 0)
		n.check(t)
		wantRead(t, b, "slow ")
		wantElapsed(t, start, time.Second)
		wantRead(t, b, "does not overtake")
		wantElapsed(t, start, time.Second)

		n.Delay("a", "b", 100*time.Millisecond)
		start = time.Now()
		for range 10 { // many in flight at once
			write(t, a, "x")
			time.Sleep(10 * time.Millisecond)
		}
		wantElapsed(t, start, 100*time.Millisecond)
		for i := range 10 {
			wantRead(t, b, "x")
			wantElapsed(t, start, 100*time.Millisecond+time.Duration(i)*10*time.Millisecond)
		}
	})
}

func TestHealedBytesTakeTheDelay(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Delay("a", "b", time.Second)
		write(t, a, "held up, ")
		n.Cut("a", "b")
		time.Sleep(1500 * time.Millisecond)
		write(t, a, "under way") // due half a second after the heal
		time.Sleep(500 * time.Millisecond)
		n.Heal("a", "b")
		healed := time.Now()
		n.check(t)
		wantRead(t, b, "held up, ")
		wantElapsed(t, healed, time.Second)
		wantRead(t, b, "under way")
		wantElapsed(t, healed, time.Second)

		write(t, a, "missed it")
		sent := time.Now()
		n.Cut("a", "b")
		time.Sleep(500 * time.Millisecond)
		n.Heal("a", "b")
		wantRead(t, b, "missed it") // the cut ended before it came by
		wantElapsed(t, sent, time.Second)
	})
}

func TestDialTakesARoundTrip(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		listen(t, n, "b")
		n.Delay("a", "b", 30*time.Millisecond)
		n.Delay("b", "a", 20*time.Millisecond)
		start := time.Now()
		c, err := n.Dial(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		closeAll(c)
		wantElapsed(t, start, 50*time.Millisecond)

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start = time.Now()
		if _, err := n.Dial(ctx, "a", "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial = %v, want the context's error", err)
		}
		wantElapsed(t, start, 10*time.Millisecond)
	})
}

func TestResetBreaksConnectionsOfThePairOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		c, d := connect(t, n, "c", "d")
		write(t, a, "unread")
		n.Cut("a", "b") // a reset crosses a cut
		errc := make(chan error)
		go func() { _, err := a.Read(make([]byte, 1)); errc <- err }()
		synctest.Wait()
		n.Reset("b", "a")
		if err := <-errc; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a's blocked Read = %v, want ECONNRESET", err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("b's Read = %v, want ECONNRESET", err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("b's Write = %v, want ECONNRESET", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("Close after a reset: %v", err)
		}
		write(t, c, "untouched")
		wantRead(t, d, "untouched")
		n.Heal("a", "b")
		closeAll(a)
		e, err := n.Dial(t.Context(), "a", "b")
		if err != nil {
			t.Fatalf("Dial after Reset: %v", err)
		}
		closeAll(e)
	})
}
