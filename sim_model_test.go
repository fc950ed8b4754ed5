package raftkv

import (
	"slices"

	"example.com/raftkv/internal/command"
	"example.com/raftkv/internal/dedup"
	"example.com/raftkv/internal/history"
)

// A model is what the committed log means: a second state machine, as plain as
// can be, that keeps the whole past. It is given every committed entry once, by
// the first process that applies it, and is what all answers to clients are
// compared with.
type model struct {
	index     uint64
	revisions []uint64            // by index
	changes   []edit              // by revision
	keys      map[string][]uint64 // the revisions that changed a key, ascending
	origins   map[uint64]*modelOrigin
	leap      uint64                       // that a recovery has added to the revision,
	leapAt    uint64                       // from there on
	values    map[string]uint64            // the revision that wrote a value; they are unique
	results   map[[2]uint64]history.Result // by origin and number
}

// An edit is what a revision did.
type edit struct {
	key, value string
	deleted    bool
}

type modelOrigin struct {
	answered uint64
	applied  map[uint64]bool
}

func newModel() *model {
	return &model{
		revisions: []uint64{0}, changes: make([]edit, 1), keys: make(map[string][]uint64),
		origins: make(map[uint64]*modelOrigin), values: make(map[string]uint64),
		results: make(map[[2]uint64]history.Result),
	}
}

// found begins with the founding at index 1.
func (m *model) found(members []uint64) {
	m.index, m.revisions = 1, []uint64{0, 0}
	m.retain(members)
}

func (m *model) retain(members []uint64) {
	for id := range m.origins {
		if !slices.Contains(members, id) {
			delete(m.origins, id)
		}
	}
	for _, id := range members {
		if m.origins[id] == nil {
			m.origins[id] = &modelOrigin{applied: make(map[uint64]bool)}
		}
	}
}

func (m *model) revision() uint64 { return uint64(len(m.changes)-1) + m.leap }

// change returns what a revision did, nothing if a recovery has jumped over it.
func (m *model) change(revision uint64) edit {
	switch {
	case revision <= m.leapAt || m.leap == 0:
		return m.changes[revision]
	case revision <= m.leapAt+m.leap:
		return edit{}
	}
	return m.changes[revision-m.leap]
}

func (m *model) revisionAt(index uint64) uint64 { return m.revisions[index] }

func (m *model) apply(w *world, t task) {
	m.index = t.index
	if t.roster != nil {
		m.retain(t.roster.RaftIDs())
	}
	if len(t.data) > 0 {
		m.batch(w, t)
	}
	m.revisions = append(m.revisions, m.revision())
}

func (m *model) batch(w *world, t task) {
	b, err := command.Parse(t.data)
	if err != nil {
		w.fail("entry %d: %v", t.index, err)
	}
	w.count.add("batches", 1)
	w.count.add("commands", uint64(b.Len()))
	o := m.origins[b.Origin]
	if o == nil {
		w.count.add("commands of strangers", uint64(b.Len()))
		return
	}
	o.answered = max(o.answered, b.AnsweredTo)
	for number, c := range b.All() {
		switch {
		case number <= o.answered:
			w.count.add("deduplicated commands", 1)
			m.checkAbandoned(w, b.Origin, number)
		case o.applied[number]:
			w.count.add("deduplicated commands", 1)
		case number > o.answered+dedup.Window:
			w.fail("entry %d: number %d is beyond the window", t.index, number)
		default:
			o.applied[number] = true
			m.results[[2]uint64{b.Origin, number}] = m.command(w, c)
		}
	}
}

// checkAbandoned checks that nobody waits for a number that comes too late to be
// applied ever.
func (m *model) checkAbandoned(w *world, origin, number uint64) {
	if _, applied := m.results[[2]uint64{origin, number}]; applied {
		return
	}
	w.count.add("abandoned commands that came late", 1)
	p := w.facts.owners[origin]
	if p == nil {
		return // died with its cluster
	}
	for _, x := range p.calls {
		if x.kind.isWrite() && x.number() == number {
			w.fail("a write of member %d that somebody waits for was dropped: number %d is below the watermark", p.place.id, number)
		}
	}
}

// outcome returns what has become of a write that was sent.
func (m *model) outcome(x *call) history.Result {
	if r, ok := m.results[x.sent]; ok {
		return r
	}
	return history.Result{Outcome: history.NotDone}
}

func (m *model) command(w *world, c command.Command) history.Result {
	key := string(c.Key)
	_, current := m.at(key, m.revision())
	switch {
	case c.Conditional && c.IfRevision != current:
		return history.Result{Outcome: history.Mismatch, Revision: m.revision()}
	case c.Op == command.Delete && current == 0:
		return history.Result{Outcome: history.OK, Revision: m.revision()}
	}
	r := edit{key: key, value: string(c.Value), deleted: c.Op == command.Delete}
	m.changes = append(m.changes, r)
	m.keys[key] = append(m.keys[key], m.revision())
	if !r.deleted {
		if old := m.values[r.value]; old != 0 {
			w.fail("the write of %q took effect twice, at revisions %d and %d", r.value, old, m.revision())
		}
		m.values[r.value] = m.revision()
	}
	return history.Result{Outcome: history.OK, Revision: m.revision()}
}

// at returns the value of a key at a revision of the store, and the revision
// that wrote it, 0 if there is no such key.
func (m *model) at(key string, revision uint64) (string, uint64) {
	all := m.keys[key]
	i, found := slices.BinarySearch(all, revision)
	if !found {
		i--
	}
	if i < 0 || m.change(all[i]).deleted {
		return "", 0
	}
	return m.change(all[i]).value, all[i]
}

// compare compares a process's state, which has applied all, with the model.
func (m *model) compare(w *world, p *process) {
	n := 0
	for key := range m.keys {
		value, revision := m.at(key, m.revision())
		item, ok := itemOf(p.n.fsm, key)
		if ok != (revision != 0) || ok && (string(item.Value) != value || item.Revision != revision) {
			w.fail("member %d: key %q differs from the model", p.place.id, key)
		}
		if ok {
			n++
		}
	}
	if have := p.n.fsm.keys.Len(); have != n {
		w.fail("member %d has %d keys, the model %d", p.place.id, have, n)
	}
}
