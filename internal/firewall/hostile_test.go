package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// The members of the cluster in these tests, and somebody else.
var (
	self     = roster.RaftID(1, 1)
	peer     = roster.RaftID(2, 2)
	third    = roster.RaftID(3, 3)
	stranger = roster.RaftID(77, 77)
)

// newFollower follows peer in term 5. Its log is 2, 3, 4; 3 is committed.
func newFollower(t testing.TB) *node {
	n := newNode(t, self, founding(3))
	m := app(5, 1, 1, entry(5, 2, nil), entry(5, 3, nil), entry(5, 4, nil))
	m.Commit = proto.Uint64(3)
	n.mustTake(t, m)
	return n
}

// newLeader leads term 2. Its log is 2, 3; 2 is committed. It waits for the
// confirmation of one read.
func newLeader(t testing.TB) *node {
	n := newNode(t, self, founding(3))
	must(n.rn.Campaign())
	n.drain()
	n.mustTake(t, &pb.Message{Type: pb.MsgPreVoteResp.Enum(), Term: proto.Uint64(2)})
	n.mustTake(t, &pb.Message{Type: pb.MsgVoteResp.Enum(), Term: proto.Uint64(2)})
	n.mustTake(t, &pb.Message{Type: pb.MsgAppResp.Enum(), Term: proto.Uint64(2), Index: proto.Uint64(2)})
	must(n.rn.Propose([]byte("pending")))
	n.rn.ReadIndex([]byte("read"))
	n.drain()
	if !n.isLeader() || n.view().Commit != 2 || n.view().Last != 3 || n.view().ReadsMax != 1 {
		t.Fatalf("got %+v, want a leader that committed 2 of 3 and reads once", n.view())
	}
	return n
}

func (n *node) mustTake(t testing.TB, m *pb.Message) {
	t.Helper()
	m, err := n.receive(marshal(address(m)), peer, false)
	if err != nil {
		t.Fatal(err)
	}
	must(n.rn.Step(m))
	n.drain()
}

// address fills in the addresses that a message does not have.
func address(m *pb.Message) *pb.Message {
	if m.From == nil {
		m.From = proto.Uint64(peer)
	}
	if m.To == nil {
		m.To = proto.Uint64(self)
	}
	return m
}

func entry(term, index uint64, data []byte) *pb.Entry {
	return &pb.Entry{Term: proto.Uint64(term), Index: proto.Uint64(index), Data: data}
}

func app(term, logTerm, index uint64, entries ...*pb.Entry) *pb.Message {
	return &pb.Message{
		Type: pb.MsgApp.Enum(), Term: proto.Uint64(term), LogTerm: proto.Uint64(logTerm),
		Index: proto.Uint64(index), Entries: entries,
	}
}

// msg is a message of a type and term, changed by set.
func msg(typ pb.MessageType, term uint64, set func(*pb.Message)) *pb.Message {
	m := &pb.Message{Type: typ.Enum()}
	if term > 0 {
		m.Term = proto.Uint64(term)
	}
	if set != nil {
		set(m)
	}
	return m
}

func snap(term, index, snapTerm uint64, conf *pb.ConfState) *pb.Message {
	return msg(pb.MsgSnap, term, func(m *pb.Message) { m.Snapshot = snapshotAt(index, snapTerm, conf) })
}

// An attack is a message that somebody might send to a node in term.
type attack struct {
	name    string
	make    func(term uint64) *pb.Message
	raw     []byte // appended to the encoding
	verdict string // of the follower and the leader: r(efused), d(ropped), p(assed)
	// kills: stepped into raft without a firewall, it panics the follower (f) or
	// the leader (l), at once or within an election timeout.
	kills string
}

// verdict describes what became of a message.
func verdict(err error) string {
	var v *Violation
	switch {
	case err == nil:
		return "p"
	case errors.Is(err, ErrDrop):
		return "d"
	case errors.As(err, &v):
		return "r"
	}
	return "unknown error " + err.Error()
}

func eachRole(t *testing.T, f func(t *testing.T, a attack, n *node, role int)) {
	for _, a := range attacks() {
		for role, start := range []func(testing.TB) *node{newFollower, newLeader} {
			t.Run(fmt.Sprintf("%s/%s", a.name, []string{"follower", "leader"}[role]), func(t *testing.T) {
				f(t, a, start(t), role)
			})
		}
	}
}

func (a attack) bytes(term uint64) []byte { return append(marshal(address(a.make(term))), a.raw...) }

func isSnapshot(data []byte) bool {
	m := new(pb.Message)
	return proto.Unmarshal(data, m) == nil && m.GetType() == pb.MsgSnap
}

// A hostile message is refused, or it does what an honest one might do: no
// panic, nothing committed and no entry changed.
func TestHostileMessagesDoNoHarm(t *testing.T) {
	eachRole(t, func(t *testing.T, a attack, n *node, role int) {
		before, log := n.view(), n.entries(t)
		data := a.bytes(before.Term)
		m, err := n.receive(data, peer, isSnapshot(data))
		if got, want := verdict(err), a.verdict[role:role+1]; got != want {
			t.Fatalf("got %s (%v), want %s", got, err, want)
		}
		if err != nil {
			return
		}
		_ = n.rn.Step(m) // an error is raft's own refusal
		n.drain()
		if after := n.view(); after.Commit != before.Commit || after.Last != before.Last {
			t.Errorf("got commit %d, last %d, want %d, %d", after.Commit, after.Last, before.Commit, before.Last)
		}
		if !bytes.Equal(n.entries(t), log) {
			t.Error("the log has changed")
		}
		n.elapse()
	})
}

// The rules are not there for nothing: without them these messages kill.
func TestRaftAloneDies(t *testing.T) {
	eachRole(t, func(t *testing.T, a attack, n *node, role int) {
		if !strings.Contains(a.kills, []string{"f", "l"}[role]) {
			t.Skip("does not kill")
		}
		if a.verdict[role] != 'r' {
			t.Fatal("kills and is not refused")
		}
		defer func() {
			if recover() == nil {
				t.Error("raft survived")
			}
		}()
		m := new(pb.Message)
		must(proto.Unmarshal(a.bytes(n.view().Term), m))
		_ = n.rn.Step(m) // only the panic matters
		n.drain()
		n.elapse()
	})
}

// elapseTicks is two election timeouts, for the longest that raft may draw.
const elapseTicks = 40

// elapse lets two election timeouts pass, with all others silent.
func (n *node) elapse() {
	for range elapseTicks {
		n.rn.Tick()
		n.drain()
	}
}

// entries returns the encoding of the whole log.
func (n *node) entries(t *testing.T) []byte {
	t.Helper()
	first, err := n.ms.FirstIndex()
	must(err)
	last, err := n.ms.LastIndex()
	must(err)
	entries, err := n.ms.Entries(first, last+1, math.MaxUint64)
	must(err)
	return marshal(&pb.Message{Entries: entries})
}

// Each process kills itself at the next election if it takes the highest term.
func TestTermsGrowSlowly(t *testing.T) {
	joiner := newNode(t, roster.RaftID(9, 9), roster.Blank("cluster-id-16-by"))
	for _, c := range []struct {
		term uint64
		want string
	}{{1, "p"}, {1 << 30, "p"}, {firstTermMax, "p"}, {firstTermMax + 1, "r"}, {math.MaxUint64, "r"}} {
		m := address(msg(pb.MsgHeartbeat, c.term, nil))
		m.To = proto.Uint64(joiner.id)
		_, err := joiner.receive(marshal(m), peer, false)
		if got := verdict(err); got != c.want {
			t.Errorf("term %d to a joiner: got %s (%v), want %s", c.term, got, err, c.want)
		}
	}
}

// A leader that takes back entries and then commits them, in one breath, must
// not find us with a view of the log as it was before.
func TestViewIsRenewedAfterARewrite(t *testing.T) {
	n := newFollower(t)
	n.mustTake(t, app(5, 5, 4, entry(5, 5, nil), entry(5, 6, nil)))
	m, err := n.receive(marshal(address(app(6, 5, 3, entry(6, 4, nil)))), peer, false)
	if err != nil || !Rewrites(m, n.view()) {
		t.Fatalf("got %v, Rewrites %v, want a message that rewrites", err, Rewrites(m, n.view()))
	}
	must(n.rn.Step(m))
	n.drain()
	_, err = n.receive(marshal(address(msg(pb.MsgHeartbeat, 6, commit(6)))), peer, false)
	if verdict(err) != "r" {
		t.Errorf("got %v for a commit beyond the new end, want a violation", err)
	}
	for _, m := range []*pb.Message{
		app(6, 6, 4, entry(6, 5, nil)), app(6, 5, 3, entry(6, 4, nil)), msg(pb.MsgHeartbeat, 6, nil),
	} {
		if Rewrites(m, n.view()) {
			t.Errorf("Rewrites(%v) = true, want false", m)
		}
	}
}

// The largest legal entry must pass, one byte more must not.
func TestEntryBytesMax(t *testing.T) {
	for size, want := range map[int]string{EntryBytesMax: "p", EntryBytesMax + 1: "r"} {
		_, err := decode(marshal(address(app(5, 5, 4, entry(5, 5, make([]byte, size))))), peer, self)
		if got := verdict(err); got != want {
			t.Errorf("%d bytes: got %s, want %s", size, got, want)
		}
	}
}

// A stream is bound to a raft ID; IDs of nobody are refused even if it were.
func TestSenderIsAPeer(t *testing.T) {
	for _, from := range []uint64{0, self, raft.LocalAppendThread, raft.LocalApplyThread} {
		m := msg(pb.MsgHeartbeat, 5, nil)
		m.From, m.To = proto.Uint64(from), proto.Uint64(self)
		if _, err := decode(marshal(m), from, self); verdict(err) != "r" {
			t.Errorf("from %d: got %v, want a violation", from, err)
		}
	}
}

func BenchmarkDecodeAndCheck(b *testing.B) {
	n := newFollower(b)
	v := n.view()
	for _, c := range []struct {
		name string
		m    *pb.Message
	}{
		{"heartbeat", msg(pb.MsgHeartbeat, 5, nil)},
		{"entry=1KiB", app(5, 5, 4, entry(5, 5, make([]byte, 1<<10)))},
		{"entry=1MiB", app(5, 5, 4, entry(5, 5, make([]byte, 1<<20)))},
	} {
		data := marshal(address(c.m))
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				m, err := decode(data, peer, self)
				if err == nil {
					err = Check(m, v)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
