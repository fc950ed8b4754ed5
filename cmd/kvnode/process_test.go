package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

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
			if s, err := p.status(last); s.GetLeader() != last || len(s.GetMembership().GetMembers()) != 1 {
				t.Errorf("status of the last member: %v, %v", s, err)
			}
		})
	}
}

// TestPausedFollowerCatchesUpBySnapshot stops a process until the log behind it
// is gone.
func TestPausedFollowerCatchesUpBySnapshot(t *testing.T) {
	p := startProcesses(t, 3)
	p.on(1, "init")
	p.join(1, 2, 3)
	leader := p.leader()
	paused := p.others(leader)[0]
	p.signal(syscall.SIGSTOP, paused)
	client, value := p.client(leader), bytes.Repeat([]byte("x"), 1<<20)
	for i := range 100 { // the log keeps 64 MiB
		req := &raftkvv1.PutRequest{Key: fmt.Appendf(nil, "key %d", i%10), Value: value}
		if _, err := client.Put(p.within(10*time.Second), req); err != nil {
			t.Fatal(err)
		}
	}
	p.signal(syscall.SIGCONT, paused)
	p.wantSameState()
	if !strings.Contains(p.procs[paused].log.String(), "installing snapshot") {
		t.Error("the follower caught up without a snapshot")
	}
}

// TestLongCommandsSayWhatTheyWaitFor runs commands that can wait for a minute
// where nothing can come of them, and looks for the line that says why.
func TestLongCommandsSayWhatTheyWaitFor(t *testing.T) {
	t.Parallel()
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
