package raftkv

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// protocolVersion is the version of PeerService. Members of different versions
// refuse each other.
const protocolVersion = 3

// blamedMax bounds how many peers that were turned away are remembered, so that
// each is logged once; later ones are only counted.
const blamedMax = 1024

// claimTime is how long a hello to an earlier process under our ID counts: a few
// times as long as links take to try again.
const claimTime = 5 * time.Second

// unboundMax bounds how many foundings that were given up are remembered: more
// than can be made in the time for which a greeting may be on its way.
const unboundMax = 16

// Who may talk to whom. A process starts blank: it has a member ID, a nonce and
// nothing else, and can neither vote nor campaign. It becomes a member by
// founding, or when a member greets it with the raft ID that the cluster has
// committed for its nonce. Everybody else is refused before a message of theirs
// reaches raft (DESIGN.md section 7).

// identity says who this process is.
func (l *loop) identity() *kvpb.Identity {
	id := &kvpb.Identity{
		Protocol: protocolVersion, ClusterName: l.cfg.Cluster, Id: l.cfg.ID, Addr: l.cfg.Addr,
		Nonce: []byte(l.nonce), RaftId: l.raftID,
		HeartbeatMs: uint64(l.cfg.Timing.Heartbeat.Milliseconds()), ElectionMs: uint64(l.cfg.Timing.Election.Milliseconds()),
	}
	if l.raftID != 0 {
		id.ClusterId = []byte(l.roster.ClusterID)
	}
	return id
}

// checkIdentity refuses whoever cannot be a member of the same cluster, now or
// later.
func (l *loop) checkIdentity(from *kvpb.Identity) error {
	switch {
	case from.GetProtocol() != protocolVersion:
		return fmt.Errorf("%w: protocol version %d, this member has %d", ErrMembershipRefused, from.GetProtocol(), protocolVersion)
	case from.GetClusterName() != l.cfg.Cluster:
		return fmt.Errorf("%w: member %d belongs to a cluster named %q, this member to one named %q",
			ErrMembershipRefused, l.cfg.ID, from.GetClusterName(), l.cfg.Cluster)
	case from.GetId() == 0 || from.GetId() > roster.IDMax || len(from.GetNonce()) != roster.NonceBytes || len(from.GetAddr()) > roster.AddrBytesMax:
		return fmt.Errorf("%w: malformed identity", ErrInvalid)
	}
	return nil
}

// whoIs answers a process that only asks who this one is, and tells it what the
// cluster knows under its member ID. A blank process takes it as final that its
// ID is not known; so a member that has just been taken up itself, or has no
// contact with its leader, does not say so.
func (l *loop) whoIs(h *kvpb.Hello) (*kvpb.HelloResponse, error) {
	from := h.GetFrom()
	if err := l.checkIdentity(from); err != nil {
		return nil, err
	}
	resp := &kvpb.HelloResponse{Identity: l.identity()}
	if l.raftID == 0 {
		return resp, nil
	}
	if m, ok := l.roster.Newest(from.GetId()); ok {
		resp.Member = m.Proto()
	} else if from.GetRaftId() == 0 && !l.health.ready {
		return nil, fmt.Errorf("%w: member %d cannot tell yet whether its cluster has member %d", ErrNoLeader, l.cfg.ID, from.GetId())
	}
	return resp, nil
}

// welcome decides whether a member may open a stream to this process. It may
// make a blank process a member.
func (l *loop) welcome(h *kvpb.Hello) error {
	from := h.GetFrom()
	if err := l.checkIdentity(from); err != nil {
		return err
	}
	if h.GetToId() != l.cfg.ID {
		return fmt.Errorf("%w: member %d answers at %s, not %d", ErrMembershipRefused, l.cfg.ID, l.cfg.Addr, h.GetToId())
	}
	if roster.MemberID(from.GetRaftId()) != from.GetId() || len(from.GetClusterId()) != roster.NonceBytes {
		return fmt.Errorf("%w: malformed identity", ErrInvalid)
	}
	if l.raw == nil {
		if err := l.adopt(h); err != nil {
			return err
		}
	}
	if string(from.GetClusterId()) != l.roster.ClusterID {
		return fmt.Errorf("%w: member %d belongs to another cluster", ErrMembershipRefused, l.cfg.ID)
	}
	if from.GetRaftId() == l.raftID {
		return fmt.Errorf("%w: member %d under its own raft ID", ErrInvalid, l.cfg.ID)
	}
	if h.GetToRaftId() != l.raftID || string(h.GetToNonce()) != l.nonce {
		return fmt.Errorf("%w: member %d is another process than the one expected", ErrNotMember, l.cfg.ID)
	}
	return l.admit(from)
}

// welcomeRequest decides whether a member may ask for a change. A leader that
// removed itself, and handed leadership over on the way, is no member any more
// when it asks what became of its change: nobody sent it the entry that ended
// its membership. It is told the membership that its change made.
func (l *loop) welcomeRequest(h *kvpb.Hello, r *membership.Request) (inForce *roster.Roster, err error) {
	err = l.welcome(h)
	if errors.Is(err, ErrRemoved) && isInForce(l.roster, r) {
		return l.roster, nil
	}
	return nil, err
}

// adopt makes a blank process the member that a greeting says it is. The nonce
// proves that the cluster has committed this very process.
func (l *loop) adopt(h *kvpb.Hello) error {
	if string(h.GetToNonce()) != l.nonce || roster.MemberID(h.GetToRaftId()) != l.cfg.ID || roster.Number(h.GetToRaftId()) == 0 {
		l.links.greeted = max(l.now, 1)
		if !l.links.strange {
			l.links.strange = true
			l.logger.Info("the cluster knows an earlier process under this member's ID; this one waits to be put in its place",
				"cluster", clusterIDText(string(h.GetFrom().GetClusterId())), "said", h.GetFrom().GetAddr())
		}
		return fmt.Errorf("%w: member %d is a new process, which the cluster does not know", ErrNotMember, l.cfg.ID)
	}
	cluster := string(h.GetFrom().GetClusterId())
	if b := l.links.bound; b != nil && b.ClusterID != cluster {
		return fmt.Errorf("%w: member %d takes part in the founding of another cluster", ErrNotMember, l.cfg.ID)
	}
	for _, b := range slices.Concat(l.links.unbound, []*roster.Roster{l.links.bound}) {
		if b == nil || b.ClusterID != cluster {
			continue
		}
		if m, _ := b.Newest(l.cfg.ID); m.RaftID == h.GetToRaftId() { // else it was removed and added since
			return l.found(b) // the greeting is faster than the commit, or all that is left of it
		}
	}
	return l.become(h.GetToRaftId(), roster.Blank(cluster), 0)
}

// admit decides whether a process of our cluster is a member. One whose number
// is above our counter may have been added by entries that have not reached us,
// and may even lead: raft must hear it (thesis §4.1: servers process messages
// whoever sends them). It knows our raft ID and nonce, so it has our membership.
func (l *loop) admit(from *kvpb.Identity) error {
	m := roster.Member{RaftID: from.GetRaftId(), Addr: from.GetAddr(), Nonce: string(from.GetNonce())}
	known, ok := l.roster.Lookup(m.RaftID)
	switch {
	case ok && known.Nonce != m.Nonce:
		return fmt.Errorf("%w: member %d has another nonce", ErrMembershipRefused, m.ID())
	case ok:
	case l.roster.IsRemoved(m.RaftID):
		return fmt.Errorf("%w: member %d", ErrRemoved, m.ID())
	case len(l.links.guests) >= roster.MembersMax:
		return fmt.Errorf("%w: too many members that are not known yet", ErrOverloaded)
	default:
		l.links.guests[m.RaftID] = m
		l.connect()
	}
	l.heard(m.RaftID)
	l.compareTiming(from)
	return nil
}

// compareTiming warns, once, of a member that keeps another time: elections and
// the judgement of who is silent go by one's own.
func (l *loop) compareTiming(from *kvpb.Identity) {
	self := l.identity()
	if l.links.mistimed || from.GetHeartbeatMs() == self.GetHeartbeatMs() && from.GetElectionMs() == self.GetElectionMs() {
		return
	}
	l.links.mistimed = true
	l.logger.Warn("a member has other timing; give all the same", "other", from.GetId(),
		"heartbeat_ms", from.GetHeartbeatMs(), "election_ms", from.GetElectionMs())
}

// turnedAway takes the news that a member refuses our stream, or that it cannot
// be reached. Only what it said itself counts, and only from our cluster: it
// says that we were removed under a raft ID which nobody else ever has.
func (l *loop) turnedAway(raftID uint64, err error, told bool) {
	if told && errors.Is(err, ErrRemoved) {
		l.removed()
		l.publish()
		return
	}
	if m, ok := l.roster.Lookup(raftID); ok && !l.links.lost[raftID] {
		l.links.lost[raftID] = true
		l.logger.Warn("no stream to member", "to", m.ID(), "addr", m.Addr, "err", err)
	}
}

// met takes the news of who answers where a member should: a process of its own
// name that has come back blank, or what the cluster has made of that since.
func (l *loop) met(raftID uint64, who *kvpb.Identity) {
	m, ok := l.roster.Lookup(raftID)
	nonce := string(who.GetNonce())
	if !ok || l.checkIdentity(who) != nil || who.GetId() != m.ID() || nonce == m.Nonce {
		return
	}
	_, known := l.roster.Lookup(who.GetRaftId())
	if who.GetRaftId() != 0 && !known {
		delete(l.links.inPlace, raftID) // the cluster has gone on without our knowing
		return
	}
	if l.links.inPlace[raftID] != nonce {
		l.links.inPlace[raftID] = nonce
		l.logger.Info("a new process answers in place of a member", "of", m.ID(), "addr", m.Addr, "blank", who.GetRaftId() == 0)
	}
	l.presumeDead(raftID)
}

// heard notes that a member lives.
func (l *loop) heard(raftID uint64) {
	l.links.contact[raftID] = l.now
	delete(l.links.inPlace, raftID)
	l.dropHint(raftID)
}

// connected takes the news that a member has accepted our stream.
func (l *loop) connected(raftID uint64) {
	l.logger.Debug("stream to member", "to", roster.MemberID(raftID))
	if l.links.lost[raftID] {
		l.logger.Info("stream to member again", "to", roster.MemberID(raftID))
	}
	delete(l.links.lost, raftID)
}

// blame counts somebody who was turned away, by the hello or later for breaking
// the protocol, and logs the first time of each.
func (l *loop) blame(who string, err error) {
	l.links.refused++
	if !l.links.blamed[who] && len(l.links.blamed) < blamedMax {
		l.links.blamed[who] = true
		l.logger.Warn("turned a peer away", "from", who, "err", err)
	}
}

// bind accepts to found a cluster, if its coordinator means this process and no
// other founding is under way.
func (l *loop) bind(h *kvpb.Hello, r *roster.Roster) error {
	if err := l.checkIdentity(h.GetFrom()); err != nil {
		return err
	}
	m, ok := r.Newest(l.cfg.ID)
	switch {
	case l.raw != nil:
		return fmt.Errorf("%w: member %d", ErrAlreadyInitialized, l.cfg.ID)
	case l.isClaimed() && len(r.Members) > 1: // who founds alone means it
		return fmt.Errorf("%w: a cluster that has member %d has just said hello to this process; it takes it up, or must be recovered or stopped", ErrMembershipRefused, l.cfg.ID)
	case l.links.bound != nil:
		return fmt.Errorf("%w: member %d takes part in another founding", ErrMembershipRefused, l.cfg.ID)
	case !ok || m.Nonce != l.nonce:
		return fmt.Errorf("%w: member %d is another process than the one expected", ErrNotMember, l.cfg.ID)
	case r.Index != 1 || r.IsJoint() || len(r.Conf.GetVoters()) != len(r.Members):
		return fmt.Errorf("%w: malformed founding", ErrInvalid)
	}
	l.links.bound = r
	return nil
}

// isClaimed reports whether a cluster that had a member under this ID has said
// hello lately. Whoever has lost its memory should not found another one while
// somebody lives who has not: that would hide that there is something to recover.
// It is a help and no promise: who founds within the second that links take to
// find it, or is cut off from those who remember, does not know.
func (l *loop) isClaimed() bool {
	lately := max(uint64(claimTime/l.cfg.Timing.Tick), 5*uint64(l.cfg.Timing.electionTicks()))
	return l.links.greeted != 0 && l.now-l.links.greeted <= lately
}

// unbind frees a process whose founding did not come about, as far as it knows:
// if the coordinator died just after it had founded, a greeting tells of it. So
// the founding is remembered. A process that took such a greeting for that of a
// cluster which has the state would wait for it for ever, and so would all others
// that did.
func (l *loop) unbind(r *roster.Roster) {
	if b := l.links.bound; b != nil && b.ClusterID == r.ClusterID {
		l.links.bound = nil
		if l.raw == nil {
			l.links.unbound = append(l.links.unbound[max(0, len(l.links.unbound)-unboundMax+1):], b)
		}
	}
}

// found founds a cluster that all founders have accepted. The first founder
// stands for election at once.
func (l *loop) found(r *roster.Roster) error {
	if l.raw != nil {
		if l.roster.ClusterID == r.ClusterID {
			return nil // another founder's greeting was faster
		}
		return fmt.Errorf("%w: member %d", ErrAlreadyInitialized, l.cfg.ID)
	}
	m, _ := r.Newest(l.cfg.ID)
	if err := l.become(m.RaftID, r, 1); err != nil {
		return err
	}
	if roster.Number(m.RaftID) == 1 {
		if err := l.raw.Campaign(); err != nil {
			return fmt.Errorf("raftkv: campaign: %w", err)
		}
	}
	return nil
}

// clusterIDText writes a cluster ID for people.
func clusterIDText(id string) string { return hex.EncodeToString([]byte(id)) }

// membershipText writes a membership for the log.
func membershipText(r *roster.Roster) string {
	words := make([]string, len(r.Members))
	for i, m := range r.Members {
		role := "learner"
		if r.IsVoter(m.RaftID) {
			role = "voter"
		}
		words[i] = fmt.Sprintf("%d=%s (%s)", m.ID(), m.Addr, role)
	}
	return strings.Join(words, ", ")
}
