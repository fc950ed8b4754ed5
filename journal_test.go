package raftkv

import (
	"context"
	"log/slog"
	"sync"
)

// A journal is a slog.Handler that counts messages.
type journal struct {
	mu    sync.Mutex
	count map[string]int
}

// record has a node write to the journal too.
func (j *journal) record(cfg *Config) { cfg.Logger = slog.New(j) }

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.count == nil {
		j.count = make(map[string]int)
	}
	j.count[r.Message]++
	return nil
}

func (j *journal) of(message string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count[message]
}
