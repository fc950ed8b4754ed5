package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"example.com/raftkv"
)

func TestServeRefusesWrongUsage(t *testing.T) {
	tests := map[string]string{
		"serve":                             "needs --id",
		"--addr h:1":                        "needs --id",
		"--id 0":                            "needs --id",
		"--id 2147483648":                   "needs --id",
		"--id one":                          "--id",
		"--id 1 --addr 21001":               "not host:port",
		"--id 1 --addr :21001":              "not host:port",
		"--id 1 --addr 0.0.0.0:21001":       "--listen 0.0.0.0:21001",
		"--id 1 --addr [::]:21001":          "--listen [::]:21001",
		"--id 3 --members 1=h:1,2=h:2":      "does not name this member",
		"--id 1 --members 1=h:1,1=h:2":      "occurs twice",
		"--id 1 --members h:1":              "not ID=ADDR",
		"--id 1 --addr h:9 --members 1=h:1": "--addr is h:9",
		"--id 1 --log-level loud":           "--log-level",
		"--id 1 --log-format xml":           "--log-format",
		"--id 1 --election 100ms":           "Election",
		"serve --id 1 extra":                "one argument too many",
		"demo --nodes 0":                    "want 1 to 9",
		"demo --nodes 10":                   "want 1 to 9",
		"demo --port 65534":                 "room for 3 ports",
	}
	for line, want := range tests {
		t.Run(line, func(t *testing.T) {
			kvnode(t, "", strings.Fields(line)...).check(t, exitUsage, "", want)
		})
	}
}

func TestAddressInUseSaysWhatToDo(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	addr := lis.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	kvnode(t, "", "--id", "1", "--addr", addr).check(t, exitFailed, "", addr+" is in use")
	kvnode(t, "", "--id", "1", "--listen", addr).check(t, exitFailed, "", addr+" is in use")
	kvnode(t, "", "demo", "--port", port, "--nodes", "1").check(t, exitFailed, "", "port "+port+" is in use", "--port")
}

// The default of kvnode must be the default of the library.
func TestTimingHasATickThatDividesBoth(t *testing.T) {
	for _, tt := range []struct{ heartbeat, election, tick time.Duration }{
		{defaultHeartbeat, defaultElection, 50 * time.Millisecond},
		{30 * time.Millisecond, 300 * time.Millisecond, 15 * time.Millisecond},
		{2 * time.Millisecond, 25 * time.Millisecond, time.Millisecond},
	} {
		want := raftkv.Timing{Tick: tt.tick, Heartbeat: tt.heartbeat, Election: tt.election}
		if got := timing(tt.heartbeat, tt.election); got != want {
			t.Errorf("got %+v; want %+v", got, want)
		}
	}
}

func TestMembersGiveTheAddress(t *testing.T) {
	s := &serve{id: 2, addr: defaultEndpoint, members: []string{"1=h:1", "2=h:2"}}
	members, err := s.parseMembers(false)
	if err != nil || s.addr != "h:2" || len(members) != 2 || members[1] != (raftkv.Member{ID: 2, Addr: "h:2", Role: raftkv.Voter}) {
		t.Errorf("got %v, %v, --addr %s", members, err, s.addr)
	}
}

// A blank node says how to go on, and stops when it is told to.
func TestServeSaysHowToGoOnAndStops(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	addr := refusedAddr(t)
	r := kvnodeContext(ctx, "", "--id", "1", "--addr", addr, "--log-level", "error")
	for _, want := range []string{"member 1 listens on " + addr, "kvnode init --endpoints " + addr, "stopped"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("stderr is %q; want %q in it", r.stderr, want)
		}
	}
	if r.code != exitInterrupted || r.stdout != "" {
		t.Errorf("code %d, stdout %q", r.code, r.stdout)
	}
}
