package raftslog

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// record returns a logger and what it wrote.
func record(level slog.Level) (raft.Logger, *bytes.Buffer) {
	buf := new(bytes.Buffer)
	return New(slog.New(slog.NewTextHandler(buf, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))), buf
}

func TestOnlyErrorsAreForPersons(t *testing.T) {
	l, buf := record(slog.LevelDebug)
	for _, c := range []struct {
		log  func()
		want string
	}{
		{func() { l.Debug("a", 1) }, `level=DEBUG msg=raft severity=debug text=a1`},
		{func() { l.Debugf("a=%d", 1) }, `level=DEBUG msg=raft severity=debug text="a=1"`},
		{func() { l.Info("a", 1) }, `level=DEBUG msg=raft severity=info text=a1`},
		{func() { l.Infof("%x", 255) }, `level=DEBUG msg=raft severity=info text=ff`},
		{func() { l.Warning("a") }, `level=DEBUG msg=raft severity=warning text=a`},
		{func() { l.Warningf("%d", 1) }, `level=DEBUG msg=raft severity=warning text=1`},
		{func() { l.Error("a") }, `level=ERROR msg=raft severity=error text=a`},
		{func() { l.Errorf("%d", 1) }, `level=ERROR msg=raft severity=error text=1`},
	} {
		buf.Reset()
		c.log()
		if got := buf.String(); got != c.want+"\n" {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// counter counts how often it is formatted.
type counter struct{ n *int }

func (c counter) String() string { *c.n++; return "x" }

func TestSilentLinesAreNotFormatted(t *testing.T) {
	info, buf := record(slog.LevelInfo)
	n := 0
	for _, l := range []raft.Logger{info, New(nil)} {
		l.Debug(counter{&n})
		l.Debugf("%v", counter{&n})
		l.Info(counter{&n})
		l.Infof("%v", counter{&n})
		l.Warning(counter{&n})
		l.Warningf("%v", counter{&n})
	}
	if n != 0 || buf.Len() != 0 {
		t.Errorf("formatted %d times, wrote %q, want neither", n, buf)
	}
}

func TestRaftCannotEndTheProcess(t *testing.T) {
	l, buf := record(slog.LevelDebug)
	for name, f := range map[string]func(){
		"Fatal":  func() { l.Fatal("at ", 1) },
		"Fatalf": func() { l.Fatalf("at %d", 1) },
		"Panic":  func() { l.Panic("at ", 1) },
		"Panicf": func() { l.Panicf("at %d", 1) },
	} {
		if got := recovered(f); got == nil || got.Error() != "raftkv: raft: at 1" {
			t.Errorf("%s: got %v, want a panic with the text", name, got)
		}
	}
	if buf.Len() != 0 {
		t.Errorf("logged %q, want nothing: the guard does", buf)
	}
}

func recovered(f func()) (p *Panic) {
	defer func() {
		err, _ := recover().(error)
		if !errors.As(err, &p) {
			p = nil
		}
	}()
	f()
	return nil
}

// Raft itself reaches a guard through this logger.
func TestRaftPanicIsRecoverable(t *testing.T) {
	l, _ := record(slog.LevelError)
	ms := raft.NewMemoryStorage()
	rn, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: ms, MaxInflightMsgs: 1, Logger: l,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := recovered(func() {
		err := rn.Step(&pb.Message{
			Type: pb.MsgHeartbeat.Enum(), From: proto.Uint64(2), To: proto.Uint64(1),
			Term: proto.Uint64(1), Commit: proto.Uint64(9),
		})
		t.Errorf("Step returned %v, want a panic", err)
	})
	if want := "tocommit(9) is out of range"; got == nil || !bytes.Contains([]byte(got.Text), []byte(want)) {
		t.Errorf("got %v, want %q", got, want)
	}
}

func BenchmarkSilentLine(b *testing.B) {
	l := New(nil)
	b.ReportAllocs()
	for b.Loop() {
		l.Infof("%x received a message from %x at term %d", 1, 2, 3)
	}
}
