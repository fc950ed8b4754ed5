package raftkv

import (
	"errors"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/mix"
	"example.com/raftkv/internal/outbox"
	"example.com/raftkv/internal/roster"
)

// What must hold at every moment of a simulated run, over all processes that
// ever lived in it. It is looked at when something changes: after every round
// of a loop and of an applier, and at every message that is sent.

// facts is what has been seen so far.
type facts struct {
	w       *world
	leaders map[uint64]uint64    // who led a term, by raft ID
	votes   map[[2]uint64]uint64 // by voter and term, whom for
	asked   map[[2]uint64]bool   // by voter and term, that it has asked for pre-votes
	called  map[[2]uint64]bool   // by voter and term, that the leader of the term before has called on it to stand
	owners  map[uint64]*process  // whose a raft ID is
	entries map[[2]uint64]uint64 // by index and term, the hash of an entry
	states  map[uint64]uint64    // by index, the hash of the state
	rosters map[uint64]*roster.Roster
	tasks   []task         // by index, what the model was given; kept if a majority is lost
	applied []uint64       // by index, the hash of the committed entry
	newest  *roster.Roster // of those that were committed
	before  *roster.Roster // the one before that
	model   *model
	sent    map[[2]uint64]bool // batches that were forwarded, by origin and first number
	changes []*replacement     // replacements under way, by member ID
}

// processSeen is how far a process was when last looked at.
type processSeen struct {
	term, commit    uint64
	last, lastTerm  uint64
	index, revision uint64   // of the applier
	terms           []uint64 // of the log's entries, by index less base
	base            uint64
	roster          *roster.Roster
	lost            bool // that it said that a majority is lost
	ready           bool // that it has ever said so
	footing         footing
	hint            hint // the latest that was followed
	pending         int  // writes of callers before the applier's round
}

func newFacts(w *world) *facts {
	return &facts{
		w: w, leaders: make(map[uint64]uint64), votes: make(map[[2]uint64]uint64), asked: make(map[[2]uint64]bool), called: make(map[[2]uint64]bool), owners: make(map[uint64]*process),
		entries: make(map[[2]uint64]uint64), states: make(map[uint64]uint64), rosters: make(map[uint64]*roster.Roster),
		model: newModel(), sent: make(map[[2]uint64]bool),
	}
}

// owns notes that a process has a raft ID, which no other ever had.
func (f *facts) owns(p *process, raftID uint64) {
	if owner := f.owners[raftID]; owner != nil && owner != p {
		f.w.fail("raft ID %x belongs to two processes of member %d", raftID, p.place.id)
	} else if owner == nil {
		f.owners[raftID] = p
		f.w.note(p.place.id, "joined", raftID, 0, 0)
		f.step(raftID, adopted)
	}
}

// spoken checks a message that a process sends.
func (f *facts) spoken(p *process, m *pb.Message) {
	from, term := m.GetFrom(), m.GetTerm()
	kind := m.GetType()
	f.w.note(p.place.id, kind.String(), m.GetTo(), term, m.GetIndex())
	if f.owners[from] != p || !p.alive || p.paused {
		f.w.fail("raft ID %x speaks for a process of member %d, which is not it or does not run", from, p.place.id)
	}
	switch kind {
	case pb.MsgTimeoutNow:
		f.called[[2]uint64{m.GetTo(), term + 1}] = true
		f.led(from, term)
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		f.led(from, term)
	case pb.MsgPreVote:
		f.asked[[2]uint64{from, term}] = true
	case pb.MsgVote:
		f.stood(m)
		f.voted(from, term, from)
	case pb.MsgVoteResp:
		if !m.GetReject() {
			f.voted(from, term, m.GetTo())
		}
	}
}

// led checks that a term has one leader.
func (f *facts) led(raftID, term uint64) {
	switch leader := f.leaders[term]; leader {
	case raftID:
	case 0:
		f.leaders[term] = raftID
		f.w.count.add("leader changes", 1)
		if p := f.owners[raftID]; p != nil && p.n.loop.lead.hint.term+1 == term {
			f.w.count.add("leader changes after a hint", 1)
		}
		f.w.note(roster.MemberID(raftID), "leads", raftID, term, 0)
	default:
		f.w.fail("term %d has two leaders, raft IDs %x and %x", term, leader, raftID)
	}
}

// stood checks that nobody raises the term without a pre-vote, but for whom the
// leader has called on.
func (f *facts) stood(m *pb.Message) {
	at := [2]uint64{m.GetFrom(), m.GetTerm()}
	if isCalled := len(m.GetContext()) > 0; isCalled && !f.called[at] || !isCalled && !f.asked[at] {
		f.w.fail("raft ID %x stands for election in term %d; pre-votes: %v, called on: %v", at[0], at[1], f.asked[at], f.called[at])
	}
}

// hinted counts the hints that a process follows: one in a term, and one in an
// election timeout.
func (f *facts) hinted(p *process) {
	h, seen := p.n.loop.lead.hint, p.seen.hint
	if h.since == seen.since {
		return
	}
	p.seen.hint = h
	if h.since == 0 {
		return // a recovery begins anew
	}
	apart := uint64(p.n.cfg.Timing.electionTicks())
	if seen.since != 0 && (h.term == seen.term || h.since-seen.since < apart) {
		f.w.fail("member %d follows hints at ticks %d and %d, in terms %d and %d", p.place.id, seen.since, h.since, seen.term, h.term)
	}
	f.w.note(p.place.id, "hint", h.of, h.term, 0)
	if m, _ := p.n.loop.roster.Lookup(h.of); f.w.runs(m) != nil {
		f.w.count.add("hints at a leader that lives", 1)
	} else {
		f.w.count.add("hints at a dead leader", 1)
	}
}

// voted checks that nobody votes twice in a term.
func (f *facts) voted(voter, term, candidate uint64) {
	switch at := [2]uint64{voter, term}; f.votes[at] {
	case candidate:
	case 0:
		f.votes[at] = candidate
	default:
		f.w.fail("raft ID %x votes for %x and %x in term %d", voter, f.votes[at], candidate, term)
	}
}

// forwarded counts batches that are sent again.
func (f *facts) forwarded(p *process, b outbox.Batch) {
	at := [2]uint64{p.raftID(), b.First}
	if f.sent[at] {
		f.w.count.add("forwarded again", 1)
	}
	f.sent[at] = true
	f.w.count.add("forwarded batches", 1)
}

// afterRound looks at a loop after a round.
func (f *facts) afterRound(p *process) {
	l, seen := p.n.loop, &p.seen
	if l.raw == nil {
		return
	}
	s := l.raw.BasicStatus()
	term, commit := s.GetTerm(), s.GetCommit()
	if term < seen.term || commit < seen.commit {
		f.w.fail("member %d goes back from term %d and commit %d to %d and %d", p.place.id, seen.term, seen.commit, term, commit)
	}
	seen.term, seen.commit = term, commit
	if s.RaftState == raft.StateLeader {
		f.led(l.raftID, term)
	}
	if l.roster != seen.roster {
		seen.roster = l.roster
		f.memberships(p, l.roster)
	}
	f.hinted(p)
	f.checkLost(p)
	f.stand(p)
	f.checkReady(p)
	f.checkLog(p)
	if len(f.changes) > 0 && p.leads() {
		f.watchCatchUp(p)
	}
}

// checkLost checks that nobody says that a majority is lost where none is. A member
// that has missed changes of the membership may be wrong about it: it knows that
// those are lost whom it takes for voters. That is counted, not approved of.
func (f *facts) checkLost(p *process) {
	lost := p.n.view.Load().lost
	if told := lost != nil; told == p.seen.lost {
		return
	}
	p.seen.lost = lost != nil
	switch {
	case lost == nil || f.w.plan.loseMajority:
	case p.n.loop.roster.Index == f.newest.Index:
		f.w.fail("member %d says that a majority is lost: %v", p.place.id, lost)
	default:
		f.w.note(p.place.id, "lost?", p.n.loop.roster.Index, f.newest.Index, 0)
		f.w.count.add("WRONG about a lost majority", 1)
	}
}

// checkLog compares what is new in a process's log with all others.
func (f *facts) checkLog(p *process) {
	l, seen := p.n.loop, &p.seen
	last := l.Last()
	lastTerm, err := l.log.Term(last)
	if err != nil || last == seen.last && lastTerm == seen.lastTerm {
		return
	}
	first, _ := l.log.FirstIndex() // never fails
	index := last
	for ; index >= first; index-- {
		term, _ := l.log.Term(index)
		if index <= seen.last && seen.termAt(index) == term {
			break // by log matching, what is before it was compared
		}
	}
	if first > seen.base+uint64(len(seen.terms)) || seen.base == 0 {
		seen.base, seen.terms = first, nil
	}
	index = max(index+1, first)
	seen.terms = seen.terms[:min(int(index-seen.base), len(seen.terms))]
	if index <= last {
		entries, err := l.log.Entries(index, last+1, 1<<40)
		if err != nil {
			f.w.fail("member %d: log from %d to %d: %v", p.place.id, index, last, err)
		}
		for _, e := range entries {
			f.compareEntry(p, e)
			seen.terms = append(seen.terms, e.GetTerm())
		}
	}
	seen.last, seen.lastTerm = last, lastTerm
}

func (s *processSeen) termAt(index uint64) uint64 {
	if index < s.base || index-s.base >= uint64(len(s.terms)) {
		return 0
	}
	return s.terms[index-s.base]
}

func (f *facts) compareEntry(p *process, e *pb.Entry) {
	at := [2]uint64{e.GetIndex(), e.GetTerm()}
	hash := mix.Bytes(uint64(e.GetType()), e.GetData())
	if old, ok := f.entries[at]; ok && old != hash {
		f.w.fail("entry %d of term %d differs on member %d", at[0], at[1], p.place.id)
	}
	f.entries[at] = hash
}

// memberships checks that there is one history of rosters.
func (f *facts) memberships(p *process, r *roster.Roster) {
	if r.Index == 0 {
		return // blank
	}
	if old := f.rosters[r.Index]; old != nil {
		if old != r && old.Hash() != r.Hash() {
			f.w.fail("two memberships at index %d, the second on member %d", r.Index, p.place.id)
		}
		return
	}
	f.rosters[r.Index] = r
	if r.Index == 1 {
		f.model.found(r.RaftIDs())
	}
	if f.newest != nil && r.Index < f.newest.Index {
		f.w.fail("member %d has a membership of index %d that nobody knew before %d", p.place.id, r.Index, f.newest.Index)
	}
	f.before, f.newest = f.newest, r
	f.w.noteText(p.place.id, "membership", r.Index, 0, 0, membershipText(r))
	f.w.count.add("membership changes", 1)
	f.follow()
}

// beforeApply checks what an applier is about to apply.
func (f *facts) beforeApply(p *process, tasks []task) {
	if p.seen.index == 0 {
		p.seen.index, _, _ = p.n.fsm.status()
	}
	p.seen.pending = p.writesPending()
	for _, t := range tasks {
		switch {
		case t.freeze:
		case t.install != nil:
			if t.index < p.seen.index {
				f.w.fail("member %d installs a snapshot at %d, behind %d", p.place.id, t.index, p.seen.index)
			}
			p.seen.index = t.index
			f.w.count.add("snapshots installed", 1)
			f.w.note(p.place.id, "install", t.index, 0, 0)
		default:
			if t.index != p.seen.index+1 {
				f.w.fail("member %d applies %d after %d", p.place.id, t.index, p.seen.index)
			}
			p.seen.index++
			f.apply(p, t)
		}
	}
}

// apply compares a committed entry with what others applied at its index.
func (f *facts) apply(p *process, t task) {
	hash := mix.Bytes(mix.Uint64(t.index, t.term), t.data)
	if t.roster != nil {
		hash = mix.Uint64(hash, t.roster.Hash())
	}
	for uint64(len(f.applied)) <= t.index {
		f.applied = append(f.applied, 0)
	}
	if old := f.applied[t.index]; old != 0 && old != hash {
		f.w.fail("member %d applies another entry %d than others did", p.place.id, t.index)
	}
	f.applied[t.index] = hash
	if t.index == f.model.index+1 {
		f.model.apply(f.w, t)
		f.keep(t)
	} else if t.index > f.model.index {
		f.w.fail("member %d applies %d, where nobody has applied %d", p.place.id, t.index, f.model.index+1)
	}
}

// keep keeps a committed entry for a recovery.
func (f *facts) keep(t task) {
	if !f.w.plan.loseMajority {
		return
	}
	if f.tasks == nil {
		f.tasks = make([]task, t.index) // it begins with the founding
	}
	f.tasks = append(f.tasks, t)
}

// afterApply compares a state with those of others at the same index, and with
// the model.
func (f *facts) afterApply(p *process, tasks []task) {
	index, revision, hash := p.n.fsm.status()
	f.w.note(p.place.id, "apply", index, revision, hash)
	if old, ok := f.states[index]; ok && old != hash {
		f.w.fail("member %d has another state at index %d", p.place.id, index)
	}
	f.states[index] = hash
	if revision < p.seen.revision {
		f.w.fail("member %d goes back from revision %d to %d", p.place.id, p.seen.revision, revision)
	}
	p.seen.revision = revision
	if want := f.model.revisionAt(index); revision != want {
		f.w.fail("member %d has revision %d at index %d, the model %d", p.place.id, revision, index, want)
	}
	f.countJump(p, tasks)
}

// countJump counts snapshots that answered writes which they jumped over.
func (f *facts) countJump(p *process, tasks []task) {
	if !slices.ContainsFunc(tasks, func(t task) bool { return t.install != nil }) {
		return
	}
	for _, t := range tasks {
		if b, err := command.Parse(t.data); err == nil && b.Origin == p.raftID() {
			return // it may have been this entry
		}
	}
	if n := p.seen.pending - p.writesPending(); n > 0 {
		f.w.count.add("snapshots over pending writes", 1)
		f.w.count.add("writes answered by a snapshot", uint64(n))
	}
}

// ended checks why a process ended by itself.
func (f *facts) ended(p *process, cause error) {
	if !errors.Is(cause, ErrRemoved) {
		f.w.fail("member %d stopped: %v", p.place.id, cause)
	}
	if !f.newest.IsRemoved(p.raftID()) {
		f.w.fail("member %d stopped as removed, but raft ID %x is not", p.place.id, p.raftID())
	}
	f.w.count.add("removed processes ended", 1)
}

// sameEverywhere reports whether all members have applied the same, and why not.
func (f *facts) sameEverywhere() (string, bool) {
	w := f.w
	for _, m := range f.newest.Members {
		p := w.runs(m)
		if p == nil {
			return "a member is down", false
		}
		index, _, hash := p.n.fsm.status()
		if index != f.model.index || p.seen.commit != index || p.n.loop.Last() != index {
			return "a member lags", false
		}
		if hash != f.states[index] {
			w.fail("member %d has another state at index %d", p.place.id, index)
		}
		f.model.compare(w, p)
	}
	return "", true
}
