package planted

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	count = flag.Int("planted.count", 0, "how many bugs to plant, one after another")
	turn  = flag.Int("planted.turn", 0, "with which to begin, so that runs take turns")
	only  = flag.String("planted.run", "", "plant those whose name matches")
)

const (
	// violation is in what the simulator prints of one.
	violation = "replay: go test"
	// root is the root package as seen from here.
	root = "../.."
	// caughtWithin is how long a test may take, once built, to catch a bug.
	caughtWithin = time.Minute
	// cleanFor is for how long the same test is held to find nothing where there
	// is nothing; the simulator does that for hours elsewhere.
	cleanFor  = 20 * time.Second
	simulator = "^TestSimulator$"
)

// TestBugsCanBePlanted: what the edits replace is still there, once.
func TestBugsCanBePlanted(t *testing.T) {
	for _, b := range bugs {
		if _, err := b.overlay(t.TempDir()); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
	if len(bugs) < 15 {
		t.Errorf("%d bugs, want at least 15", len(bugs))
	}
}

// TestPlantedBugsAreCaught plants bugs and prints what caught each, and when. The
// first is none, and must not be caught.
func TestPlantedBugsAreCaught(t *testing.T) {
	chosen := choose()
	if len(chosen) == 0 {
		t.Skip("plants nothing without -planted.count or -planted.run")
	}
	if took, report := (bug{}).hunt(t, cleanFor); report != "" {
		t.Fatalf("without a bug the tests fail after %v:\n%s", took, report)
	}
	for _, b := range chosen {
		took, report := b.hunt(t, caughtWithin)
		if report == "" {
			t.Errorf("NOT CAUGHT within %v: %s", caughtWithin, b.name)
			continue
		}
		t.Logf("caught in %6.2f s: %s: %s", took.Seconds(), b.name, firstLine(report))
	}
}

// choose returns the bugs that the flags ask for.
func choose() []bug {
	if *only != "" {
		var chosen []bug
		for _, b := range bugs {
			if regexp.MustCompile(*only).MatchString(b.name) {
				chosen = append(chosen, b)
			}
		}
		return chosen
	}
	var chosen []bug
	for i := range min(*count, len(bugs)) {
		chosen = append(chosen, bugs[(*turn*(*count)+i)%len(bugs)])
	}
	return chosen
}

// hunt builds the root package's tests with a bug and runs the one that has to
// catch it. It returns what that printed if it failed, and how long it took.
func (b bug) hunt(t *testing.T, limit time.Duration) (took time.Duration, report string) {
	t.Helper()
	dir := t.TempDir()
	overlay, err := b.overlay(dir)
	if err != nil {
		t.Fatalf("%s: %v", b.name, err)
	}
	bin := filepath.Join(dir, "tests")
	build := exec.Command("go", "test", "-c", "-overlay", overlay, "-o", bin, ".")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s does not compile: %v\n%s", b.name, err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	run := exec.CommandContext(ctx, bin, "-test.run", simulator, "-test.timeout", "0", "-sim.hours", "1000")
	run.Dir = root
	begin := time.Now()
	out, err := run.CombinedOutput()
	took = time.Since(begin)
	switch {
	case ctx.Err() != nil || err == nil:
		return took, ""
	case !strings.Contains(string(out), violation):
		t.Fatalf("%s: the simulator fails without a violation: %s", b.name, out)
	}
	return took, string(out)
}

// overlay writes the edited files to dir, and the list of them that the compiler
// reads.
func (b bug) overlay(dir string) (path string, err error) {
	base, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for i, e := range b.edits {
		original := filepath.Join(base, e.file)
		from := original
		if edited, ok := replace[original]; ok {
			from = edited
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return "", fmt.Errorf("edit %d of %s: the text to replace occurs %d times", i, e.file, n)
		}
		edited := filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(edited, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return "", err
		}
		replace[original] = edited
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// firstLine returns the line of a report that says what was violated.
func firstLine(report string) string {
	for line := range strings.Lines(report) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "_test.go:") || strings.HasPrefix(line, "panic") || strings.HasPrefix(line, "VIOLATION") {
			return line
		}
	}
	return strings.TrimSpace(report[:min(len(report), 200)])
}
