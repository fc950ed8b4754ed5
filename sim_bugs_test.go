package raftkv

import (
	"testing"

	"example.com/raftkv/internal/roster"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// What the simulator and reviews have found, each as the smallest script that
// fails without its repair.

// blank returns a process that drives nothing and is linked with nobody.
func blank(t *testing.T, id uint64, addr string) *Node {
	t.Helper()
	cfg, err := Config{ID: id, Addr: addr}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(cfg)
	n.loop.net = mute{}
	t.Cleanup(n.transport.stop)
	return n
}

// mute is a transport to nowhere.
type mute struct{ transport }

func (mute) connect(*kvpb.Identity, []roster.Member) {}

// TestGreetingOutlivesItsFounding: the coordinator dies when it has founded and
// told nobody; its streams end, and then its greetings arrive. Processes that
// took them as newcomers would have neither the log nor anybody to get it from.
func TestGreetingOutlivesItsFounding(t *testing.T) {
	first, second := blank(t, 1, "one:1"), blank(t, 2, "two:1")
	members := []roster.Member{
		{RaftID: roster.RaftID(1, 0), Addr: "one:1", Nonce: first.loop.nonce},
		{RaftID: roster.RaftID(2, 0), Addr: "two:1", Nonce: second.loop.nonce},
	}
	r := roster.Found(randomID(), members)
	if err := second.loop.bind(&kvpb.Hello{From: first.loop.identity()}, r); err != nil {
		t.Fatal(err)
	}
	if err := first.loop.found(r); err != nil {
		t.Fatal(err)
	}
	second.loop.unbind(r)
	m := r.Members[1]
	hello := &kvpb.Hello{From: first.loop.identity(), ToId: 2, ToRaftId: m.RaftID, ToNonce: []byte(m.Nonce)}
	if err := second.loop.welcome(hello); err != nil {
		t.Fatal(err)
	}
	if second.loop.founded == nil {
		t.Error("the greeted process has no log")
	}
}

// TestGreetingUnderAnotherRaftIDFoundsNothing: a founder that never heard of the
// founding was dropped and added again since. As who it was then it would be
// removed.
func TestGreetingUnderAnotherRaftIDFoundsNothing(t *testing.T) {
	first, second := blank(t, 1, "one:1"), blank(t, 2, "two:1")
	r := roster.Found(randomID(), []roster.Member{
		{RaftID: roster.RaftID(1, 0), Addr: "one:1", Nonce: first.loop.nonce},
		{RaftID: roster.RaftID(2, 0), Addr: "two:1", Nonce: second.loop.nonce},
	})
	if err := second.loop.bind(&kvpb.Hello{From: first.loop.identity()}, r); err != nil {
		t.Fatal(err)
	}
	if err := first.loop.found(r); err != nil {
		t.Fatal(err)
	}
	second.loop.unbind(r)
	again := roster.RaftID(2, 7)
	hello := &kvpb.Hello{From: first.loop.identity(), ToId: 2, ToRaftId: again, ToNonce: []byte(second.loop.nonce)}
	if err := second.loop.welcome(hello); err != nil {
		t.Fatal(err)
	}
	if second.loop.raftID != again || second.loop.founded != nil {
		t.Errorf("it became %x, a founder %v", second.loop.raftID, second.loop.founded != nil)
	}
}
