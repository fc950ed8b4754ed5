package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
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
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// seed draws what the tests of processes leave to chance. A replay
// makes the same choices; how the processes interleave is up to them.
var seed = flag.Uint64("seed", 1, "replay what a test of processes chose at random; 0: something new")

// election is kvnode's default election timeout.
const election = time.Second

// scratch returns a folder for this run of the tests. Its name has the process
// ID, so that the next run can remove that of one that was killed.
var scratch = sync.OnceValues(func() (string, error) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), scratchPrefix+"*")) // fails only for a bad pattern
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), scratchPrefix), "-")
		if !isTestRun(pid) {
			_ = os.RemoveAll(dir) // another run may be faster
		}
	}
	return os.MkdirTemp("", fmt.Sprintf("%s%d-", scratchPrefix, os.Getpid()))
})

const scratchPrefix = "kvnode-test-"

// isTestRun reports whether a process runs that is a test like this one. Where
// there is no /proc it takes all for that.
func isTestRun(pid string) bool {
	own, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return true
	}
	other, err := os.ReadFile("/proc/" + pid + "/comm")
	return err == nil && string(own) == string(other)
}

// program builds kvnode once and returns where it is.
var program = sync.OnceValues(func() (string, error) {
	dir, err := scratch()
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
	if dir, err := scratch(); err == nil {
		_ = os.RemoveAll(dir) // the next run tries again
	}
	os.Exit(code)
}

// A processes is a cluster of kvnode processes. Only its test's goroutine uses
// it. They end with the test, and when the test's own process is killed.
type processes struct {
	t     *testing.T
	path  string
	flags []string // of every process, beside --id and --addr
	addrs map[uint64]string
	// prefix is, by ID, what a process's command line begins with.
	prefix map[uint64][]string
	procs  map[uint64]*process
	conns  map[uint64]*grpc.ClientConn // for the test's own calls
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

// newProcesses returns addresses for the IDs 1 to size, and no process yet.
func newProcesses(t *testing.T, size int) *processes {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	p := &processes{
		t: t, path: path, addrs: make(map[uint64]string), prefix: make(map[uint64][]string),
		procs: make(map[uint64]*process), conns: make(map[uint64]*grpc.ClientConn),
	}
	t.Cleanup(p.stop)
	for id := uint64(1); id <= uint64(size); id++ {
		p.addrs[id] = freeAddr(t)
	}
	return p
}

// startProcesses starts blank processes with the IDs 1 to size.
func startProcesses(t *testing.T, size int, flags ...string) *processes {
	t.Helper()
	p := newProcesses(t, size)
	p.flags = flags
	p.startAll()
	return p
}

// startMembers starts processes that found a cluster by themselves, and waits
// for it.
func startMembers(t *testing.T, size int, flags ...string) *processes {
	t.Helper()
	p := newProcesses(t, size)
	p.flags = append(p.membersFlag(), flags...)
	p.startAll()
	p.awaitReady(10*time.Second, p.ids()...)
	return p
}

func (p *processes) membersFlag() []string {
	var rows []string
	for id := uint64(1); id <= uint64(len(p.addrs)); id++ {
		rows = append(rows, fmt.Sprintf("%d=%s", id, p.addrs[id]))
	}
	return []string{"--members", strings.Join(rows, ",")}
}

func (p *processes) startAll() {
	p.t.Helper()
	for id := uint64(1); id <= uint64(len(p.addrs)); id++ {
		p.start(id)
	}
}

// freeAddr returns an address that nothing listens on. The port is below those
// that kernels give to connections: otherwise one could have it while a process
// restarts, and dialing it would even connect to itself.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 22000+rand.IntN(10000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("found no free port")
	return ""
}

// chance returns the source of what a test leaves to chance.
func chance(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("replay the choices with -seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

func (p *processes) start(id uint64) {
	p.t.Helper()
	line := append(slices.Clone(p.prefix[id]), p.path, "--id", fmt.Sprint(id), "--addr", p.addrs[id])
	line = append(line, p.flags...)
	proc := &process{cmd: exec.Command(line[0], line[1:]...), log: new(logBuffer)}
	proc.cmd.Stderr = proc.log
	proc.cmd.SysProcAttr = endsWithUs()
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

// pass lets a fault last. Nothing waits for anything to happen in this time.
func (p *processes) pass(d time.Duration) { <-time.After(d) }

// kill ends a process as a crash does.
func (p *processes) kill(ids ...uint64) {
	for _, id := range ids {
		_ = p.procs[id].cmd.Process.Kill() // gone already is as good
	}
	for _, id := range ids {
		_ = p.procs[id].cmd.Wait() // says that it was killed
		p.forget(id)
	}
}

// forget takes a process that has ended off the list, and looks at its log.
func (p *processes) forget(id uint64) {
	log := p.procs[id].log.String()
	delete(p.procs, id)
	for _, word := range []string{"panic", "BUG"} {
		if at := strings.Index(log, word); at >= 0 {
			p.t.Errorf("the log of member %d has %q:\n%s", id, word, log[max(0, at-1000):min(len(log), at+4000)])
		}
	}
}

func (p *processes) stop() {
	p.kill(p.ids()...)
	for _, conn := range p.conns {
		_ = conn.Close() // fails only if it is closed already
	}
}

func (p *processes) signal(sig syscall.Signal, ids ...uint64) {
	p.t.Helper()
	for _, id := range ids {
		if err := p.procs[id].cmd.Process.Signal(sig); err != nil {
			p.t.Fatal(err)
		}
	}
}

// dump shows the end of every log.
func (p *processes) dump() {
	for _, id := range p.ids() {
		log := p.procs[id].log.String()
		p.t.Logf("member %d:\n%s", id, log[max(0, len(log)-3000):])
	}
}

// ids returns who runs.
func (p *processes) ids() []uint64 {
	var ids []uint64
	for id := range p.procs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// others returns who runs beside these.
func (p *processes) others(ids ...uint64) []uint64 {
	return slices.DeleteFunc(p.ids(), func(id uint64) bool { return slices.Contains(ids, id) })
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

// leader waits until members agree on one that runs; without any, all that run.
func (p *processes) leader(ids ...uint64) (leader uint64) {
	p.t.Helper()
	if len(ids) == 0 {
		ids = p.ids()
	}
	p.await(10*time.Second, "all agree on a leader", func() bool {
		leaders := make(map[uint64]bool)
		for _, id := range ids {
			s, err := p.status(id)
			if err != nil {
				return false
			}
			leader = s.GetLeader()
			leaders[leader] = true
		}
		return len(leaders) == 1 && p.procs[leader] != nil
	})
	return leader
}

// status asks a member how it sees the cluster.
func (p *processes) status(id uint64) (*raftkvv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return raftkvv1.NewClusterServiceClient(p.conn(id)).Status(ctx, &raftkvv1.StatusRequest{}, grpc.WaitForReady(true))
}

// awaitReady waits until members that run are voters and up to date, and
// returns how long it took.
func (p *processes) awaitReady(limit time.Duration, ids ...uint64) time.Duration {
	p.t.Helper()
	begin := time.Now()
	for _, id := range ids {
		p.await(limit-time.Since(begin), fmt.Sprintf("member %d is ready", id), func() bool {
			s, err := p.status(id)
			return err == nil && s.GetReady() && s.GetRole() >= raftkvv1.Role_ROLE_FOLLOWER
		})
	}
	return time.Since(begin)
}

// wantMembers checks that the membership is one voter for each ID that there
// is, on every member.
func (p *processes) wantMembers() {
	p.t.Helper()
	p.await(10*time.Second, "every process is a voter, and nobody else", func() bool {
		for _, id := range p.ids() {
			s, err := p.status(id)
			if err != nil || len(s.GetMembership().GetMembers()) != len(p.addrs) || s.GetMembership().GetJoint() {
				return false
			}
			for _, m := range s.GetMembership().GetMembers() {
				if m.GetRole() != raftkvv1.Role_ROLE_VOTER || m.GetAddr() != p.addrs[m.GetId()] {
					return false
				}
			}
		}
		return true
	})
}

// wantSameState waits until all members show the same index and hash.
func (p *processes) wantSameState() {
	p.t.Helper()
	p.await(20*time.Second, "all members show the same state", func() bool {
		seen := make(map[string]bool)
		for _, id := range p.ids() {
			s, err := p.status(id)
			if err != nil {
				return false
			}
			seen[fmt.Sprint(s.GetApplied(), s.GetStateHash())] = true
		}
		return len(seen) == 1
	})
}

// conn returns the test's own connection to a member.
func (p *processes) conn(id uint64) *grpc.ClientConn {
	p.t.Helper()
	if p.conns[id] == nil {
		p.conns[id] = dial(p.t, p.addrs[id])
	}
	return p.conns[id]
}

// dial returns a connection that is back soon after its member is.
func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// client returns a client of a member.
func (p *processes) client(id uint64) raftkvv1.KVServiceClient {
	p.t.Helper()
	return raftkvv1.NewKVServiceClient(p.conn(id))
}

func (p *processes) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	p.t.Cleanup(cancel)
	return ctx
}

// putThrough puts a key through one member until it succeeds.
func (p *processes) putThrough(id uint64, key string) {
	p.t.Helper()
	req := &raftkvv1.PutRequest{Key: []byte(key), Value: []byte(key)}
	if _, err := p.client(id).Put(p.within(10*time.Second), req, grpc.WaitForReady(true)); err != nil {
		p.dump()
		p.t.Fatalf("put through member %d: %v", id, err)
	}
}

// wantKeys checks that acknowledged writes are there, on every member.
func (p *processes) wantKeys(keys []string) {
	p.t.Helper()
	for _, id := range p.ids() {
		found := make(map[string]string)
		stream, err := p.client(id).List(p.within(10*time.Second), &raftkvv1.ListRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var part *raftkvv1.ListResponse
			part, err = stream.Recv()
			for _, kv := range part.GetKvs() {
				found[string(kv.GetKey())] = string(kv.GetValue())
			}
		}
		if !errors.Is(err, io.EOF) {
			p.t.Errorf("list on member %d: %v", id, err)
		}
		for _, key := range keys {
			if found[key] != key {
				p.t.Errorf("member %d: acknowledged %q is %q", id, key, found[key])
			}
		}
	}
}
