package raftkv

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// TestQueueKeepsNothingThatWasTaken: what the applier has done must not stay in
// memory because the queue uses its room again.
func TestQueueKeepsNothingThatWasTaken(t *testing.T) {
	q := &taskQueue{wakec: make(chan struct{}, 1)}
	drain := func() {
		for {
			tasks, bytes := q.take()
			if len(tasks) == 0 {
				return
			}
			q.finish(bytes)
		}
	}
	const n = 128
	var freed atomic.Int64
	for i := range n {
		data := make([]byte, takeBytesMax/2)
		runtime.AddCleanup(&data[0], func(int) { freed.Add(1) }, i)
		q.push([]task{{index: uint64(i), data: data}})
	}
	drain()
	for range 10 {
		q.push([]task{{data: []byte{1}}})
		drain()
	}
	defer runtime.KeepAlive(q)
	for range 100 {
		if runtime.GC(); freed.Load() == n {
			return
		}
		runtime.Gosched() // cleanups have a goroutine of their own
	}
	t.Errorf("%d of %d tasks were freed", freed.Load(), n)
}

func TestQueueIsTakenInOrderAndParts(t *testing.T) {
	q := &taskQueue{wakec: make(chan struct{}, 1)}
	sizes := []int{takeBytesMax / 2, takeBytesMax / 2, 1, 2 * takeBytesMax, 1, 1}
	for i, size := range sizes {
		q.push([]task{{index: uint64(i), data: make([]byte, size)}})
	}
	next := uint64(0)
	for _, want := range []int{2, 1, 1, 2} {
		tasks, bytes := q.take()
		q.finish(bytes)
		if len(tasks) != want {
			t.Fatalf("%d tasks, want %d", len(tasks), want)
		}
		for _, task := range tasks {
			if task.index != next {
				t.Errorf("task %d, want %d", task.index, next)
			}
			next++
		}
		if more := next < uint64(len(sizes)); more != (len(q.wakec) > 0) {
			t.Errorf("after %d tasks the applier is woken: %v, want %v", next, len(q.wakec) > 0, more)
		} else if more {
			<-q.wakec
		}
	}
}

// TestQueueCountsWhatTheLogTakes: by it the sender of a snapshot knows how much is left
// of the log that is kept for the receiver, and that writes go on.
func TestQueueCountsWhatTheLogTakes(t *testing.T) {
	s, _ := foundedStorage(t, 1<<20)
	q := &taskQueue{wakec: make(chan struct{}, 1)}
	log := entries(2, 1, 0, 1, 60, 60, 10_000)
	appendEntries(t, s, log)
	for _, e := range log {
		q.push([]task{{index: e.GetIndex(), term: 1, data: e.GetData()}})
	}
	q.push([]task{{freeze: true}, {install: new(stagedSnapshot)}})
	if got := q.committed.Load(); got != s.bytes {
		t.Errorf("the entries committed take %d bytes of the log, want %d", got, s.bytes)
	}
}
