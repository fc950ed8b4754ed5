package raftkv

import (
	"go.etcd.io/raft/v3"

	"example.com/raftkv/internal/firewall"
	"example.com/raftkv/internal/membership"
	"example.com/raftkv/internal/roster"
)

// What the loop knows, by concern.

// leadership is who leads, as this node sees it.
type leadership struct {
	raftID uint64 // 0: nobody known
	term   uint64
	state  raft.StateType
	begun  bool   // an entry of the term is known to be committed, so its leader answers
	ready  bool   // begun, and we lead
	since  uint64 // the tick of the last change
	told   bool   // that calls wait for a leader
	voice  uint64 // the raft ID of whom a leader's message last came from
	heard  uint64 // the tick of that
	hint   hint   // that its process has ended
}

// change is how far membership changes are. Raft may turn a proposed one into an
// entry without effect, so it is followed by its place: at index or before.
type change struct {
	worker   *membership.Worker // on the leader
	decided  uint64             // all that is committed up to this index has been decided
	proposed bool               // something is, and not yet in the log
	index    uint64             // the last index when it had come into the log
	stepped  uint64             // what decided was when the worker last looked
	gone     uint64             // the tick at which this node learned of its removal, 0 if not
}

// snaps is what is under way with snapshots, beside what storage keeps.
type snaps struct {
	staged   *stagedSnapshot   // what the MsgSnap now being stepped stands for
	freezing bool              // a frozen state is on its way from the applier
	until    uint64            // the tick up to which an unused frozen state is kept
	again    map[uint64]uint64 // by receiver: the tick before which not to try again
}

// links is what the loop knows of other processes.
type links struct {
	contact  map[uint64]uint64        // raft ID to the tick of the last message
	streams  map[uint64]int           // by raft ID: how many we receive on
	standing map[uint64]standing      // by raft ID: how others see the cluster
	inPlace  map[uint64]string        // raft ID to the nonce of the process that answers in its place
	guests   map[uint64]roster.Member // members that our roster does not show yet
	sending  map[uint64]bool          // raft IDs that a snapshot is on its way to
	toward   map[uint64]*toward       // by raft ID of the receiver
	held     int                      // how many of them have something held back
	lost     map[uint64]bool          // raft IDs without a stream, once that has been logged
	blamed   map[string]bool          // who was turned away, once that has been logged
	view     firewall.View            // see firewallView
	asked    firewall.Reads           // read confirmations that our heartbeats ask for
	owed     int64                    // bytes of room to be given back to receivers when the applier has caught up
	bound    *roster.Roster           // of the founding under way here, nil if none
	unbound  []*roster.Roster         // of foundings that were given up here, as far as is known
	refused  uint64                   // messages that the firewall held back
	mistimed bool                     // that a member has other timing has been logged
	greeted  uint64                   // the tick at which we were last taken for an earlier process of our ID
	strange  bool                     // that we were taken for another process has been logged
}

func newSnaps() snaps { return snaps{again: make(map[uint64]uint64)} }

// newLinks returns what a node without peers knows. It keeps what is no matter
// of one raft ID: the counts, and the room that is owed to receivers.
func newLinks(old links) links {
	return links{
		contact: make(map[uint64]uint64), streams: make(map[uint64]int), inPlace: make(map[uint64]string),
		standing: make(map[uint64]standing), guests: make(map[uint64]roster.Member),
		sending: make(map[uint64]bool), toward: make(map[uint64]*toward), lost: make(map[uint64]bool),
		blamed: make(map[string]bool), owed: old.owed, refused: old.refused,
	}
}
