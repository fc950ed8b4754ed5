package firewall

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

var (
	seed     = flag.Uint64("sim.seed", 0, "replay this seed only")
	seedsMax = flag.Uint64("sim.seeds", 24, "how many seeds to try")
)

// A packet is a message on the network.
type packet struct {
	from, to uint64
	data     []byte
	snapshot bool
	m        *pb.Message // for the failure text
}

// A network is a cluster whose messages get lost, doubled and reordered at
// will. Followers never tick: raft's election timeouts are random and cannot
// be seeded, so an election is an event like others. Whoever forgets its
// leader first is no longer bound by the leader's lease.
type network struct {
	t       *testing.T
	rng     *rand.Rand
	nodes   map[uint64]*node
	ids     []uint64 // of nodes, in the order of their birth
	packets []packet
	old     []packet        // delivered or lost long ago
	side    map[uint64]bool // in a partition: those beyond it
	types   map[pb.MessageType]int
	dropped map[pb.MessageType]int
	nextID  uint64
	joint   int // how often a node was seen in a joint configuration
}

func newNetwork(t *testing.T, seed uint64, size int) *network {
	w := &network{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), nodes: map[uint64]*node{}, side: map[uint64]bool{},
		types: map[pb.MessageType]int{}, dropped: map[pb.MessageType]int{}, nextID: uint64(size) + 1,
	}
	ros := founding(size)
	for _, id := range ros.RaftIDs() {
		w.add(newNode(t, id, ros))
	}
	return w
}

func (w *network) add(n *node) {
	w.nodes[n.id] = n
	w.ids = append(w.ids, n.id)
}

func (w *network) any() *node { return w.nodes[w.ids[w.rng.IntN(len(w.ids))]] }

// leader returns a node that believes to lead.
func (w *network) leader() *node {
	for _, i := range w.rng.Perm(len(w.ids)) {
		if n := w.nodes[w.ids[i]]; n.isLeader() {
			return n
		}
	}
	return nil
}

// flush does a node's Readys and puts what it sends on the network.
func (w *network) flush(n *node) {
	n.drain()
	if n.ros.IsJoint() {
		w.joint++
	}
	for _, m := range n.out {
		if m.GetFrom() != n.id {
			w.t.Fatalf("%d sends in the name of %d: %v", n.id, m.GetFrom(), m)
		}
		w.packets = append(w.packets, packet{
			n.id, m.GetTo(), marshal(m), m.GetType() == pb.MsgSnap, m,
		})
	}
	n.out = nil
}

// deliver takes one packet from the network: late ones, early ones, some twice
// and some never.
func (w *network) deliver(loss float64) {
	i := w.rng.IntN(min(len(w.packets), 30))
	p := w.packets[i]
	if w.rng.Float64() > 0.1 { // else: once more
		w.packets = slices.Delete(w.packets, i, i+1)
		w.old = append(w.old, p)
	}
	w.arrive(p, loss)
}

// arrive is the end of a packet's journey.
func (w *network) arrive(p packet, loss float64) {
	to := w.nodes[p.to]
	lost := to == nil || w.side[p.from] != w.side[p.to] || w.rng.Float64() < loss
	if p.snapshot && w.nodes[p.from] != nil {
		status := raft.SnapshotFinish
		if lost {
			status = raft.SnapshotFailure
		}
		w.nodes[p.from].rn.ReportSnapshot(p.to, status)
	}
	if lost {
		return
	}
	w.step(to, p)
}

func (w *network) step(to *node, p packet) {
	m, err := to.receive(p.data, p.from, p.snapshot)
	w.types[p.m.GetType()]++
	if errors.Is(err, ErrDrop) {
		w.dropped[p.m.GetType()]++
		return
	}
	if err != nil {
		w.t.Fatalf("honest message refused: %v\nmessage: %v\nview: %+v", err, p.m, to.view())
	}
	rewrites := Rewrites(m, to.view())
	if err := to.rn.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
		w.t.Fatalf("step %v: %v", m, err)
	}
	if rewrites || w.rng.IntN(3) > 0 { // else several messages share a Ready
		w.flush(to)
	}
}

// act is one random event.
func (w *network) act() {
	switch n := w.any(); w.rng.IntN(100) {
	case 0, 1:
		_ = n.rn.ForgetLeader() // never fails with ReadOnlySafe
		must(n.rn.Campaign())
	case 2:
		_ = n.rn.ForgetLeader() // as above
	case 3:
		w.transfer()
	case 4:
		w.changeMembership()
	case 5:
		w.compact(n)
	case 6:
		w.partition()
	case 7:
		clear(w.side)
	case 8, 9, 10:
		w.read(n)
	case 11:
		n.rn.ReportUnreachable(w.any().id)
	case 12, 13, 14, 15:
		if l := w.leader(); l != nil {
			l.rn.Tick()
		}
	case 16, 17, 18, 19, 20, 21:
		if l := w.leader(); l != nil {
			// Dropped during a transfer: nothing depends on it.
			_ = l.rn.Propose(make([]byte, w.rng.IntN(700)))
		}
	case 22, 23, 24:
		w.flush(n)
	case 25, 26:
		if len(w.old) > 0 {
			w.arrive(w.old[w.rng.IntN(len(w.old))], 0)
		}
	default:
		if len(w.packets) > 0 {
			w.deliver(0.1)
		}
	}
}

func (w *network) transfer() {
	if l := w.leader(); l != nil {
		voters := l.ros.Conf.GetVoters()
		l.rn.TransferLeader(voters[w.rng.IntN(len(voters))])
	}
}

func (w *network) compact(n *node) {
	if err := n.ms.Compact(n.applied); err != nil && !errors.Is(err, raft.ErrCompacted) {
		w.t.Fatal(err)
	}
}

// partition cuts the network in two at random.
func (w *network) partition() {
	for _, id := range w.ids {
		w.side[id] = w.rng.IntN(2) == 0
	}
}

// read asks for a linearizable read on any member. Members that do not lead
// pass it on.
func (w *network) read(n *node) {
	n.readSeq++
	n.rn.ReadIndex(fmt.Appendf(nil, "%d-%d", n.id, n.readSeq))
}

// changeMembership proposes a legal change of some kind; raft ignores it while
// another is under way.
func (w *network) changeMembership() {
	l := w.leader()
	if l == nil || l.ros.IsJoint() {
		return
	}
	name := fmt.Sprintf("change-%09d", w.rng.IntN(1e9))
	var cc *pb.ConfChangeV2
	switch members := len(l.ros.Members); {
	case members < 4 || members < 6 && w.rng.IntN(2) == 0:
		cc = w.join(l, name)
	case w.rng.IntN(4) == 0:
		id := l.ros.Members[w.rng.IntN(members)].RaftID
		if !l.ros.IsVoter(id) {
			cc = l.ros.Remove(name, id)
		}
	default:
		voters := l.ros.RaftIDs()
		w.rng.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
		cc = l.ros.SetVoters(name, voters[:1+w.rng.IntN(len(voters))], w.rng.IntN(2) == 0, 0)
	}
	if cc != nil {
		_ = l.rn.ProposeConfChange(cc) // as for proposals
	}
}

// join adds a learner. Its process is there before the change is committed.
func (w *network) join(l *node, name string) *pb.ConfChangeV2 {
	m := member(w.nextID, l.ros.Counter+1)
	w.nextID++
	w.add(newNode(w.t, m.RaftID, roster.Blank(l.ros.ClusterID)))
	return l.ros.AddLearner(name, m.ID(), m.Addr, m.Nonce)
}

// heal ends all faults and waits for one leader that everybody follows.
func (w *network) heal() {
	clear(w.side)
	for round := range 400 {
		l := w.leader() // one of them, if several believe to lead
		if l == nil || round%100 == 50 {
			l = w.any()
			for _, id := range w.ids {
				_ = w.nodes[id].rn.ForgetLeader() // as in act
			}
			must(l.rn.Campaign())
		}
		if round%10 == 0 {
			_ = l.rn.Propose([]byte("healed")) // refused unless it leads, and tried again
		}
		if l.isLeader() {
			l.rn.Tick()
		}
		for range 20 {
			for _, id := range w.ids {
				w.flush(w.nodes[id])
			}
			for range len(w.packets) {
				w.deliver(0)
			}
		}
		if w.converged() {
			return
		}
	}
	if w.isDeadlocked() {
		w.t.Skip("a leader demoted itself before the others knew: raft itself is stuck (etcd-io/etcd#12359)")
	}
	w.t.Fatalf("no progress after all faults ended; dropped: %v", w.dropped)
}

// isDeadlocked reports whether somebody who left the voters must still vote for
// those that have not heard of it, and cannot, because its log is longer.
func (w *network) isDeadlocked() bool {
	for _, x := range w.nodes {
		for _, y := range w.nodes {
			if !x.ros.IsVoter(x.id) && y.ros.IsJoint() && y.ros.IsVoter(x.id) && x.view().Last > y.view().Last {
				return true
			}
		}
	}
	return false
}

// converged reports whether there is one leader of the newest term, and all in
// its configuration have applied what it has.
func (w *network) converged() bool {
	var top *node
	for _, n := range w.nodes {
		if n.isLeader() && (top == nil || n.rn.BasicStatus().GetTerm() > top.rn.BasicStatus().GetTerm()) {
			top = n
		}
	}
	if top == nil || top.ros.IsJoint() {
		return false
	}
	last, err := top.ms.LastIndex()
	must(err)
	term, err := top.ms.Term(top.applied)
	must(err)
	for _, m := range top.ros.Members {
		if n := w.nodes[m.RaftID]; n != nil && n.applied != last {
			return false
		}
	}
	return term == top.rn.BasicStatus().GetTerm()
}

// Whatever a raft that keeps its state sends, at any moment and however late it
// arrives, passes, and what is dropped does not stop the cluster.
func TestHonestMessagesPass(t *testing.T) {
	types, dropped, joint := map[pb.MessageType]int{}, map[pb.MessageType]int{}, 0
	seeds := []uint64{*seed}
	if *seed == 0 {
		seeds = seeds[:0]
		for s := uint64(1); s <= *seedsMax; s++ {
			seeds = append(seeds, s)
		}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			w := newNetwork(t, s, 3+int(s%3))
			for range 6000 {
				w.act()
			}
			w.heal()
			joint += w.joint
			for k, v := range w.types {
				types[k] += v
			}
			for k, v := range w.dropped {
				dropped[k] += v
			}
		})
	}
	t.Logf("checked %v, dropped %v, joint %d times", types, dropped, joint)
	if *seed == 0 {
		if joint < 100 {
			t.Errorf("joint %d times, want at least 100", joint)
		}
		checkCoverage(t, types, dropped)
	}
}

// checkCoverage proves that the traffic had every type in it, and that only
// those were dropped of which Check says so.
func checkCoverage(t *testing.T, types, dropped map[pb.MessageType]int) {
	for _, typ := range []pb.MessageType{
		pb.MsgApp, pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgSnap,
		pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgTimeoutNow, pb.MsgReadIndex, pb.MsgReadIndexResp,
	} {
		if types[typ] < 20 {
			t.Errorf("%v: got %d messages, want at least 20", typ, types[typ])
		}
	}
	for typ := range dropped {
		if typ != pb.MsgVote && typ != pb.MsgReadIndex {
			t.Errorf("%v: dropped %d", typ, dropped[typ])
		}
	}
}

// A stale heartbeat answer must not look like a confirmation of reads in a
// later term, in which raft counts from 1 again.
func TestReadsAreCountedByTerm(t *testing.T) {
	heartbeat := func(term, n uint64) *pb.Message {
		return &pb.Message{Type: pb.MsgHeartbeat.Enum(), Term: proto.Uint64(term), Context: []byte{byte(n), 0, 0, 0, 0, 0, 0, 0}}
	}
	var r Reads
	for _, m := range []*pb.Message{heartbeat(3, 7), heartbeat(3, 5), {Type: pb.MsgHeartbeat.Enum(), Term: proto.Uint64(3)}} {
		r.Sent(m)
	}
	if got := r.Max(3); got != 7 {
		t.Errorf("Max(3) = %d, want 7", got)
	}
	r.Sent(heartbeat(4, 2))
	if r.Max(4) != 2 || r.Max(3) != 0 {
		t.Errorf("Max(4), Max(3) = %d, %d, want 2, 0", r.Max(4), r.Max(3))
	}
}
