// Command generate checks the .proto files and writes their Go code; go generate
// runs it in the directory that holds buf.yaml.
//
// It needs nothing but Go. buf itself is taken from PATH when the version there
// is the one that buf/go.mod names, and is otherwise built from source as a Go
// tool. That build takes about 100 s on two cores, once (the go command keeps
// the result), and nothing at all where a buf is installed:
//
//	npm install -g @bufbuild/buf@VERSION    # or brew, or a release binary
//
// The generated code is the same either way: its header names protoc-gen-go and
// protoc-gen-go-grpc, which always come from ../go.mod, and not buf.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// bufModfile is relative to the directory of buf.yaml.
const bufModfile = "internal/tools/buf/go.mod"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: generate DIR, where DIR holds buf.yaml")
	}
	if err := os.Chdir(os.Args[1]); err != nil {
		return err
	}
	buf, err := bufCommand()
	if err != nil {
		return err
	}
	for _, verb := range []string{"lint", "generate"} {
		args := append(buf[1:len(buf):len(buf)], verb)
		cmd := exec.Command(buf[0], args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("buf %s: %w", verb, err)
		}
	}
	return nil
}

// bufCommand returns the words that run the pinned version of buf. Another
// version on PATH is passed over, since its lint rules may differ.
func bufCommand() ([]string, error) {
	modfile, err := os.ReadFile(bufModfile)
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`github\.com/bufbuild/buf v(\S+)`).FindSubmatch(modfile)
	if m == nil {
		return nil, fmt.Errorf("%s requires no version of buf", bufModfile)
	}
	want := string(m[1])
	if path, err := exec.LookPath("buf"); err == nil {
		got, err := exec.Command(path, "--version").Output()
		if err == nil && strings.TrimSpace(string(got)) == want {
			return []string{path}, nil
		}
	}
	fmt.Fprintf(os.Stderr, "generate: no buf %s on PATH: building it, "+
		"which takes a minute or two the first time\n", want)
	return []string{"go", "tool", "-modfile=" + bufModfile, "buf"}, nil
}
