package archtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// linkedModulesMax bounds what the root package brings into a program besides
// itself: the four modules the project stands on, what they pull in, and one
// ordered map.
const linkedModulesMax = 9

func TestSourceKeepsTheRules(t *testing.T) {
	files := load(t)
	if len(files) == 0 {
		t.Fatal("found no Go file in the module")
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, f := range files {
				for _, complaint := range r.check(f) {
					t.Error(complaint)
				}
			}
		})
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	for _, complaint := range packagesWithoutComment(load(t)) {
		t.Error(complaint)
	}
}

// packagesWithoutComment passes over packages that are generated as a whole, as
// protoc-gen-go writes no package comment, and those that are tests only.
func packagesWithoutComment(files []*file) []string {
	var dirs []string
	hasComment := make(map[string]bool)
	for _, f := range files {
		if f.test || f.generated {
			continue
		}
		if !slices.Contains(dirs, f.dir()) {
			dirs = append(dirs, f.dir())
		}
		want := "Package " + f.syntax.Name.Name + " "
		if f.syntax.Name.Name == "main" {
			want = ""
		}
		if doc := f.syntax.Doc; doc != nil && strings.HasPrefix(doc.Text(), want) {
			hasComment[f.dir()] = true
		}
	}
	var found []string
	for _, dir := range dirs {
		if !hasComment[dir] {
			found = append(found, fmt.Sprintf("%s: no file has a comment that begins with "+
				"\"Package NAME \"", dir))
		}
	}
	return found
}

func TestRootLinksFewModules(t *testing.T) {
	if !slices.ContainsFunc(load(t), func(f *file) bool { return f.dir() == "." && !f.test }) {
		t.Skip("there is no root package yet")
	}
	// Opened for the test cache, which does not see what the go command reads.
	if _, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	// -e, because a package that does not build is for other tests to report.
	cmd := exec.Command("go", "list", "-e", "-deps",
		"-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".")
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	linked := strings.Fields(string(out))
	slices.Sort(linked)
	linked = slices.Compact(linked)
	if len(linked) > linkedModulesMax {
		t.Errorf("the root package links %d modules, at most %d are allowed:\n\t%s",
			len(linked), linkedModulesMax, strings.Join(linked, "\n\t"))
	}
}

// TestRulesCatch plants one violation after another: a rule that never complains
// would pass unnoticed.
func TestRulesCatch(t *testing.T) {
	long := "package raftkv\n" + strings.Repeat("//\n", rootLinesMax)
	for _, test := range []struct {
		rule, name, source string
		want               int
	}{
		{"ImportsPointDown", "internal/a/a.go", `package a; import _ "example.com/raftkv"`, 1},
		{"ImportsPointDown", "internal/a/a_test.go", `package a; import _ "example.com/raftkv/cmd/kvnode"`, 1},
		{"ImportsPointDown", "internal/a/a.go", `package a; import _ "example.com/raftkv/internal/b"`, 0},
		{"ImportsPointDown", "proto/a.go", `package proto; import _ "example.com/raftkv/internal/b"`, 1},
		{"ImportsPointDown", "proto/a.go", `package proto; import _ "example.com/raftkv/proto/raftkv/v1"`, 0},
		{"ImportsPointDown", "api.go", `package raftkv; import _ "example.com/raftkv/cmd/kvnode"`, 1},
		{"ImportsPointDown", "cmd/kvnode/main.go", `package main; import _ "example.com/raftkv"`, 0},
		{"CobraServesKvnodeOnly", "cmd/other/main.go", `package main; import _ "github.com/spf13/cobra"`, 1},
		{"CobraServesKvnodeOnly", "cmd/kvnode/main.go", `package main; import _ "github.com/spf13/cobra"`, 0},
		{"TestHelpersServeTestsOnly", "a.go", `package raftkv; import _ "testing/synctest"`, 1},
		{"TestHelpersServeTestsOnly", "a.go", `package raftkv; import _ "go.uber.org/goleak"`, 1},
		{"TestHelpersServeTestsOnly", "cmd/kvnode/a.go", `package main; import _ "example.com/raftkv/internal/simnet"`, 1},
		{"TestHelpersServeTestsOnly", "a_test.go", `package raftkv; import _ "testing"`, 0},
		{"TestHelpersServeTestsOnly", "internal/simnet/a.go", `package simnet; import _ "testing"`, 0},
		{"DeterministicPackagesHaveNoClock", "internal/mix/a.go", `package mix; import ("os"; "time"; r "math/rand/v2")`, 3},
		{"DeterministicPackagesHaveNoClock", "internal/mix/a.go", `package mix; func f() { go f() }`, 1},
		{"DeterministicPackagesHaveNoClock", "internal/mix/a_test.go", `package mix; import "time"`, 0},
		{"DeterministicPackagesHaveNoClock", "internal/peer/a.go", `package peer; import "time"`, 0},
		{"SleepOnlyInBubbles", "a_test.go", `package a; import "time"; func f() { time.Sleep(1) }`, 1},
		{"SleepOnlyInBubbles", "a_test.go", `package a; import ("testing/synctest"; "time"); func f() { time.Sleep(1) }`, 0},
		{"SleepOnlyInBubbles", "a_test.go", `package a; import "time"; var d = time.Second`, 0},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import "os"; func f() { os.Exit(1) }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import ("fmt"; "os"); func f() { fmt.Fprintln(os.Stderr) }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import f "fmt"; func g() { f.Printf("") }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import "fmt"; var e = fmt.Sprint()`, 0},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import "log"; func f() { log.Fatal() }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import "os/signal"; func f() { signal.Notify(nil) }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; import "log/slog"; func f(l *slog.Logger) { slog.Info(""); l.Info("") }`, 1},
		{"LibraryLeavesTheHostAlone", "a.go", `package a; func f() { println() }`, 1},
		{"LibraryLeavesTheHostAlone", "cmd/kvnode/a.go", `package main; import "os"; func f() { os.Exit(1) }`, 0},
		{"NoInitFunctions", "a.go", `package a; func init() {}`, 1},
		{"NoInitFunctions", "a.go", `package a; type x int; func (x) init() {}`, 0},
		{"NoInitFunctions", "a.go", "// Code generated by x. DO NOT EDIT.\n\npackage a; func init() {}", 0},
		{"FilesKeepToTheirBudget", "a.go", long, 1},
		{"FilesKeepToTheirBudget", "internal/a/a.go", long, 0},
		{"FilesKeepToTheirBudget", "a_test.go", long, 0},
	} {
		f, err := parse(test.name, []byte(test.source))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rules, func(r rule) bool { return r.name == test.rule })
		if i < 0 {
			t.Fatalf("there is no rule %s", test.rule)
		}
		if got := rules[i].check(f); len(got) != test.want {
			t.Errorf("%s, %s:\n\t%.80q\n\tgot complaints %q, want %d",
				test.rule, test.name, test.source, got, test.want)
		}
	}
}

func TestPackagesWithoutCommentCatches(t *testing.T) {
	var files []*file
	for _, source := range []string{
		"a/a.go|package a",
		"b/b.go|// Package b is documented.\npackage b",
		"b/b2.go|package b",
		"c/c.go|// Something else.\npackage c",
		"d/d_test.go|package d",
		"e/main.go|// Command e is documented.\npackage main",
	} {
		name, text, _ := strings.Cut(source, "|")
		f, err := parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if got := packagesWithoutComment(files); len(got) != 2 {
		t.Errorf("complaints = %q, want one about a and one about c", got)
	}
}
