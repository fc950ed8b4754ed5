package memory

import "testing"

func TestTotalIsPlausible(t *testing.T) {
	if n := Total(); n < 16<<20 {
		t.Errorf("Total() = %d, want at least 16 MiB", n)
	}
}

func TestMachineReadsMeminfo(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"MemTotal:       24540656 kB\nMemFree: 1 kB\n", 24540656 << 10, true},
		{"MemFree: 1 kB\nMemTotal: 2 kB\n", 2048, true},
		{"MemTotal: many kB\n", 0, false},
		{"", 0, false},
	} {
		if got, ok := machine(c.text); got != c.want || ok != c.ok {
			t.Errorf("machine(%q) = %d, %v, want %d, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

func TestNumberRefusesNoLimit(t *testing.T) {
	for _, text := range []string{"max\n", "", "-1", "0"} {
		if n, ok := number(text); ok {
			t.Errorf("number(%q) = %d, want none", text, n)
		}
	}
}
