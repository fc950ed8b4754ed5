package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// kills is how many leaders TestKilledLeaders kills. The figure is 10:
// go test ./cmd/kvnode -run Killed -kills 10 -v
var kills = flag.Int("kills", 3, "how many leaders to kill, one after another")

// election is kvnode's default election timeout.
const election = time.Second

// program builds kvnode once and returns where it is.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kvnode")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kvnode")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a temporary folder
	}
	os.Exit(code)
}

// A processes is a cluster of kvnode processes.
type processes struct {
	t     *testing.T
	path  string
	addrs map[uint64]string
	procs map[uint64]*process
}

type process struct {
	cmd *exec.Cmd
	log *logBuffer
}

// A logBuffer is what a process has written; its test reads it meanwhile.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// run starts blank processes with the IDs 1 to size.
func startProcesses(t *testing.T, size int) *processes {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	p := &processes{t: t, path: path, addrs: make(map[uint64]string), procs: make(map[uint64]*process)}
	t.Cleanup(p.stop)
	for id := uint64(1); id <= uint64(size); id++ {
		p.addrs[id] = freeAddr(t)
		p.start(id)
	}
	return p
}

// freeAddr returns an address that nothing listens on. Another program could
// take it before it is used, which the kernel makes unlikely.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (p *processes) start(id uint64) {
	p.t.Helper()
	proc := &process{cmd: exec.Command(p.path, "--id", fmt.Sprint(id), "--addr", p.addrs[id]), log: new(logBuffer)}
	proc.cmd.Stderr = proc.log
	if err := proc.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.procs[id] = proc
	p.await(5*time.Second, fmt.Sprintf("member %d listens", id), func() bool { return strings.Contains(proc.log.String(), "listens on") })
}

// await polls for something that another process does.
func (p *processes) await(limit time.Duration, what string, ok func() bool) {
	p.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(limit); !ok(); <-ticker.C {
		if time.Now().After(deadline) {
			p.dump()
			p.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// kill ends a process as a crash does.
func (p *processes) kill(id uint64) {
	proc := p.procs[id]
	delete(p.procs, id)
	_ = proc.cmd.Process.Kill() // gone already is as good
	_ = proc.cmd.Wait()         // says that it was killed
	if log := proc.log.String(); strings.Contains(log, "panic") {
		p.t.Errorf("member %d panicked:\n%s", id, log)
	}
}

func (p *processes) stop() {
	for _, id := range p.ids() {
		p.kill(id)
	}
}

// dump shows the end of every log.
func (p *processes) dump() {
	for _, id := range p.ids() {
		log := p.procs[id].log.String()
		p.t.Logf("member %d:\n%s", id, log[max(0, len(log)-2000):])
	}
}

func (p *processes) ids() []uint64 {
	var ids []uint64
	for id := range p.procs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// try runs a command on a member.
func (p *processes) try(id uint64, args ...string) (stdout string, err error) {
	cmd := exec.Command(p.path, append(args, "--endpoints", p.addrs[id])...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kvnode %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (p *processes) on(id uint64, args ...string) string {
	p.t.Helper()
	out, err := p.try(id, args...)
	if err != nil {
		p.dump()
		p.t.Fatal(err)
	}
	return out
}

func (p *processes) want(id uint64, want string, args ...string) {
	p.t.Helper()
	if got := p.on(id, args...); got != want {
		p.t.Errorf("kvnode %s on member %d = %q, want %q", strings.Join(args, " "), id, got, want)
	}
}

// join makes members voters, in the seed's way.
func (p *processes) join(by uint64, ids ...uint64) {
	p.t.Helper()
	voters := p.ids()
	for _, id := range ids {
		p.on(by, "add-learner", fmt.Sprintf("%d=%s", id, p.addrs[id]), "--timeout", "20s")
	}
	p.setVoters(by, voters...)
}

func (p *processes) setVoters(by uint64, voters ...uint64) {
	p.t.Helper()
	args := []string{"change-membership", "--timeout", "20s"}
	for _, id := range voters {
		args = append(args, fmt.Sprint(id))
	}
	p.on(by, args...)
}

// leader waits until the live members agree on a live leader.
func (p *processes) leader() (leader uint64) {
	p.t.Helper()
	p.await(10*time.Second, "all agree on a leader", func() bool {
		leaders := make(map[uint64]bool)
		for _, id := range p.ids() {
			leader = p.status(id).Leader
			leaders[leader] = true
		}
		return len(leaders) == 1 && p.procs[leader] != nil
	})
	return leader
}

type statusLine struct {
	Leader    uint64 `json:"leader"`
	Applied   uint64 `json:"applied"`
	StateHash string `json:"state_hash"`
	Members   []struct {
		ID   uint64 `json:"id"`
		Role string `json:"role"`
	} `json:"members"`
}

func (p *processes) status(id uint64) (s statusLine) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.on(id, "status", "-o", "json")), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// wantSameState waits until all members show the same index and hash.
func (p *processes) wantSameState() {
	p.t.Helper()
	p.await(20*time.Second, "all members show the same state", func() bool {
		seen := make(map[string]bool)
		for _, id := range p.ids() {
			s := p.status(id)
			seen[fmt.Sprint(s.Applied, s.StateHash)] = true
		}
		return len(seen) == 1
	})
}

// client returns a client of a member.
func (p *processes) client(id uint64) raftkvv1.KVServiceClient {
	p.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.addrs[id], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return raftkvv1.NewKVServiceClient(conn)
}

func (p *processes) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	p.t.Cleanup(cancel)
	return ctx
}

// putThrough puts a key through one member until it succeeds.
func (p *processes) putThrough(id uint64, key string) {
	p.t.Helper()
	_, err := p.client(id).Put(p.within(10*time.Second), &raftkvv1.PutRequest{Key: []byte(key), Value: []byte(key)})
	if err != nil {
		p.dump()
		p.t.Fatalf("put through member %d: %v", id, err)
	}
}

// wantKeys checks that acknowledged writes are there, on every member.
func (p *processes) wantKeys(keys []string) {
	p.t.Helper()
	for _, id := range p.ids() {
		client := p.client(id)
		for _, key := range keys {
			resp, err := client.Get(p.within(10*time.Second), &raftkvv1.GetRequest{Key: []byte(key)})
			if err != nil || string(resp.GetKv().GetValue()) != key {
				p.t.Errorf("member %d: acknowledged %q is %v, %v", id, key, resp.GetKv(), err)
			}
		}
	}
}

// TestSeedSequence is what the example that raftkv re-imagines does, with three
// and with five processes, and what it never tried: the leader leaves, and one
// member stays.
func TestSeedSequence(t *testing.T) {
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprintf("%d processes", size), func(t *testing.T) {
			p := startProcesses(t, size)
			p.on(1, "init")
			p.join(1, p.ids()[1:]...)
			for _, by := range p.ids() {
				key, value := fmt.Sprintf("key %d", by), fmt.Sprintf("value %d", by)
				p.on(by, "put", key, value)
				for _, id := range p.ids() {
					p.want(id, value+"\n", "get", key)
				}
			}
			p.wantSameState()
			last := uint64(size)
			p.setVoters(p.leader(), last)
			for _, id := range p.ids()[:size-1] {
				proc := p.procs[id]
				p.await(10*time.Second, "a removed member stops", func() bool { return strings.Contains(proc.log.String(), "removed") })
				p.kill(id)
			}
			p.on(last, "put", "alone", "yes")
			p.want(last, "value 1\n", "get", "key 1")
			if s := p.status(last); s.Leader != last || len(s.Members) != 1 {
				t.Errorf("status of the last member: %+v", s)
			}
		})
	}
}

// TestKilledLeaders measures how long writes stand still when the leader's
// process dies, and checks that no acknowledged write is missing.
func TestKilledLeaders(t *testing.T) {
	p := startProcesses(t, 3)
	p.on(1, "init")
	p.join(1, 2, 3)
	var gaps []time.Duration
	var keys []string
	for i := range *kills {
		leader := p.leader()
		key := fmt.Sprintf("before %d", i)
		p.putThrough(leader, key)
		p.kill(leader)
		killed := time.Now()
		survivor := p.ids()[i%2] // both find their way
		p.putThrough(survivor, fmt.Sprintf("after %d", i))
		gaps = append(gaps, time.Since(killed))
		keys = append(keys, key, fmt.Sprintf("after %d", i))
		p.wantKeys(keys)
		p.setVoters(survivor, p.ids()...) // the dead one leaves
		p.start(leader)                   // a new process
		p.join(survivor, leader)
	}
	slices.Sort(gaps)
	t.Logf("from kill to the next acknowledged write: median %v, all %v", gaps[len(gaps)/2], gaps)
	if worst := gaps[len(gaps)-1]; worst > 3*election {
		t.Errorf("writes stood still for %v, want at most %v", worst, 3*election)
	}
	p.wantSameState()
}

// TestTwoOfFiveKilled kills the leader and another of five members at once.
func TestTwoOfFiveKilled(t *testing.T) {
	p := startProcesses(t, 5)
	p.on(1, "init")
	p.join(1, 2, 3, 4, 5)
	keys := []string{"before"}
	leader := p.leader()
	p.putThrough(leader, "before")
	p.kill(leader)
	p.kill(p.ids()[0])
	killed := time.Now()
	for _, id := range p.ids() {
		key := fmt.Sprintf("after through %d", id)
		p.putThrough(id, key)
		keys = append(keys, key)
		if gap := time.Since(killed); gap > 3*election {
			t.Errorf("writes stood still for %v, want at most %v", gap, 3*election)
		}
		killed = time.Now()
	}
	p.wantKeys(keys)
	p.wantSameState()
}

// TestPausedFollowerCatchesUpBySnapshot stops a process until the log behind it
// is gone.
func TestPausedFollowerCatchesUpBySnapshot(t *testing.T) {
	p := startProcesses(t, 3)
	p.on(1, "init")
	p.join(1, 2, 3)
	leader := p.leader()
	paused := p.ids()[0]
	if paused == leader {
		paused = p.ids()[1]
	}
	proc := p.procs[paused]
	if err := proc.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	client, value := p.client(leader), bytes.Repeat([]byte("x"), 1<<20)
	for i := range 100 { // the log keeps 64 MiB
		req := &raftkvv1.PutRequest{Key: fmt.Appendf(nil, "key %d", i%10), Value: value}
		if _, err := client.Put(p.within(10*time.Second), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := proc.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.wantSameState()
	if !strings.Contains(proc.log.String(), "installing snapshot") {
		t.Error("the follower caught up without a snapshot")
	}
}

// TestLongCommandsSayWhatTheyWaitFor runs commands that can wait for a minute
// where nothing can come of them, and looks for the line that says why.
func TestLongCommandsSayWhatTheyWaitFor(t *testing.T) {
	p := startProcesses(t, 2)
	nobody := freeAddr(t)
	p.wantWaits(fmt.Sprintf("2=%s cannot be reached", nobody), "init", "1="+p.addrs[1], "2="+nobody)
	p.on(1, "init")
	p.join(1, 2)
	p.kill(2)
	p.wantWaits("knows no leader", "change-membership", "1")
}

// wantWaits checks that a command on member 1 says what it waits for within 5
// seconds, then interrupts it.
func (p *processes) wantWaits(want string, args ...string) {
	p.t.Helper()
	log := new(logBuffer)
	cmd := exec.Command(p.path, append(args, "--endpoints", p.addrs[1])...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.await(5*time.Second, "says that it waits", func() bool { return strings.Contains(log.String(), want) })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != exitInterrupted {
		p.t.Errorf("kvnode %s, interrupted: %v: %s", strings.Join(args, " "), err, log)
	}
}
