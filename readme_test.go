package raftkv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestReadmeProgramRuns copies the README's program into a module of its own,
// as a reader would, and runs it.
func TestReadmeProgramRuns(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(.*?)```").FindSubmatch(readme)
	if program == nil {
		t.Fatal("the README has no program")
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"main.go": program[1], "go.sum": sum,
		"go.mod": []byte("module example.com/embed\n\ngo 1.26\n\nrequire example.com/raftkv v0.0.0\n\nreplace example.com/raftkv => " + root + "\n"),
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", "-mod=mod", ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "hello, revision 1\n" {
		t.Errorf("go run = %v:\n%s", err, out)
	}
}
