package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// sockets makes these the further sockets of the next daemon.
func (b *testbed) sockets(paths ...string) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "sockets"), []byte(strings.Join(paths, "\n")), 0o600); err != nil {
		b.Fatal(err)
	}
}

// served asks at a further socket who serves it.
func (b *testbed) served(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var who string
	if _, err := control.Call(ctx, path, "who", nil, &who, nil); err != nil {
		return err.Error()
	}
	return who
}

func (b *testbed) wantServed(worker int, paths ...string) {
	b.Helper()
	for _, path := range paths {
		if got, want := b.served(path), fmt.Sprint(worker, " ", path); got != want {
			b.Errorf("%s is served by %q, want %q", path, got, want)
		}
	}
}

func (b *testbed) wantNone(paths ...string) {
	b.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			b.Errorf("%s: %v, want none", path, err)
		}
	}
}

// Further sockets are served by whatever worker there is, and clients queue while there is none.
func TestSockets(t *testing.T) {
	b := newTestbed(t)
	one, two, three := filepath.Join(b.run, "one.sock"), filepath.Join(b.dir, "a/b/two.sock"), filepath.Join(b.dir, "three.sock")
	b.sockets(one, two)
	old := unix.Umask(0) // which the daemon inherits
	d := b.start()
	unix.Umask(old)
	pid := d.worker(0)
	b.wantServed(pid, one, two)
	for _, path := range []string{one, two, Socket(b.run), supervisorSocket(b.run), workerSocket(b.run)} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v, want a socket for root alone", path, st.Mode(), err)
		}
	}
	for range 3 { // a worker that does not answer, and its successor
		b.halt(pid)
		who := make(chan string, 2)
		for _, path := range []string{one, two} {
			go func() { who <- b.served(path) }()
		}
		for _, path := range []string{one, two} {
			b.untilQueued(path)
		}
		b.kill9(pid)
		pid = d.worker(pid)
		for range 2 {
			if got := <-who; !strings.HasPrefix(got, fmt.Sprint(pid, " ")) {
				t.Errorf("who waited was served by %q, want %d", got, pid)
			}
		}
	}

	// The supervisor dies; the next takes over what it wants of its worker's sockets.
	d.cmd.Process.Kill()
	d.wait()
	b.wantServed(pid, one, two)
	b.sockets(three, two)
	inode := b.inode(two)
	d = b.start()
	pid = d.worker(0)
	b.wantServed(pid, two, three)
	b.wantNone(one)
	if b.inode(two) != inode {
		t.Errorf("%s is another socket than before", two)
	}

	// Both die, and leave sockets that nobody listens on.
	d.cmd.Process.Kill()
	d.wait()
	b.kill9(pid)
	d = b.start()
	b.wantServed(d.worker(0), two, three)
	d.shut()
	b.wantNone(two, three, Socket(b.run))
}

func (b *testbed) inode(path string) uint64 {
	b.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		b.Fatal(err)
	}
	return st.Ino
}

// halt stops a process, and waits until all of its threads have stopped.
func (b *testbed) halt(pid int) {
	b.Helper()
	kill(pid, unix.SIGSTOP)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		running := 0
		for _, t := range tasks {
			stat, _ := os.ReadFile(t)
			if i := strings.LastIndexByte(string(stat), ')'); i < 0 || !strings.HasPrefix(string(stat[i:]), ") T") {
				running++
			}
		}
		if len(tasks) > 0 && running == 0 {
			return
		}
		if time.Since(start) > 20*time.Second {
			b.Fatalf("process %d does not stop", pid)
		}
	}
}

// untilQueued waits until a client waits at the socket of a worker that is stopped.
func (b *testbed) untilQueued(path string) {
	b.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		out, err := exec.Command("ss", "-Hxl", "src", path).Output()
		if err != nil {
			b.Skipf("ss of iproute2 is needed: %v", err)
		}
		if f := strings.Fields(string(out)); len(f) > 2 && f[2] != "0" { // Recv-Q of a listener: connections not accepted
			return
		}
		if time.Since(start) > 20*time.Second {
			b.Fatalf("nobody queues at %s: %s", path, out)
		}
	}
}

func TestSocketErrors(t *testing.T) {
	b := newTestbed(t)
	busy, file, dir := filepath.Join(b.dir, "busy"), filepath.Join(b.dir, "file"), filepath.Join(b.dir, "dir")
	l, err := net.Listen("unix", busy)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		path []string
		want string
	}{
		"in use":         {[]string{busy}, "another program listens"},
		"a file":         {[]string{file}, "something else"},
		"a directory":    {[]string{dir}, "something else"},
		"below a file":   {[]string{filepath.Join(file, "s")}, "not a directory"},
		"too long":       {[]string{filepath.Join(b.dir, strings.Repeat("x", 120))}, "invalid argument"},
		"too many":       {make([]string, MaxSockets+1), "at most"},
		"one of several": {[]string{filepath.Join(b.dir, "good"), file}, "something else"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Run(t.Context(), Options{Root: b.root, Run: b.run, Sockets: tt.path, Worker: []string{"/bin/false"}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run: %v, want %q", err, tt.want)
			}
		})
	}
	if b, err := os.ReadFile(file); string(b) != "x" || err != nil {
		t.Errorf("the file: %q, %v", b, err)
	}
	c, err := net.Dial("unix", busy)
	if err != nil {
		t.Errorf("the other program's socket: %v", err)
	} else {
		c.Close()
	}
}

// Sockets that the service manager has bound are served and stay, those that nobody wants are closed.
func TestServiceManagerGivesSockets(t *testing.T) {
	b := newTestbed(t)
	m := newManager(t)
	one, stranger := filepath.Join(b.dir, "one.sock"), filepath.Join(b.dir, "stranger.sock")
	b.sockets(one)
	var given []*os.File
	for _, path := range []string{Socket(b.run), stranger, one} {
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := descriptor(l)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l.Close()
		given = append(given, f)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	other, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	given = append(given, other)
	inode := b.inode(one)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func() *daemon {
		return b.startWith(func(c *exec.Cmd) {
			c.Path, c.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, exe}
			m.environment(c)
			// What a socket unit gives has its name, snapd.socket, if that says nothing else.
			c.Env = append(c.Env, "LISTEN_FDS=4", "LISTEN_FDNAMES=snapd.socket:snapd.socket:snapd.socket:udp")
			c.ExtraFiles = given
		})
	}
	d := start()
	pid := d.worker(0)
	b.wantServed(pid, one)
	if err := d.call("pid", &pid); err != nil {
		t.Error(err)
	}
	d.shut()
	m.until("the end", func() bool { return m.count("STOPPING=1") == 1 })
	if b.inode(one) != inode {
		t.Error("the socket is another one")
	}
	// A client that comes while the daemon is down waits for the next.
	who := make(chan string, 1)
	go func() { who <- b.served(one) }()
	d = start()
	pid = d.worker(0)
	if got, want := <-who, fmt.Sprint(pid, " ", one); got != want {
		t.Errorf("who waited was served by %q, want %q", got, want)
	}
	// Also if the supervisor was killed, and its worker has the same sockets to release.
	d.cmd.Process.Kill()
	d.wait()
	d = start()
	b.wantServed(d.worker(0), one)
	d.shut()
	for _, path := range []string{one, Socket(b.run), stranger} {
		b.inode(path) // is there
	}
}
