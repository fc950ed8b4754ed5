package raftkv_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strconv"
	"sync"
	"time"

	"example.com/raftkv"
)

// start starts a node on a free port of the loopback interface. A program of
// your own has the address in its configuration and needs no Listener.
func start(id uint64, timing ...raftkv.Timing) *raftkv.Node {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	cfg := raftkv.Config{ID: id, Addr: l.Addr().String(), Listener: l}
	for _, t := range timing {
		cfg.Timing = t
	}
	n, err := raftkv.Start(cfg)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

// found starts members 1 to size and founds a cluster of them.
func found(ctx context.Context, size int, timing ...raftkv.Timing) []*raftkv.Node {
	var nodes []*raftkv.Node
	var members []raftkv.Member
	for id := uint64(1); id <= uint64(size); id++ {
		n := start(id, timing...)
		nodes = append(nodes, n)
		members = append(members, raftkv.Member{ID: id, Addr: n.Status().Addr})
	}
	for _, err := range each(nodes, func(n *raftkv.Node) error {
		return errors.Join(n.Init(ctx, members...), n.Ready(ctx))
	}) {
		if err != nil {
			log.Fatal(err)
		}
	}
	return nodes
}

// each calls a function for all nodes at the same time.
func each(nodes []*raftkv.Node, f func(*raftkv.Node) error) []error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errs
}

func closeAll(nodes []*raftkv.Node) { each(nodes, (*raftkv.Node).Close) }

// Three members in one process. In life each is a process of its own and calls
// Start and Init as here, with the same list, every time it starts.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	var members []raftkv.Member
	listeners := make(map[uint64]net.Listener)
	for id := uint64(1); id <= 3; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		listeners[id] = l
		members = append(members, raftkv.Member{ID: id, Addr: l.Addr().String()})
	}

	nodes := make([]*raftkv.Node, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			n, err := raftkv.Start(raftkv.Config{ID: m.ID, Addr: m.Addr, Listener: listeners[m.ID]})
			if err != nil {
				log.Fatal(err)
			}
			if err := n.Init(ctx, members...); err != nil {
				log.Fatal(err)
			}
			nodes[i] = n
		})
	}
	wg.Wait()

	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	kv, err := nodes[2].Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s = %s, revision %d\n", kv.Key, kv.Value, kv.Revision)

	for _, n := range nodes {
		n.Close()
	}
	// Output: greeting = hello, revision 1
}

// The body is a complete program: three members in one process, one of which
// is lost. Give each member a process and an address of its own to survive the
// loss of a machine.
func Example_embed() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var nodes []*raftkv.Node
	var members []raftkv.Member
	for id := uint64(1); id <= 3; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0") // or leave Listener out and fix Addr
		if err != nil {
			log.Fatal(err)
		}
		n, err := raftkv.Start(raftkv.Config{ID: id, Addr: l.Addr().String(), Listener: l})
		if err != nil {
			log.Fatal(err)
		}
		defer n.Close()
		nodes = append(nodes, n)
		members = append(members, raftkv.Member{ID: id, Addr: l.Addr().String()})
	}
	if err := nodes[0].Init(ctx, members...); err != nil { // separate processes all call it
		log.Fatal(err)
	}
	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	nodes[0].Close() // the other two go on
	kv, err := nodes[2].Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, revision %d\n", kv.Value, kv.Revision)
	// Output: hello, revision 1
}

// An error says whether the write may have been done. Here two of three members
// are lost, so that nothing can be done.
func Example_errors() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	slow := raftkv.Timing{Election: 20 * time.Second} // the leader does not notice its loss
	nodes := found(ctx, 3, slow)
	defer closeAll(nodes)
	leader := nodes[nodes[0].Status().Leader-1]
	for _, n := range nodes {
		if n != leader {
			n.Close()
		}
	}

	attempt := func(call func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		switch err := call(ctx); {
		case err == nil:
			fmt.Println("done")
		case errors.Is(err, raftkv.ErrOutcomeUnknown):
			fmt.Println("perhaps done: look before trying again, or use IfRevision")
		case errors.Is(err, raftkv.ErrNoLeader):
			fmt.Println("not done: try again later")
		default:
			fmt.Println("not done:", err)
		}
	}
	attempt(func(ctx context.Context) error {
		_, err := leader.Put(ctx, "k", []byte("v"))
		return err
	})
	attempt(func(ctx context.Context) error {
		_, err := leader.Get(ctx, "k")
		return err
	})
	attempt(func(ctx context.Context) error {
		_, err := leader.Put(ctx, "", []byte("v"))
		return err
	})
	// Output:
	// perhaps done: look before trying again, or use IfRevision
	// not done: try again later
	// not done: raftkv: put "": invalid argument: empty key
}

// A cluster may also grow from one member, as a person would have it: the first
// founds it alone, the others join as learners and become voters.
func ExampleNode_Init() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := []*raftkv.Node{start(1), start(2), start(3)}
	defer closeAll(nodes)

	first := nodes[0]
	if err := first.Init(ctx); err != nil {
		log.Fatal(err)
	}
	for _, n := range nodes[1:] {
		s := n.Status()
		if _, err := first.AddLearner(ctx, s.ID, s.Addr); err != nil {
			log.Fatal(err)
		}
	}
	m, err := first.ChangeMembership(ctx, []uint64{1, 2, 3})
	if err != nil {
		log.Fatal(err)
	}
	for _, row := range m.Members {
		fmt.Println("member", row.ID, "is a", row.Role)
	}
	// Output:
	// member 1 is a voter
	// member 2 is a voter
	// member 3 is a voter
}

func ExampleNode_Put() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)
	n := nodes[0]

	for _, value := range []string{"off", "on"} {
		revision, err := n.Put(ctx, "feature/dark-mode", []byte(value))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("revision", revision)
	}
	// Output:
	// revision 1
	// revision 2
}

func ExampleNode_Get() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)

	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	kv, err := nodes[1].Get(ctx, "greeting") // sees it, whichever member leads
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", kv.Value)

	_, err = nodes[1].Get(ctx, "farewell")
	fmt.Println(errors.Is(err, raftkv.ErrNotFound))
	// Output:
	// hello
	// true
}

func ExampleNode_Delete() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)
	n := nodes[0]

	if _, err := n.Put(ctx, "session/42", []byte("alice")); err != nil {
		log.Fatal(err)
	}
	for range 2 { // to delete what is not there is no error and no revision
		revision, err := n.Delete(ctx, "session/42")
		fmt.Println(revision, err)
	}
	// Output:
	// 2 <nil>
	// 2 <nil>
}

func ExampleNode_List() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)
	n := nodes[0]

	for _, key := range []string{"service/web/2", "service/db/1", "service/web/1"} {
		if _, err := n.Put(ctx, key, []byte("up")); err != nil {
			log.Fatal(err)
		}
	}
	services, err := n.List(ctx, "service/web/")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("at revision", services.Revision)
	for kv := range services.All() {
		fmt.Printf("%s = %s\n", kv.Key, kv.Value)
	}
	// Output:
	// at revision 3
	// service/web/1 = up
	// service/web/2 = up
}

// Many keys are better read in pages.
func ExampleLimit() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)
	n := nodes[0]

	for _, key := range []string{"a", "b", "c"} {
		if _, err := n.Put(ctx, key, nil); err != nil {
			log.Fatal(err)
		}
	}
	const size = 2
	last := ""
	for {
		page, err := n.List(ctx, "", raftkv.Limit(size), raftkv.After(last))
		if err != nil {
			log.Fatal(err)
		}
		keys := 0
		for kv := range page.All() {
			last = kv.Key
			keys++
		}
		fmt.Println(keys, "up to", last)
		if keys < size {
			break
		}
	}
	// Output:
	// 2 up to b
	// 1 up to c
}

// Compare and set: members on three machines count together, and no count is
// lost.
func ExampleIfRevision() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)

	increment := func(n *raftkv.Node) error {
		for {
			kv, err := n.Get(ctx, "counter")
			if err != nil && !errors.Is(err, raftkv.ErrNotFound) {
				return err
			}
			count, _ := strconv.Atoi(string(kv.Value)) // 0 if there is none
			next := strconv.AppendInt(nil, int64(count+1), 10)
			// Revision 0, that of a key not found, means that there must be none.
			_, err = n.Put(ctx, "counter", next, raftkv.IfRevision(kv.Revision))
			if !errors.Is(err, raftkv.ErrRevisionMismatch) {
				return err
			}
		}
	}
	for range 10 {
		if err := errors.Join(each(nodes, increment)...); err != nil {
			log.Fatal(err)
		}
	}
	kv, err := nodes[0].Get(ctx, "counter")
	fmt.Printf("%s %v\n", kv.Value, err)
	// Output: 30 <nil>
}

// A stale read needs nobody: it works even where a majority is lost.
func ExampleStale() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)

	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	nodes[1].Close()
	nodes[2].Close()

	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := nodes[0].Get(short, "greeting")
	fmt.Println(errors.Is(err, raftkv.ErrNoLeader))

	kv, err := nodes[0].Get(ctx, "greeting", raftkv.Stale())
	fmt.Printf("%s %v\n", kv.Value, err)
	// Output:
	// true
	// hello <nil>
}

// MinRevision reads from this member alone and yet shows one's own write on
// another.
func ExampleMinRevision() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)

	revision, err := nodes[0].Put(ctx, "greeting", []byte("hello"))
	if err != nil {
		log.Fatal(err)
	}
	// The revision travels to another process, in a message or a cookie.
	kv, err := nodes[1].Get(ctx, "greeting", raftkv.MinRevision(revision))
	fmt.Printf("%s %v\n", kv.Value, err)
	// Output: hello <nil>
}

// AddLearner brings in a member that has all data, but no vote.
func ExampleNode_AddLearner() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)
	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}

	learner := start(2) // on another machine
	defer learner.Close()
	m, err := nodes[0].AddLearner(ctx, 2, learner.Status().Addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(m.Members), "members;", "2 is a", m.Members[1].Role)
	kv, err := learner.Get(ctx, "greeting")
	fmt.Printf("%s %v\n", kv.Value, err)
	// Output:
	// 2 members; 2 is a learner
	// hello <nil>
}

// ChangeMembership says who votes from now on: here the new member 4 in place
// of member 1, which stops with ErrRemoved.
func ExampleNode_ChangeMembership() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := append(found(ctx, 3), start(4))
	defer closeAll(nodes)

	if _, err := nodes[1].AddLearner(ctx, 4, nodes[3].Status().Addr); err != nil {
		log.Fatal(err)
	}
	m, err := nodes[1].ChangeMembership(ctx, []uint64{2, 3, 4})
	if err != nil {
		log.Fatal(err)
	}
	for _, row := range m.Members {
		fmt.Println("member", row.ID, "is a", row.Role)
	}
	// Output:
	// member 2 is a voter
	// member 3 is a voter
	// member 4 is a voter
}

// Recover is a person's decision. Two of three members restart at once, so that
// the third alone still has the data: it goes on as a new cluster.
func ExampleNode_Recover() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)
	survivor := nodes[0]
	if _, err := survivor.Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	closeAll(nodes[1:])
	for i, old := range nodes[1:] {
		n, err := raftkv.Start(raftkv.Config{ID: old.Status().ID, Addr: old.Status().Addr})
		if err != nil {
			log.Fatal(err)
		}
		nodes[i+1] = n
	}
	_, err := survivor.Get(ctx, "greeting")
	fmt.Println("lost:", errors.Is(err, raftkv.ErrQuorumLost))

	if _, err := survivor.Recover(ctx); err != nil { // not before it has the highest LastTerm and LastIndex
		log.Fatal(err)
	}
	kv, err := survivor.Get(ctx, "greeting")
	fmt.Printf("%s %v\n", kv.Value, err)
	for _, n := range nodes[1:] {
		if _, err := survivor.AddLearner(ctx, n.Status().ID, n.Status().Addr); err != nil {
			log.Fatal(err)
		}
	}
	m, err := survivor.ChangeMembership(ctx, []uint64{1, 2, 3})
	fmt.Println(len(m.Members), "members", err)
	// Output:
	// lost: true
	// hello <nil>
	// 3 members <nil>
}

func ExampleNode_Status() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 1)
	defer closeAll(nodes)

	if _, err := nodes[0].Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	s := nodes[0].Status()
	fmt.Printf("member %d is %v of %d, at revision %d\n",
		s.ID, s.Role, len(s.Membership.Members), s.Revision)
	// Output: member 1 is leader of 1, at revision 1
}

// Shutdown before a planned restart: the others have a leader at once, and no
// call fails.
func ExampleNode_Shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := found(ctx, 3)
	defer closeAll(nodes)

	if err := nodes[0].Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("closed:", errors.Is(nodes[0].Err(), raftkv.ErrClosed))
	revision, err := nodes[1].Put(ctx, "greeting", []byte("hello"))
	fmt.Println(revision, err)
	// Output:
	// closed: true
	// 1 <nil>
}
