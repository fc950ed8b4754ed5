package archtest

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// The budgets in lines, comments included. A root file that presses its budget
// moves a mechanism to internal/, never glue.
const (
	linesMax     = 600
	rootLinesMax = 450
)

// deterministic lists the packages that must do the same on every replica and in
// every replay of the simulator.
var deterministic = []string{
	"internal/command", "internal/dedup", "internal/keyspace", "internal/snapshot",
	"internal/roster", "internal/mix", "internal/firewall", "internal/outbox",
	"internal/reads", "internal/frame",
}

// notDeterministic lists what those may not import: clocks, randomness, and the
// surroundings of the process.
var notDeterministic = []string{
	"time", "math/rand", "math/rand/v2", "crypto/rand", "log", "log/slog", "os",
}

// testHelpers lists what is there for tests: import paths, and what is below
// them.
var testHelpers = []string{
	"testing", "net/http/httptest", "google.golang.org/grpc/test",
	"google.golang.org/grpc/interop", "github.com/google/go-cmp",
	"github.com/cockroachdb/datadriven", "github.com/anishathalye/porcupine",
	"go.uber.org/goleak", "pgregory.net/rapid",
	module + "/internal/simnet", module + "/internal/archtest",
	module + "/internal/history",
}

// rule returns what is wrong with a file, one complaint a string.
type rule struct {
	name  string
	check func(f *file) []string
}

// rules are those that look at one file at a time.
var rules = []rule{
	{"ImportsPointDown", importsPointDown},
	{"CobraServesKvnodeOnly", cobraServesKvnodeOnly},
	{"TestHelpersServeTestsOnly", testHelpersServeTestsOnly},
	{"DeterministicPackagesHaveNoClock", deterministicPackagesHaveNoClock},
	{"SleepOnlyInBubbles", sleepOnlyInBubbles},
	{"LibraryLeavesTheHostAlone", libraryLeavesTheHostAlone},
	{"NoInitFunctions", noInitFunctions},
	{"FilesKeepToTheirBudget", filesKeepToTheirBudget},
}

// isBelow reports whether a path is one of the given ones or is below it.
func isBelow(p string, parents ...string) bool {
	return slices.ContainsFunc(parents, func(parent string) bool {
		return p == parent || strings.HasPrefix(p, parent+"/")
	})
}

// complaints returns one for every import that is forbidden.
func complaints(f *file, why string, isForbidden func(importPath string) bool) []string {
	var found []string
	for _, spec := range f.syntax.Imports {
		importPath := strings.Trim(spec.Path.Value, "`\"")
		if isForbidden(importPath) {
			found = append(found, f.at(spec.Pos(), "imports %s: %s", importPath, why))
		}
	}
	return found
}

func importsPointDown(f *file) []string {
	switch {
	case isBelow(f.dir(), "internal"):
		return complaints(f, "internal packages know neither the root package nor cmd",
			func(p string) bool { return p == module || isBelow(p, module+"/cmd") })
	case isBelow(f.dir(), "proto"):
		return complaints(f, "proto is below everything of ours", func(p string) bool {
			return isBelow(p, module) && !isBelow(p, module+"/proto")
		})
	case !isBelow(f.dir(), "cmd"):
		return complaints(f, "the library knows no command",
			func(p string) bool { return isBelow(p, module+"/cmd") })
	}
	return nil
}

func cobraServesKvnodeOnly(f *file) []string {
	if isBelow(f.dir(), "cmd/kvnode") {
		return nil
	}
	return complaints(f, "only cmd/kvnode may", func(p string) bool {
		return isBelow(p, "github.com/spf13")
	})
}

func testHelpersServeTestsOnly(f *file) []string {
	if f.test || isBelow(module+"/"+f.dir(), testHelpers...) {
		return nil
	}
	return complaints(f, "only tests may", func(p string) bool {
		return isBelow(p, testHelpers...)
	})
}

func deterministicPackagesHaveNoClock(f *file) []string {
	if f.test || !isBelow(f.dir(), deterministic...) {
		return nil
	}
	found := complaints(f, "the package must be deterministic", func(p string) bool {
		return slices.Contains(notDeterministic, p)
	})
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if s, ok := n.(*ast.GoStmt); ok {
			found = append(found, f.at(s.Pos(), "starts a goroutine: the package must be deterministic"))
		}
		return true
	})
	return found
}

// sleepOnlyInBubbles takes a file that imports testing/synctest to sleep in
// virtual time. A test that sleeps in real time is slow where it passes and
// fails where the machine is slower.
func sleepOnlyInBubbles(f *file) []string {
	if _, ok := f.imports["testing/synctest"]; ok || !f.test {
		return nil
	}
	var found []string
	f.uses("time", func(name string, pos token.Pos) {
		if name == "Sleep" {
			found = append(found, f.at(pos, "time.Sleep in a test outside testing/synctest"))
		}
	})
	return found
}

// libraryLeavesTheHostAlone holds the library to the promise that it is a guest:
// no exit, no output, no signals, no log of the process.
func libraryLeavesTheHostAlone(f *file) []string {
	if f.test || isBelow(f.dir(), "cmd") {
		return nil
	}
	forbidden := map[string]func(name string) bool{
		"os": func(name string) bool {
			return slices.Contains([]string{"Exit", "Stdin", "Stdout", "Stderr", "Setenv", "Chdir"}, name)
		},
		"fmt":       func(name string) bool { return strings.HasPrefix(name, "Print") || strings.HasPrefix(name, "Scan") },
		"log":       func(string) bool { return true },
		"os/signal": func(string) bool { return true },
		"log/slog": func(name string) bool {
			return slices.Contains([]string{"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log"}, name)
		},
		"google.golang.org/grpc/grpclog": func(name string) bool { return strings.HasPrefix(name, "Set") },
	}
	var found []string
	for importPath, isForbidden := range forbidden {
		f.uses(importPath, func(name string, pos token.Pos) {
			if isForbidden(name) {
				found = append(found, f.at(pos, "%s.%s outside cmd", importPath, name))
			}
		})
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
				found = append(found, f.at(call.Pos(), "%s outside cmd", id.Name))
			}
		}
		return true
	})
	return found
}

func noInitFunctions(f *file) []string {
	if f.test || f.generated {
		return nil
	}
	var found []string
	for _, d := range f.syntax.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, f.at(fn.Pos(), "func init: do it where it is needed, or in the constructor"))
		}
	}
	return found
}

func filesKeepToTheirBudget(f *file) []string {
	if f.test || f.generated {
		return nil
	}
	budget := linesMax
	if f.dir() == "." {
		budget = rootLinesMax
	}
	if f.lines > budget {
		return []string{f.at(f.syntax.Package, "the file has %d lines, at most %d are allowed", f.lines, budget)}
	}
	return nil
}
