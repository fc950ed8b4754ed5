package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// The timeout of members whose links fail. A short one keeps the tests short.
	netElection = 500 * time.Millisecond
	// Writes go on within this time on the side that has a majority, beside the
	// time that TCP takes to notice.
	netOutageMax = 4*netElection + time.Second
	// The same where packets are lost by chance. TCP sends what is lost again after
	// 0.2, 0.4, 0.8 s and so on; an election takes four segments in a row, and there
	// is one whenever nothing of the leader's came through for an election timeout. Of
	// 300 outages two took more than 4 s, the longest 6 s.
	lossOutageMax = 30 * time.Second
	// How long a fault lasts at least.
	faultMin = 2 * netElection
)

// A network is network namespaces on a bridge, one for each member, in which
// links can be broken. The test itself is on the bridge and reaches everybody
// all the time. The names begin with the process ID of the test, so that the
// next run can remove what one that was killed has left behind.
type network struct {
	t      *testing.T
	name   string // of the bridge; those of namespaces and links begin with it
	subnet string // the first three bytes of the addresses
}

// networks counts those of this process. In a name it is base 36, as names of
// links have 15 bytes at most.
var networks atomic.Int64

// namespaced says why namespaces cannot be used here, nil if they can.
var namespaced = sync.OnceValue(func() error {
	if os.Getuid() != 0 {
		return errors.New("only root can make network namespaces")
	}
	removeLeftovers()
	name := fmt.Sprintf("kvt%d-probe", os.Getpid())
	if err := sh("ip", "netns", "add", name); err != nil {
		return err
	}
	defer func() { _ = sh("ip", "netns", "del", name) }() // the next run tries again
	return sh("ip", "netns", "exec", name, "iptables", "-w", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.3", "-j", "DROP")
})

func sh(line ...string) error {
	out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, out)
	}
	return nil
}

// ourNames matches the names of namespaces and links.
var ourNames = regexp.MustCompile(`\bkvt(\d+)-[a-z0-9.]+`)

// removeLeftovers removes what test runs that were killed have left. Their
// processes ended with them.
func removeLeftovers() {
	for _, kind := range []string{"netns", "link"} {
		args := map[string][]string{"netns": {"netns", "list"}, "link": {"-o", "link"}}[kind]
		out, err := exec.Command("ip", args...).Output()
		if err != nil {
			continue // the probe will say more
		}
		for _, match := range ourNames.FindAllStringSubmatch(string(out), -1) {
			if !isTestRun(match[1]) {
				_ = sh("ip", kind, "del", match[0]) // another run may be faster
			}
		}
	}
}

// newNetwork makes a network for members with the IDs 1 to size.
func newNetwork(t *testing.T, size int) *network {
	t.Helper()
	if err := namespaced(); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	n := &network{t: t, name: fmt.Sprintf("kvt%d-%s", os.Getpid(), strconv.FormatInt(networks.Add(1), 36)), subnet: freeSubnet(t)}
	t.Cleanup(func() { n.remove("link", n.name) })
	n.run("ip", "link", "add", n.name, "type", "bridge")
	n.run("ip", "addr", "add", n.subnet+".254/24", "dev", n.name)
	n.run("ip", "link", "set", n.name, "up")
	for id := uint64(1); id <= uint64(size); id++ {
		ns := n.namespace(id)
		n.run("ip", "netns", "add", ns)
		t.Cleanup(func() { n.remove("netns", ns) })
		// The link lives for longer than the name of the namespace, by as long as
		// a connection of a process that was killed waits for an answer.
		t.Cleanup(func() { n.remove("link", ns) })
		n.run("ip", "link", "add", ns, "type", "veth", "peer", "name", "eth0", "netns", ns)
		n.run("ip", "link", "set", ns, "master", n.name, "up")
		n.run("ip", "-n", ns, "addr", "add", n.ip(id)+"/24", "dev", "eth0")
		n.run("ip", "-n", ns, "link", "set", "eth0", "up")
		n.run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	return n
}

// freeSubnet returns a network of those that RFC 2544 sets aside for tests.
func freeSubnet(t *testing.T) string {
	t.Helper()
	taken, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for range 256 {
		subnet := fmt.Sprintf("198.18.%d", rand.IntN(256))
		if !strings.Contains(fmt.Sprint(taken), subnet+".") {
			return subnet
		}
	}
	t.Fatal("found no free subnet")
	return ""
}

func (n *network) run(line ...string) {
	n.t.Helper()
	if err := sh(line...); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) remove(kind, name string) {
	if err := sh("ip", kind, "del", name); err != nil {
		n.t.Error(err)
	}
}

func (n *network) namespace(id uint64) string { return fmt.Sprintf("%s.%d", n.name, id) }

func (n *network) ip(id uint64) string { return fmt.Sprintf("%s.%d", n.subnet, id) }

// start starts a cluster whose members are in the network.
func (n *network) start(size int) *processes {
	n.t.Helper()
	p := newProcesses(n.t, size)
	for id := range p.addrs {
		p.addrs[id] = n.ip(id) + ":21001"
		p.prefix[id] = []string{"ip", "netns", "exec", n.namespace(id)}
	}
	p.flags = append(p.membersFlag(), "--election", netElection.String())
	p.startAll()
	p.awaitReady(10*time.Second, p.ids()...)
	return p
}

// The chains of a member's packet filter.
const (
	inward  = "INPUT"
	outward = "OUTPUT"
)

// filter adds a rule for the packets between a member and others.
func (n *network) filter(id uint64, chain string, others []uint64, rule ...string) {
	n.t.Helper()
	side := map[string]string{inward: "-s", outward: "-d"}[chain]
	var ips []string
	for _, other := range others {
		ips = append(ips, n.ip(other))
	}
	line := []string{"ip", "netns", "exec", n.namespace(id), "iptables", "-w", "-A", chain, side, strings.Join(ips, ",")}
	n.run(append(line, rule...)...)
}

// cut cuts links in both directions.
func (n *network) cut(id uint64, others ...uint64) {
	n.t.Helper()
	n.filter(id, inward, others, "-j", "DROP")
	n.filter(id, outward, others, "-j", "DROP")
}

func (n *network) heal(ids []uint64) {
	n.t.Helper()
	for _, id := range ids {
		n.run("ip", "netns", "exec", n.namespace(id), "iptables", "-w", "-F")
	}
}

// A linkFault breaks links between members, given by the leader and the others
// in no particular order.
type linkFault struct {
	name   string
	breaks func(n *network, leader uint64, others []uint64)
	// deposes says that a majority cannot hear the leader, or it not them, so
	// that they elect another one.
	deposes bool
	// loses says that packets get through or do not by chance.
	loses bool
	// stops says that the leader's process is stopped until there is another
	// one, so that it believes that it leads, and has nobody to tell it better.
	stops bool
}

var (
	dropped = []string{"-j", "DROP"}
	reset   = []string{"-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"}
)

var faultsOfThree = []linkFault{
	{name: "the leader is cut off", breaks: func(n *network, leader uint64, others []uint64) { n.cut(leader, others...) }, deposes: true},
	{name: "the leader is stopped, cut off and goes on", breaks: func(n *network, leader uint64, others []uint64) { n.cut(leader, others...) }, deposes: true, stops: true},
	{name: "the leader hears nobody", breaks: func(n *network, leader uint64, others []uint64) { n.filter(leader, inward, others, dropped...) }, deposes: true},
	{name: "nobody hears the leader", breaks: func(n *network, leader uint64, others []uint64) { n.filter(leader, outward, others, dropped...) }, deposes: true},
	{name: "the leader is reset", breaks: func(n *network, leader uint64, others []uint64) { n.filter(leader, outward, others, reset...) }, deposes: true},
	{name: "a follower is cut off", breaks: func(n *network, leader uint64, others []uint64) { n.cut(others[0], leader, others[1]) }},
	{name: "a follower hears nobody", breaks: func(n *network, leader uint64, others []uint64) {
		n.filter(others[0], inward, []uint64{leader, others[1]}, dropped...)
	}},
	{name: "nobody hears a follower", breaks: func(n *network, leader uint64, others []uint64) {
		n.filter(others[0], outward, []uint64{leader, others[1]}, dropped...)
	}},
	{name: "a link to the leader is cut", breaks: func(n *network, leader uint64, others []uint64) { n.cut(leader, others[0]) }},
	{name: "the leader loses 30 %", breaks: func(n *network, leader uint64, others []uint64) { n.lose(leader, others) }, loses: true},
	{name: "all lose 30 %", breaks: func(n *network, leader uint64, others []uint64) {
		n.lose(leader, others)
		n.lose(others[0], others[1:])
		n.lose(others[1], others[:1])
	}, loses: true},
}

// lose has the links of a member lose packets, in both directions.
func (n *network) lose(id uint64, others []uint64) {
	n.t.Helper()
	for _, chain := range []string{inward, outward} {
		n.filter(id, chain, others, "-m", "statistic", "--mode", "random", "--probability", "0.3", "-j", "DROP")
	}
}

var faultsOfFive = []linkFault{
	{name: "the leader and a follower are cut off", breaks: func(n *network, leader uint64, others []uint64) {
		n.cut(leader, others[1:]...)
		n.cut(others[0], others[1:]...)
	}, deposes: true},
	{name: "one member joins two halves", breaks: func(n *network, leader uint64, others []uint64) {
		n.cut(leader, others[2:]...)
		n.cut(others[0], others[2:]...)
	}},
	{name: "the leader joins two halves", breaks: func(n *network, _ uint64, others []uint64) {
		n.cut(others[0], others[2:]...)
		n.cut(others[1], others[2:]...)
	}},
	{name: "one member joins the leader to the rest", breaks: func(n *network, leader uint64, others []uint64) {
		n.cut(leader, others[1:]...)
	}, deposes: true},
	{name: "each hears two neighbours", breaks: func(n *network, leader uint64, others []uint64) {
		ring := append([]uint64{leader}, others...)
		for i, id := range ring {
			n.cut(id, ring[(i+2)%5], ring[(i+3)%5])
		}
	}},
}

// TestBrokenLinks breaks links between members in their own network namespaces,
// one way after another, with clients that reach everybody. It needs root and
// the programs ip and iptables (Debian: iproute2, iptables).
func TestBrokenLinks(t *testing.T) {
	t.Parallel()
	t.Run("3 processes", func(t *testing.T) {
		t.Parallel()
		testBrokenLinks(t, 3, faultsOfThree)
	})
	t.Run("5 processes", func(t *testing.T) {
		t.Parallel()
		testBrokenLinks(t, 5, faultsOfFive)
	})
}

func testBrokenLinks(t *testing.T, size int, faults []linkFault) {
	n := newNetwork(t, size)
	p, rng := n.start(size), chance(t)
	l := p.startLoad(rng)
	for range *rounds {
		for _, f := range faults {
			leader := p.leader()
			others := p.others(leader)
			rng.Shuffle(len(others), func(i, k int) { others[i], others[k] = others[k], others[i] })
			n.breakLinks(l, f, leader, others)
		}
	}
	l.finish()
}

// breakLinks has one fault last for a while and then end.
func (n *network) breakLinks(l *load, f linkFault, leader uint64, others []uint64) {
	t, p := n.t, l.p
	t.Helper()
	l.pause()
	if f.stops {
		p.signal(syscall.SIGSTOP, leader)
	}
	f.breaks(n, leader, others)
	began := time.Now()
	most := netOutageMax
	if f.loses {
		most = lossOutageMax
	}
	outage := l.wantWrites(most, "though "+f.name)
	if f.deposes {
		p.await(netOutageMax, "another leader, as "+f.name, func() bool {
			s, err := p.status(others[len(others)-1])
			return err == nil && s.GetLeader() != 0 && s.GetLeader() != leader
		})
	}
	if f.stops {
		l.readLate([]uint64{leader})
		p.signal(syscall.SIGCONT, leader)
		p.pass(netElection)
	}
	p.pass(faultMin - time.Since(began))
	longest := l.pause()
	n.heal(p.ids())
	healed := time.Now()
	l.wantWrites(most, "after "+f.name)
	p.awaitReady(healingMax, p.ids()...)
	t.Logf("%s (%d): next write after %v, longest pause %v, all ready %v after the end", f.name, leader,
		outage.Round(time.Millisecond), longest.Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
	l.check()
}
