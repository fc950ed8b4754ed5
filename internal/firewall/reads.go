package firewall

import (
	"encoding/binary"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Reads knows which read confirmations a member has asked for as leader.
//
// Raft numbers the reads of a leader's term 1, 2, 3 ... and puts the highest
// number that waits into every heartbeat; an answer that echoes n confirms all
// up to n. The numbers start again with every term. What we have asked for is
// therefore exactly what our own heartbeats said, and counting the requests
// that were stepped would only give a looser bound: those that wait for a new
// leader's first commit outlive the term in which they came.
//
// The loop owns it. The zero value is ready.
type Reads struct {
	term uint64
	max  uint64
}

// Sent takes note of a message that raft wants to send. It must be called for
// each before it leaves.
func (r *Reads) Sent(m *pb.Message) {
	if m.GetType() != pb.MsgHeartbeat || len(m.GetContext()) != readCountBytes {
		return
	}
	if m.GetTerm() != r.term {
		r.term, r.max = m.GetTerm(), 0
	}
	r.max = max(r.max, ReadCount(m.GetContext()))
}

// Max returns the highest number asked for in a term: View.ReadsMax.
func (r *Reads) Max(term uint64) uint64 {
	if term != r.term {
		return 0
	}
	return r.max
}

// ReadCount returns the number in the context of a heartbeat, or of an answer to
// one, that Admit has passed.
func ReadCount(context []byte) uint64 { return binary.LittleEndian.Uint64(context) }
