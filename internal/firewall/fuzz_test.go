package firewall

import (
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// roles are the nodes that a fuzzer attacks.
var roles = []func(testing.TB) *node{newFollower, newLeader, newLearner, newJoiner, newCandidate}

// newLearner follows peer, without a vote.
func newLearner(t testing.TB) *node {
	ros := founding(3)
	ros.Conf = &pb.ConfState{Voters: []uint64{peer, third}, Learners: []uint64{self}}
	n := newNode(t, self, ros)
	n.mustTake(t, app(5, 1, 1, entry(5, 2, nil)))
	return n
}

// newJoiner has been given a raft ID and knows nothing.
func newJoiner(t testing.TB) *node { return newNode(t, self, roster.Blank("cluster-id-16-by")) }

// newCandidate stands for election in term 2.
func newCandidate(t testing.TB) *node {
	n := newNode(t, self, founding(3))
	must(n.rn.Campaign())
	n.drain()
	n.mustTake(t, &pb.Message{Type: pb.MsgPreVoteResp.Enum(), Term: proto.Uint64(2)})
	return n
}

// Nothing that anybody can send panics a node: neither the firewall nor raft,
// neither at once nor at the next election.
func FuzzReceive(f *testing.F) {
	for _, a := range attacks() {
		for role, term := range []uint64{5, 2} {
			data := a.bytes(term)
			f.Add(data, isSnapshot(data), uint8(role))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, snapshot bool, role uint8) {
		n := roles[int(role)%len(roles)](t)
		before := n.view()
		m, err := n.receive(data, peer, snapshot)
		if got := verdict(err); got != "p" && got != "r" && got != "d" {
			t.Fatal(got)
		}
		if err != nil {
			return
		}
		again := new(pb.Message)
		must(proto.Unmarshal(data, again))
		if !proto.Equal(again, m) {
			t.Errorf("got %v, want the message unchanged: %v", m, again)
		}
		_ = n.rn.Step(m) // an error is raft's own refusal
		n.drain()
		s := &script{t: t, n: n}
		s.check(before, m.GetTerm())
		s.run()
	})
}

// Nor does anything that they can send one after the other, while the node goes
// about its business.
func FuzzFrames(f *testing.F) {
	for role := range roles {
		for _, play := range plays {
			f.Add(uint8(role), play)
		}
	}
	f.Fuzz(func(t *testing.T, role uint8, play []byte) {
		s := &script{t: t, n: roles[int(role)%len(roles)](t), rest: play}
		s.run()
	})
}

// plays are scripts that get far: bytes in the order in which script asks. 0x20
// is the end of the node's log, 0x21 its commit; 2 is its term, 3 the next one.
var plays = [][]byte{
	nil,
	{12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 10},                               // time passes
	entriesPlay(2, 0x20, 1),                                                            // one entry at the end
	append(entriesPlay(2, 0x20, 2), 0, 0, 2, 0x28, 0, 0x30, 0, 1, 4, 0, 10),            // and more
	{0, 1, 2, 0x20, 0, 0x20, 0, 0, 13, 14, 10},                                         // a heartbeat
	{0, 2, 2, 0x20, 0, 0x21, 0, 0, 10},                                                 // an acknowledgement
	{0, 3, 3, 0x20, 0, 0x21, 0, 0, 10},                                                 // a vote
	{0, 8, 2, 0x20, 0, 0x21, 0, 0, 10, 12},                                             // a call to campaign
	{9, 0, 3, 0x40, 0, 0, 0, 10},                                                       // a snapshot ahead of the log
	{15, 0, 10, 0, 6, 3, 0x20, 0, 0x21, 0, 0, 10, 0, 4, 3, 0x20, 0, 0x21, 0, 0, 10},    // an election
	{0, 0, 2, 0x20, 0, 0x28, 0, 1, 0x14, 0, 4, 0, 10, 15, 1, 0, 4, 10},                 // a learner comes
	{0, 0, 2, 0x20, 0, 0x28, 0, 1, 0x14, 2, 3, 0, 0, 10, 12, 12, 10},                   // voters change
	{14, 10, 0, 7, 2, 0x20, 0, 0x21, 4, 2, 0, 10},                                      // a read is confirmed
	{14, 10, 0, 7, 2, 0x20, 0, 0x21, 4, 9, 0, 14, 10, 0, 7, 2, 0x20, 0, 0x21, 4, 5, 0}, // and others that nobody asked for
	// Two entries come, go for one of the next term, and are committed.
	append(entriesPlay(2, 0x20, 2), 0, 0, 3, 0x21, 0, 0x21, 0, 1, 4, 0, 0, 1, 2, 0x20, 0, 0x20, 0, 0),
	{0, 2, 2, 0x40, 0, 0x21, 0, 0, 10},                                            // an acknowledgement of too much
	{0, 1, 2, 0x20, 0, 0x21, 0, 2, 10},                                            // a second leader
	{0, 0, 2, 0x23, 0x86, 0x21, 0, 1, 4, 0, 10},                                   // entries from the beginning
	append(entriesPlay(2, 0x20, 1), 0, 0, 2, 0x28, 0x83, 0x21, 0, 2, 0, 1, 0, 10), // terms that go down
}

// entriesPlay appends a few entries of the message's term after index.
func entriesPlay(term, index byte, n int) []byte {
	play := []byte{0, 0, term, index, 0, 0x21, 0, byte(n)}
	for range n {
		play = append(play, 4)
	}
	return append(play, 0, 10)
}
