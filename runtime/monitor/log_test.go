package monitor

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func newLog(t *testing.T) (*logWriter, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), LogFile)
	l, err := openLog(path, LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.now = func() time.Time { return time.Date(2026, 11, 24, 0, 50, 0, 123456789, time.UTC) }
	return l, func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestLogFormat(t *testing.T) {
	l, text := newLog(t)
	for _, w := range []struct{ stream, p string }{
		{"stdout", "one\ntw"}, {"stderr", "E\n"}, {"stdout", "o\n"}, {"stdout", "\"<\x1b\n"}, {"stdout", "bad \xff utf8\n"}, {"stdout", "no newline"},
	} {
		if err := l.Write(w.stream, []byte(w.p)); err != nil {
			t.Fatal(err)
		}
	}
	l.End("stdout")
	l.End("stderr")
	at := `"time":"2026-11-24T00:50:00.123456789Z"}` + "\n"
	want := `{"log":"one\n","stream":"stdout",` + at +
		`{"log":"E\n","stream":"stderr",` + at +
		`{"log":"two\n","stream":"stdout",` + at +
		`{"log":"\"\u003c\u001b\n","stream":"stdout",` + at +
		`{"log":"bad \ufffd utf8\n","stream":"stdout",` + at +
		`{"log":"no newline","stream":"stdout",` + at
	if got := text(); got != want {
		t.Errorf("log is\n%s\nwant\n%s", got, want)
	}
}

func TestLogCutsLongLines(t *testing.T) {
	l, text := newLog(t)
	long := strings.Repeat("x", maxLine-1) + "é" + strings.Repeat("y", maxLine) + "\n"
	for i := 0; i < len(long); i += 5000 {
		l.Write("stdout", []byte(long[i:min(i+5000, len(long))]))
	}
	l.End("stdout")
	var pieces []string
	for line := range strings.Lines(text()) {
		var x struct{ Log string }
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, x.Log)
	}
	if len(pieces) != 3 || len(pieces[0]) != maxLine-1 || strings.Join(pieces, "") != long {
		t.Errorf("%d pieces, the first of %d bytes", len(pieces), len(pieces[0]))
	}
}

// Whatever is written, and in whatever portions, the log is JSON lines that hold it.
func FuzzLog(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\xff\xc3\n\n"), 3)
	f.Add(bytes.Repeat([]byte("é"), maxLine), 7000)
	f.Fuzz(func(t *testing.T, p []byte, portion int) {
		if portion < 1 {
			portion = 1
		}
		l, text := newLog(t)
		for i := 0; i < len(p); i += portion {
			if err := l.Write("stdout", p[i:min(len(p), i+portion)]); err != nil {
				t.Fatal(err)
			}
		}
		l.End("stdout")
		var got strings.Builder
		for line := range strings.Lines(text()) {
			var x struct{ Log string }
			if err := json.Unmarshal([]byte(line), &x); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			got.WriteString(x.Log)
		}
		if utf8.Valid(p) && got.String() != string(p) {
			t.Errorf("log holds %q, want %q", got.String(), p)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	l, err := openLog(os.DevNull, LogOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	p := bytes.Repeat([]byte("a line of about forty characters, or so\n"), 100)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		l.Write("stdout", p)
	}
}
