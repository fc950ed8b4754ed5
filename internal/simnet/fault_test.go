package simnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/bits"
	"math/rand/v2"
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

		n.Cut("a", "b")
		write(t, a, "all within the cut")
		time.Sleep(time.Minute)
		n.Heal("a", "b")
		healed = time.Now()
		wantRead(t, b, "all within the cut")
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

func TestResetAllBreaksEveryConnectionOfAnAddressOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		ab, _ := connect(t, n, "a", "b")
		ca, _ := connect(t, n, "c", "a")
		ae, ea := connect(t, n, "a", "e")
		cd, dc := connect(t, n, "c", "d")
		self1, self2 := connect(t, n, "f", "f")
		n.ResetAll("f")
		write(t, self1, "a node reaches itself")
		wantRead(t, self2, "a node reaches itself")
		n.ResetAll("a")
		for name, c := range map[string]io.Reader{"dialed by it": ab, "dialed to it": ca, "to a third": ae} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: Read = %v, want ECONNRESET", name, err)
			}
		}
		if _, err := ea.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other end: Read = %v, want ECONNRESET", err)
		}
		write(t, cd, "untouched")
		wantRead(t, dc, "untouched")
		wantCounts(t, n, "a", "b", Counts{Dials: 1, Resets: 1})
		wantCounts(t, n, "c", "a", Counts{Dials: 1, Resets: 1})
		wantCounts(t, n, "c", "d", Counts{Dials: 1, Bytes: 9})
	})
}

func wantCounts(t *testing.T, n *Network, from, to string, want Counts) {
	t.Helper()
	if got := n.Counts(from, to); got != want {
		t.Errorf("Counts(%s, %s) = %+v, want %+v", from, to, got, want)
	}
}

func TestSlowBytesArriveAtTheBandwidth(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Slow("a", "b", 2*packetBytesMax)
		n.Delay("a", "b", time.Second)
		start := time.Now()
		write(t, a, string(make([]byte, 4*packetBytesMax)))
		wantElapsed(t, start, 0)
		n.check(t)
		for i := range 4 {
			wantRead(t, b, string(make([]byte, packetBytesMax)))
			wantElapsed(t, start, time.Second+time.Duration(i+1)*time.Second/2)
		}
		write(t, b, "quick")
		wantRead(t, a, "quick")
		wantElapsed(t, start, 3*time.Second)

		n.Delay("a", "b", 0)
		write(t, a, string(make([]byte, packetBytesMax))) // an idle link saves nothing up
		n.Slow("a", "b", packetBytesMax)
		write(t, a, string(make([]byte, packetBytesMax)))
		n.Slow("a", "b", 0)
		write(t, a, "does not overtake")
		start = time.Now()
		wantRead(t, b, string(make([]byte, packetBytesMax)))
		wantElapsed(t, start, time.Second/2)
		wantRead(t, b, string(make([]byte, packetBytesMax)))
		wantElapsed(t, start, 3*time.Second/2)
		wantRead(t, b, "does not overtake")
		write(t, a, "fast again")
		wantRead(t, b, "fast again")
		wantElapsed(t, start, 3*time.Second/2)
		wantCounts(t, n, "a", "b", Counts{Dials: 1, Bytes: 6*packetBytesMax + 27, Slowed: 6})
	})
}

func TestSlowConnectionsShareTheBandwidth(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		d, c := connect(t, n, "b", "a.out") // another pair
		n.Slow("a", "b", packetBytesMax)
		l := listen(t, n, "a")
		back, err := n.Dial(t.Context(), "b", "a") // the same direction, dialed by the other
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(back, accepted)
		start := time.Now()
		write(t, a, string(make([]byte, packetBytesMax)))
		write(t, accepted, string(make([]byte, packetBytesMax)))
		write(t, c, "not of this direction")
		wantRead(t, d, "not of this direction")
		wantElapsed(t, start, 0)
		wantRead(t, back, string(make([]byte, packetBytesMax)))
		wantElapsed(t, start, 2*time.Second)
		wantRead(t, b, string(make([]byte, packetBytesMax)))
		wantElapsed(t, start, 2*time.Second)
	})
}

func TestSlowWriterBlocksWhenTheWindowIsFull(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Slow("a", "b", slowBytesMax) // a window a second
		start := time.Now()
		write(t, a, string(make([]byte, slowBytesMax)))
		wantElapsed(t, start, 0)
		write(t, a, string(make([]byte, slowBytesMax)))
		wantElapsed(t, start, time.Second) // though nobody reads
		n.check(t)

		done := make(chan error)
		go func() { _, err := a.Write(make([]byte, bufferBytesMax/2)); done <- err }()
		time.Sleep(time.Second/2 + time.Millisecond) // not just when a packet arrives
		n.Slow("a", "b", 0)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantElapsed(t, start, 3*time.Second/2+time.Millisecond)
		want := 2*slowBytesMax + bufferBytesMax/2
		if _, err := io.ReadFull(b, make([]byte, want)); err != nil {
			t.Fatal(err)
		}
		wantElapsed(t, start, 5*time.Second/2) // what was on the way keeps its time
	})
}

func TestSlowHoldsForWhatACutHasHeldUp(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Slow("a", "b", packetBytesMax)
		n.Cut("a", "b")
		write(t, a, string(make([]byte, 3*packetBytesMax)))
		time.Sleep(time.Hour)
		n.Heal("a", "b")
		start := time.Now()
		n.check(t)
		for i := range 3 {
			wantRead(t, b, string(make([]byte, packetBytesMax)))
			wantElapsed(t, start, time.Duration(i+1)*time.Second)
		}
		if got := n.Counts("a", "b").Stalls; got != 1 {
			t.Errorf("%d stalls, want 1", got)
		}
	})
}

func TestSlowCloseTravelsBehindTheBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network) {
		a, b := connect(t, n, "a", "b")
		n.Slow("a", "b", packetBytesMax)
		write(t, a, string(make([]byte, 2*packetBytesMax)))
		closeAll(a)
		start := time.Now()
		got, err := io.ReadAll(b)
		if len(got) != 2*packetBytesMax || err != nil {
			t.Errorf("ReadAll = %d bytes, %v; want all and EOF", len(got), err)
		}
		wantElapsed(t, start, 2*time.Second)
	})
}

// carry writes the same bytes in pieces over a new connection and returns what
// arrives.
func carry(t *testing.T, n *Network, pieces int) []byte {
	t.Helper()
	l := listen(t, n, "b")
	a, err := n.Dial(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(l, a, b)
	piece := bytes.Repeat([]byte("0123456789"), 10)
	var got []byte
	for range pieces {
		if _, err := a.Write(piece); err != nil {
			t.Fatal(err)
		}
		in := make([]byte, len(piece))
		if _, err := io.ReadFull(b, in); err != nil {
			t.Fatal(err)
		}
		got = append(got, in...)
	}
	if string(piece) != string(bytes.Repeat([]byte("0123456789"), 10)) {
		t.Error("the writer's own bytes were changed")
	}
	return got
}

func TestCorruptFlipsOneBitInSomeWritesTheSameForTheSameSeed(t *testing.T) {
	var first []byte
	for range 2 {
		inBubble(t, func(t *testing.T, n *Network) {
			n.Corrupt("a", "b", 0.25, rand.NewPCG(1, 2))
			n.Corrupt("b", "a", 1, rand.NewPCG(1, 2)) // nothing travels there
			const pieces = 1000
			got := carry(t, n, pieces)
			flips := 0
			for i, c := range got {
				flips += bits.OnesCount8(c ^ "0123456789"[i%10])
			}
			if counted := n.Counts("a", "b").Corrupted; flips != counted || flips < 200 || flips > 300 {
				t.Errorf("%d bits were flipped, %d counted, of %d writes at 0.25", flips, counted, pieces)
			}
			if first == nil {
				first = got
			}
			if !bytes.Equal(got, first) {
				t.Error("the same seed has corrupted other bits")
			}
			n.Corrupt("a", "b", 0, nil)
			if got := carry(t, n, 10); !bytes.Equal(got, bytes.Repeat([]byte("0123456789"), 100)) {
				t.Error("corrupt after the end of it")
			}
			wantCounts(t, n, "b", "a", Counts{})
		})
	}
}
