package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	raftkvv1 "example.com/raftkv/proto/raftkv/v1"
)

// hostileTexts break lines and columns, move the cursor, or hide what they are.
var hostileTexts = []string{
	"", "plain", "a b", "\t", "\n\n", "\r", "\x1b[2J", "\x7f", "\u009b2J", "\u0085", "\u2028", "\u202etxt", "\ufeff",
	`"quoted"`, `\`, "\xff\xfe", "\u00a0", "e\u0301", "x\n\nDid you mean this?\n\ty", strings.Repeat("wide", 60),
}

// wantPrintable fails unless a terminal shows a text as it is.
func wantPrintable(t *testing.T, text, allowed string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Fatalf("%q is no UTF-8", text)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) && !strings.ContainsRune(allowed, r) {
			t.Fatalf("%q has the character %U", text, r)
		}
	}
}

// What is read as a list of members can be written and read again, and is one
// that a cluster can have. Everything else is wrong usage.
func FuzzParseMembers(f *testing.F) {
	for _, args := range []string{
		"", "1=127.0.0.1:21001", "1=a:1 2=b:2 3=c:3", "1=a:1 1=b:1", "1=a:1 2=a:1", "0=a:1", "2147483647=a:1",
		"2147483648=a:1", "-1=a:1", "+1=a:1", "007=a:1", "1=", "=a:1", "1=a", "1=:1", "1=a:", "1=[::1]:1", "1=a/b:1",
		"1=[fe80::1%eth0]:1", "1==a:1", "18446744073709551617=a:1", "1=a:1=2", "\t1=a:1\n", "1=%zz:1", "1_0=a:1",
	} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		members, err := parseMembers(args)
		if err != nil {
			if p, ok := errors.AsType[*failure](err); !ok || p.code != exitUsage {
				t.Fatalf("%q gives %v, want wrong usage", args, err)
			}
			return
		}
		if len(members) != len(args) {
			t.Fatalf("%q gives %d members", args, len(members))
		}
		seen := map[any]bool{}
		for _, m := range members {
			if m.GetId() == 0 || m.GetId() > memberIDMax || seen[m.GetId()] || seen[m.GetAddr()] {
				t.Fatalf("%q gives the member %v", args, m)
			}
			seen[m.GetId()], seen[m.GetAddr()] = true, true
			again, err := parseMember(fmt.Sprintf("%d=%s", m.GetId(), m.GetAddr()))
			if err != nil || !proto.Equal(again, m) {
				t.Fatalf("%v written and read again is %v, %v", m, again, err)
			}
		}
	})
}

// Keys and values stand in a line and a column of their own, whatever bytes they
// are, and nothing of them is lost.
func FuzzPrintKeyValue(f *testing.F) {
	for i, text := range hostileTexts {
		f.Add([]byte(text), []byte(hostileTexts[len(hostileTexts)-1-i]))
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		resp := &raftkvv1.ListResponse{Kvs: []*raftkvv1.KeyValue{{Key: key, Value: value, Revision: 1}}}
		text := printed(t, &client{output: "text"}, resp)
		wantPrintable(t, text, "\t\n")
		cells := strings.Split(strings.TrimSuffix(text, "\n"), "\t")
		if len(cells) != 2 || strings.Count(text, "\n") != 1 {
			t.Fatalf("%q is not a line of two columns", text)
		}
		for i, want := range [][]byte{key, value} {
			got := cells[i]
			if strings.HasPrefix(got, `"`) {
				var err error
				if got, err = strconv.Unquote(got); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(want) {
				t.Fatalf("%q stands for %q, want %q", cells[i], got, want)
			}
		}
		checkJSON(t, printed(t, &client{output: "json"}, resp), key, value)
		wantPrintable(t, keyArg(string(key)), "")
	})
}

func printed(t *testing.T, c *client, resp *raftkvv1.ListResponse) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.printPart(bufio.NewWriter(&b), resp); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkJSON fails unless a line is JSON and holds a key and its value.
func checkJSON(t *testing.T, line string, key, value []byte) {
	t.Helper()
	var got struct{ Key, Value json.RawMessage }
	if err := json.Unmarshal([]byte(line), &got); err != nil || strings.Count(line, "\n") != 1 {
		t.Fatalf("%q: %v", line, err)
	}
	for raw, want := range map[*json.RawMessage][]byte{&got.Key: key, &got.Value: value} {
		var text string
		var object struct{ Base64 []byte }
		if err := json.Unmarshal(*raw, &text); err == nil {
			object.Base64 = []byte(text)
		} else if err := json.Unmarshal(*raw, &object); err != nil {
			t.Fatalf("%s: %v", *raw, err)
		}
		if !bytes.Equal(object.Base64, want) {
			t.Fatalf("%s stands for %q, want %q", *raw, object.Base64, want)
		}
	}
}

// Whoever answers at an endpoint can say what he likes: neither a status nor an
// error makes more lines than it should, or has a character that does something
// to a terminal.
func FuzzPrintStatus(f *testing.F) {
	for i, text := range hostileTexts {
		text = strings.ToValidUTF8(text, "?")
		for _, st := range []*raftkvv1.StatusResponse{
			{Id: 1, Leader: 1, ClusterId: text, Role: raftkvv1.Role(i)},
			{Id: 1, Leader: 2, ClusterId: "c", Membership: &raftkvv1.Membership{Members: []*raftkvv1.Member{
				{Id: 1, Addr: "a:1", Role: raftkvv1.Role_ROLE_VOTER}, {Id: 2, Addr: text},
			}}, Peers: []*raftkvv1.PeerStatus{{Id: 2, State: text, LastContactMs: 1 << 40}}},
		} {
			data, err := proto.Marshal(st)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, text)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, message string) {
		var stderr bytes.Buffer
		report(&stderr, fail(exitFailed, "%s", message))
		wantPrintable(t, strings.TrimSuffix(stderr.String(), "\n"), "")
		st := new(raftkvv1.StatusResponse)
		if proto.Unmarshal(data, st) != nil {
			return
		}
		text, err := statusText("a:1", st)
		if err != nil {
			t.Fatal(err)
		}
		wantPrintable(t, text, "\n")
		lines := 8 + len(st.GetMembership().GetMembers())
		switch {
		case st.GetClusterId() == "":
			lines = 1
		case st.GetQuorumLost():
			lines++ // the command that helps has a line of its own
		}
		if got := strings.Count(text, "\n"); got != lines {
			t.Fatalf("%q has %d lines, want %d", text, got, lines)
		}
		var b bytes.Buffer
		if err := (&client{output: "text"}).printMembership(&b, st.GetMembership()); err != nil {
			t.Fatal(err)
		}
		wantPrintable(t, b.String(), "\n")
		if err := writeJSON(&b, newStatusJSON(st)); err != nil {
			t.Fatal(err)
		}
	})
}
