// Package raftslog lets raft log to a *slog.Logger, and turns raft's wish to
// end the process into a panic that the loop's guard recovers.
package raftslog

import (
	"context"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
)

// A Panic is what raft panics with through its logger: an invariant of raft is
// broken, and this member must not go on. Raft also panics past its logger, with
// values of any kind, so a guard recovers whatever comes.
type Panic struct {
	Text string
}

// Error returns the text.
func (p *Panic) Error() string { return "raftkv: raft: " + p.Text }

// logger is a raft.Logger.
//
// Raft calls Info what happens per message (an ignored vote, an old term), and
// Warning what happens per proposal under load. Elections, membership and
// snapshots are logged by the node itself, in its own words; so all this is for
// debugging raft, and only Error, which raft uses for a broken protocol, is for
// a person.
type logger struct {
	slog *slog.Logger
}

// New returns a logger for raft.Config; nil is silent. The level is asked before
// a line is formatted, because raft logs on its hottest paths.
func New(l *slog.Logger) raft.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &logger{slog: l}
}

// write logs a line that raft calls severity. The message is constant, so that
// handlers can count and filter by it.
func (l *logger) write(level slog.Level, severity string, text func() string) {
	ctx := context.Background()
	if !l.slog.Enabled(ctx, level) {
		return
	}
	l.slog.LogAttrs(ctx, level, "raft", slog.String("severity", severity), slog.String("text", text()))
}

func (l *logger) print(level slog.Level, severity string, v []any) {
	l.write(level, severity, func() string { return fmt.Sprint(v...) })
}

func (l *logger) printf(level slog.Level, severity, format string, v []any) {
	l.write(level, severity, func() string { return fmt.Sprintf(format, v...) })
}

func (l *logger) Debug(v ...any) { l.print(slog.LevelDebug, "debug", v) }

func (l *logger) Debugf(format string, v ...any) { l.printf(slog.LevelDebug, "debug", format, v) }

func (l *logger) Info(v ...any) { l.print(slog.LevelDebug, "info", v) }

func (l *logger) Infof(format string, v ...any) { l.printf(slog.LevelDebug, "info", format, v) }

func (l *logger) Warning(v ...any) { l.print(slog.LevelDebug, "warning", v) }

func (l *logger) Warningf(format string, v ...any) { l.printf(slog.LevelDebug, "warning", format, v) }

func (l *logger) Error(v ...any) { l.print(slog.LevelError, "error", v) }

func (l *logger) Errorf(format string, v ...any) { l.printf(slog.LevelError, "error", format, v) }

// Fatal panics: a library does not exit, and raft relies on not going on.
func (l *logger) Fatal(v ...any) { panic(&Panic{Text: fmt.Sprint(v...)}) }

func (l *logger) Fatalf(format string, v ...any) { panic(&Panic{Text: fmt.Sprintf(format, v...)}) }

// Panic does not log: the guard that recovers reports it once.
func (l *logger) Panic(v ...any) { panic(&Panic{Text: fmt.Sprint(v...)}) }

func (l *logger) Panicf(format string, v ...any) { panic(&Panic{Text: fmt.Sprintf(format, v...)}) }
