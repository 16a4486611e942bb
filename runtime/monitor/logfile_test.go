package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lines are n lines of the given length each, the first of which is called from.
func lines(from, n, length int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%0*d\n", length-1, from+i)
	}
	return []byte(b.String())
}

// onDisk returns what the files of a log hold, oldest first.
func onDisk(t *testing.T, path string) (all []string) {
	t.Helper()
	for n := 0; ; n++ {
		b, err := os.ReadFile(RotatedLog(path, n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	slices.Reverse(all)
	return all
}

func TestLogRotation(t *testing.T) {
	for name, test := range map[string]struct {
		max    int64
		files  int
		writes [][]byte
		want   []string // files, oldest first
	}{
		"no limit":             {0, 1, [][]byte{lines(1, 1000, 100)}, []string{string(lines(1, 1000, 100))}},
		"full to the byte":     {100, 3, [][]byte{lines(1, 10, 10)}, []string{string(lines(1, 10, 10))}},
		"one line more":        {100, 3, [][]byte{lines(1, 11, 10)}, []string{string(lines(1, 10, 10)), string(lines(11, 1, 10))}},
		"not to the byte":      {99, 3, [][]byte{lines(1, 11, 10)}, []string{string(lines(1, 9, 10)), string(lines(10, 2, 10))}},
		"in several writes":    {100, 3, [][]byte{lines(1, 6, 10), lines(7, 6, 10)}, []string{string(lines(1, 10, 10)), string(lines(11, 2, 10))}},
		"the oldest goes":      {100, 3, [][]byte{lines(1, 45, 10)}, []string{string(lines(21, 10, 10)), string(lines(31, 10, 10)), string(lines(41, 5, 10))}},
		"two files":            {100, 2, [][]byte{lines(1, 45, 10)}, []string{string(lines(31, 10, 10)), string(lines(41, 5, 10))}},
		"one file":             {100, 1, [][]byte{lines(1, 45, 10)}, []string{string(lines(41, 5, 10))}},
		"a line that is wider": {100, 3, [][]byte{lines(1, 1, 10), lines(2, 2, 500), lines(4, 1, 10)}, []string{string(lines(2, 1, 500)), string(lines(3, 1, 500)), string(lines(4, 1, 10))}},
		"nothing":              {100, 3, [][]byte{nil, {}}, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), LogFile)
			for _, w := range test.writes {
				l, err := openLogFile(path, test.max, test.files) // another monitor goes on where one has left off
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(l.Write(w), l.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if got := onDisk(t, path); !slices.Equal(got, test.want) {
				t.Errorf("files hold %.200q, want %.200q", got, test.want)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// What somebody has open is complete, and what is at the path is never missing.
func TestLogRotationForReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), LogFile)
	l, err := openLogFile(path, 100, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Write(lines(1, 5, 10)); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := l.Write(lines(6, 10, 10)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1000)
	if n, _ := old.Read(b); string(b[:n]) != string(lines(1, 10, 10)) {
		t.Errorf("the old file holds %q", b[:n])
	}
	if got := onDisk(t, path); len(got) != 1 || got[0] != string(lines(11, 5, 10)) {
		t.Errorf("files hold %q", got)
	}
}

// A line without an end, of a machine that went down, is not melted with the next.
func TestTornLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), LogFile)
	if err := os.WriteFile(path, []byte("whole\ntor"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := openLogFile(path, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Write(nil), l.Write([]byte("next\n")), l.Write([]byte("more\n")), l.Close()); err != nil {
		t.Fatal(err)
	}
	if got := onDisk(t, path)[0]; got != "whole\ntor\nnext\nmore\n" {
		t.Errorf("log is %q", got)
	}
}

// A log that cannot be rotated grows, and says so.
func TestLogRotationFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, LogFile)
	if err := os.MkdirAll(filepath.Join(RotatedLog(path, 1), "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := openLogFile(path, 100, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Write(lines(1, 12, 10)); err == nil {
		t.Error("no error")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(lines(1, 12, 10)) {
		t.Errorf("log is %q, %v", b, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLogOptions(t *testing.T) {
	for name, test := range map[string]struct {
		o     LogOptions
		files int
	}{
		"none":    {LogOptions{None: true}, 0},
		"limited": {LogOptions{MaxSize: 1000, MaxFiles: 3}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, sh("i=0; while [ $i -lt 100 ]; do echo 0123456789; i=$((i+1)); done"), func(c *Config) { c.LogOptions = test.o })
			s := newStreams(t, false)
			if exit, err := h.attach(AttachArgs{Start: true}, s).Wait(t.Context(), nil); err != nil || exit.Code != 0 {
				t.Fatalf("Wait = %+v, %v", exit, err)
			}
			h.end()
			if got := readAll(t, s.out); len(got) != 1100 {
				t.Errorf("client got %d bytes", len(got))
			}
			got := onDisk(t, filepath.Join(h.dir, LogFile))
			for _, text := range got {
				if len(text) > 1000 {
					t.Errorf("a file of %d bytes", len(text))
				}
			}
			if len(got) != test.files {
				t.Errorf("%d files, want %d", len(got), test.files)
			}
		})
	}
}
