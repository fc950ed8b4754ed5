package raftkv

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"example.com/raftkv/internal/command"
)

func listOf(t *testing.T, f *fsm, prefix, after string, limit int) *Listing {
	t.Helper()
	l, err := f.list(t.Context(), prefix, after, limit)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestListingNeverChanges(t *testing.T) {
	for _, n := range []int{0, 1, collectMax, collectMax + 1, 3 * collectMax} {
		t.Run(fmt.Sprint(n, " keys"), func(t *testing.T) {
			f := newTestFSM(testOrigins[0])
			var want []KeyValue
			for i := range n {
				key := fmt.Sprintf("p/%05d", i)
				f.revision++
				f.keys.Put([]byte(key), []byte("old"), f.revision)
				want = append(want, KeyValue{key, []byte("old"), f.revision})
			}
			f.keys.Put([]byte("other"), nil, 1)
			l := listOf(t, f, "p/", "", 0)
			for i, kv := range want {
				if i%2 == 0 {
					f.keys.Delete([]byte(kv.Key))
				} else {
					f.keys.Put([]byte(kv.Key), []byte("new"), f.revision+1)
				}
			}
			f.keys.Put([]byte("p/new"), nil, f.revision+2)
			f.revision += 2
			if l.Revision != uint64(n) {
				t.Errorf("listing at revision %d, want %d", l.Revision, n)
			}
			for range 2 { // it can be read again
				got := slices.Collect(l.All())
				if !slices.EqualFunc(got, want, func(a, b KeyValue) bool {
					return a.Key == b.Key && a.Revision == b.Revision && bytes.Equal(a.Value, b.Value)
				}) {
					t.Fatalf("%d keys, want the %d as they were", len(got), len(want))
				}
			}
		})
	}
}

func TestListKeepsToPrefixLimitAndAfter(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	for i := range 3 * collectMax {
		f.keys.Put(fmt.Appendf(nil, "k%05d", i), nil, 1)
	}
	f.keys.Put([]byte("a"), nil, 1)
	for _, c := range []struct {
		prefix, after string
		limit, want   int
		first         string
	}{
		{"", "", 0, 3*collectMax + 1, "a"},
		{"k", "", 0, 3 * collectMax, "k00000"},
		{"k", "k00009", 5, 5, "k00010"},
		{"k", "k00009", collectMax, collectMax, "k00010"},
		{"k", "k00009", collectMax + 1, collectMax + 1, "k00010"},
		{"k0001", "", 0, 10, "k00010"},
		{"k", "z", 0, 0, ""},
		{"none", "", 0, 0, ""},
	} {
		got := slices.Collect(listOf(t, f, c.prefix, c.after, c.limit).All())
		if len(got) != c.want || len(got) > 0 && got[0].Key != c.first {
			t.Errorf("list %+v: %d keys", c, len(got))
		}
		if !slices.IsSortedFunc(got, func(a, b KeyValue) int { return strings.Compare(a.Key, b.Key) }) {
			t.Errorf("list %+v is not in order", c)
		}
	}
}

// A first List that ends early leaves what it has done to the next, whatever is
// written in between.
func TestFirstListIsGivenUpWithItsContext(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	const keys = 5000
	for i := range keys {
		f.keys.Put(fmt.Append(nil, i), nil, 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := 0
	for ; ; calls++ {
		l, err := f.list(ctx, "", "", 0)
		if err == nil {
			if got := len(slices.Collect(l.All())); got != keys-calls {
				t.Errorf("%d keys are listed, want %d", got, keys-calls)
			}
			break
		}
		wantErr(t, "list", err, context.Canceled)
		f.keys.Delete(fmt.Append(nil, calls))
	}
	if calls < 10 {
		t.Errorf("%d lists with an ended context did nothing, want many: each does a little", calls)
	}
}

// Readers and the applier at once: for the race detector, and no reader sees
// half an entry.
func TestReadersRunBesideTheApplier(t *testing.T) {
	f := newTestFSM(testOrigins[0])
	donec := make(chan struct{})
	go func() {
		defer close(donec)
		for i := range uint64(300) {
			data := batchOf(command.Header{Origin: testOrigins[1], First: 1 + 2*i, AnsweredTo: 2 * i}, putOf("x", fmt.Sprint(i)), putOf("y", fmt.Sprint(i)))
			if _, err := f.apply([]task{{index: 2 + i, term: 1, data: data}}); err != nil {
				t.Error(err)
			}
		}
	}()
	for running := true; running; {
		select {
		case <-donec:
			running = false
		default:
		}
		got := slices.Collect(listOf(t, f, "", "", 0).All())
		if len(got) == 2 && !bytes.Equal(got[0].Value, got[1].Value) {
			t.Fatalf("x = %q and y = %q of one entry", got[0].Value, got[1].Value)
		}
		f.status()
	}
}
