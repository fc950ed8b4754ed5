package main

import (
	"strings"
	"testing"
)

func TestWrongUsageIsOneLineAndExits2(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"gte", "k"}, `unknown command "gte"`},
		{[]string{"gte", "k"}, "did you mean get?"},
		{[]string{"get"}, "usage: kvnode get KEY"},
		{[]string{"get", "a", "b"}, `"b" is one argument too many`},
		{[]string{"get", "k", "--no-such"}, "see: kvnode get --help"},
		{[]string{"put", "k", "-5"}, "write -- before"},
		{[]string{"put", "k", "v", "--if-revision", "x"}, "--if-revision"},
		{[]string{"get", "k", "-o", "xml"}, "want text or json"},
		{[]string{"get", "k", "-o", "json", "--raw"}, "exclude each other"},
		{[]string{"get", "k", "--timeout", "0s"}, "--timeout"},
		{[]string{"get", "k", "--endpoints", "localhost"}, "not host:port"},
		{[]string{"get", "k", "--endpoints", "http://a:1"}, "not host:port"},
		{[]string{"get", "k", "--endpoints", ""}, "--endpoints"},
		{[]string{"add-learner", "2"}, "not ID=ADDR"},
		{[]string{"add-learner", "0=a:1"}, "not a member ID"},
		{[]string{"add-learner", "2147483648=a:1"}, "not a member ID"},
		{[]string{"add-learner", "2=a"}, "not host:port"},
		{[]string{"init", "1=a:1", "1=b:1"}, "occurs twice"},
		{[]string{"init", "1=a:1", "2=a:1"}, "occurs twice"},
		{[]string{"remove-learner", "two"}, "not a member ID"},
		{[]string{"change-membership"}, "an argument is missing"},
		{[]string{"change-membership", "1", "b"}, "not a member ID"},
		{[]string{"transfer-leader", "-1"}, "write -- before"},
		{[]string{"status", "extra"}, "one argument too many"},
		{[]string{"status", "--watch", "--wait-ready"}, "exclude each other"},
		{[]string{"status", "--wait-ready", "--endpoints", "a:1,b:1"}, "wants one endpoint"},
		{[]string{"recover", "--yes", "--endpoints", "a:1,b:1"}, "wants one endpoint"},
		{[]string{"recover", "1"}, "one argument too many"},
		{[]string{"help", "no-such"}, "no help for"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			kvnode(t, "", tt.args...).check(t, exitUsage, "", tt.want)
		})
	}
}

func TestHelpIsDataAndExits0(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"help", "exit-codes"}, {"help", "get"}, {"put", "--help"}} {
		r := kvnode(t, "", args...)
		if r.code != exitDone || len(r.stdout) < 100 || r.stderr != "" {
			t.Errorf("kvnode %v: code %d, %d bytes on stdout, stderr %q", args, r.code, len(r.stdout), r.stderr)
		}
	}
}

func TestExitCodeTopicNamesEveryCode(t *testing.T) {
	for _, code := range []string{"0", "1", "2", "3", "4", "5", "130"} {
		if !strings.Contains(exitCodesLong, " "+code+"  ") {
			t.Errorf("exit code %s is not in the topic", code)
		}
	}
}

func TestVersionAndCompletionPrint(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if r := kvnode(t, "", args...); r.code != exitDone || !strings.HasPrefix(r.stdout, "kvnode ") {
			t.Errorf("kvnode %v: code %d, stdout %q", args, r.code, r.stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := kvnode(t, "", "completion", shell); r.code != exitDone || len(r.stdout) < 1000 {
			t.Errorf("completion %s: code %d, %d bytes", shell, r.code, len(r.stdout))
		}
	}
}

func TestEnvironmentStandsForFlags(t *testing.T) {
	addr := holding("v").start(t)
	t.Setenv("KVNODE_ENDPOINTS", refusedAddr(t)+","+addr)
	t.Setenv("KVNODE_OUTPUT", "json")
	kvnode(t, "", "get", "k").check(t, exitDone, `{"key":"k","value":"v","revision":7}`+"\n")
	// The flag wins, and says nothing about it.
	r := kvnode(t, "", "get", "k", "-o", "text")
	r.check(t, exitDone, "v\n")
	if r.stderr != "" {
		t.Errorf("stderr is %q; want nothing", r.stderr)
	}
}

func TestEnvironmentIsCheckedLikeFlags(t *testing.T) {
	t.Setenv("KVNODE_TIMEOUT", "soon")
	kvnode(t, "", "get", "k").check(t, exitUsage, "", "KVNODE_TIMEOUT in the environment")
	t.Setenv("KVNODE_TIMEOUT", "")
	kvnode(t, "", "get", "k", "--endpoints", refusedAddr(t)).check(t, exitUnreachable, "", "refused")
}
