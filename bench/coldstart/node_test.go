package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testCgroup = "/snapfs-bench-coldstart-test"

// bareNode is a node without a disk of its own.
func bareNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make cgroups")
	}
	g, err := newGroup(testCgroup)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: filepath.Join(t.TempDir(), "node"), cgroup: containersOf(testCgroup), group: g}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestUntilReady(t *testing.T) {
	n := bareNode(t)
	line := ready{Kind: "line", Text: "is up"}
	for _, c := range []struct {
		name, script string
		sign         ready
		want         string // part of the error
	}{
		{"a line of stdout", "echo it is up; exec sleep 1000", line, ""},
		{"a line of stderr", "echo it is up >&2; exec sleep 1000", line, ""},
		{"a line without an end", "printf 'it is up'", line, ""},
		{"much before it", "seq 100000; echo it is up; exec sleep 1000", line, ""},
		{"an end", "exit 0", ready{Kind: "exit"}, ""},
		{"a bad end", "echo oh; exit 3", ready{Kind: "exit"}, "exit status 3: oh"},
		{"an end without the line", "echo oh", line, "ended before it was ready"},
		{"an end without the port", "echo oh; exit 1", ready{Kind: "tcp", Port: 1}, "ended before it was ready"},
	} {
		s, err := n.begin(c.sign, "sh", "-c", c.script)
		if err != nil {
			t.Fatal(err)
		}
		at, err := s.untilReady(t.Context(), c.sign, func() (int, error) { return 0, errNoProcess })
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err == nil && at.Before(s.begin) {
			t.Errorf("%s: ready %v after the start", c.name, at.Sub(s.begin))
		}
		unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL)
		<-s.done
	}
}

func TestUntilReadyGivesUp(t *testing.T) {
	n := bareNode(t)
	s, err := n.begin(ready{}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	tired := errors.New("tired")
	cancel(tired)
	for _, sign := range []ready{{Kind: "line", Text: "x"}, {Kind: "tcp", Port: 1}} {
		if _, err := s.untilReady(ctx, sign, func() (int, error) { return 0, errNoProcess }); !errors.Is(err, tired) {
			t.Errorf("%v: %v, want %v", sign, err, tired)
		}
	}
}

func TestUntilPortIsOpen(t *testing.T) {
	n := bareNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := n.begin(ready{}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	gone := func() (int, error) { return 0, errEnded }
	exited, err := n.begin(ready{}, "true")
	if err != nil {
		t.Fatal(err)
	}
	exited.detached = true
	if _, err := exited.untilReady(t.Context(), ready{Kind: "tcp", Port: 1}, gone); !errors.Is(err, errEnded) {
		t.Errorf("of a container that has ended: %v, want %v", err, errEnded)
	}
	asked := 0
	pid := func() (int, error) {
		if asked++; asked < 3 {
			return 0, errNoProcess
		}
		return s.cmd.Process.Pid, nil
	}
	if _, err := s.untilReady(t.Context(), ready{Kind: "tcp", Port: l.Addr().(*net.TCPAddr).Port}, pid); err != nil || asked != 3 {
		t.Errorf("%v after asking %d times", err, asked)
	}
}

func TestSpawn(t *testing.T) {
	n := bareNode(t)
	sock := filepath.Join(n.dir, "s")
	err := n.spawn(t.Context(), sock, "sh", "-c", "echo no such thing >&2; exit 7")
	if err == nil || !strings.Contains(err.Error(), "no such thing") || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("spawn of a program that fails: %v", err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := n.spawn(t.Context(), sock, "sleep", "1000"); err != nil {
		t.Error(err)
	}
	if out, err := n.output(t.Context(), "echo", "hello"); out != "hello" || err != nil {
		t.Errorf("output = %q, %v", out, err)
	}
	if _, err := n.output(t.Context(), "sh", "-c", "echo oh; exit 1"); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("output of a program that fails: %v", err)
	}
}

// TestGroup: it counts what its processes did, also those that have ended, and
// ends those that have got away from their parent.
func TestGroup(t *testing.T) {
	n := bareNode(t)
	before, err := n.group.cpu()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.output(t.Context(), "sh", "-c", "for i in $(seq 20000); do :; done; (setsid sleep 1000 </dev/null >/dev/null 2>&1 &)"); err != nil {
		t.Fatal(err)
	}
	after, err := n.group.cpu()
	if err != nil || after <= before {
		t.Errorf("processor time %v, then %v, %v", before, after, err)
	}
	pids := members(n.group.dir)
	if len(pids) != 1 {
		t.Fatalf("members %v, want the one that was left behind", pids)
	}
	if list := n.group.processes(); len(list) != 1 || list[0].Name == "" || list[0].Peak < 4096 {
		t.Errorf("processes %+v", list)
	}
	if g, err := newGroup(testCgroup); err == nil {
		t.Error("two sessions at once", g.close())
	}
	if err := killAll(n.group.dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pids[0], 0); err == nil && !zombie(pids[0]) {
		t.Errorf("process %d lives on", pids[0])
	}
}

func zombie(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err != nil || strings.HasPrefix(string(out), "Z")
}

// TestCountTouched reads one page of one file and nothing of another.
func TestCountTouched(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 8*chunkSize)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	var files []*os.File
	for _, name := range []string{"read", "unread"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	later := time.Now().Add(time.Hour)
	none, err := countTouched(dir, later)
	if err != nil {
		t.Fatal(err)
	}
	if none.Chunks > 0 {
		t.Skipf("this file system keeps its pages (%d chunks)", none.Chunks)
	}
	if _, err := files[0].ReadAt(make([]byte, 10), 3*chunkSize+5); err != nil {
		t.Fatal(err)
	}
	got, err := countTouched(dir, later)
	if err != nil || got.Files != 1 || got.Chunks != 1 || got.Plain != chunkSize || got.Pages < 4096 || got.Gzip == 0 || got.Zstd == 0 {
		t.Errorf("countTouched = %+v, %v", got, err)
	}
	if got, err := countTouched(dir, time.Now().Add(-time.Hour)); err != nil || got.Files != 0 {
		t.Errorf("countTouched of files that are newer = %+v, %v", got, err)
	}
}

func TestUndisturbed(t *testing.T) {
	before, err := drops()
	if err != nil {
		t.Skipf("this kernel does not tell: %v", err)
	}
	if before < 0 {
		t.Errorf("drops = %d", before)
	}
	broken := errors.New("broken")
	if err := undisturbed(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("undisturbed = %v, want %v", err, broken)
	}
}
