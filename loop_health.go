package raftkv

import (
	"fmt"

	"example.com/raftkv/internal/reads"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What the loop judges of the node's and the cluster's condition, once a tick:
// whether this node is ready, and whether the majority is lost.

// condition is the latest judgement.
type condition struct {
	probe    *reads.Round // asks whether this node shows all; nil if none is under way
	asked    uint64       // the tick at which it began, or the one before it
	caughtUp bool         // it does, under the present leader
	served   uint64       // the latest tick at which there was a leader
	ready    bool
	lost     error // the proof that a majority is lost, nil if there is none
}

// doubt forgets what was confirmed under another leader.
func (h *condition) doubt() { h.probe, h.caughtUp = nil, false }

// judge publishes what has changed of the condition.
func (l *loop) judge() {
	l.tellCaughtUp()
	if l.hearsLeader() {
		l.health.served = l.now
	}
	ready, lost := l.isReady(), l.lostQuorum()
	if lost != nil { // also what has come since the last tick
		l.out.Refuse(lost)
		l.reads.Refuse(lost)
	}
	if ready == l.health.ready && (lost == nil) == (l.health.lost == nil) {
		return
	}
	if lost != nil && l.health.lost == nil {
		l.logger.Error("a majority of the voters is lost; recover on the best survivor, or start all over", "proof", lost)
	} else if ready != l.health.ready {
		l.logger.Info("readiness changed", "ready", ready)
	}
	l.health.ready, l.health.lost = ready, lost
	l.publish()
}

// tellCaughtUp asks, of each leader and again every election timeout, for the
// confirmation that a linearizable read waits for: when it is there and applied,
// nothing that was acknowledged before is missing here. A node that stood still
// for long finds out that way.
func (l *loop) tellCaughtUp() {
	h, election := &l.health, uint64(l.cfg.Timing.electionTicks())
	if h.probe != nil {
		select {
		case <-h.probe.Done():
			h.caughtUp, h.probe = h.probe.Err() == nil, nil
		default:
			h.caughtUp = h.caughtUp && l.now-h.asked <= 3*election
		}
	}
	if h.probe == nil && l.lead.raftID != 0 && (!h.caughtUp || l.now-h.asked >= election) {
		h.asked = l.now
		probe, _ := l.reads.Join(0)
		h.probe = probe.Round
	}
}

// isReady reports whether this node is a member in force, has caught up and
// knows a leader that answers. One that still has to take over the vote of an
// earlier incarnation is not: who restarts members one after another would lose
// that vote with the next.
func (l *loop) isReady() bool {
	self, ok := l.roster.Lookup(l.raftID)
	_, replaces := l.roster.Replaced(self)
	return ok && !replaces && l.health.caughtUp && l.change.gone == 0 && l.hearsLeader()
}

// lostQuorum returns an error if those voters that are not lost are no majority
// of one half of the configuration in force, and the others of them agree. Alone
// this node might judge by a membership that is long past.
func (l *loop) lostQuorum() error {
	if len(l.links.inPlace) == 0 || l.lead.raftID != l.raftID && l.hearsLeader() {
		return nil
	}
	for _, half := range [][]uint64{l.roster.Conf.GetVoters(), l.roster.Conf.GetVotersOutgoing()} {
		var lost []uint64
		agree := true
		for _, raftID := range half {
			if l.isLost(raftID) {
				lost = append(lost, roster.MemberID(raftID))
			} else {
				agree = agree && l.agrees(raftID)
			}
		}
		if len(half) > 0 && len(half)-len(lost) < quorum(len(half)) && agree {
			return fmt.Errorf("%w: of %d voters, members %d have restarted without their memory", ErrQuorumLost, len(half), lost)
		}
	}
	return nil
}

// isLost reports whether an incarnation has forgotten what it acknowledged: it
// does not answer, and another process was met in its place, or is this one. Who
// is only silent may come back.
func (l *loop) isLost(raftID uint64) bool {
	isOurs := roster.MemberID(raftID) == l.cfg.ID && raftID != l.raftID
	return (isOurs || l.links.inPlace[raftID] != "") && !l.answers(raftID)
}

// A standing is how a member sees the cluster, as it said at a tick.
type standing struct {
	roster uint64 // the index of its membership
	hears  bool   // it leads, or hears from the leader
	at     uint64
}

// ownStanding is how this one does.
func (l *loop) ownStanding() *kvpb.Standing {
	return &kvpb.Standing{RosterIndex: l.roster.Index, HearsLeader: l.hearsLeader()}
}

// standsFor takes what a member says of how it stands, and answers if it asks.
func (l *loop) standsFor(raftID uint64, s *kvpb.Standing) {
	if !l.runs() {
		return
	}
	l.links.standing[raftID] = standing{s.GetRosterIndex(), s.GetHearsLeader(), l.now}
	if s.GetAsks() {
		l.net.stand(raftID, l.ownStanding())
	}
	if !s.GetHearsLeader() {
		l.standAgain()
	}
}

// agrees reports whether a voter has said lately that it hears of no leader
// either, and knows no newer membership.
func (l *loop) agrees(raftID uint64) bool {
	s, ok := l.links.standing[raftID]
	fresh := ok && l.now-s.at <= 3*uint64(l.cfg.Timing.electionTicks())
	return raftID == l.raftID || fresh && !s.hears && s.roster <= l.roster.Index
}

func quorum(voters int) int { return voters/2 + 1 }

// spareVoters returns how many of the voters that answer this leader can stop
// without the loss of the quorum, -1 if it does not lead.
func (l *loop) spareVoters() int {
	if !l.runs() || !l.Leads() {
		return -1
	}
	spare := len(l.roster.Members)
	for _, half := range [][]uint64{l.roster.Conf.GetVoters(), l.roster.Conf.GetVotersOutgoing()} {
		answer := 0
		for _, raftID := range half {
			if l.answers(raftID) {
				answer++
			}
		}
		if len(half) > 0 {
			spare = min(spare, max(answer-quorum(len(half)), 0))
		}
	}
	return spare
}
