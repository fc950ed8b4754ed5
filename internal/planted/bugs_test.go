package planted

// A bug is a mistake and how it is made.
type bug struct {
	name  string
	edits []edit
}

// An edit replaces a text, which must occur once, in a file.
type edit struct{ file, old, new string }

// bugs are all that are planted. The names say what the mistake is.
var bugs = []bug{
	{name: "stale local read: no confirmation is asked for", edits: []edit{{"node.go",
		"\t\tl.raw.ReadIndex(context)\n",
		"\t\tl.reads.Confirm(context, l.fsm.applied.Load())\n"}}},
	{name: "leader reads by its own belief: it answers without a quorum", edits: []edit{{"node.go",
		"\t\tl.raw.ReadIndex(context)\n",
		"\t\tif l.lead.raftID == l.raftID {\n\t\t\tl.reads.Confirm(context, l.raw.BasicStatus().GetCommit())\n\t\t\tcontinue\n\t\t}\n\t\tl.raw.ReadIndex(context)\n"}}},
	{name: "read before the new leader's first commit", edits: []edit{
		{"node.go",
			"\tif l.lead.raftID == 0 || l.lead.raftID == l.raftID && !l.lead.ready {\n\t\treturn\n\t}\n\tfor context",
			"\tif l.lead.raftID == 0 {\n\t\treturn\n\t}\n\tfor context"},
		{"node.go",
			"\t\tl.raw.ReadIndex(context)\n",
			"\t\tif l.lead.raftID == l.raftID && !l.lead.ready {\n\t\t\tl.reads.Confirm(context, l.raw.BasicStatus().GetCommit())\n\t\t\tcontinue\n\t\t}\n\t\tl.raw.ReadIndex(context)\n"}}},
	{name: "read confirmed, but not waited for the applier", edits: []edit{{"internal/reads/reads.go",
		"\t\tif round.index > r.applied {\n\t\t\treturn false\n\t\t}\n",
		""}}},
	{name: "read round asked again with its old context", edits: []edit{{"internal/reads/reads.go",
		"\tr.number++\n\tround.attempts",
		"\tr.number = 1\n\tround.attempts"}}},
	{name: "acknowledged before it is committed", edits: []edit{{"node.go",
		"\treturn l.commit(rd.CommittedEntries)\n",
		"\tentries := rd.CommittedEntries\n\tfor len(entries) > 0 && entries[0].GetIndex() <= l.change.decided {\n\t\tentries = entries[1:]\n\t}\n" +
			"\tif l.lead.raftID == l.raftID && l.Last() > l.change.decided {\n\t\tentries, _ = l.log.Entries(l.change.decided+1, l.Last()+1, 1<<40)\n\t}\n" +
			"\treturn l.commit(entries)\n"}}},
	{name: "vote forgotten", edits: []edit{{"loop_time.go",
		"\tl.raw.Tick()\n",
		"\tif hs, _, _ := l.log.InitialState(); l.lead.raftID == 0 && hs.GetVote() != 0 && l.now%5 == 0 {\n" +
			"\t\ths.Vote = nil\n\t\t_ = l.log.SetHardState(hs)\n\t\t_ = l.restartRaft()\n\t}\n\tl.raw.Tick()\n"}, {"node.go",
		"// runs reports whether",
		"func (l *loop) restartRaft() (err error) {\n\tl.raw, err = raft.NewRawNode(&raft.Config{\n" +
			"\t\tID: l.raftID, Storage: rosterStorage{l.log, l.roster}, Applied: l.change.decided,\n" +
			"\t\tElectionTick: l.cfg.Timing.electionTicks(), HeartbeatTick: l.cfg.Timing.heartbeatTicks(),\n" +
			"\t\tPreVote: true, CheckQuorum: true, StepDownOnRemoval: true, DisableProposalForwarding: true,\n" +
			"\t\tMaxSizePerMsg: messageBytesMax, MaxInflightMsgs: inflightMessagesMax, MaxInflightBytes: inflightBytesMax,\n" +
			"\t\tLogger: raftslog.New(l.logger),\n\t})\n\treturn err\n}\n\n" +
			"type rosterStorage struct {\n\t*storage\n\tr *roster.Roster\n}\n\n" +
			"func (s rosterStorage) InitialState() (*pb.HardState, *pb.ConfState, error) {\n\ths, _, err := s.storage.InitialState()\n\treturn hs, s.r.Conf, err\n}\n\n" +
			"// runs reports whether"}}},
	{name: "incarnation used again: a blank process answers to its old raft ID", edits: []edit{{"hello.go",
		"\tif string(h.GetToNonce()) != l.nonce || roster.MemberID(h.GetToRaftId()) != l.cfg.ID || roster.Number(h.GetToRaftId()) == 0 {",
		"\tl.nonce = string(h.GetToNonce())\n\tif false {"}}},
	{name: "no deduplication", edits: []edit{{"fsm.go",
		"\t\tif state == dedup.Fresh {\n",
		"\t\tif state == dedup.Applied {\n\t\t\tr = f.applyCommand(&commands[i], keyspace.Hash(commands[i].Key))\n\t\t}\n\t\tif state == dedup.Fresh {\n"}}},
	{name: "applied twice after a snapshot: its table is not taken over", edits: []edit{{"fsm.go",
		"\tf.keys, f.dedup, f.roster = s.keys, s.dedup, s.roster\n",
		"\tf.keys, f.roster = s.keys, s.roster\n\tf.dedup.Retain(s.roster.RaftIDs())\n"}}},
	{name: "snapshot without the revision", edits: []edit{{"fsm.go",
		"\tf.index, f.term, f.revision = s.index, s.term, s.revision\n",
		"\tf.index, f.term = s.index, s.term\n"}}},
	{name: "snapshot says a later index than it has", edits: []edit{{"fsm.go",
		"\t\tindex: f.index, term: f.term, roster: f.roster, revision: f.revision,\n",
		"\t\tindex: f.index + 1, term: f.term, roster: f.roster, revision: f.revision,\n"}}},
	{name: "snapshot answers all that is in flight", edits: []edit{{"internal/outbox/outbox.go",
		"\t\t\tif state != dedup.Applied {\n\t\t\t\treturn false\n\t\t\t}\n",
		"\t\t\t_ = state\n"}}},
	{name: "tail of the log lost", edits: []edit{{"storage.go",
		"\tif err := s.Append(entries); err != nil {",
		"\tif n := len(entries); n > 2 {\n\t\tentries = entries[:n-1]\n\t}\n\tif err := s.Append(entries); err != nil {"}}},
	{name: "log compacted before it is applied", edits: []edit{{"storage.go",
		"\tupTo := applied\n",
		"\tupTo, _ := s.LastIndex()\n"}}},
	{name: "joint change dropped half-way", edits: []edit{{"loop_members.go",
		"\tnext, err := l.roster.Apply(cc, e.GetIndex())\n",
		"\tif cc.LeaveJoint() {\n\t\treturn nil\n\t}\n\tnext, err := l.roster.Apply(cc, e.GetIndex())\n"}}},
	{name: "batch numbered anew when it is sent again", edits: []edit{{"internal/outbox/outbox.go",
		"\t\tif b.isDue(route, now, local) {\n\t\t\to.sent(b, route, now)\n",
		"\t\tif b.isDue(route, now, local) {\n\t\t\tb.data = slices.Clone(b.data)\n\t\t\tb.first = o.next\n\t\t\to.next += uint64(b.sentLen())\n\t\t\th := command.Header{Origin: o.origin, First: b.first}\n\t\t\th.Append(b.data[:0])\n\t\t\to.sent(b, route, now)\n"}}},
	{name: "abandoned write called not done although it was sent", edits: []edit{{"internal/outbox/outbox.go",
		"\tif b.first != 0 || b.isDone() {\n\t\to.abandonSent(b)\n\t\treturn true\n",
		"\tif b.first != 0 || b.isDone() {\n\t\to.abandonSent(b)\n\t\treturn false\n"}}},
	{name: "condition not looked at", edits: []edit{{"fsm.go",
		"\tif c.Conditional && c.IfRevision != place.Revision {",
		"\tif c.Conditional && c.IfRevision > place.Revision {"}}},
	{name: "a blank process keeps a member's vote: replaced without a joint change", edits: []edit{{"internal/roster/change.go",
		"\treturn change(&kvpb.ConfContext{IfIndex: r.Index},\n\t\tsingle(pb.ConfChangeAddNode, newest.RaftID), single(pb.ConfChangeRemoveNode, old.RaftID))\n",
		"\treturn change(&kvpb.ConfContext{IfIndex: r.Index}, single(pb.ConfChangeAddNode, newest.RaftID))\n"}}},
	{name: "hint skips the pre-vote", edits: []edit{
		{"loop_hint.go",
			"import \"example.com/raftkv/internal/roster\"\n",
			"import (\n\tpb \"go.etcd.io/raft/v3/raftpb\"\n\n\t\"example.com/raftkv/internal/roster\"\n)\n"},
		{"loop_hint.go",
			"\t_ = l.raw.Campaign() // with a pre-vote; it has no error\n",
			"\t_ = l.raw.Step(&pb.Message{Type: pb.MsgTimeoutNow.Enum(), From: &h.of, To: &l.raftID, Term: &h.term})\n"},
	}},
}
