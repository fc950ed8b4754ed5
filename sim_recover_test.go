package raftkv

import (
	"bytes"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// Recover, after a majority was lost on purpose: one survivor becomes a new
// cluster with all that it has, while the others go on as they were.

const (
	simRecoverBound = 30 * time.Second // until a survivor leads a cluster of its own
	simAloneTime    = 20 * time.Second // in which the other survivors may not disturb it
)

// A revival is one recovery.
type revival struct {
	w       *world
	p       *process
	last    uint64      // of the survivor's log
	tail    []*pb.Entry // the end of it, which was not applied
	cluster string      // the old one
	before  uint64      // the revision with the tail applied
	term    uint64      // of the old raft
	made    *roster.Roster
}

// revive recovers the cluster on its best survivor and adds a member.
func (w *world) revive() {
	p := w.bestSurvivor()
	if p == nil {
		w.count.add("nobody to recover on", 1)
		return
	}
	v := &revival{w: w, p: p}
	v.begin()
	until := w.now + simRecoverBound
	v.try(until)
	if !w.runWhile(until, 100*time.Millisecond, func() bool { return v.made == nil || !p.leads() }) {
		w.fail("member %d does not lead a recovered cluster after %v; made: %v", p.place.id, simRecoverBound, v.made != nil)
	}
	v.check()
	w.serveEverywhere()
	v.wantPeace()
	w.count.add("recoveries", 1)
	v.addMember()
}

// bestSurvivor returns the one that a person should choose: that with the highest
// last term and, among those, with the highest last index.
func (w *world) bestSurvivor() (best *process) {
	var top [2]uint64
	for _, p := range w.procs {
		if p == nil || p.raftID() == 0 || p.n.loop.roster.Index == 0 {
			continue
		}
		s := p.n.loop.status()
		if at := [2]uint64{s.LastTerm, s.LastIndex}; best == nil || slices.Compare(at[:], top[:]) > 0 {
			best, top = p, at
		}
	}
	return best
}

// begin notes what the survivor has, and makes that all that there is.
func (v *revival) begin() {
	w, l := v.w, v.p.n.loop
	index := v.p.n.fsm.index
	if index != l.change.decided {
		w.fail("member %d has applied %d of %d, long after all faults", v.p.place.id, index, l.change.decided)
	}
	v.last, v.cluster, v.term = l.Last(), l.roster.ClusterID, l.raw.BasicStatus().GetTerm()
	if v.last > index {
		entries, err := l.log.Entries(index+1, v.last+1, 1<<40)
		w.must(err)
		v.tail = entries
		w.count.add("recovered entries that nobody knew to be committed", uint64(len(entries)))
	}
	had := min(v.last, w.facts.model.index)
	for ; had > index; had-- {
		if term, _ := l.log.Term(had); term == w.facts.tasks[had].term {
			break
		}
	}
	w.count.add("recovered entries that others had applied", had-index)
	w.facts.cutTo(v.p, index)
	w.revived = v
}

// cutTo makes the past what one process has applied: what the log of the others
// said from there on is lost.
func (f *facts) cutTo(p *process, index uint64) {
	count := f.w.count
	f.w.count = newCounts() // not all of it once more
	m := newModel()
	m.found(f.rosters[1].RaftIDs())
	for _, t := range f.tasks[2 : index+1] {
		m.apply(f.w, t)
	}
	f.w.count = count
	f.model, f.tasks, f.applied = m, f.tasks[:index+1], f.applied[:index+1]
	for i := range f.states {
		if i > index {
			delete(f.states, i)
		}
	}
	for i := range f.rosters {
		if i > p.n.loop.roster.Index {
			delete(f.rosters, i)
		}
	}
	f.newest, f.before, f.changes = p.n.loop.roster, nil, nil
	clear(f.leaders) // another cluster has terms of its own
	clear(f.votes)
	clear(f.entries)
	clear(f.owners)
	for _, q := range f.w.procs {
		if q != nil && q.raftID() != 0 {
			f.owners[q.raftID()] = q
		}
	}
}

// try asks for the recovery, again while it is refused.
func (v *revival) try(until time.Duration) {
	w := v.w
	v.p.arrive(func() {
		v.p.n.post(func(l *loop) {
			l.beginRecovering(&recovery{done: func(now *roster.Roster, err error) {
				switch {
				case err == nil:
					v.done(now)
				case !errors.Is(err, ErrMembershipRefused) || w.now > until:
					w.fail("member %d does not recover: %v", v.p.place.id, err)
				default:
					w.count.add("recoveries refused for a while", 1)
					w.after(500*time.Millisecond, func() { v.try(until) })
				}
			}})
		})
	})
}

// done is called in the midst of the round that begins the new raft.
func (v *revival) done(now *roster.Roster) {
	w, f, p := v.w, v.w.facts, v.p
	if v.made != nil {
		w.fail("member %d has recovered twice", p.place.id)
	}
	if f.model.index != v.last {
		w.fail("member %d has applied %d of its log, which ended at %d", p.place.id, f.model.index, v.last)
	}
	for _, e := range v.tail {
		if e.GetType() == pb.EntryNormal && !bytes.Equal(f.tasks[e.GetIndex()].data, e.GetData()) {
			w.fail("member %d has applied something else than its entry %d", p.place.id, e.GetIndex())
		}
	}
	v.made, v.before = now, f.model.revision()
	f.model.recovered(now)
	f.tasks = append(f.tasks, task{index: now.Index})
	p.seen.index = now.Index
	w.note(p.place.id, "recovered", now.Index, v.before, uint64(len(v.tail)))
}

// recovered lets the model go on as the state does.
func (m *model) recovered(now *roster.Roster) {
	m.leapAt = m.revision()
	m.leap = recoveryLeap
	m.index = now.Index
	m.retain(now.RaftIDs())
	m.revisions = append(m.revisions, m.revision())
}

// check looks at the new cluster.
func (v *revival) check() {
	w, p, now := v.w, v.p, v.made
	switch {
	case now.ClusterID == v.cluster || p.n.loop.roster.ClusterID != now.ClusterID:
		w.fail("member %d recovered cluster %x as %x", p.place.id, v.cluster, now.ClusterID)
	case len(now.Members) != 1 || !now.IsVoter(p.raftID()) || now.Members[0].RaftID != p.raftID() || now.Members[0].ID() != p.place.id:
		w.fail("member %d recovered as %s", p.place.id, membershipText(now))
	case p.n.fsm.revision != v.before+1<<32:
		w.fail("member %d recovered with revision %d after %d", p.place.id, p.n.fsm.revision, v.before)
	case p.n.view.Load().lost != nil:
		w.fail("member %d recovered, and says that a majority is lost", p.place.id)
	}
	w.facts.model.compare(w, p)
	w.checkNotDone()
}

// wantPeace checks that nobody disturbs the new cluster.
func (v *revival) wantPeace() {
	w, p := v.w, v.p
	term := p.n.loop.raw.BasicStatus().GetTerm()
	if term > v.term+2 {
		w.fail("member %d recovered in term %d after %d", p.place.id, term, v.term)
	}
	w.runUntil(w.now + simAloneTime)
	if now := p.n.loop.raw.BasicStatus().GetTerm(); now != term || !p.leads() || !p.n.view.Load().ready {
		w.fail("member %d: a recovered cluster is in term %d, %v after %d; leads %v, ready %v",
			p.place.id, now, simAloneTime, term, p.leads(), p.n.view.Load().ready)
	}
}

// addMember adds a blank process to the new cluster, as a learner.
func (v *revival) addMember() {
	w := v.w
	at := slices.IndexFunc(w.procs, func(p *process) bool { return p != nil && p.raftID() == 0 })
	if at < 0 {
		w.fail("nobody is blank after the loss of a majority")
	}
	q := w.procs[at]
	r := &membership.Request{
		ID: randomID(), Kind: membership.AddLearner,
		Member: roster.Member{RaftID: roster.RaftID(q.place.id, 0), Addr: q.place.addr, Nonce: q.n.loop.nonce},
	}
	added := false
	r.Done = func(_ *roster.Roster, err error) { w.must(err); added = true }
	v.p.arrive(func() { v.p.n.post(func(l *loop) { l.change.worker.Submit(r) }) })
	isThere := func() bool {
		_, same := w.facts.sameEverywhere()
		return added && same && len(w.facts.newest.Members) == 2 && q.n.view.Load().ready
	}
	if !w.runWhile(w.now+simHealBound, 100*time.Millisecond, func() bool { return !isThere() }) {
		w.fail("member %d has not caught up with a recovered cluster: added %v", q.place.id, added)
	}
	w.serveEverywhere()
	w.count.add("members added to recovered clusters", 1)
}

// isForeign reports whether a hello comes from another cluster than that of the
// process that takes it: there are two once one was recovered.
func (p *process) isForeign(h *kvpb.Hello) bool {
	return p.w.revived != nil && h.GetFrom().GetClusterId() != nil && string(h.GetFrom().GetClusterId()) != p.n.loop.roster.ClusterID
}
