package raftkv

import (
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// The budget that keeps the faults of the simulator within what the cluster
// promises to survive: at no time may a majority of the voters of either half of
// a configuration in force have lost its memory. Silence of a majority is allowed.

// canLose reports whether the cluster must survive the loss of a process.
func (w *world) canLose(p *process) bool {
	if w.facts.newest == nil {
		return true
	}
	for _, half := range w.halves() {
		dead, hit := 0, false
		for _, m := range half {
			q := w.runs(m)
			hit = hit || q == p
			if q == nil || q == p {
				dead++
			}
		}
		if hit && dead > (len(half)-1)/2 {
			return false
		}
	}
	return true
}

// halves returns the sets of voters of which a majority must keep its memory:
// those of the newest membership that was committed, of the one before as long
// as a member has not heard of it, of all that are in a log, and of what the
// operator has asked for.
func (w *world) halves() (all [][]roster.Member) {
	f := w.facts
	all = appendHalves(all, f.newest)
	stale := false
	for _, p := range w.procs {
		if p == nil || p.raftID() == 0 {
			continue
		}
		stale = stale || p.n.loop.roster.Index < f.newest.Index
		all = w.appendProposed(all, p)
	}
	if stale && f.before != nil {
		all = appendHalves(all, f.before)
	}
	return append(all, w.ops.wanted()...)
}

func appendHalves(all [][]roster.Member, r *roster.Roster) [][]roster.Member {
	for _, ids := range [][]uint64{r.Conf.GetVoters(), r.Conf.GetVotersOutgoing()} {
		var half []roster.Member
		for _, id := range ids {
			m, _ := r.Lookup(id)
			half = append(half, m)
		}
		if len(half) > 0 {
			all = append(all, half)
		}
	}
	return all
}

// appendProposed adds what a change in a process's log would make of the
// membership.
func (w *world) appendProposed(all [][]roster.Member, p *process) [][]roster.Member {
	l := p.n.loop
	first, _ := l.log.FirstIndex() // never fails
	from := max(first, l.roster.Index+1)
	if from > l.Last() {
		return all
	}
	entries, err := l.log.Entries(from, l.Last()+1, 1<<40)
	if err != nil {
		return all
	}
	now := l.roster
	for _, e := range entries {
		if e.GetType() != pb.EntryConfChangeV2 {
			continue
		}
		cc := new(pb.ConfChangeV2)
		if proto.Unmarshal(e.GetData(), cc) != nil {
			continue
		}
		if next, err := now.Apply(cc, e.GetIndex()); err == nil {
			all, now = appendHalves(all, next), next
		}
	}
	return all
}
