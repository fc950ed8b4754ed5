package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// The largest member ID: the store keeps it in the upper half of a raft ID.
const memberIDMax = 1<<31 - 1

func parseID(arg string) (uint64, error) {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || id == 0 || id > memberIDMax {
		return 0, usageFailure("%q is not a member ID; want a number from 1 to %d", arg, memberIDMax)
	}
	return id, nil
}

// parseMember reads ID=ADDR.
func parseMember(arg string) (*raftkvv1.Member, error) {
	left, addr, ok := strings.Cut(arg, "=")
	if !ok {
		return nil, usageFailure("%q is not ID=ADDR; example: 2=127.0.0.1:21002", arg)
	}
	id, err := parseID(left)
	if err != nil {
		return nil, err
	}
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	return &raftkvv1.Member{Id: id, Addr: addr, Role: raftkvv1.Role_ROLE_VOTER}, nil
}

// parseMembers reads several ID=ADDR and refuses an ID or address that occurs
// twice, which is always a slip of the pen.
func parseMembers(args []string) ([]*raftkvv1.Member, error) {
	var members []*raftkvv1.Member
	seen := map[string]bool{}
	for _, arg := range args {
		m, err := parseMember(strings.TrimSpace(arg))
		if err != nil {
			return nil, err
		}
		id := strconv.FormatUint(m.GetId(), 10)
		if seen[id] || seen[m.GetAddr()] {
			return nil, usageFailure("%q: this ID or address occurs twice", arg)
		}
		seen[id], seen[m.GetAddr()] = true, true
		members = append(members, m)
	}
	return members, nil
}

// roleName is a role in lower case, as all output has it: learner.
func roleName(r raftkvv1.Role) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

type memberJSON struct {
	ID   uint64 `json:"id"`
	Addr string `json:"addr"`
	Role string `json:"role"`
}

type membershipJSON struct {
	Index   uint64       `json:"membership_index"`
	Joint   bool         `json:"joint"`
	Members []memberJSON `json:"members"`
}

// printMembership prints what a change has led to.
func (c *client) printMembership(w io.Writer, m *raftkvv1.Membership) error {
	if c.json() {
		out := membershipJSON{Index: m.GetIndex(), Joint: m.GetJoint(), Members: []memberJSON{}}
		for _, m := range m.GetMembers() {
			out.Members = append(out.Members, memberJSON{m.GetId(), m.GetAddr(), roleName(m.GetRole())})
		}
		return writeJSON(w, out)
	}
	rows := []string{"ID\tADDRESS\tROLE"}
	for _, m := range m.GetMembers() {
		rows = append(rows, fmt.Sprintf("%d\t%s\t%s", m.GetId(), oneLine(m.GetAddr()), roleName(m.GetRole())))
	}
	return writeTable(w, rows)
}
