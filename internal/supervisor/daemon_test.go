package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
	"github.com/snapfs/snapfs/layers"
)

// A testbed is a folder with the state of one daemon: root, run, source.
type testbed struct {
	*testing.T
	dir, root, run string
}

func newTestbed(t *testing.T) *testbed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting FUSE needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	dir, err := os.MkdirTemp("", "sup") // short: the names of sockets are
	if err != nil {
		t.Fatal(err)
	}
	b := &testbed{t, dir, filepath.Join(dir, "root"), filepath.Join(dir, "run")}
	t.Cleanup(func() { b.cleanUp() })
	for _, d := range []string{b.run, filepath.Join(b.run, "containers"), filepath.Join(dir, "source")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// cleanUp removes what tests that killed left behind.
func (b *testbed) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := keeper.End(ctx, b.run); err != nil {
		b.Errorf("end keeper: %v", err)
	}
	all, err := mounts.List(b.dir)
	if err != nil {
		b.Error(err)
	}
	for i := range all {
		mounts.Unmount(all[len(all)-1-i].Dir, true)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.Error(err)
	}
}

// A daemon is a running supervisor.
type daemon struct {
	*testbed
	cmd    *exec.Cmd
	stderr bytes.Buffer
	wait   func() error
}

// start starts the daemon and waits until it is ready.
func (b *testbed) start() *daemon {
	b.Helper()
	return b.startWith(func(*exec.Cmd) {})
}

// startWith is start with something changed about the command.
func (b *testbed) startWith(change func(*exec.Cmd)) *daemon {
	b.Helper()
	d := b.launchWith(change)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if s, err := d.status(); err == nil && s.Ready && s.Supervisor == d.cmd.Process.Pid {
			return d
		}
		if time.Now().After(deadline) {
			b.Fatalf("daemon is not ready: %s", d.stderr.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (b *testbed) launch() *daemon {
	b.Helper()
	return b.launchWith(func(*exec.Cmd) {})
}

func (b *testbed) launchWith(change func(*exec.Cmd)) *daemon {
	b.Helper()
	d := &daemon{testbed: b, cmd: exec.Command("/proc/self/exe")}
	d.cmd.Env = append(os.Environ(), roleEnv+"=supervisor:"+b.dir)
	d.cmd.Stdout = os.Stdout
	d.cmd.Stderr = os.Stderr
	change(d.cmd)
	if err := d.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	d.wait = sync.OnceValue(d.cmd.Wait)
	b.Cleanup(func() {
		if s, err := d.status(); err == nil {
			defer kill(s.Worker, unix.SIGKILL) // of a supervisor that was killed, it is an orphan
		}
		d.cmd.Process.Kill()
		d.wait()
	})
	return d
}

func (d *daemon) status() (s control.Supervisor, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = control.Call(ctx, supervisorSocket(d.run), control.OpSupervisor, nil, &s, nil)
	return s, err
}

// worker waits for a worker that is ready and not old, and returns its pid.
func (d *daemon) worker(old int) int {
	d.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s, err := d.status()
		if err == nil && s.Ready && s.Worker != old {
			return s.Worker
		}
		if time.Now().After(deadline) {
			d.Fatalf("no new worker: %+v, %v", s, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (d *daemon) call(op string, result any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := control.Call(ctx, Socket(d.run), op, args, result, nil)
	return err
}

// shut stops the daemon as systemd would.
func (d *daemon) shut() {
	d.Helper()
	d.cmd.Process.Signal(unix.SIGTERM)
	if err := d.wait(); err != nil {
		d.Errorf("daemon: %v", err)
	}
}

// kill9 kills a process that may not be our child and waits for its end.
func (b *testbed) kill9(pid int) {
	b.Helper()
	kill(pid, unix.SIGKILL)
	if err := waitPid(b.Context(), pid, 10*time.Second); err != nil {
		b.Errorf("process %d: %v", pid, err)
	}
}

// add makes an object of n random bytes.
func (b *testbed) add(seed, n int) layers.Sum {
	b.Helper()
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(data)
	s := layers.SumOf(data)
	path := filepath.Join(b.dir, "source", s.Path())
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
		b.Fatal(err)
	}
	return s
}

// rootfs makes an overlay of a folder of files whose bytes are only behind the
// lazy mount, and returns where it is and what is in it.
func (b *testbed) rootfs(files int) (string, map[string]layers.Sum) {
	b.Helper()
	lower, upper, work, target := filepath.Join(b.dir, "lower"), filepath.Join(b.dir, "upper"), filepath.Join(b.dir, "work"), filepath.Join(b.dir, "rootfs")
	for _, d := range []string{lower, upper, work, target} {
		if err := os.Mkdir(d, 0o700); err != nil {
			b.Fatal(err)
		}
	}
	sums := map[string]layers.Sum{}
	for i := range files {
		size := 1 + i*37%20000
		if i%50 == 0 {
			size = 1 << 20
		}
		name := fmt.Sprintf("f%d", i)
		sums[name] = b.add(i, size)
		path := filepath.Join(lower, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(size)),
			unix.Setxattr(path, "trusted.overlay.metacopy", nil, 0),
			unix.Setxattr(path, "trusted.overlay.redirect", []byte("/"+sums[name].Path()), 0)); err != nil {
			b.Fatal(err)
		}
	}
	m, err := mounts.Overlay(mounts.Rootfs{Lower: []string{lower}, Data: []string{lazyDir(b.run)}, Upper: upper, Work: work})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	if err := mounts.Attach(m, target); err != nil {
		b.Fatal(err)
	}
	// The first close of a file teaches the kernel that FLUSH is not served. Until
	// then, a program that we start would wait for its answer before it runs, if
	// one of our threads had a file open just then.
	if err := check(filepath.Join(target, "f0"), sums["f0"]); err != nil {
		b.Fatal(err)
	}
	return target, sums
}

// check reads a file cold and compares its bytes.
func check(path string, want layers.Sum) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if got := layers.SumOf(data); got != want {
		return fmt.Errorf("%s: %d bytes of sum %v, want %v", path, len(data), got, want)
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// load reads files from several goroutines until the returned function is
// called, which returns how many were read. Every error is the test's.
func (b *testbed) load(dir string, sums map[string]layers.Sum) (stop func() int) {
	var names []string
	for name := range sums {
		names = append(names, name)
	}
	done := make(chan struct{})
	counts := make([]int, 4)
	var wg sync.WaitGroup
	for g := range counts {
		wg.Go(func() {
			for {
				for _, i := range rand.Perm(len(names)) {
					select {
					case <-done:
						return
					default:
					}
					if err := check(filepath.Join(dir, names[i]), sums[names[i]]); err != nil {
						b.Errorf("read %d: %v", counts[g], err)
					}
					counts[g]++
				}
			}
		})
	}
	return sync.OnceValue(func() int {
		close(done)
		wg.Wait()
		total := 0
		for _, n := range counts {
			total += n
		}
		return total
	})
}
