package firewall

import (
	"slices"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// DecodeSnapshot unmarshals the message that announces a snapshot and does for it
// what Admit does for others. The state itself does not travel in it.
func DecodeSnapshot(data []byte, from, self uint64) (*pb.Message, error) {
	if len(data) > SnapshotBytesMax {
		return nil, violation("snapshot message of %d bytes", len(data))
	}
	m := new(pb.Message)
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, violation("malformed: %v", err)
	}
	if err := checkEnvelope(m, from, self); err != nil {
		return nil, err
	}
	switch {
	case m.GetType() != pb.MsgSnap:
		return nil, violation("%v where a snapshot should be", m.GetType())
	case len(m.GetEntries()) > 0 || len(m.GetResponses()) > 0 || len(m.GetContext()) > 0:
		return nil, violation("snapshot with entries, responses or a context")
	}
	if err := checkMetadata(m, self); err != nil {
		return nil, err
	}
	return m, nil
}

func checkMetadata(m *pb.Message, self uint64) error {
	snap := m.GetSnapshot()
	meta := snap.GetMetadata()
	switch {
	case meta.GetConfState() == nil:
		return violation("snapshot without a configuration")
	case meta.GetIndex() == 0 || meta.GetIndex() > indexMax:
		return violation("snapshot at index %d", meta.GetIndex())
	case meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm():
		return violation("snapshot of term %d in a message of %d", meta.GetTerm(), m.GetTerm())
	case len(snap.GetData()) > SnapshotDataBytesMax:
		return violation("snapshot with %d bytes of data", len(snap.GetData()))
	case hasUnknown(snap, meta, meta.GetConfState()):
		return violation("snapshot with unknown fields")
	}
	return checkConf(meta.GetConfState(), self)
}

// checkConf checks that raft can take up a configuration, that we are in it,
// and that raft would call it by the same name: it panics if the configuration
// that it builds from the lists does not show the same lists again.
func checkConf(conf *pb.ConfState, self uint64) error {
	lists := slices.Concat(conf.GetVoters(), conf.GetLearners(), conf.GetVotersOutgoing())
	switch {
	case len(lists)+len(conf.GetLearnersNext()) > 4*roster.MembersMax:
		return violation("configuration of %d raft IDs", len(lists))
	case len(conf.GetVoters()) == 0:
		return violation("configuration without voters")
	case slices.Contains(lists, 0) || slices.Contains(conf.GetLearnersNext(), 0):
		return violation("configuration with raft ID 0")
	case !slices.Contains(lists, self):
		return violation("configuration without us")
	}
	config, _, err := confchange.Restore(confchange.Changer{
		Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: 1,
	}, conf)
	if err != nil {
		return violation("configuration: %v", err)
	}
	restored := tracker.ProgressTracker{Config: config}
	if restored.ConfState().Equivalent(conf) != nil {
		return violation("configuration contradicts itself")
	}
	return nil
}

// CheckSnapshot is Check for a message that DecodeSnapshot returned. A snapshot
// takes time to arrive, so what was checked when it was announced must be
// checked again before it is stepped.
func CheckSnapshot(m *pb.Message, v *View) error {
	if err := checkTerm(m, v); err != nil {
		return err
	}
	return checkLeader(m, v)
}
