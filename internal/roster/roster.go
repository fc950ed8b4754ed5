// Package roster is the replicated membership: who is in the cluster, in which
// incarnation and with which role, and which changes to that are legal.
package roster

import (
	"bytes"
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/fault"
	"example.com/raftkv/internal/mix"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

const (
	// ChangesMax is how many change IDs a roster remembers. A change is retried
	// by one caller at a time while it waits, and one change runs at a time, so
	// a few would do; more cost 16 bytes each.
	ChangesMax = 64
	// MembersMax bounds the members of a cluster, learners included.
	MembersMax = 255
	// NonceBytes is the size of nonces, cluster IDs and change IDs.
	NonceBytes = 16
	// IDMax is the largest member ID: 31 bits, so that no raft ID comes near
	// those that raft keeps for its own threads.
	IDMax = 1<<31 - 1
	// AddrBytesMax bounds an address: a DNS name and a port fit.
	AddrBytesMax = 512
)

// RaftID joins a member ID and the number of one of its incarnations.
func RaftID(id, number uint64) uint64 { return id<<32 | number }

// MemberID returns the member ID of a raft ID, 0 for 0.
func MemberID(raftID uint64) uint64 { return raftID >> 32 }

// Number returns the incarnation number of a raft ID.
func Number(raftID uint64) uint64 { return raftID & (1<<32 - 1) }

// A Member is one incarnation of a member.
type Member struct {
	RaftID uint64
	Addr   string
	Nonce  string // NonceBytes random bytes
}

// ID returns the member ID.
func (m Member) ID() uint64 { return MemberID(m.RaftID) }

// A Roster is the membership as of one log entry. It is immutable: Apply makes
// a new one, so the loop, the applier and the transport may share it.
//
// Invariants:
//
//  1. Members are exactly the raft IDs of Conf, in ascending order.
//  2. No number above Counter has ever been in the roster, so a raft ID whose
//     number is at or below Counter and that is no member was removed for good
//     (DESIGN.md section 7); no tombstones are needed.
//  3. A member has one incarnation, or two while it is being replaced: the old
//     one a voter, the new one a learner or, in the joint phase, a voter of the
//     other half.
//  4. Everything here is a function of the log, and so the same on all members.
type Roster struct {
	ClusterID string // NonceBytes random bytes
	Counter   uint64 // the number last given to an incarnation
	Index     uint64 // of the entry that made this roster
	Conf      *pb.ConfState
	Members   []Member
	Changes   []string // the latest change IDs, oldest first
}

// Found returns the roster of a new cluster, in which all members vote and
// have the numbers 1, 2, 3 ... in the order given. Its index is 1, never 0: a
// configuration at index 0 lets a joiner elect itself alone (etcd-io/raft#370).
func Found(clusterID string, members []Member) *Roster {
	r := &Roster{ClusterID: clusterID, Index: 1, Conf: &pb.ConfState{}}
	for i, m := range members {
		r.Counter = uint64(i + 1)
		m.RaftID = RaftID(m.RaftID>>32, r.Counter)
		r.Members = append(r.Members, m)
		r.Conf.Voters = append(r.Conf.Voters, m.RaftID)
	}
	r.sort()
	return r
}

// Recovered returns the roster of a cluster that one survivor founds with what it
// has of another: it alone, under a raft ID that the other never used.
func (r *Roster) Recovered(clusterID string, survivor Member, index uint64) *Roster {
	survivor.RaftID = RaftID(survivor.ID(), r.Counter+1)
	return &Roster{
		ClusterID: clusterID, Counter: r.Counter + 1, Index: index,
		Conf: &pb.ConfState{Voters: []uint64{survivor.RaftID}}, Members: []Member{survivor},
	}
}

// Blank returns the roster of a process that has been given a raft ID but has
// not yet received anything: it knows nobody, itself included.
func Blank(clusterID string) *Roster {
	return &Roster{ClusterID: clusterID, Conf: &pb.ConfState{}}
}

// Lookup returns the incarnation with a raft ID.
func (r *Roster) Lookup(raftID uint64) (Member, bool) {
	i, ok := slices.BinarySearchFunc(r.Members, raftID, func(m Member, id uint64) int {
		return compare(m.RaftID, id)
	})
	if !ok {
		return Member{}, false
	}
	return r.Members[i], true
}

// Newest returns the newest incarnation of a member.
func (r *Roster) Newest(id uint64) (Member, bool) {
	var found Member
	for _, m := range r.Members {
		if m.ID() == id {
			found = m // ascending raft IDs: the last is the newest
		}
	}
	return found, found.RaftID != 0
}

// Replaced returns the older incarnation of a member's, if m is not its only one
// but the newest.
func (r *Roster) Replaced(m Member) (old Member, ok bool) {
	for _, o := range r.Members {
		if o.ID() == m.ID() && o.RaftID < m.RaftID {
			return o, true
		}
	}
	return Member{}, false
}

// count returns how many members there are, each once.
func (r *Roster) count() int {
	n := 0
	for i, m := range r.Members {
		if i == 0 || r.Members[i-1].ID() != m.ID() {
			n++
		}
	}
	return n
}

// IsReplacing reports whether any member is being replaced.
func (r *Roster) IsReplacing() bool {
	for i := 1; i < len(r.Members); i++ { // ascending: the incarnations of a member are neighbours
		if r.Members[i].ID() == r.Members[i-1].ID() {
			return true
		}
	}
	return false
}

// IsRemoved reports whether a raft ID was a member and never will be again.
func (r *Roster) IsRemoved(raftID uint64) bool {
	_, ok := r.Lookup(raftID)
	return !ok && Number(raftID) <= r.Counter
}

// IsVoter reports whether a raft ID votes, in either half of a joint
// configuration.
func (r *Roster) IsVoter(raftID uint64) bool {
	return slices.Contains(r.Conf.GetVoters(), raftID) ||
		slices.Contains(r.Conf.GetVotersOutgoing(), raftID)
}

// IsJoint reports whether a change is half-way.
func (r *Roster) IsJoint() bool { return len(r.Conf.GetVotersOutgoing()) > 0 }

// HasChange reports whether a change took effect lately.
func (r *Roster) HasChange(id string) bool { return id != "" && slices.Contains(r.Changes, id) }

// RaftIDs returns the raft IDs of all members.
func (r *Roster) RaftIDs() []uint64 {
	ids := make([]uint64, len(r.Members))
	for i, m := range r.Members {
		ids[i] = m.RaftID
	}
	return ids
}

// Hash returns a hash of the roster, equal on all members that have the same.
func (r *Roster) Hash() uint64 { return mix.Bytes(0, r.Append(nil)) }

// Apply returns the roster after a membership change from the log at an index.
// An error means that the change is refused and nothing changed; it is decided
// from replicated state alone, so all members refuse the same changes. The
// caller must then not tell raft about the change.
func (r *Roster) Apply(cc *pb.ConfChangeV2, index uint64) (*Roster, error) {
	ctx, err := decodeContext(cc.GetContext())
	if err != nil {
		return nil, err
	}
	if err := r.admits(cc, ctx); err != nil {
		return nil, err
	}
	conf, err := r.changed(cc)
	if err != nil {
		return nil, err
	}
	next := &Roster{
		ClusterID: r.ClusterID, Counter: r.Counter, Index: index, Conf: conf,
		Members: slices.Clone(r.Members), Changes: r.Changes,
	}
	if a := ctx.GetAdd(); a != nil {
		next.Counter = Number(a.GetRaftId())
		next.Members = append(next.Members, memberOf(a))
	}
	if id := string(ctx.GetChangeId()); id != "" {
		next.Changes = append(slices.Clone(r.Changes), id)
		if n := len(next.Changes) - ChangesMax; n > 0 {
			next.Changes = next.Changes[n:]
		}
	}
	next.Members = slices.DeleteFunc(next.Members, func(m Member) bool {
		return !inConf(conf, m.RaftID)
	})
	next.sort()
	if err := next.checkIncarnations(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, fault.ErrMembershipRefused)
	}
	return next, nil
}

// checkIncarnations verifies invariant 3.
func (r *Roster) checkIncarnations() error {
	for i, m := range r.Members {
		if i == 0 || r.Members[i-1].ID() != m.ID() {
			continue
		}
		old := r.Members[i-1].RaftID
		if i > 1 && r.Members[i-2].ID() == m.ID() {
			return fmt.Errorf("member %d has three incarnations", m.ID())
		}
		in, out := r.Conf.GetVoters(), r.Conf.GetVotersOutgoing()
		inBoth := slices.Contains(in, old) && slices.Contains(in, m.RaftID) || slices.Contains(out, old) && slices.Contains(out, m.RaftID)
		if inBoth || !r.IsVoter(old) {
			return fmt.Errorf("member %d has two incarnations, %d and %d, not one that replaces a voter", m.ID(), old, m.RaftID)
		}
	}
	return nil
}

// admits checks a change against what the roster remembers.
func (r *Roster) admits(cc *pb.ConfChangeV2, ctx *kvpb.ConfContext) error {
	if r.HasChange(string(ctx.GetChangeId())) {
		return fmt.Errorf("this change has taken effect already: %w", fault.ErrMembershipRefused)
	}
	if want := ctx.GetIfIndex(); want != 0 && want != r.Index {
		return fmt.Errorf("the membership's index is %d, not %d: %w", r.Index, want, fault.ErrMembershipChanged)
	}
	var added uint64
	if a := ctx.GetAdd(); a != nil {
		added = a.GetRaftId()
		if err := r.admitsMember(memberOf(a)); err != nil {
			return err
		}
	}
	for _, c := range cc.GetChanges() {
		_, known := r.Lookup(c.GetNodeId())
		if !known && (c.GetNodeId() != added || c.GetType() != pb.ConfChangeAddLearnerNode) {
			return fmt.Errorf("raft ID %d is not in the roster: %w", c.GetNodeId(), fault.ErrMembershipRefused)
		}
	}
	return nil
}

func (r *Roster) admitsMember(m Member) error {
	switch n := Number(m.RaftID); {
	case m.ID() == 0 || m.ID() > IDMax || len(m.Nonce) != NonceBytes || len(m.Addr) > AddrBytesMax:
		return fmt.Errorf("malformed member: %w", fault.ErrMembershipRefused)
	case n <= r.Counter:
		return fmt.Errorf("incarnation number %d was used already: %w", n, fault.ErrMembershipRefused)
	}
	if _, known := r.Newest(m.ID()); !known && r.count() >= MembersMax {
		return fmt.Errorf("the cluster has %d members, the most it can have: %w", MembersMax, fault.ErrMembershipRefused)
	}
	return nil
}

func (r *Roster) sort() {
	slices.SortFunc(r.Members, func(a, b Member) int { return compare(a.RaftID, b.RaftID) })
}

// Append appends the roster's encoding, the same on every member.
func (r *Roster) Append(buf []byte) []byte {
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(buf, r.Proto())
	if err != nil {
		panic(fmt.Sprintf("raftkv: BUG: marshal roster: %v", err)) // no field can fail
	}
	return out
}

// Proto returns the roster as the message that log, snapshots and founding carry.
func (r *Roster) Proto() *kvpb.Roster {
	conf, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Conf)
	if err != nil {
		panic(fmt.Sprintf("raftkv: BUG: marshal configuration: %v", err)) // no field can fail
	}
	p := &kvpb.Roster{ClusterId: []byte(r.ClusterID), Counter: r.Counter, Index: r.Index, ConfState: conf}
	for _, m := range r.Members {
		p.Members = append(p.Members, m.Proto())
	}
	for _, c := range r.Changes {
		p.Changes = append(p.Changes, []byte(c))
	}
	return p
}

// Proto returns the member as a message.
func (m Member) Proto() *kvpb.RosterMember {
	return &kvpb.RosterMember{RaftId: m.RaftID, Addr: m.Addr, Nonce: []byte(m.Nonce)}
}

func memberOf(p *kvpb.RosterMember) Member {
	return Member{RaftID: p.GetRaftId(), Addr: p.GetAddr(), Nonce: string(p.GetNonce())}
}

// FromProto checks and returns a roster that came from outside.
func FromProto(p *kvpb.Roster) (*Roster, error) {
	r := &Roster{ClusterID: string(p.GetClusterId()), Counter: p.GetCounter(), Index: p.GetIndex(), Conf: &pb.ConfState{}}
	if err := proto.Unmarshal(p.GetConfState(), r.Conf); err != nil {
		return nil, fmt.Errorf("raftkv: roster: configuration: %w", err)
	}
	for _, m := range p.GetMembers() {
		r.Members = append(r.Members, memberOf(m))
	}
	for _, c := range p.GetChanges() {
		r.Changes = append(r.Changes, string(c))
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("raftkv: roster: %w", err)
	}
	return r, nil
}

// check verifies the invariants of a roster that is in force.
func (r *Roster) check() error {
	switch {
	case len(r.ClusterID) != NonceBytes:
		return fmt.Errorf("cluster ID of %d bytes", len(r.ClusterID))
	case r.Index == 0:
		return fmt.Errorf("index 0")
	case len(r.Members) == 0 || len(r.Members) > 2*MembersMax || r.count() > MembersMax:
		return fmt.Errorf("%d members", len(r.Members))
	case len(r.Changes) > ChangesMax:
		return fmt.Errorf("%d changes", len(r.Changes))
	case confLen(r.Conf) > 2*len(r.Members):
		// Nobody is in more than two lists. Raft takes its time over each entry of
		// a list: 20,000 of them, with 255 members, kept us busy for 3.6 s.
		return fmt.Errorf("configuration of %d raft IDs for %d members", confLen(r.Conf), len(r.Members))
	}
	for _, id := range r.Changes {
		if len(id) != NonceBytes {
			return fmt.Errorf("change ID of %d bytes", len(id))
		}
	}
	for i, m := range r.Members {
		if m.ID() == 0 || m.ID() > IDMax || Number(m.RaftID) == 0 || Number(m.RaftID) > r.Counter {
			return fmt.Errorf("raft ID %d with counter %d", m.RaftID, r.Counter)
		}
		if len(m.Nonce) != NonceBytes || len(m.Addr) > AddrBytesMax {
			return fmt.Errorf("malformed member %d", m.ID())
		}
		if i > 0 && r.Members[i-1].RaftID >= m.RaftID {
			return fmt.Errorf("members out of order")
		}
		if !inConf(r.Conf, m.RaftID) {
			return fmt.Errorf("member %d is not in the configuration", m.ID())
		}
	}
	for _, id := range confIDs(r.Conf) {
		if _, ok := r.Lookup(id); !ok {
			return fmt.Errorf("raft ID %d of the configuration is not a member", id)
		}
	}
	if err := r.checkIncarnations(); err != nil {
		return err
	}
	return CheckConf(r.Conf)
}

// Equal reports whether two rosters are the same.
func (r *Roster) Equal(o *Roster) bool { return bytes.Equal(r.Append(nil), o.Append(nil)) }

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
