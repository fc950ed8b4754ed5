// Package memory tells how much memory this process may use.
package memory

import (
	"os"
	"strconv"
	"strings"
)

// fallback is assumed where nothing can be found out: small enough for any
// machine that runs a server.
const fallback = 2 << 30

// Total returns the bytes of memory that the machine has or, if that is less,
// that the control group may use.
func Total() int64 {
	total := int64(fallback)
	if n, ok := machine(read("/proc/meminfo")); ok {
		total = n
	}
	for _, limit := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if n, ok := number(read(limit)); ok && n < total {
			total = n
		}
	}
	return total
}

// read returns a file's text, or nothing if it cannot be read: another
// operating system, or a sandbox.
func read(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(data)
}

// machine finds the total in the text of /proc/meminfo.
func machine(meminfo string) (int64, bool) {
	for line := range strings.Lines(meminfo) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, ok := number(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return n << 10, ok
		}
	}
	return 0, false
}

// number parses a limit; "max", no limit, is not ok.
func number(text string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n, err == nil && n > 0
}
