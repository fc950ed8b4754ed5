package raftkv

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// The operator of the simulator: it adds and removes learners, changes who votes
// and hands leadership over, one call at a time, as Node.changeSomewhere does
// it: the same request goes to whoever leads until it is answered.

// operator is the one person who changes the membership.
type operator struct {
	w        *world
	request  *membership.Request // under way, nil if none
	kind     string
	deadline time.Duration
	attempt  int
	abandon  func() // has the worker that it was submitted to forget it
	asked    []asked
}

// asked is a set of voters that may come into force until a time.
type asked struct {
	voters []uint64
	until  time.Duration
}

// act begins a call, if none is under way.
func (o *operator) act() {
	w := o.w
	if o.request != nil || w.leader() == nil {
		return
	}
	r := o.choose()
	if r == nil {
		return
	}
	r.ID = randomID()
	o.request, o.deadline = r, w.now+w.between(time.Second, 20*time.Second)
	if r.Kind == membership.SetVoters {
		o.asked = append(o.asked, asked{r.Voters, o.deadline + time.Minute}) // longer than any pause
	}
	w.noteText(0, "operator", uint64(r.Kind), r.Target, 0, fmt.Sprintf("%s %d %v", o.kind, r.Member.ID(), r.Voters))
	o.try()
}

// choose says what to change.
func (o *operator) choose() *membership.Request {
	w := o.w
	m := membershipOf(w.facts.newest)
	var voters, learners []uint64
	for _, row := range m.Members {
		if row.Role == Voter {
			voters = append(voters, row.ID)
		} else {
			learners = append(learners, row.ID)
		}
	}
	some := func(ids []uint64) uint64 { return ids[w.rnd.IntN(len(ids))] }
	switch o.kind = operations[w.rnd.IntN(len(operations))]; o.kind {
	case "add":
		if pl := o.spare(); pl != nil {
			return &membership.Request{Kind: membership.AddLearner, Member: roster.Member{RaftID: roster.RaftID(pl.id, 0), Addr: pl.addr}}
		}
	case "remove":
		if len(learners) > 0 {
			return &membership.Request{Kind: membership.RemoveLearner, Target: some(learners)}
		}
	case "promote":
		if len(learners) > 0 && len(voters) < w.plan.members+1 {
			return o.setVoters(append(voters, some(learners)), false)
		}
	case "demote", "drop":
		if gone := some(voters); len(voters) > max(3, w.plan.members-2) {
			return o.setVoters(slices.DeleteFunc(voters, func(id uint64) bool { return id == gone }), o.kind == "demote")
		}
	case "swap":
		if len(learners) > 0 {
			gone := some(voters)
			return o.setVoters(append(slices.DeleteFunc(voters, func(id uint64) bool { return id == gone }), some(learners)), w.chance(0.5))
		}
	case "transfer":
		return &membership.Request{Kind: membership.Transfer, Target: some(voters)}
	}
	return nil
}

var operations = []string{"add", "add", "remove", "promote", "promote", "demote", "drop", "swap", "transfer", "transfer", "transfer"}

// setVoters asks for voters, unless so many of them have just died that the
// cluster could not survive the change: that they are dead the leader learns only
// after an election timeout.
func (o *operator) setVoters(ids []uint64, retain bool) *membership.Request {
	slices.Sort(ids)
	dead := 0
	for _, id := range ids {
		if m, _ := o.w.facts.newest.Newest(id); o.w.runs(m) == nil {
			dead++
		}
	}
	if dead > (len(ids)-1)/2 {
		return nil
	}
	return &membership.Request{Kind: membership.SetVoters, Voters: ids, Retain: retain}
}

// spare returns a place whose process belongs to no cluster.
func (o *operator) spare() *place {
	for _, i := range o.w.rnd.Perm(len(o.w.places)) {
		pl := o.w.places[i]
		if _, member := o.w.facts.newest.Newest(pl.id); !member && o.w.procs[i] != nil {
			return pl
		}
	}
	return nil
}

// wanted returns the voters that calls ask for, or have asked for lately: a leader
// that was paused may yet do what nobody waits for any more.
func (o *operator) wanted() (halves [][]roster.Member) {
	o.asked = slices.DeleteFunc(o.asked, func(a asked) bool { return a.until < o.w.now })
	for _, a := range o.asked {
		var half []roster.Member
		for _, id := range a.voters {
			if m, ok := o.w.facts.newest.Newest(id); ok {
				half = append(half, m)
			}
		}
		halves = append(halves, half)
	}
	return halves
}

// try sends the request to whoever leads, as some process sees it.
func (o *operator) try() {
	w, r := o.w, o.request
	if r == nil {
		return
	}
	o.attempt++
	attempt := o.attempt
	if w.now >= o.deadline {
		if o.abandon != nil {
			o.abandon()
		}
		o.finish(nil, ErrOutcomeUnknown)
		return
	}
	w.after(3*time.Second, func() { o.retry(attempt) })
	p := w.procs[w.rnd.IntN(len(w.procs))]
	if p == nil || p.raftID() == 0 {
		w.after(50*time.Millisecond, func() { o.retry(attempt) })
		return
	}
	leader := w.facts.owners[p.n.loop.lead.raftID]
	if leader == nil || !leader.alive || w.paths[p.place.at][leader.place.at].cut {
		w.after(100*time.Millisecond, func() { o.retry(attempt) })
		return
	}
	if v := p.n.view.Load(); isInForce(v.roster, r) {
		o.finish(v.roster, nil) // and the answer was lost
		return
	}
	if p == leader {
		o.lead(leader, attempt)
		return
	}
	o.forward(p, leader, attempt)
}

// forward is Node.changeThere and grpcTransport.Forward: the leader first decides
// whether it is a member that asks.
func (o *operator) forward(p, leader *process, attempt int) {
	w, r := o.w, o.request
	l := p.net.links[leader.raftID()]
	if l == nil || p.paused {
		w.after(100*time.Millisecond, func() { o.retry(attempt) })
		return
	}
	hello := p.net.hello(l.member)
	w.after(w.paths[p.place.at][leader.place.at].takes(w), func() {
		leader.arrive(func() {
			leader.n.post(func(l *loop) {
				inForce, err := l.welcomeRequest(hello, r)
				switch {
				case err != nil:
					w.after(time.Millisecond, func() { o.answered(attempt, nil, membership.ErrNotLeader) })
				case inForce != nil:
					w.after(time.Millisecond, func() { o.answered(attempt, inForce, nil) })
				default:
					w.after(0, func() { o.lead(leader, attempt) })
				}
			})
		})
	})
}

// lead is the part of a call that the leader does.
func (o *operator) lead(leader *process, attempt int) {
	switch {
	case attempt != o.attempt || !leader.alive:
	case o.request.Kind == membership.AddLearner:
		o.probe(leader, attempt)
	default:
		o.submit(leader, attempt, "", nil)
	}
}

func (o *operator) retry(attempt int) {
	if o.attempt == attempt {
		o.try()
	}
}

// probe asks the process at the new member's address who it is, as Node.probe
// does.
func (o *operator) probe(leader *process, attempt int) {
	w, r := o.w, o.request
	pl := w.placeOf(r.Member.Addr)
	q := w.procs[pl.at]
	if q == nil || q.paused || w.paths[leader.place.at][pl.at].cut {
		o.submit(leader, attempt, "", fmt.Errorf("%w: no member answers at %s", ErrMembershipRefused, pl.addr))
		return
	}
	hello := &kvpb.Hello{From: leader.n.loop.identity()}
	q.arrive(func() {
		q.n.post(func(l *loop) {
			resp, err := l.whoIs(hello)
			if err != nil {
				w.fail("member %d does not say who it is: %v", pl.id, err)
			}
			who := resp.GetIdentity()
			if who.GetRaftId() != 0 && leader.n.loop.roster.IsRemoved(who.GetRaftId()) {
				err = fmt.Errorf("%w: member %d was removed and is about to stop", ErrMembershipRefused, pl.id)
			}
			w.after(time.Millisecond, func() {
				if o.attempt == attempt {
					o.submit(leader, attempt, string(who.GetNonce()), err)
				}
			})
		})
	})
}

// submit is Node.changeHere on the leader.
func (o *operator) submit(leader *process, attempt int, nonce string, probe error) {
	w := o.w
	r := *o.request
	r.Member.Nonce, r.Probe = nonce, probe
	r.Done = func(now *roster.Roster, err error) {
		w.after(time.Millisecond, func() { o.answered(attempt, now, err) })
	}
	o.abandon = func() {
		leader.arrive(func() { leader.n.post(func(l *loop) { l.change.worker.Abandon(&r) }) })
	}
	w.after(time.Millisecond, func() {
		leader.arrive(func() {
			leader.n.post(func(l *loop) {
				if !l.Leads() {
					r.Done(nil, membership.ErrNotLeader)
					return
				}
				l.change.worker.Submit(&r)
			})
		})
	})
}

func (o *operator) answered(attempt int, now *roster.Roster, err error) {
	if o.request == nil || attempt != o.attempt {
		return
	}
	if isRetryable(err) {
		o.w.after(100*time.Millisecond, func() { o.retry(attempt) })
		return
	}
	o.finish(now, err)
}

// finish ends the call and counts it.
func (o *operator) finish(now *roster.Roster, err error) {
	w, r := o.w, o.request
	o.request = nil
	o.attempt++
	outcome := "done"
	if err != nil {
		outcome = "refused"
		if errors.Is(err, ErrOutcomeUnknown) {
			outcome = "unknown"
		}
	} else if now != nil {
		o.check(r, now)
	}
	w.noteText(0, "operator "+outcome, uint64(r.Kind), 0, 0, fmt.Sprint(err))
	w.count.add("operator: "+o.kind+" "+outcome, 1)
}

// check compares what was acknowledged with the membership that came with it.
func (o *operator) check(r *membership.Request, now *roster.Roster) {
	w := o.w
	if old := w.facts.rosters[now.Index]; old == nil || old.Hash() != now.Hash() {
		w.fail("a change returned a membership of index %d that nobody has committed", now.Index)
	}
	var voters []uint64
	for _, row := range membershipOf(now).Members {
		if row.Role == Voter {
			voters = append(voters, row.ID)
		}
	}
	if r.Kind == membership.SetVoters && !now.HasChange(r.ID) && !slices.Equal(voters, r.Voters) {
		w.fail("a change to voters %v returned with voters %v", r.Voters, voters)
	}
}

// gone has a process that was removed started again, as a spare.
func (o *operator) gone(p *process) {
	o.w.restart(p.place, o.w.between(500*time.Millisecond, 5*time.Second))
}
