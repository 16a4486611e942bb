package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// Workers are killed one after the other under load, and no read fails.
func TestKillWorkers(t *testing.T) {
	kills := 30
	if n, err := strconv.Atoi(os.Getenv("SNAPFS_KILLS")); err == nil {
		kills = n
	}
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(1500)
	stop := b.load(dir, sums)
	defer stop()
	pid := 0
	for range kills {
		pid = d.worker(pid)
		time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
		d.kill9(pid)
	}
	last := d.worker(pid)
	n := stop()
	t.Logf("%d files read while %d workers were killed", n, kills)
	s, err := d.status()
	if err != nil || s.Restarts != kills || s.Worker != last {
		t.Errorf("status: %+v, %v, want %d restarts", s, err, kills)
	}
	b.settled(d, dir)
}

// settled ends the daemon and checks that nothing is left of it.
func (b *testbed) settled(d *daemon, rootfs string) {
	b.Helper()
	if err := mounts.Unmount(rootfs, false); err != nil {
		b.Error(err)
	}
	s, err := d.status()
	if err != nil {
		b.Error(err)
	}
	d.shut()
	if all, err := mounts.List(b.run); len(all) > 0 || err != nil {
		b.Errorf("still mounted: %v, %v", all, err)
	}
	if err := unix.Unlink(Socket(b.run)); !errors.Is(err, unix.ENOENT) {
		b.Errorf("control socket: %v, want ENOENT", err)
	}
	if err := waitPid(b.Context(), s.Keeper, 10*time.Second); err != nil {
		b.Errorf("keeper: %v", err)
	}
	for _, path := range []string{supervisorSocket(b.run), workerSocket(b.run), keeper.Socket(b.run)} {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			b.Errorf("%s: somebody listens still", path)
		}
	}
}

// A supervisor that dies leaves its worker serving; the next takes over from it.
func TestKillSupervisors(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(500)
	stop := b.load(dir, sums)
	defer stop()
	for range 3 {
		old, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		d.cmd.Process.Kill()
		d.wait()
		var pid int
		if err := d.call("pid", &pid); err != nil || pid != old.Worker {
			t.Errorf("worker %d without supervisor answers %d, %v", old.Worker, pid, err)
		}
		if err := d.call("mount", nil, "a", "/b"); !isCode(err, control.CodeUnavailable) {
			t.Errorf("mount without supervisor: %v, want unavailable", err)
		}
		d = b.start()
		s, err := d.status()
		if err != nil || s.Worker == old.Worker || s.Keeper != old.Keeper {
			t.Errorf("after the take-over: %+v, %v, before %+v", s, err, old)
		}
		if err := waitPid(t.Context(), old.Worker, time.Millisecond); err != nil {
			t.Errorf("old worker: %v", err)
		}
	}
	t.Logf("%d files read", stop())
	b.settled(d, dir)
}

func isCode(err error, code string) bool {
	e, ok := errors.AsType[*control.Error](err)
	return ok && e.Code == code
}

// Both die; reads wait for the next daemon, which gets the mount from the keeper.
func TestKillBoth(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(500)
	stop := b.load(dir, sums)
	defer stop()
	for range 3 {
		s, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		d.cmd.Process.Kill()
		d.wait()
		b.kill9(s.Worker)
		if c, err := net.Dial("unix", Socket(b.run)); err == nil {
			c.Close()
			t.Error("the control socket of a dead daemon is open")
		}
		d = b.start()
	}
	t.Logf("%d files read", stop())
	b.settled(d, dir)
}

// With a keeper that died first, and both others dead, the mount is lost: the
// next daemon makes a new one, and only what was missing fails in the old container.
func TestLostMount(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(3)
	s, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	if dead, err := mounts.Dead(t.Context(), lazyDir(b.run)); dead || err != nil {
		t.Errorf("Dead of a living mount: %v, %v", dead, err)
	}
	for _, pid := range []int{s.Keeper, s.Supervisor, s.Worker} {
		b.kill9(pid)
		d.wait0(pid)
	}
	if dead, err := mounts.Dead(t.Context(), lazyDir(b.run)); !dead || err != nil {
		t.Errorf("Dead of a dead mount: %v, %v", dead, err)
	}
	d = b.start()
	if _, err := os.ReadFile(filepath.Join(dir, "f0")); err == nil {
		t.Error("read of a missing object over the dead mount succeeded")
	}
	for name, sum := range sums {
		if err := check(filepath.Join(lazyDir(b.run), sum.Path()), sum); err != nil {
			t.Errorf("%s over the new mount: %v", name, err)
		}
	}
	b.settled(d, dir)
}

// wait0 reaps the supervisor if it is pid.
func (d *daemon) wait0(pid int) {
	if pid == d.cmd.Process.Pid {
		d.wait()
	}
}

// A keeper that dies is replaced, and the new one serves as well as the old.
func TestKillKeeper(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	before, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	b.kill9(before.Keeper)
	deadline := time.Now().Add(20 * time.Second)
	s := before
	for s.Keeper == before.Keeper || s.Keeper == 0 {
		if s, err = d.status(); err != nil || time.Now().After(deadline) {
			t.Fatalf("no new keeper: %+v, %v", s, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	f, init, err := keeper.Take(t.Context(), b.run)
	if err != nil || len(init) == 0 || !keeper.Alive(f) {
		t.Fatalf("the new keeper holds %v, %d bytes, %v", f, len(init), err)
	}
	f.Close()
	d.shut()
}

// A stopped worker makes reads wait, not fail.
func TestStoppedWorker(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(10)
	pid := d.worker(0)
	kill(pid, unix.SIGSTOP)
	result := make(chan error, len(sums))
	for name, sum := range sums {
		go func() { result <- check(filepath.Join(dir, name), sum) }()
	}
	select {
	case err := <-result:
		t.Errorf("a read ended while the worker was stopped: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	kill(pid, unix.SIGCONT)
	for range sums {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
	b.settled(d, dir)
}

// A worker without supervisor that does not answer is killed by the next supervisor.
func TestHungOrphan(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(3)
	pid := d.worker(0)
	d.cmd.Process.Kill()
	d.wait()
	kill(pid, unix.SIGSTOP)
	d = b.start()
	for name, sum := range sums {
		if err := check(filepath.Join(dir, name), sum); err != nil {
			t.Error(err)
		}
	}
	b.settled(d, dir)
}

// A stopped daemon with containers leaves its mount to the keeper; reads that
// come meanwhile wait for the next start.
func TestStopInUse(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(5)
	used := filepath.Join(b.run, "containers", "c1")
	if err := os.Mkdir(used, 0o700); err != nil {
		t.Fatal(err)
	}
	d.shut()
	result := make(chan error, 1)
	go func() { result <- check(filepath.Join(dir, "f1"), sums["f1"]) }()
	select {
	case err := <-result:
		t.Errorf("a read ended without a daemon: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	d = b.start()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := os.Remove(used); err != nil {
		t.Fatal(err)
	}
	b.settled(d, dir)
}

// A worker told to stop while reads wait for the network stops all the same.
func TestStopWhileReading(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	dir, sums := b.rootfs(2)
	slow := filepath.Join(b.dir, "source", "slow")
	if err := os.WriteFile(slow, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.run, "containers", "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- check(filepath.Join(dir, "f1"), sums["f1"]) }()
	time.Sleep(50 * time.Millisecond)
	d.shut()
	if err := errors.Join(os.Remove(slow), os.Remove(filepath.Join(b.run, "containers", "c"))); err != nil {
		t.Fatal(err)
	}
	d = b.start()
	if err := <-result; err != nil {
		t.Error(err)
	}
	b.settled(d, dir)
}

func TestTwoDaemons(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	err := Run(t.Context(), Options{Root: b.root, Run: b.run})
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), strconv.Itoa(d.cmd.Process.Pid)) {
		t.Errorf("second daemon: %v, want ErrRunning and its pid", err)
	}
	other := filepath.Join(b.dir, "other")
	if err := Run(t.Context(), Options{Root: b.root, Run: other}); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), b.run) {
		t.Errorf("second daemon, other run directory: %v, want ErrRunning and %s", err, b.run)
	}
	d.shut()
}

// Someone ends the mount below a living daemon: it makes another.
func TestUnmountedByHand(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	sum := b.add(1, 5000)
	old := d.worker(0)
	if err := mounts.Unmount(lazyDir(b.run), false); err != nil {
		t.Fatal(err)
	}
	d.worker(old)
	if err := check(filepath.Join(lazyDir(b.run), sum.Path()), sum); err != nil {
		t.Error(err)
	}
	d.shut()
}

func TestRequests(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	out := filepath.Join(b.dir, "out")
	var pid int
	if err := d.call("spawn", &pid, out, "/bin/sh", "-c", "echo $$; ps -o sid= -p $$; exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	defer b.kill9(pid)
	if err := d.call("spawn", nil, "", "sh"); !isCode(err, control.CodeInvalid) {
		t.Errorf("spawn of a relative program: %v, want invalid", err)
	}
	if err := d.call("spawn", nil, "", "/no/such/program"); !isCode(err, control.CodeNotFound) {
		t.Errorf("spawn of nothing: %v, want not_found", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", ".x", strings.Repeat("x", 201)} {
		if err := d.call("mount", nil, id, "/x"); !isCode(err, control.CodeInvalid) {
			t.Errorf("mount of ID %q: %v, want invalid", id, err)
		}
	}
	if err := d.call("mount", nil, "id", "/no/such/file"); !isCode(err, control.CodeNotFound) {
		t.Errorf("mount of no file: %v, want not_found", err)
	}
	if _, err := os.Stat(imageDir(b.run, "id")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed mount left %v", err)
	}
	var s control.Supervisor
	if err := d.call("status", &s); err != nil || s.Supervisor != d.cmd.Process.Pid || s.Keeper == 0 || s.Worker == 0 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if err := d.call("stop", nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := d.wait(); err != nil {
		t.Errorf("daemon: %v", err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("a spawned process ended with the daemon: %v", err)
	}
}

// The worker has programs run without forking.
func TestPrograms(t *testing.T) {
	b := newTestbed(t)
	bin := filepath.Join(b.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	program := func(name, text string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	pids := filepath.Join(b.dir, "pids")
	program("echoes", `read s; echo "$1 $s"`)
	program("fails", `echo why; exit 3`)
	program("dies", `kill -9 $$`)
	program("deaf", `echo done`)
	program("talks", `head -c 3000000 /dev/zero`)
	program("leaves", `sleep 1000 & echo $! >>`+pids+`; echo left`)
	program("hangs", `sleep 1000 & echo $$ $! >>`+pids+`; wait`)
	d := b.start()
	for _, c := range []struct{ name, stdin, want, fails string }{
		{"echoes", "server\n", "get server\n", ""},
		{"fails", "x", "", `fails: exit status 3, output "why\n"`},
		{"dies", "x", "", "dies: killed"},
		{"deaf", strings.Repeat("x", 500_000), "done\n", ""},
		{"talks", "", strings.Repeat("\x00", maxOutput), ""},
		{"leaves", "", "left\n", ""},
		{"no-such-program", "", "", "not found"},
		{"../bin/echoes", "", "", "program"},
	} {
		var got string
		err := d.call("output", &got, c.name, "get", c.stdin)
		if got != c.want || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %.100q, %v, want %.100q, %s", c.name, got, err, c.want, c.fails)
		}
	}
	var got string
	if err := d.call("run", &got, "/bin/sh", "-c", `echo $OF_OURS $0 "$@" $HOME`, "a", "b c"); err != nil || got != "ours a b c "+os.Getenv("HOME")+"\n" {
		t.Errorf("run: %q, %v", got, err)
	}
	for _, argv := range [][]string{{"/no/such/program"}, {"bin/sh"}, {"/bin/sh", "-c", "head -c 101 /dev/zero"}, {"/bin/cat", "/dev/zero"}} {
		if err := d.call("run", nil, argv...); err == nil {
			t.Errorf("run of %q: no error", argv)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	hung := make(chan error, 1)
	go func() {
		_, err := control.Call(ctx, Socket(b.run), "output", []string{"hangs", "get", ""}, nil, nil)
		hung <- err
	}()
	var all []string
	for deadline := time.Now().Add(20 * time.Second); len(all) < 3; {
		text, _ := os.ReadFile(pids)
		if all = strings.Fields(string(text)); time.Now().After(deadline) {
			t.Fatalf("it was not started: %q", text)
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-hung; !errors.Is(err, context.Canceled) {
		t.Errorf("a program that hangs: %v, want Canceled", err)
	}
	for i, text := range all {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 { // it is its own master
			b.kill9(pid)
		} else if err := waitPid(t.Context(), pid, 10*time.Second); err != nil {
			t.Errorf("process %d of a program that was given up: %v", pid, err)
		}
	}
	s, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Process.Kill()
	d.wait()
	if err := d.call("output", nil, "echoes", "get", "x"); !isCode(err, control.CodeUnavailable) {
		t.Errorf("without a supervisor: %v, want unavailable", err)
	}
	b.kill9(s.Worker)
	b.start().shut()
}

// What a worker remembers is there for the next, whoever of worker and supervisor dies, and not for who comes after both.
func TestMemory(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	recall := func(when, want string) {
		t.Helper()
		var got string
		if err := d.call("recall", &got, "a"); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", when, got, err, want)
		}
	}
	recall("at first", "")
	if err := errors.Join(d.call("remember", nil, "a", "old"), d.call("remember", nil, "a", "one"), d.call("remember", nil, "b", "x")); err != nil {
		t.Fatal(err)
	}
	pid := d.worker(0)
	d.kill9(pid)
	pid = d.worker(pid)
	recall("after the worker", "one")
	d.cmd.Process.Kill()
	d.wait()
	recall("without a supervisor", "one")
	if err := d.call("remember", nil, "a", "two"); err != nil {
		t.Errorf("remember without a supervisor: %v", err)
	}
	d = b.start()
	pid = d.worker(pid)
	recall("after the supervisor", "two")
	d.kill9(pid)
	d.worker(pid)
	recall("after supervisor and worker", "two")
	if err := d.call("remember", nil, "a", ""); err != nil {
		t.Error(err)
	}
	recall("after it was forgotten", "")
	if err := d.call("remember", nil, "a", strings.Repeat("x", MaxMemory+1)); err == nil {
		t.Error("too much is remembered")
	}
	for i := range maxMemories + 1 {
		if err := d.call("remember", nil, fmt.Sprint("n", i), "x"); (err != nil) != (i >= maxMemories-1) {
			t.Errorf("memory %d: %v", i, err)
		}
	}
	if err := d.call("remember", nil, "a", "again"); err == nil {
		t.Error("one more is remembered")
	}
	found, err := exec.Command("grep", "-rls", "two", b.root, b.run).Output()
	if len(found) > 0 {
		t.Errorf("on disk: %s, %v", found, err)
	}
	pid = d.worker(0)
	d.cmd.Process.Kill()
	d.wait()
	b.kill9(pid)
	d = b.start()
	recall("after both", "")
	d.shut()
}

// An image is mounted once, taken away once, and outlives the daemon if something is in use.
func TestImages(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	file := filepath.Join(b.dir, "i.erofs")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(f)
	if err := errors.Join(w.CopyFrom(os.DirFS(filepath.Join(b.dir, "source"))), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	var dir string
	for range 2 {
		if err := d.call("mount", &dir, "id", file); err != nil || dir != imageDir(b.run, "id") {
			t.Fatalf("mount: %q, %v", dir, err)
		}
	}
	used := filepath.Join(b.run, "containers", "c")
	if err := os.Mkdir(used, 0o700); err != nil {
		t.Fatal(err)
	}
	d.shut()
	if all, err := mounts.List(dir); len(all) != 1 || err != nil {
		t.Errorf("after a stop in use: %v, %v, want one mount", all, err)
	}
	d = b.start()
	for range 2 {
		if err := d.call("unmount", nil, "id"); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
	if err := errors.Join(d.call("mount", nil, "other", file), os.Remove(used)); err != nil {
		t.Fatal(err)
	}
	d.shut()
	if all, err := mounts.List(b.run); len(all) > 0 || err != nil {
		t.Errorf("still mounted: %v, %v", all, err)
	}
}

// Images and directories are mounted once more for each mapping of owners.
func TestMapped(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	file, plain := filepath.Join(b.dir, "i.erofs"), filepath.Join(b.dir, "plain")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "source", "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(f)
	if err := errors.Join(w.CopyFrom(os.DirFS(filepath.Join(b.dir, "source"))), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	owner := func(path string) string {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err.Error()
		}
		return fmt.Sprint(st.Uid)
	}
	call := func(op string, args ...string) (dir string) {
		t.Helper()
		if err := d.call(op, &dir, args...); err != nil {
			t.Fatalf("%s %q: %v", op, args, err)
		}
		return dir
	}
	const a, z = "0:100000:65536", "0:200000:1000,1000:5:1"
	if err := errors.Join(os.Mkdir(plain, 0o755), os.Chown(plain, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	id, idz, dir := call("mount mapped", "id", file, a), call("mount mapped", "id", file, z), call("map", plain, "", z)
	for range 2 {
		if again := call("mount mapped", "id", file, a); again != id {
			t.Errorf("mount mapped: %q, then %q", id, again)
		}
		if again := call("map", plain, "", z); again != dir {
			t.Errorf("map: %q, then %q", dir, again)
		}
	}
	if err := os.Mkdir(filepath.Join(plain, "later"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(id, "f"): "100000", filepath.Join(idz, "f"): "200000", filepath.Join(imageDir(b.run, "id"), "f"): "0",
		dir: "5", filepath.Join(dir, "later"): "200000",
	} {
		if got := owner(path); got != want {
			t.Errorf("owner of %s: %s, want %s", path, got, want)
		}
	}
	if all, err := mounts.List(b.run); len(all) != 5 || err != nil { // with lazy
		t.Errorf("mounted: %v, %v", all, err)
	}
	// Another directory of the same name is another directory.
	if err := errors.Join(os.Rename(plain, plain+"2"), os.Mkdir(plain, 0o755)); err != nil {
		t.Fatal(err)
	}
	if again := call("map", plain, "", z); again != dir || owner(dir) != "200000" {
		t.Errorf("map of another directory: %q with owner %s", again, owner(dir))
	}
	for _, tt := range []struct{ op, dir string }{
		{"map", "relative"}, {"map", plain + "/../x"}, {"map", filepath.Join(b.dir, "none")}, {"map", file},
		{"mount mapped", "a/b"}, {"mount mapped", "x" + mappedMark + "y"},
	} {
		if err := d.call(tt.op, nil, tt.dir, "/none", a); err == nil {
			t.Errorf("%s %s: no error", tt.op, tt.dir)
		}
	}

	// They outlive a daemon that is in use, and its successor knows them.
	used := filepath.Join(b.run, "containers", "c")
	if err := os.Mkdir(used, 0o700); err != nil {
		t.Fatal(err)
	}
	d.shut()
	stale := filepath.Join(mappedDir(b.run), "stale")
	if err := os.Mkdir(stale, 0o700); err != nil { // of another boot
		t.Fatal(err)
	}
	if got := owner(filepath.Join(id, "f")); got != "100000" {
		t.Errorf("after a stop in use: %s", got)
	}
	d = b.start()
	b.wantNone(stale)
	if again := call("mount mapped", "id", file, a); again != id {
		t.Errorf("mount mapped: %q, then %q", id, again)
	}
	for range 2 {
		call("keep images", "", a)
		b.wantNone(idz)
	}
	if got := owner(filepath.Join(id, "f")); got != "100000" {
		t.Errorf("after the other was unmounted: %s", got)
	}
	dira := call("map", plain, "", a)
	for range 2 {
		call("keep", plain, a, "0:7:1")
		b.wantNone(dir)
		if owner(dira) != "100000" {
			t.Errorf("what was to be kept has owner %s", owner(dira))
		}
	}
	if err := os.Remove(plain); err != nil {
		t.Fatal(err)
	}
	call("keep", plain)
	b.wantNone(dira)
	if err := os.Mkdir(plain, 0o700); err != nil {
		t.Fatal(err)
	}
	idz = call("mount mapped", "id", file, z)
	call("keep images", "", z, "0:7:1")
	b.wantNone(id)
	if got := owner(filepath.Join(idz, "f")); got != "200000" {
		t.Errorf("what was to be kept has owner %s", got)
	}
	call("unmount", "id")
	b.wantNone(idz)
	b.wantNone(id, imageDir(b.run, "id"))
	call("mount mapped", "id", file, a)
	call("map", plain, "", a)
	if err := os.Remove(used); err != nil {
		t.Fatal(err)
	}
	d.shut()
	if all, err := mounts.List(b.run); len(all) > 0 || err != nil {
		t.Errorf("still mounted: %v, %v", all, err)
	}
}

func TestChildrenAreReaped(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	for range 10 {
		var pid int
		if err := d.call("spawn", &pid, "", "/bin/true"); err != nil {
			t.Fatal(err)
		}
		if err := waitPid(t.Context(), pid, 10*time.Second); err != nil {
			t.Error(err)
		}
		for start := time.Now(); unix.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("process %d is a zombie", pid)
			}
		}
	}
	d.shut()
}

// A worker that nothing can help ends the daemon; one that crashes is started again.
func TestWorkerThatCannotWork(t *testing.T) {
	b := newTestbed(t)
	mark := filepath.Join(b.dir, "fatal")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := b.launch()
	if err := d.wait(); err == nil {
		t.Error("daemon without a worker: no error")
	}
	if err := os.Rename(mark, filepath.Join(b.dir, "crash")); err != nil {
		t.Fatal(err)
	}
	d = b.launch()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if s, err := d.status(); err == nil && s.Restarts >= freeRestarts+1 {
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal("worker is not started again")
		}
	}
	if err := os.Remove(filepath.Join(b.dir, "crash")); err != nil {
		t.Fatal(err)
	}
	d.worker(0)
	d.shut()
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 0, 5: 0, 6: 50 * time.Millisecond, 7: 100 * time.Millisecond, 12: 3200 * time.Millisecond, 13: maxBackoff, 1 << 40: maxBackoff} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %v, want %v", n, got, want)
		}
	}
}

func TestAttachNeedsASupervisor(t *testing.T) {
	if IsWorker() {
		t.Fatal("the test is a worker")
	}
	if _, _, err := Attach(context.Background(), nil); err == nil {
		t.Error("Attach: no error")
	}
}

// The tests above, once more in a process with a single scheduler slot.
func TestOneProcessor(t *testing.T) {
	if os.Getenv("GOMAXPROCS") != "" {
		t.Skip("is it")
	}
	newTestbed(t)
	cmd := exec.Command("/proc/self/exe", "-test.run", "^(TestKillWorkers|TestKillSupervisors|TestKillBoth|TestStoppedWorker|TestStopWhileReading)$")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "SNAPFS_KILLS=10")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("at GOMAXPROCS=1: %v\n%s", err, out)
	}
}
