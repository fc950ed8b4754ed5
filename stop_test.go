package raftkv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/raftkv/internal/membership"
)

// A stopping is a cluster whose nodes are stopped at random moments while calls
// are under way, and what these return.
type stopping struct {
	*cluster
	rng   *rand.Rand
	stops sync.WaitGroup
	calls sync.WaitGroup

	mu     sync.Mutex // guards what follows
	number int
	done   map[string]*Node // acknowledged puts, by key: where
	not    []string         // keys of puts that were certainly not done
}

// mayReturn lists what calls of each kind may return when nodes stop, beside
// ErrClosed and ErrRemoved. Writes and changes may add ErrOutcomeUnknown.
var mayReturn = map[string][]error{
	"put":    {ErrNotInitialized, ErrQuorumLost},
	"read":   {ErrNotInitialized, ErrQuorumLost, ErrNotFound},
	"ready":  {ErrQuorumLost},
	"init":   {ErrNotMember, ErrAlreadyInitialized},
	"change": {ErrNotInitialized, ErrQuorumLost, ErrMembershipRefused, ErrQuorumAtRisk, ErrLearnerNotFound, ErrNotMember, ErrLearnerTooSlow},
}

// call makes a call in a goroutine and checks what it returns.
func (s *stopping) call(kind string, n *Node, f func(ctx context.Context) error) {
	s.calls.Go(func() { s.judge(kind, n, f(context.Background())) })
}

func (s *stopping) judge(kind string, n *Node, err error) {
	unknown := errors.Is(err, ErrOutcomeUnknown)
	known := err == nil || slices.ContainsFunc(append(mayReturn[kind], ErrClosed, ErrRemoved), func(want error) bool { return errors.Is(err, want) })
	switch {
	case !known, unknown && kind != "put" && kind != "change":
		s.t.Errorf("member %d: %s returned %v", n.cfg.ID, kind, err)
	case errors.Is(err, membership.ErrNotLeader), err != nil && strings.Count(err.Error(), "raftkv: ") > 1:
		s.t.Errorf("member %d: %s returned %v, which says nothing to a caller", n.cfg.ID, kind, err)
	}
}

// storm makes calls that come one after the other until the node refuses them.
func (s *stopping) storm(n *Node, callers int) {
	ctx := context.Background()
	for range callers {
		s.calls.Go(func() {
			for err := error(nil); err == nil; {
				key := s.key()
				_, err = n.Put(ctx, key, []byte(key))
				s.judge("put", n, err)
				s.note(key, n, err)
				s.pause(time.Millisecond) // a single voter answers in no time
			}
		})
		s.calls.Go(func() {
			for err := error(nil); err == nil || errors.Is(err, ErrNotFound); {
				_, err = n.Get(ctx, "k")
				s.judge("read", n, err)
				s.pause(time.Millisecond)
			}
		})
		s.calls.Go(func() {
			for err := error(nil); err == nil; {
				_, err = n.List(ctx, "k")
				s.judge("read", n, err)
				s.pause(time.Millisecond)
			}
		})
	}
}

func (s *stopping) key() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	return fmt.Sprint("key ", s.number)
}

func (s *stopping) note(key string, n *Node, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.done[key] = n
	case !errors.Is(err, ErrOutcomeUnknown):
		s.not = append(s.not, key)
	}
}

// moment waits for a random time below d and then, as much happens in no time,
// for some steps of other goroutines.
func (s *stopping) moment(rng *rand.Rand, d time.Duration) {
	s.pause(upToDuration(rng, d))
	for range rng.IntN(100) {
		runtime.Gosched()
	}
}

// stopAll stops each node at a moment of its own, in one way or another.
func (s *stopping) stopAll(within time.Duration) (stops int) {
	nodes := s.but()
	for _, n := range nodes {
		rng := rand.New(rand.NewPCG(s.rng.Uint64(), n.cfg.ID))
		s.stops.Go(func() {
			s.moment(rng, within)
			s.stop(rng, n)
		})
	}
	s.stops.Wait()
	s.calls.Wait()
	for _, n := range nodes {
		s.checkState(n)
	}
	return len(nodes)
}

func (s *stopping) stop(rng *rand.Rand, n *Node) {
	switch rng.IntN(6) {
	case 0:
		s.close(n)
	case 1:
		s.stops.Go(func() { s.close(n) })
		s.close(n)
	case 2:
		s.stops.Go(func() {
			s.moment(rng, 50*time.Millisecond)
			s.close(n)
		})
		s.shutdown(n, 10*time.Second)
	case 3:
		s.shutdown(n, 0)
	case 4:
		s.shutdown(n, 200*time.Millisecond)
	case 5:
		s.stops.Go(func() { s.shutdown(n, 3*time.Second) })
		s.shutdown(n, 10*time.Second)
	}
	if err := n.Err(); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrRemoved) {
		s.t.Errorf("member %d: Err() = %v", n.cfg.ID, err)
	}
}

func (s *stopping) close(n *Node) {
	begin := time.Now()
	if err := n.Close(); err != nil {
		s.t.Errorf("member %d: Close() = %v", n.cfg.ID, err)
	}
	if took := time.Since(begin); took >= time.Second {
		s.t.Errorf("member %d: Close took %v", n.cfg.ID, took)
	}
}

func (s *stopping) shutdown(n *Node, within time.Duration) {
	begin := time.Now()
	err := n.Shutdown(s.within(within))
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		s.t.Errorf("member %d: Shutdown() = %v", n.cfg.ID, err)
	}
	if took := time.Since(begin); took >= within+time.Second {
		s.t.Errorf("member %d: Shutdown within %v took %v", n.cfg.ID, within, took)
	}
}

// checkState holds the state of a stopped node to what its callers were told.
func (s *stopping) checkState(n *Node) {
	for key, on := range s.done {
		if _, ok := itemOf(n.fsm, key); !ok && on == n {
			s.t.Errorf("member %d: put %q was acknowledged, and is not there", n.cfg.ID, key)
		}
	}
	for _, key := range s.not {
		if _, ok := itemOf(n.fsm, key); ok {
			s.t.Errorf("member %d: put %q was certainly not done, and is there", n.cfg.ID, key)
		}
	}
}

// stopScenarios are what nodes are stopped in the middle of. Each begins
// something and returns how long that takes.
var stopScenarios = []struct {
	name  string
	cases int // that begin it, of a thousand
	begin func(s *stopping) (takes time.Duration)
}{
	{"start", 100, func(s *stopping) time.Duration {
		for id := range uint64(4) {
			n := s.start(id + 1)
			s.call("ready", n, n.Ready)
			s.storm(n, 1)
		}
		return 10 * time.Millisecond
	}},
	{"init alone", 100, func(s *stopping) time.Duration {
		for id := range uint64(4) {
			n := s.start(id + 1)
			s.call("init", n, func(ctx context.Context) error { return n.Init(ctx) })
			s.storm(n, 1)
		}
		return 5 * time.Millisecond
	}},
	{"init of several", 120, func(s *stopping) time.Duration {
		s.delay(4, 5*time.Millisecond)
		for id := range uint64(4) {
			n := s.start(id + 1)
			s.call("init", n, func(ctx context.Context) error { return n.Init(ctx, s.list(4)...) })
			s.call("ready", n, n.Ready)
		}
		return 150 * time.Millisecond
	}},
	{"calls", 120, func(s *stopping) time.Duration {
		s.found(3)
		s.learner(4)
		s.delay(4, 2*time.Millisecond)
		for _, n := range s.nodes {
			s.storm(n, 3)
		}
		return 100 * time.Millisecond
	}},
	{"AddLearner", 80, func(s *stopping) time.Duration {
		s.found(3)
		s.start(4)
		s.delay(4, 5*time.Millisecond)
		for _, n := range s.nodes {
			s.call("change", n, func(ctx context.Context) error { _, err := n.AddLearner(ctx, 4, "n4:1"); return err })
		}
		return 150 * time.Millisecond
	}},
	{"ChangeMembership", 100, func(s *stopping) time.Duration {
		s.found(3)
		s.learner(4)
		s.delay(4, 5*time.Millisecond)
		for _, n := range s.nodes {
			s.call("change", n, func(ctx context.Context) error { _, err := n.ChangeMembership(ctx, []uint64{2, 3, 4}); return err })
			s.call("change", n, func(ctx context.Context) error { return n.TransferLeadership(ctx, n.cfg.ID%3+1) })
			s.storm(n, 1)
		}
		return 150 * time.Millisecond
	}},
	{"a snapshot", 80, func(s *stopping) time.Duration {
		s.found(3, func(cfg *Config) { cfg.Limits.MaxLogBytes = 64 << 10 })
		for i := range 4 {
			s.put(s.nodes[1], fmt.Sprint(i), strings.Repeat("v", 1<<19))
		}
		s.start(4)
		s.delay(4, 5*time.Millisecond)
		n := s.aLeader()
		s.call("change", n, func(ctx context.Context) error { _, err := n.AddLearner(ctx, 4, "n4:1"); return err })
		return 200 * time.Millisecond
	}},
	{"a replacement", 120, func(s *stopping) time.Duration {
		s.found(3)
		s.delay(3, 10*time.Millisecond)
		old := s.follower()
		s.kill(old)
		n := s.restart(old.cfg.ID)
		s.call("init", n, func(ctx context.Context) error { return n.Init(ctx, s.list(3)...) })
		for _, n := range s.nodes {
			s.call("ready", n, n.Ready)
		}
		s.pause(time.Second)
		return time.Second
	}},
	{"dials to the dead", 90, func(s *stopping) time.Duration {
		s.found(4)
		s.delay(4, 10*time.Millisecond)
		dead := s.leader()
		s.kill(dead) // and isolated: dials hang
		for _, n := range s.nodes {
			s.call("change", n, func(ctx context.Context) error { _, err := n.AddLearner(ctx, 9, dead.cfg.Addr); return err })
			s.call("change", n, func(ctx context.Context) error { return n.TransferLeadership(ctx, dead.cfg.ID) })
			s.storm(n, 1)
		}
		return 4 * time.Second
	}},
	{"a recovery", 90, func(s *stopping) time.Duration {
		s.found(3)
		n := s.leader()
		for _, other := range s.but(n) {
			s.kill(other)
			s.restart(other.cfg.ID)
		}
		s.pause(3 * time.Second)
		for range 3 {
			s.call("change", n, func(ctx context.Context) error { _, err := n.Recover(ctx); return err })
			s.storm(n, 1)
		}
		return 5 * time.Millisecond
	}},
}

// aLeader returns the leader of the members that have one.
func (s *stopping) aLeader() *Node {
	for _, n := range s.but() {
		if n.view.Load().leads {
			return n
		}
	}
	s.t.Fatal("nobody leads")
	return nil
}

// TestStopAnywhere stops nodes at a thousand moments of everything that takes
// time. Close returns within a second and Shutdown when its time is over; calls
// get errors that are documented and tell the truth; and the bubbles fail if a
// goroutine is left.
func TestStopAnywhere(t *testing.T) {
	total := 0
	for _, scenario := range stopScenarios {
		t.Run(scenario.name, func(t *testing.T) {
			stops := 0
			for seed := uint64(0); stops < raceless(scenario.cases, scenario.cases/8); seed++ {
				bubble(t, func(t *testing.T, c *cluster) {
					s := &stopping{cluster: c, rng: rand.New(rand.NewPCG(seed, 7)), done: make(map[string]*Node)}
					stops += s.stopAll(scenario.begin(s))
				})
				if t.Failed() {
					t.Fatalf("with seed %d", seed)
				}
			}
			t.Logf("%d stops", stops)
			total += stops
		})
	}
	t.Logf("%d stops in all", total)
}
