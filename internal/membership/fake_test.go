package membership

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/roster"
)

const electionTicks = 20

// A fakeRaft is a leader whose log is decided when the test says so.
type fakeRaft struct {
	t         *testing.T
	roster    *roster.Roster
	follows   bool
	self      uint64
	last      uint64
	progress  map[uint64]Progress // by raft ID
	proposed  []*pb.ConfChangeV2
	pending   *pb.ConfChangeV2 // proposed, and in the log
	refuses   error            // of Propose
	transfers []uint64
	inPlace   map[uint64]string // by raft ID
}

func (f *fakeRaft) Roster() *roster.Roster          { return f.roster }
func (f *fakeRaft) Leads() bool                     { return !f.follows }
func (f *fakeRaft) Self() uint64                    { return f.self }
func (f *fakeRaft) Last() uint64                    { return f.last }
func (f *fakeRaft) Progress(raftID uint64) Progress { return f.progress[raftID] }
func (f *fakeRaft) IsPending() bool                 { return f.pending != nil }
func (f *fakeRaft) InPlace(raftID uint64) string    { return f.inPlace[raftID] }
func (f *fakeRaft) Transfer(raftID uint64)          { f.transfers = append(f.transfers, raftID) }

func (f *fakeRaft) Propose(cc *pb.ConfChangeV2) error {
	if f.pending != nil || f.roster.IsJoint() {
		f.t.Errorf("proposed %v while a change is under way", cc)
	}
	if f.refuses != nil {
		return f.refuses
	}
	f.proposed = append(f.proposed, cc)
	f.pending = cc
	return nil
}

// decide lets what is pending take effect, or be refused.
func (f *fakeRaft) decide() error {
	f.t.Helper()
	if f.pending == nil {
		f.t.Fatal("nothing is pending")
	}
	cc := f.pending
	f.pending = nil
	f.last++
	next, err := f.roster.Apply(cc, f.last)
	if err == nil {
		f.roster = next
	}
	return err
}

// leave ends the joint phase as raft does.
func (f *fakeRaft) leave() {
	f.t.Helper()
	f.pending = new(pb.ConfChangeV2)
	if err := f.decide(); err != nil {
		f.t.Fatal(err)
	}
}

// vanish is what raft does to a change that it will not have.
func (f *fakeRaft) vanish() { f.pending = nil }

// raftID returns the newest incarnation of a member.
func (f *fakeRaft) raftID(id uint64) uint64 {
	f.t.Helper()
	m, ok := f.roster.Newest(id)
	if !ok {
		f.t.Fatalf("member %d is not there", id)
	}
	return m.RaftID
}

func (f *fakeRaft) be(id uint64, p Progress) { f.progress[f.raftID(id)] = p }

// well is the progress of a member with all of the log.
func (f *fakeRaft) well() Progress { return Progress{Match: f.last, Replicates: true, Answers: true} }

var silent = Progress{Silent: true}

func id16(name string) string {
	return (name + strings.Repeat(".", roster.NonceBytes))[:roster.NonceBytes]
}

func process(id uint64) roster.Member {
	return roster.Member{RaftID: roster.RaftID(id, 0), Addr: fmt.Sprintf("n%d:1", id), Nonce: id16(fmt.Sprint("nonce", id))}
}

// setUp returns the leader of voters 1, 2 and 3, who all are well; member 1
// leads. Learners are added from 4 on.
func setUp(t *testing.T, learners ...uint64) (*fakeRaft, *Worker) {
	t.Helper()
	f := &fakeRaft{t: t, last: 1000, progress: make(map[uint64]Progress)}
	f.roster = roster.Found(id16("cluster"), []roster.Member{process(1), process(2), process(3)})
	f.self = f.raftID(1)
	for _, id := range learners {
		m := process(id)
		f.pending = f.roster.AddLearner(id16(fmt.Sprint("set up ", id)), id, m.Addr, m.Nonce)
		if err := f.decide(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range f.roster.Members {
		f.be(m.ID(), f.well())
	}
	return f, New(f, electionTicks)
}

// A call is a request and what became of it.
type call struct {
	Request
	t     *testing.T
	done  int
	now   *roster.Roster
	cause error
}

func submit(t *testing.T, w *Worker, r Request) *call {
	t.Helper()
	c := &call{Request: r, t: t}
	if c.ID == "" {
		c.ID = id16(fmt.Sprintf("request %d", r.Kind))
	}
	c.Done = func(now *roster.Roster, err error) {
		c.done++
		c.now, c.cause = now, err
		if c.done > 1 {
			t.Errorf("the request was answered %d times", c.done)
		}
	}
	w.Submit(&c.Request)
	return c
}

func (c *call) wantWaits() {
	c.t.Helper()
	if c.done != 0 {
		c.t.Fatalf("the request is answered: %v, want it to wait", c.cause)
	}
}

func (c *call) wantSuccess(f *fakeRaft) {
	c.t.Helper()
	if c.done != 1 || c.cause != nil {
		c.t.Fatalf("answered %d times, %v, want success", c.done, c.cause)
	}
	if c.now != f.roster {
		c.t.Errorf("answered with the membership at %v, want the one in force", c.now)
	}
}

func (c *call) wantError(kind error, texts ...string) {
	c.t.Helper()
	if c.done != 1 || !errors.Is(c.cause, kind) {
		c.t.Fatalf("answered %d times, %v, want %v", c.done, c.cause, kind)
	}
	for _, text := range texts {
		if !strings.Contains(c.cause.Error(), text) {
			c.t.Errorf("the error is %q, want it to say %q", c.cause, text)
		}
	}
}

func (f *fakeRaft) wantProposals(n int) {
	f.t.Helper()
	if len(f.proposed) != n {
		f.t.Fatalf("%d changes were proposed, want %d: %v", len(f.proposed), n, f.proposed)
	}
}

func (f *fakeRaft) wantTransfers(ids ...uint64) {
	f.t.Helper()
	var got []uint64
	for _, raftID := range f.transfers {
		got = append(got, roster.MemberID(raftID))
	}
	if fmt.Sprint(got) != fmt.Sprint(ids) {
		f.t.Fatalf("leadership was offered to members %v, want %v", got, ids)
	}
}
