package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A manager is what systemd is to a service: it listens to what that says, and
// keeps descriptors for it.
type manager struct {
	*testing.T
	conn *net.UnixConn
	path string

	mu     sync.Mutex
	heard  []string
	store  map[string][]*os.File
	change chan struct{} // closed, and made anew, with every message
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{T: t, path: filepath.Join(t.TempDir(), "notify"), store: map[string][]*os.File{}, change: make(chan struct{})}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var listening sync.WaitGroup
	listening.Go(m.listen)
	t.Cleanup(func() {
		m.conn.Close()
		listening.Wait()
		for _, list := range m.store {
			closeAll(list...)
		}
	})
	return m
}

func (m *manager) listen() {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, o, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		var files []*os.File
		if messages, err := unix.ParseSocketControlMessage(oob[:o]); err == nil && len(messages) == 1 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
		m.mu.Lock()
		m.hear(string(buf[:n]), files)
		close(m.change)
		m.change = make(chan struct{})
		m.mu.Unlock()
	}
}

func (m *manager) hear(state string, files []*os.File) {
	lines := strings.Split(state, "\n")
	m.heard = append(m.heard, lines...)
	name := ""
	for _, l := range lines {
		if n, ok := strings.CutPrefix(l, "FDNAME="); ok {
			name = n
		}
	}
	switch {
	case slices.Contains(lines, "FDSTOREREMOVE=1"):
		closeAll(m.store[name]...)
		delete(m.store, name)
	case slices.Contains(lines, "FDSTORE=1"):
		for _, f := range files {
			if slices.ContainsFunc(m.store[name], func(g *os.File) bool { return sameFile(f, g) }) {
				f.Close() // as fd_store_add of systemd does
				continue
			}
			m.store[name] = append(m.store[name], f)
		}
	default:
		closeAll(files...)
	}
}

// sameFile says whether two descriptors are duplicates (kcmp(2), KCMP_FILE).
func sameFile(f, g *os.File) bool {
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, f.Fd(), g.Fd(), 0)
	return errno == 0 && r == 0
}

// until waits until what was heard and stored is as ok says.
func (m *manager) until(what string, ok func() bool) {
	m.Helper()
	limit := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		fine, change := ok(), m.change
		m.mu.Unlock()
		if fine {
			return
		}
		select {
		case <-change:
		case <-limit:
			m.Fatalf("%s: heard %q, stored %v", what, m.heard, m.store)
		}
	}
}

func (m *manager) count(line string) (n int) {
	for _, h := range m.heard {
		if strings.HasPrefix(h, line) {
			n++
		}
	}
	return n
}

func (m *manager) stored() string {
	return fmt.Sprintf("%d %s, %d %s, %d in all", len(m.store[storedFuse]), storedFuse, len(m.store[storedInit]), storedInit, len(m.store))
}

// oneEach is what is stored of one mount.
var oneEach = fmt.Sprintf("1 %s, 1 %s, 2 in all", storedFuse, storedInit)

func (m *manager) environment(c *exec.Cmd) {
	c.Env = append(c.Env, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=200000")
}

// All processes die, as when systemd ends those of a unit; the next supervisor
// gets the mount from systemd, and no read fails.
func TestServiceManagerKeepsTheMount(t *testing.T) {
	b := newTestbed(t)
	m := newManager(t)
	d := b.startWith(m.environment)
	m.until("ready", func() bool { return m.count("READY=1") == 1 && m.count("STATUS=worker ") == 1 && m.stored() == oneEach })
	m.until("watchdog", func() bool { return m.count("WATCHDOG=1") >= 3 })
	dir, sums := b.rootfs(200)
	stop := b.load(dir, sums)
	defer stop()
	for range 2 {
		s, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{s.Supervisor, s.Keeper, s.Worker} {
			b.kill9(pid)
			d.wait0(pid)
		}
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		d = b.startWith(func(c *exec.Cmd) {
			c.Path, c.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, exe}
			m.environment(c)
			c.Env = append(c.Env, "LISTEN_FDS=3", "LISTEN_FDNAMES=stranger:"+storedFuse+":"+storedInit)
			m.mu.Lock()
			defer m.mu.Unlock()
			c.ExtraFiles = []*os.File{null, m.store[storedFuse][0], m.store[storedInit][0]}
		})
	}
	m.until("ready again", func() bool { return m.count("READY=1") == 3 })
	m.mu.Lock()
	if got := m.stored(); got != oneEach {
		t.Errorf("stored: %s, want %s", got, oneEach)
	}
	m.mu.Unlock()
	if n := stop(); n == 0 {
		t.Error("nothing was read")
	}
	b.settled(d, dir)
	m.until("the end", func() bool { return m.count("STOPPING=1") == 1 && len(m.store) == 0 })
}

// A worker that dies is told of, and the mount stays where it is.
func TestServiceManagerHearsOfWorkers(t *testing.T) {
	b := newTestbed(t)
	m := newManager(t)
	d := b.startWith(m.environment)
	pid := d.worker(0)
	b.kill9(pid)
	next := d.worker(pid)
	m.until("status", func() bool {
		return m.count("STATUS=the worker ended (killed); starting another") == 1 && m.count(fmt.Sprintf("STATUS=worker %d serves ", next)) == 1
	})
	m.mu.Lock()
	if m.count("READY=1") != 1 || m.stored() != oneEach {
		t.Errorf("heard %q, stored %s", m.heard, m.stored())
	}
	m.mu.Unlock()
	d.shut()
	m.until("the end", func() bool { return len(m.store) == 0 })
}

// A reload replaces the worker, and the manager hears when that is done.
func TestServiceManagerReloads(t *testing.T) {
	b := newTestbed(t)
	m := newManager(t)
	d := b.startWith(m.environment)
	dir, sums := b.rootfs(200)
	stop := b.load(dir, sums)
	defer stop()
	pid := d.worker(0)
	for n := range 3 {
		kill(d.cmd.Process.Pid, unix.SIGHUP)
		next := d.worker(pid)
		m.until("reload", func() bool {
			return m.count("RELOADING=1") == n+1 && m.count("READY=1") == n+2 && m.count(fmt.Sprintf("STATUS=worker %d serves ", next)) == 1
		})
		pid = next
	}
	s, err := d.status()
	if err != nil || s.Restarts != 0 {
		t.Errorf("status %+v, %v: a worker that was told to end did not die", s, err)
	}
	m.mu.Lock()
	clock := slices.IndexFunc(m.heard, func(l string) bool { return strings.HasPrefix(l, "MONOTONIC_USEC=") && l != "MONOTONIC_USEC=0" })
	if got := m.stored(); got != oneEach || clock < 0 {
		t.Errorf("stored: %s, heard %q", got, m.heard)
	}
	m.mu.Unlock()
	if stop() == 0 {
		t.Error("nothing was read")
	}
	b.settled(d, dir)
}

// A mount that is lost does not stay in the store beside the next.
func TestServiceManagerForgetsALostMount(t *testing.T) {
	b := newTestbed(t)
	m := newManager(t)
	d := b.startWith(m.environment)
	m.until("ready", func() bool { return m.count("READY=1") == 1 && m.stored() == oneEach })
	m.mu.Lock()
	old := m.store[storedFuse][0]
	m.mu.Unlock()
	unix.Unmount(lazyDir(b.run), unix.MNT_FORCE|unix.MNT_DETACH) // which ends the worker
	m.until("another mount", func() bool { return m.stored() == oneEach && m.store[storedFuse][0] != old })
	d.worker(0)
	d.shut()
	m.until("the end", func() bool { return len(m.store) == 0 })
}

func TestService(t *testing.T) {
	for name, test := range map[string]struct {
		env      map[string]string
		watchdog time.Duration
	}{
		"nobody's":                    {map[string]string{}, 0},
		"watchdog":                    {map[string]string{"WATCHDOG_USEC": "3000000"}, 3 * time.Second},
		"watchdog of ours":            {map[string]string{"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "42"}, 3 * time.Second},
		"watchdog of another":         {map[string]string{"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "43"}, 0},
		"watchdog of for ever":        {map[string]string{"WATCHDOG_USEC": "9223372036854775807"}, time.Hour},
		"watchdog that is no number":  {map[string]string{"WATCHDOG_USEC": "-1"}, 0},
		"descriptors of another":      {map[string]string{"LISTEN_FDS": "2", "LISTEN_PID": "43", "LISTEN_FDNAMES": storedFuse + ":" + storedInit}, 0},
		"descriptors without a pid":   {map[string]string{"LISTEN_FDS": "2", "LISTEN_FDNAMES": storedFuse}, 0},
		"no descriptors":              {map[string]string{"LISTEN_FDS": "0", "LISTEN_PID": "42"}, 0},
		"less than no descriptors":    {map[string]string{"LISTEN_FDS": "-2", "LISTEN_PID": "42"}, 0},
		"more descriptors than there": {map[string]string{"LISTEN_FDS": "100000", "LISTEN_PID": "42"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(func(n string) string { return test.env[n] }, 42)
			defer s.close()
			if s.watchdog != test.watchdog || len(s.given) != 0 {
				t.Errorf("service = %+v", s)
			}
			if s.alarm() != nil {
				t.Error("it alarms nobody")
			}
			if err := errors.Join(s.notify("x"), s.keep(nil, nil, true), s.forget()); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is stored is taken only as a whole.
func TestServiceTakesBoth(t *testing.T) {
	open := func(name string, b []byte) *os.File {
		f, err := memory(name, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("it can be changed")
		}
		return f
	}
	for name, test := range map[string]struct {
		names []string
		init  []byte
		want  bool
	}{
		"both":       {[]string{storedFuse, storedInit}, []byte("INIT"), true},
		"no INIT":    {[]string{storedFuse}, nil, false},
		"empty INIT": {[]string{storedFuse, storedInit}, nil, false},
		"no mount":   {[]string{storedInit}, []byte("INIT"), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := service{given: map[string]*os.File{}}
			defer s.close()
			for _, n := range test.names {
				s.given[n] = open(n, test.init)
			}
			f, init := s.take()
			if (f != nil) != test.want || test.want && string(init) != "INIT" {
				t.Errorf("take = %v, %q", f, init)
			}
			closeAll(f)
			s.discard()
		})
	}
}
