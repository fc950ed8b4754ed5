package firewall

import (
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Nothing that anybody can send panics a node: neither the firewall nor raft,
// neither at once nor at the next election.
func FuzzReceive(f *testing.F) {
	for _, a := range attacks() {
		for _, term := range []uint64{2, 5} {
			data := a.bytes(term)
			f.Add(data, isSnapshot(data), term == 2)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, snapshot, leader bool) {
		n := newFollower(t)
		if leader {
			n = newLeader(t)
		}
		commit := n.view().Commit
		m, err := n.receive(data, peer, snapshot)
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
		n.elapse()
		if got := n.view().Commit; got < commit {
			t.Errorf("commit went from %d to %d", commit, got)
		}
	})
}
