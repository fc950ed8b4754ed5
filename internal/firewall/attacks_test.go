package firewall

import (
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/roster"
)

// attacks is what was tried against raft v3.7.0. Terms are relative to that of
// the node under attack; what is not set comes from the peer that it knows.
func attacks() []attack {
	return slices.Concat(
		envelopeAttacks(), localAttacks(), leaderAttacks(), appendAttacks(), confChangeAttacks(),
		responseAttacks(), voteAttacks(), readAttacks(), snapshotAttacks())
}

func from(id uint64, m *pb.Message) *pb.Message { m.From = proto.Uint64(id); return m }

func to(id uint64, m *pb.Message) *pb.Message { m.To = proto.Uint64(id); return m }

// simple is an attack by type alone.
func simple(typ pb.MessageType, ahead uint64, set func(*pb.Message)) func(uint64) *pb.Message {
	return func(term uint64) *pb.Message { return msg(typ, term+ahead, set) }
}

func commit(index uint64) func(*pb.Message) {
	return func(m *pb.Message) { m.Commit = proto.Uint64(index) }
}

func index(i uint64) func(*pb.Message) { return func(m *pb.Message) { m.Index = proto.Uint64(i) } }

func context(c string) func(*pb.Message) { return func(m *pb.Message) { m.Context = []byte(c) } }

func envelopeAttacks() []attack {
	heartbeat := func(set func(*pb.Message) *pb.Message) func(uint64) *pb.Message {
		return func(term uint64) *pb.Message { return set(msg(pb.MsgHeartbeat, term+1, nil)) }
	}
	return []attack{
		{name: "empty", make: func(uint64) *pb.Message { return &pb.Message{} }, verdict: "rr"},
		{name: "from stranger", verdict: "rr",
			make: heartbeat(func(m *pb.Message) *pb.Message { return from(stranger, m) })},
		{name: "from another member", verdict: "rr",
			make: heartbeat(func(m *pb.Message) *pb.Message { return from(third, m) })},
		{name: "from self", verdict: "rr",
			make: heartbeat(func(m *pb.Message) *pb.Message { return from(self, m) })},
		{name: "from nobody", verdict: "rr",
			make: heartbeat(func(m *pb.Message) *pb.Message { return from(0, m) })},
		{name: "to somebody else", verdict: "rr",
			make: heartbeat(func(m *pb.Message) *pb.Message { return to(third, m) })},
		{name: "unknown field", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "rr",
			raw: protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)},
		{name: "unknown type", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "rr",
			raw: protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 999)},
		{name: "negative type", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "rr",
			raw: protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), math.MaxUint64)},
		{name: "cut off", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "rr", raw: []byte{7<<3 | 2, 9}},
		{name: "group", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "rr", raw: []byte{99<<3&0x7f | 3}},
		{name: "responses", verdict: "rr", make: simple(pb.MsgApp, 0, func(m *pb.Message) {
			m.Responses = []*pb.Message{msg(pb.MsgHup, 0, nil)}
		})},
		{name: "vote field", verdict: "rr", make: simple(pb.MsgHeartbeat, 0, func(m *pb.Message) { m.Vote = proto.Uint64(peer) })},
		{name: "snapshot in a heartbeat", verdict: "rr", make: simple(pb.MsgHeartbeat, 0, func(m *pb.Message) {
			m.Snapshot = &pb.Snapshot{}
		})},
		{name: "highest term in heartbeat", verdict: "rr", kills: "fl",
			make: func(uint64) *pb.Message { return msg(pb.MsgHeartbeat, math.MaxUint64, nil) }},
		{name: "highest term in vote", verdict: "rr", kills: "l",
			make: func(uint64) *pb.Message {
				return msg(pb.MsgVote, math.MaxUint64, context(campaignTransfer))
			}},
		{name: "highest term in answer", verdict: "rr", kills: "fl",
			make: func(uint64) *pb.Message { return msg(pb.MsgAppResp, math.MaxUint64, nil) }},
		{name: "term too far ahead", verdict: "rr", make: simple(pb.MsgHeartbeat, termsAheadMax+1, nil)},
		{name: "term as far ahead as may be", verdict: "pp", make: simple(pb.MsgHeartbeat, termsAheadMax, nil)},
	}
}

// localAttacks are messages by which raft talks to itself, and those that it
// takes from clients.
func localAttacks() []attack {
	var attacks []attack
	for _, typ := range []pb.MessageType{
		pb.MsgHup, pb.MsgBeat, pb.MsgUnreachable, pb.MsgSnapStatus, pb.MsgCheckQuorum, pb.MsgTransferLeader,
		pb.MsgStorageAppend, pb.MsgStorageAppendResp, pb.MsgStorageApply, pb.MsgStorageApplyResp,
		pb.MsgForgetLeader, pb.MsgProp,
	} {
		attacks = append(attacks, attack{name: typ.String(), make: simple(typ, 0, nil), verdict: "rr"})
	}
	entries := func(e ...*pb.Entry) func(uint64) *pb.Message {
		return func(uint64) *pb.Message { return msg(pb.MsgProp, 0, func(m *pb.Message) { m.Entries = e }) }
	}
	garbage := &pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: []byte{0xff, 0xff}}
	return append(attacks,
		attack{name: "apply thread", verdict: "rr", kills: "fl", make: func(uint64) *pb.Message {
			return from(raft.LocalApplyThread, msg(pb.MsgStorageApplyResp, 0, func(m *pb.Message) {
				m.Entries = []*pb.Entry{entry(1, 1000, nil)}
			}))
		}},
		attack{name: "append thread", verdict: "rr", make: func(uint64) *pb.Message {
			return from(raft.LocalAppendThread, msg(pb.MsgHup, 0, nil))
		}},
		attack{name: "proposal of nothing", make: entries(), verdict: "rr", kills: "l"},
		attack{name: "proposal", make: entries(entry(0, 0, []byte("x"))), verdict: "rr"},
		attack{name: "proposal of a garbage change", make: entries(garbage), verdict: "rr", kills: "l"},
	)
}

// leaderAttacks pretend to lead.
func leaderAttacks() []attack {
	return []attack{
		{name: "heartbeat commits too much", make: simple(pb.MsgHeartbeat, 0, commit(1000)), verdict: "rr", kills: "f"},
		{name: "heartbeat of a new term commits too much", make: simple(pb.MsgHeartbeat, 1, commit(1000)),
			verdict: "rr", kills: "fl"},
		{name: "heartbeat without term", verdict: "rr", kills: "f",
			make: func(uint64) *pb.Message { return msg(pb.MsgHeartbeat, 0, commit(1000)) }},
		{name: "old heartbeat commits too much", verdict: "pp",
			make: func(term uint64) *pb.Message { return msg(pb.MsgHeartbeat, term-1, commit(1000)) }},
		{name: "heartbeat with junk context", make: simple(pb.MsgHeartbeat, 0, context("junk")), verdict: "rr"},
		// Passes: an honest leader of the term might be in a hurry.
		{name: "heartbeat of a new term", make: simple(pb.MsgHeartbeat, 1, nil), verdict: "pp"},
		{name: "heartbeat to the leader of the term", make: simple(pb.MsgHeartbeat, 0, nil), verdict: "pr"},
		{name: "entries to the leader of the term", verdict: "pr",
			make: func(term uint64) *pb.Message { return app(term, 5, 4) }},
		{name: "call to campaign", make: simple(pb.MsgTimeoutNow, 0, nil), verdict: "pr"},
		{name: "call to campaign of a new term", make: simple(pb.MsgTimeoutNow, 1, nil), verdict: "rr"},
		{name: "call to campaign without term", verdict: "rr",
			make: func(uint64) *pb.Message { return msg(pb.MsgTimeoutNow, 0, nil) }},
		{name: "call to campaign with entries", verdict: "rr", make: simple(pb.MsgTimeoutNow, 0, func(m *pb.Message) {
			m.Entries = []*pb.Entry{entry(1, 1, nil)}
		})},
	}
}

func appendAttacks() []attack {
	// after appends to the newest entry of the follower in a new term.
	after := func(entries ...*pb.Entry) func(uint64) *pb.Message {
		return func(uint64) *pb.Message { return app(9, 5, 4, entries...) }
	}
	typed := func(typ pb.EntryType) *pb.Entry {
		e := entry(9, 5, []byte("x"))
		e.Type = typ.Enum()
		return e
	}
	return []attack{
		{name: "entry overwrites a committed one", verdict: "rr", kills: "f",
			make: func(uint64) *pb.Message { return app(9, 5, 3, entry(9, 2, nil)) }},
		{name: "entry would overwrite a committed one", verdict: "rr",
			make: func(uint64) *pb.Message { return app(9, 1, 1, entry(9, 2, nil)) }},
		{name: "entry before contradicts a committed one", verdict: "rr",
			make: func(uint64) *pb.Message { return app(9, 7, 2) }},
		{name: "old entries contradict committed ones", verdict: "pp",
			make: func(term uint64) *pb.Message { return app(term-1, 1, 1, entry(term-1, 2, nil)) }},
		{name: "gap", make: after(entry(9, 50, nil)), verdict: "rr", kills: "f"},
		{name: "gap in the middle", make: after(entry(9, 5, nil), entry(9, 7, nil)), verdict: "rr"},
		{name: "entry twice", make: after(entry(9, 5, nil), entry(9, 5, nil)), verdict: "rr"},
		{name: "empty entry", make: after(&pb.Entry{}), verdict: "rr"},
		{name: "term of entry before the last one", make: after(entry(4, 5, nil)), verdict: "rr"},
		{name: "terms of entries go down", make: after(entry(9, 5, nil), entry(8, 6, nil)), verdict: "rr"},
		{name: "term of entry above the message", make: after(entry(10, 5, nil)), verdict: "rr"},
		{name: "log term above the message", verdict: "rr", make: func(uint64) *pb.Message { return app(9, 10, 4) }},
		{name: "without term", verdict: "rr", make: func(uint64) *pb.Message {
			m := app(0, 5, 4, entry(5, 5, []byte("injected")))
			m.Term, m.Commit = nil, proto.Uint64(5)
			return m
		}},
		{name: "highest index", verdict: "rr",
			make: func(uint64) *pb.Message { return app(9, 5, math.MaxUint64, entry(9, 0, nil)) }},
		{name: "highest commit", verdict: "rr", make: func(uint64) *pb.Message {
			m := app(9, 5, 4)
			m.Commit = proto.Uint64(math.MaxUint64)
			return m
		}},
		{name: "index 0", verdict: "rr", make: func(uint64) *pb.Message { return app(9, 0, 0, entry(9, 1, nil)) }},
		{name: "log term 0", verdict: "rr", make: func(uint64) *pb.Message { return app(9, 0, 4) }},
		{name: "beyond the log", verdict: "pp", make: func(uint64) *pb.Message { return app(9, 9, 40, entry(9, 41, nil)) }},
		{name: "context", verdict: "rr", make: simple(pb.MsgApp, 0, context("12345678"))},
		{name: "entry of unknown type", make: after(typed(77)), verdict: "rr"},
		{name: "old kind of membership change", make: after(typed(pb.EntryConfChange)), verdict: "rr"},
		{name: "garbage membership change", make: after(typed(pb.EntryConfChangeV2)), verdict: "rr"},
	}
}

// confChangeAttacks commit a membership change at once.
func confChangeAttacks() []attack {
	proposal := func(cc *pb.ConfChangeV2) func(uint64) *pb.Message {
		return func(uint64) *pb.Message {
			data, err := proto.Marshal(cc)
			must(err)
			e := entry(9, 5, data)
			e.Type = pb.EntryConfChangeV2.Enum()
			m := app(9, 5, 4, e)
			m.Commit = proto.Uint64(5)
			return m
		}
	}
	change := func(changes ...*pb.ConfChangeSingle) func(uint64) *pb.Message {
		return proposal(&pb.ConfChangeV2{Changes: changes})
	}
	one := func(typ pb.ConfChangeType, id uint64) *pb.ConfChangeSingle {
		return &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: proto.Uint64(id)}
	}
	many := make([]*pb.ConfChangeSingle, 2*roster.MembersMax+1)
	for i := range many {
		many[i] = one(pb.ConfChangeAddNode, uint64(i+1))
	}
	return []attack{
		{name: "change of unknown type", make: change(one(99, 7)), verdict: "rr"},
		{name: "change without effect", make: change(one(pb.ConfChangeUpdateNode, peer)), verdict: "rr"},
		{name: "transition of unknown type", verdict: "rr", make: proposal(&pb.ConfChangeV2{
			Transition: pb.ConfChangeTransition(99).Enum(), Changes: []*pb.ConfChangeSingle{one(pb.ConfChangeRemoveNode, peer)},
		})},
		{name: "joint for ever", verdict: "rr", make: proposal(&pb.ConfChangeV2{
			Transition: pb.ConfChangeTransitionJointExplicit.Enum(),
			Changes:    []*pb.ConfChangeSingle{one(pb.ConfChangeRemoveNode, peer)},
		})},
		{name: "change for nobody", make: change(one(pb.ConfChangeAddNode, 0)), verdict: "rr"},
		{name: "change for raft itself", make: change(one(pb.ConfChangeAddNode, raft.LocalApplyThread)), verdict: "rr"},
		{name: "endless change", make: change(many...), verdict: "rr"},
	}
}

func responseAttacks() []attack {
	reject := func(i, hint uint64) func(*pb.Message) {
		return func(m *pb.Message) {
			m.Index, m.Reject, m.RejectHint = proto.Uint64(i), proto.Bool(true), proto.Uint64(hint)
			m.LogTerm = proto.Uint64(1)
		}
	}
	return []attack{
		{name: "answer beyond the log", make: simple(pb.MsgAppResp, 0, index(1000)), verdict: "pr"},
		{name: "answer beyond the log without term", verdict: "rr",
			make: func(uint64) *pb.Message { return msg(pb.MsgAppResp, 0, index(1000)) }},
		{name: "old answer beyond the log", verdict: "pp",
			make: func(term uint64) *pb.Message { return msg(pb.MsgAppResp, term-1, index(1000)) }},
		{name: "hint beyond the index", make: simple(pb.MsgAppResp, 0, reject(3, 4)), verdict: "rr"},
		{name: "highest hint", make: simple(pb.MsgAppResp, 0, reject(3, math.MaxUint64)), verdict: "rr"},
		{name: "rejection beyond the log", make: simple(pb.MsgAppResp, 0, reject(1000, 3)), verdict: "pr"},
		{name: "rejection", make: simple(pb.MsgAppResp, 0, reject(2, 1)), verdict: "pp"},
		{name: "answer with entries", verdict: "rr", make: simple(pb.MsgAppResp, 0, func(m *pb.Message) {
			m.Entries = []*pb.Entry{entry(1, 1, nil)}
		})},
		{name: "short confirmation", make: simple(pb.MsgHeartbeatResp, 0, context("junk")), verdict: "rr", kills: "l"},
		{name: "long confirmation", make: simple(pb.MsgHeartbeatResp, 0, context("junk junk")), verdict: "rr"},
		{name: "confirmation of a later read", verdict: "pr",
			make: simple(pb.MsgHeartbeatResp, 0, context("\x02\x00\x00\x00\x00\x00\x00\x00"))},
		{name: "highest confirmation", verdict: "pr",
			make: simple(pb.MsgHeartbeatResp, 0, context("\xff\xff\xff\xff\xff\xff\xff\xff"))},
		{name: "confirmation", verdict: "pp",
			make: simple(pb.MsgHeartbeatResp, 0, context("\x01\x00\x00\x00\x00\x00\x00\x00"))},
		{name: "vote nobody asked for", make: simple(pb.MsgVoteResp, 0, nil), verdict: "pp"},
		{name: "pre-vote nobody asked for", make: simple(pb.MsgPreVoteResp, 1, nil), verdict: "pp"},
	}
}

func voteAttacks() []attack {
	candidate := func(typ pb.MessageType, ahead uint64, set func(*pb.Message)) func(uint64) *pb.Message {
		return func(term uint64) *pb.Message {
			return msg(typ, term+ahead, func(m *pb.Message) {
				m.LogTerm, m.Index = proto.Uint64(term), proto.Uint64(99)
				set(m)
			})
		}
	}
	nothing := func(*pb.Message) {}
	return []attack{
		{name: "vote", make: candidate(pb.MsgVote, 1, nothing), verdict: "pp"},
		{name: "pre-vote", make: candidate(pb.MsgPreVote, 1, nothing), verdict: "pp"},
		{name: "vote in a transfer", make: candidate(pb.MsgVote, 1, context(campaignTransfer)), verdict: "pp"},
		{name: "vote in a transfer to a stranger", verdict: "rr", make: func(term uint64) *pb.Message {
			return from(stranger, candidate(pb.MsgVote, 1, context(campaignTransfer))(term))
		}},
		{name: "pre-vote in a transfer", make: candidate(pb.MsgPreVote, 1, context(campaignTransfer)), verdict: "rr"},
		{name: "vote with another context", make: candidate(pb.MsgVote, 1, context("CampaignWhatever")), verdict: "rr"},
		{name: "vote with a long context", make: candidate(pb.MsgVote, 1, context("x")), verdict: "rr"},
		{name: "log term is the campaign's", make: candidate(pb.MsgVote, 0, nothing), verdict: "rr"},
		{name: "highest log term", verdict: "rr", make: candidate(pb.MsgVote, 1, func(m *pb.Message) {
			m.LogTerm = proto.Uint64(math.MaxUint64)
		})},
		{name: "highest last index", verdict: "rr", make: candidate(pb.MsgVote, 1, index(math.MaxUint64))},
	}
}

func readAttacks() []attack {
	read := func(typ pb.MessageType, term uint64, contexts ...[]byte) func(uint64) *pb.Message {
		return func(uint64) *pb.Message {
			return msg(typ, term, func(m *pb.Message) {
				for _, c := range contexts {
					m.Entries = append(m.Entries, &pb.Entry{Data: c})
				}
			})
		}
	}
	x := []byte("x")
	return []attack{
		{name: "read", make: read(pb.MsgReadIndex, 0, x), verdict: "dp"},
		{name: "read of nothing", make: read(pb.MsgReadIndex, 0), verdict: "rr"},
		{name: "read in the name of the reader", verdict: "rr", make: func(uint64) *pb.Message {
			return from(0, msg(pb.MsgReadIndex, 0, nil))
		}},
		{name: "two reads", make: read(pb.MsgReadIndex, 0, x, x), verdict: "rr"},
		{name: "read without context", make: read(pb.MsgReadIndex, 0, nil), verdict: "rr"},
		{name: "read with a long context", make: read(pb.MsgReadIndex, 0, make([]byte, 65)), verdict: "rr"},
		{name: "read with a term", make: read(pb.MsgReadIndex, 9, x), verdict: "rr"},
		{name: "answered read of nothing", make: read(pb.MsgReadIndexResp, 9), verdict: "rr"},
		{name: "two answered reads", make: read(pb.MsgReadIndexResp, 9, x, x), verdict: "rr"},
		{name: "answered read without term", make: read(pb.MsgReadIndexResp, 0, x), verdict: "rr"},
		{name: "answered read of a later term", make: read(pb.MsgReadIndexResp, 9, x), verdict: "pp"},
	}
}

func snapshotAttacks() []attack {
	conf := func(voters, learners, outgoing, next []uint64) func(uint64) *pb.Message {
		return func(term uint64) *pb.Message {
			return snap(term+1, 100, term+1, &pb.ConfState{
				Voters: voters, Learners: learners, VotersOutgoing: outgoing, LearnersNext: next,
			})
		}
	}
	both := []uint64{self, peer}
	at := func(index, snapTerm uint64) func(uint64) *pb.Message {
		return func(uint64) *pb.Message { return snap(9, index, snapTerm, &pb.ConfState{Voters: both}) }
	}
	return []attack{
		{name: "snapshot of nothing", make: simple(pb.MsgSnap, 1, nil), verdict: "rr"},
		{name: "snapshot from a stranger", verdict: "rr", make: func(uint64) *pb.Message {
			return from(stranger, snap(9, 1<<40, 9, &pb.ConfState{Voters: []uint64{self, stranger}}))
		}},
		{name: "snapshot: voter and learner", make: conf(both, both[1:], nil, nil), verdict: "rr", kills: "fl"},
		{name: "snapshot: voter 0", make: conf([]uint64{self, 0}, nil, nil, nil), verdict: "rr", kills: "fl"},
		{name: "snapshot: voter twice", make: conf([]uint64{self, self}, nil, nil, nil), verdict: "rr", kills: "fl"},
		{name: "snapshot: learners next, not joint", make: conf(both, nil, nil, []uint64{third}), verdict: "rr", kills: "fl"},
		{name: "snapshot: learner next never voted", make: conf(both, nil, both[:1], []uint64{third}), verdict: "rr", kills: "fl"},
		{name: "snapshot: without us", make: conf(both[1:], nil, nil, nil), verdict: "rr"},
		{name: "snapshot: no voters", make: conf(nil, both, nil, nil), verdict: "rr", kills: "fl"},
		{name: "snapshot: endless configuration", verdict: "rr", make: conf(both, make([]uint64, 2000), nil, nil)},
		{name: "snapshot at 0", make: at(0, 9), verdict: "rr"},
		{name: "snapshot at the highest index", make: at(math.MaxUint64, 9), verdict: "rr"},
		{name: "snapshot of a later term", make: at(100, 10), verdict: "rr"},
		{name: "snapshot of no term", make: at(100, 0), verdict: "rr"},
		{name: "old snapshot", make: at(2, 1), verdict: "pp"},
		{name: "snapshot with state", verdict: "rr", make: func(uint64) *pb.Message {
			m := at(100, 9)(0)
			m.Snapshot.Data = make([]byte, SnapshotDataBytesMax+1)
			return m
		}},
		{name: "snapshot of the leader's term", verdict: "pr",
			make: func(term uint64) *pb.Message { return snap(term, 2, 1, &pb.ConfState{Voters: both}) }},
	}
}
