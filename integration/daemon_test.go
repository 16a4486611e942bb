package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// patience is how long a request may take: the time after which the issue
// calls it a hang. A machine without hardware of its own gets more.
var patience = func() time.Duration {
	if onlyPrograms != "" {
		return 4 * time.Minute
	}
	return 30 * time.Second
}()

// A machine is a place for daemons: a root and a run directory of their own.
type machine struct {
	testing.TB
	*place
}

type place struct {
	snapd, dir, root, run string
	config                string // lines added to the configuration
	disk                  bool   // root is a disk of its own

	d       *daemon // the newest
	daemons []*daemon
	mu      sync.Mutex
	targets []string // of mounts, as they were made
}

// on is the same machine as a subtest sees it.
func (m *machine) on(t testing.TB) *machine { return &machine{t, m.place} }

// A daemon is a supervisor that was started, and what comes of it.
type daemon struct {
	cmd  *exec.Cmd
	log  lockedBuffer
	wait func() error
}

// newMachine makes a machine without a daemon. What is left of it at the end
// of the test is removed, and an error if it should not be there. config holds
// lines of TOML.
func newMachine(t *testing.T, config string) *machine {
	t.Helper()
	snapd := needs(t)
	// A name short enough for the sockets in it, on a disk where there is one.
	dir, err := os.MkdirTemp("/var/tmp", "si")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t, &place{snapd: snapd, dir: dir, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "r"), config: config}}
	t.Cleanup(m.cleanUp)
	return m
}

// startMachine makes a machine with a daemon that is ready.
func startMachine(t *testing.T, config string) *machine {
	t.Helper()
	m := newMachine(t, config)
	m.start()
	return m
}

// cgroup is where containers' cgroups are.
func (m *machine) cgroup() string { return "/" + filepath.Base(m.dir) }

// launch starts a daemon and does not wait for it. args are added to its command line.
func (m *machine) launch(args ...string) *daemon {
	m.Helper()
	file := filepath.Join(m.dir, "snapd.toml")
	config := fmt.Sprintf("cgroup_parent = %q\n%s", m.cgroup(), m.config)
	if !strings.Contains(config, "[network]") { // bridges of several machines would be in each other's way
		config += "\n[network]\ndefault = 'none'"
	}
	if !strings.Contains(m.config, "backend =") {
		config = fmt.Sprintf("backend = '%s'\n%s", backend, config)
	}
	if err := os.WriteFile(file, []byte(config+"\n"), 0o600); err != nil {
		m.Fatal(err)
	}
	d := &daemon{cmd: exec.Command(m.snapd, append([]string{"--config", file, "--root", m.root, "--run", m.run}, args...)...)}
	d.cmd.Dir = m.dir
	d.cmd.Stderr = &d.log
	d.cmd.WaitDelay = time.Second // its worker and keeper have the pipe, too
	if err := d.cmd.Start(); err != nil {
		m.Fatal(err)
	}
	d.wait = sync.OnceValue(d.cmd.Wait)
	m.daemons = append(m.daemons, d)
	return d
}

func (m *machine) start() {
	m.Helper()
	m.d = m.launch()
	m.waitReady(m.d.cmd.Process.Pid)
}

// waitReady waits until a worker of the supervisor pid serves.
func (m *machine) waitReady(pid int) {
	m.Helper()
	deadline := time.Now().Add(patience)
	for {
		if s, err := m.status(); err == nil && s.Ready && s.Supervisor == pid {
			return
		}
		if time.Now().After(deadline) {
			m.Fatalf("the daemon is not ready; it said:\n%s", m.d.log.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *machine) status() (s control.Supervisor, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = control.Call(ctx, filepath.Join(m.run, "supervisor.sock"), control.OpSupervisor, nil, &s, nil)
	return s, err
}

// stop ends the daemon as an administrator does, and waits for it.
func (m *machine) stop() {
	m.Helper()
	m.d.cmd.Process.Signal(unix.SIGTERM)
	if !m.ends(m.d, patience) {
		m.Fatalf("the daemon does not stop; it said:\n%s", m.d.log.String())
	}
}

// kill ends supervisor and worker, but not the keeper, without a warning.
func (m *machine) kill() {
	m.Helper()
	s, err := m.status()
	if err != nil {
		m.Fatal(err)
	}
	m.d.cmd.Process.Kill()
	kill9(m, s.Worker)
	m.d.wait()
}

// ends says whether the supervisor has ended in time.
func (m *machine) ends(d *daemon, limit time.Duration) bool {
	done := make(chan struct{})
	go func() { d.wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// kill9 kills a process that is no child of ours and waits for its end.
func kill9(t testing.TB, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process: %d", pid)
	}
	unix.Kill(pid, unix.SIGKILL)
	for deadline := time.Now().Add(patience); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// alive says whether pid is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest != "" && rest[0] != 'Z'
}

// call makes a request of the daemon.
func (m *machine) call(op string, args, result any) error {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := m.callCtx(ctx, op, args, result)
	if ctx.Err() != nil {
		m.Fatalf("%s %v hangs: %v; the daemon said:\n%s", op, args, err, m.d.log.String())
	}
	return err
}

func (m *machine) callCtx(ctx context.Context, op string, args, result any) error {
	_, err := control.Call(ctx, filepath.Join(m.run, "snapd.sock"), op, args, result, nil)
	return err
}

// must is call for requests that succeed.
func (m *machine) must(op string, args, result any) {
	m.Helper()
	if err := m.call(op, args, result); err != nil {
		m.Fatalf("%s %+v: %v; the daemon said:\n%s", op, args, err, m.d.log.String())
	}
}

func (m *machine) pull(ref string, wait bool) (im control.Image) {
	m.Helper()
	m.must(control.OpPull, control.PullArgs{Ref: ref, Wait: wait}, &im)
	return im
}

func (m *machine) images() (all []control.Image) {
	m.Helper()
	m.must(control.OpImages, nil, &all)
	return all
}

// mount mounts an image as snapctl does, writable or not, and returns where.
func (m *machine) mount(ref string, writable bool) string {
	m.Helper()
	m.mu.Lock()
	n := strconv.Itoa(len(m.targets))
	a := control.MountArgs{Ref: ref, Target: filepath.Join(m.dir, "mnt"+n)}
	m.targets = append(m.targets, a.Target)
	m.mu.Unlock()
	dirs := []string{a.Target}
	if writable {
		a.Upper, a.Work = filepath.Join(m.dir, "upper"+n), filepath.Join(m.dir, "work"+n)
		dirs = append(dirs, a.Upper, a.Work)
	}
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			m.Fatal(err)
		}
	}
	var mnt control.Mount
	m.must(control.OpMount, a, &mnt)
	m.must(control.OpMounted, mnt, nil)
	r := mnt.Rootfs
	f, err := mounts.Overlay(mounts.Rootfs{Lower: r.Lower, Data: r.Data, Upper: r.Upper, Work: r.Work, ReadOnly: r.ReadOnly})
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	if err := mounts.Attach(f, a.Target); err != nil {
		m.Fatal(err)
	}
	return a.Target
}

func (m *machine) unmount(target string) {
	m.Helper()
	if err := unmount(target); err != nil {
		m.Fatal(err)
	}
	m.must(control.OpUmount, control.Mount{Target: target}, nil)
}

// unmount unmounts what no test uses any more. It may be busy for a moment all
// the same: a child that another test has just forked has our descriptors until
// it executes its program.
func unmount(target string) error {
	deadline := time.Now().Add(patience)
	for {
		err := mounts.Unmount(target, false)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// cleanUp stops the daemon and looks for what it should not have left behind.
func (m *machine) cleanUp() {
	for _, target := range m.targets {
		if on, _ := mounts.IsMounted(target); on {
			if err := errors.Join(unmount(target), m.call(control.OpUmount, control.Mount{Target: target}, nil)); err != nil {
				m.Errorf("%s: %v", target, err)
			}
		}
	}
	if m.d != nil {
		m.d.cmd.Process.Signal(unix.SIGTERM)
		if !m.ends(m.d, patience) {
			m.Errorf("the daemon does not stop; it said:\n%s", m.d.log.String())
		}
		if m.Failed() {
			m.Logf("the daemon said:\n%s", m.d.log.String())
		}
	}
	for _, d := range m.daemons {
		if s := d.log.String(); strings.Contains(s, "DATA RACE") {
			m.Errorf("the race detector said:\n%s", s)
		}
	}
	if m.disk {
		if err := unmount(m.root); err != nil {
			m.Error(err)
		}
	}
	left, err := mounts.List(m.dir)
	if err != nil {
		m.Error(err)
	}
	for i := range left {
		mnt := left[len(left)-1-i]
		m.Errorf("left mounted: %+v", mnt)
		mounts.Unmount(mnt.Dir, true)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	keeper.End(ctx, m.run)
	for _, pid := range m.processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		m.Errorf("left running: %d %q", pid, cmd)
		unix.Kill(pid, unix.SIGKILL)
	}
	removeCgroup(m, m.cgroup())
	if err := os.RemoveAll(m.dir); err != nil {
		m.Error(err)
	}
}

// processes lists those that have been given a directory of m, after those
// that are about to end have had the time to.
func (m *machine) processes() (pids []int) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		pids = nil
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range all {
			b, _ := os.ReadFile(p)
			pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
			if bytes.Contains(b, []byte(m.dir)) && pid != os.Getpid() && alive(pid) {
				pids = append(pids, pid)
			}
		}
		if len(pids) == 0 || time.Now().After(deadline) {
			return pids
		}
	}
}

// A lockedBuffer may be written and read at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
