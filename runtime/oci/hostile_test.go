package oci

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestSpy: of the processes that join a container, those inside can take
// nothing of the host's, even if they may ptrace and so are not kept away by
// dumpable (CVE-2016-9962, CVE-2019-5736, CVE-2024-21626).
func TestSpy(t *testing.T) {
	b := newBench(t)
	b.spec.Process.Args = []string{"/inside", "spy", b.bundle}
	caps := []string{"CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"}
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	b.create()
	b.ok("start", b.id)
	if line, err := b.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	for range 12 {
		b.ok("exec", b.id, "/inside", "exit", "0")
	}
	must(t, os.WriteFile(filepath.Join(b.bundle, "rootfs/tmp/enough"), nil, 0o644))
	if out := b.rest(); out != "programs 2\n" && out != "programs 1\n" && out != "programs 0\n" {
		t.Errorf("a process inside found of those that joined it: %s", out)
	}
}

// TestCreatedIsClosed: a container that waits for its start shows nothing of ours, neither to whoever is in its
// pid namespace nor in its descriptors.
func TestCreatedIsClosed(t *testing.T) {
	b := newBench(t, "exit", "0")
	b.create()
	pid := b.state().Pid
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	for _, e := range list {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // the line to its maker
		}
		must(t, err)
		dir := filepath.Join(b.root, b.id)
		if len(e.Name()) > 1 && target != dir+"/start" && target != dir+"/started" && !strings.HasPrefix(target, "socket:") || len(list) > 6 {
			t.Errorf("descriptor %s of %d is %s", e.Name(), len(list), target)
		}
	}
	out := b.ok("exec", b.id, "/inside", "readlink", "/proc/1/exe", ";", "readlink", "/proc/1/cwd", ";", "cat", "/proc/1/maps", ";", "cat", "/proc/1/environ")
	if want := "\nreadlink EACCES\n\nreadlink EACCES\ncat EACCES\ncat EACCES\n"; out != want {
		t.Errorf("of the process that waits one sees inside %q, want %q", out, want)
	}
}

// TestIDs: an ID never leads anywhere (crun 1.28's flaws), and is no option.
func TestIDs(t *testing.T) {
	b := newBench(t, "exit", "0")
	b.write()
	victim := filepath.Join(b.root, "..", "victim")
	must(t, os.Mkdir(victim, 0o700))
	must(t, os.WriteFile(filepath.Join(victim, "state.json"), []byte(`{"id":"victim","cgroup":"/"}`), 0o600))
	for _, id := range []string{"../victim", "..", ".", "", "a/b", "a\nb", "/victim", ".hidden", "-x", strings.Repeat("a", 129), "ä"} {
		for _, call := range [][]string{{"create", "--bundle", b.bundle, "--", id}, {"state", "--", id}, {"delete", "--force", "--", id}, {"kill", "--", id, "KILL"}, {"exec", "--", id, "/inside"}} {
			out, err := b.run(call...)
			if err == nil || !strings.Contains(out, "container ID") {
				t.Errorf("%q: %v, %q, want the ID refused", call, err, out)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(victim, "state.json")); err != nil {
		t.Error(err)
	}
}

// TestExecUser: who an exec runs as is what was said, or nobody (CVE-2026-30892).
func TestExecUser(t *testing.T) {
	for in, want := range map[string]string{"5": "5:0", "5:6": "5:6", "0": "0:0", "2147483647": "2147483647:0"} {
		var u specs.User
		if err := (&tweak{user: in}).applyUser(&u); err != nil || fmt.Sprintf("%d:%d", u.UID, u.GID) != want {
			t.Errorf("user %q is %d:%d, %v, want %s", in, u.UID, u.GID, err, want)
		}
	}
	for _, in := range []string{"root", "0x0", "+1", "-1", "1:", ":1", "1:2:3", " 1", "1 ", "4294967296", "2147483648", "1:-1", "1:a", "١", "0\x00"} {
		if err := (&tweak{user: in}).applyUser(new(specs.User)); err == nil {
			t.Errorf("user %q was taken", in)
		}
	}
}

// TestExecTerminal: a terminal is made only in what is a devpts (CVE-2025-52565's kind).
func TestExecTerminal(t *testing.T) {
	for _, kind := range []string{"directory", "link"} {
		b := newBench(t)
		for i, m := range b.spec.Mounts {
			if m.Destination == "/dev/pts" {
				b.spec.Mounts[i] = specs.Mount{Destination: "/dev/pts", Type: "tmpfs", Source: "tmpfs"}
			}
		}
		if kind == "link" {
			b.spec.Mounts = b.spec.Mounts[:1]
			must(t, os.MkdirAll(filepath.Join(b.bundle, "rootfs/dev"), 0o755))
			must(t, os.Symlink("/proc/1/root/dev/pts", filepath.Join(b.bundle, "rootfs/dev/pts")))
		}
		b.starts()
		out, err := b.run("exec", "-t", b.id, "/inside", "ids")
		if err == nil || !strings.Contains(out, "/dev/pts") {
			t.Errorf("%s: exec with a terminal = %v, %q, want it refused", kind, err, out)
		}
		b.end()
	}
}

// TestCgroupReadOnly: without a cgroup namespace too, nothing of the host's cgroups can be written (CVE-2023-25809).
func TestCgroupReadOnly(t *testing.T) {
	for _, ns := range []bool{true, false} {
		b := newBench(t, "grep", "/sys/fs/cgroup", "/proc/mounts", ";", "write", "/sys/fs/cgroup/pids/pids.max", "7", ";", "write", "/sys/fs/cgroup/unified/cgroup.freeze", "1", ";", "echo", "done")
		if !ns {
			withoutNS(b.spec, specs.CgroupNamespace)
		}
		out := b.runs()
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[1], "/sys/fs/cgroup") && !strings.HasPrefix(f[3], "ro") {
				t.Errorf("mounted writable: %s", line)
			}
		}
		if !strings.HasSuffix(out, "done\n") || strings.Count(out, "EROFS")+strings.Count(out, "ENOENT") != 2 {
			t.Errorf("writes gave %q", out)
		}
	}
}

// TestInheritable: an exec gets no inheritable capabilities with others (CVE-2022-29162).
func TestInheritable(t *testing.T) {
	b := newBench(t)
	b.starts()
	out := b.ok("exec", "--cap", "CAP_CHOWN", b.id, "/inside", "grep", "Cap", "/proc/self/status")
	wants(t, out, "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000")
	if strings.Contains(out, "CapEff:\t0000000000000000") {
		t.Errorf("--cap gave nothing: %s", out)
	}
	b.end()
}

// TestBadFiles: files that are not what they should be end nothing but the call.
func TestBadFiles(t *testing.T) {
	for name, put := range map[string]func(string) error{
		"endless": func(n string) error { return os.Symlink("/dev/zero", n) },
		"huge": func(n string) error {
			f, err := os.Create(n)
			return errors.Join(err, f.Truncate(1<<40), f.Close())
		},
		"fifo":      func(n string) error { return unix.Mkfifo(n, 0o600) },
		"directory": func(n string) error { return os.Mkdir(n, 0o700) },
		"empty":     func(n string) error { return os.WriteFile(n, nil, 0o600) },
		"deep":      func(n string) error { return os.WriteFile(n, []byte(strings.Repeat("[", 1<<20)), 0o600) },
		"no root": func(n string) error {
			return os.WriteFile(n, []byte(`{"ociVersion":"1.0.0","process":{"args":["x"]}}`), 0o600)
		},
		"no process": func(n string) error {
			return os.WriteFile(n, []byte(`{"ociVersion":"1.0.0","root":{"path":"rootfs"}}`), 0o600)
		},
	} {
		b := newBench(t)
		must(t, put(filepath.Join(b.bundle, "config.json")))
		out, err := b.run("create", "--bundle", b.bundle, b.id)
		if err == nil || strings.Contains(out, "panic") || strings.Contains(out, "goroutine") {
			t.Errorf("%s: %v, %q", name, err, out)
		}
		b.gone()
	}
}

// emptyRoot checks that no container is known.
func (b *bench) emptyRoot() {
	b.t.Helper()
	left, err := os.ReadDir(b.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Error(err)
	}
	for _, e := range left {
		if e.Name() != ".seccomp" {
			b.t.Errorf("left behind: %s", e.Name())
		}
	}
}

// TestKilledRuntime: wherever create is killed, delete --force finds all that is left, and a second create works.
func TestKilledRuntime(t *testing.T) {
	b := newBench(t, "trap")
	b.write()
	for i := range 40 {
		cmd := b.cmd("create", "--bundle", b.bundle, b.id)
		must(t, cmd.Start())
		time.Sleep(time.Duration(i) * 250 * time.Microsecond) // there is no event to wait for: any moment will do
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		b.ok("delete", "--force", b.id)
		b.gone()
	}
	b.emptyRoot()
	b.create()
	b.ok("start", b.id)
	b.end()
}

// TestCgroupOfAnother: delete leaves a newer container alone that has the stopped one's path.
func TestCgroupOfAnother(t *testing.T) {
	old, next := newBench(t, "trap"), newBench(t, "trap")
	old.create()
	old.ok("start", old.id)
	old.end()
	next.spec.Linux.CgroupsPath = old.spec.Linux.CgroupsPath
	next.create()
	next.ok("start", next.id)
	old.ok("delete", "--force", old.id)
	if s := next.state().Status; s != specs.StateRunning {
		t.Errorf("the newer one is %s, want running", s)
	}
	next.end()
	next.ok("delete", next.id)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + old.spec.Linux.CgroupsPath); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSameID: of many that create one container, one does.
func TestSameID(t *testing.T) {
	b := newBench(t, "trap")
	b.write()
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for range 6 {
		wg.Go(func() {
			err := b.cmd("create", "--bundle", b.bundle, b.id).Run()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			}
		})
	}
	wg.Wait()
	if s := b.state(); won != 1 || s.Status != specs.StateCreated {
		t.Errorf("%d of 6 created it, it is %s", won, s.Status)
	}
}

// TestDeleteWhileCreating: delete --force ends a create that waits for a hook.
func TestDeleteWhileCreating(t *testing.T) {
	b := newBench(t, "trap")
	fifo := filepath.Join(b.bundle, "begun")
	must(t, unix.Mkfifo(fifo, 0o600))
	b.spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{b.hook("x", "echo >"+fifo+"; sleep 1000")}}
	b.write()
	cmd := b.cmd("create", "--bundle", b.bundle, b.id)
	must(t, cmd.Start())
	f, err := os.Open(fifo) // waits until the hook runs
	must(t, err)
	defer f.Close() // not before the hook has written: a broken pipe would end it
	if s := b.state().Status; s != specs.StateCreating {
		t.Errorf("it is %s, want creating", s)
	}
	b.ok("delete", "--force", b.id)
	if err := cmd.Wait(); err == nil {
		t.Error("create worked")
	}
	b.gone()
}

// TestNothingLeft: many short containers, some at a time, leave no file, mount or cgroup.
func TestNothingLeft(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		b := newBench(t, "exit", "0")
		b.write()
		wg.Go(func() {
			for range 10 {
				if out, err := b.run("run", "--bundle", b.bundle, b.id); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
			b.emptyRoot()
			b.gone()
			if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), b.bundle) {
				t.Errorf("%v, mounts:\n%s", err, mounts)
			}
		})
	}
	wg.Wait()
}

// TestDryRun prints the plan and makes nothing.
func TestDryRun(t *testing.T) {
	b := newBench(t, "exit", "0")
	b.write()
	wants(t, b.ok("run", "--dry-run", "--bundle", b.bundle, b.id), "cgroup "+b.spec.Linux.CgroupsPath, "pivot_root", `exec ["/inside" "exit" "0"]`)
	if _, err := os.Stat(b.root); err == nil {
		t.Error("it made a state directory")
	}
}

// TestOwnProgram: whoever makes the runtime execute itself inside, by a link to /proc/self/exe or a script for it, gets
// no file that could be written (CVE-2019-5736). One that runs cannot be written anyhow (ETXTBSY), so it has to end.
func TestOwnProgram(t *testing.T) {
	for _, build := range []string{"snaprun", "plain/snaprun"} { // sealed before its Go runtime starts, and after
		t.Run(build, func(t *testing.T) { testOwnProgram(t, build) })
	}
}

func testOwnProgram(t *testing.T, build string) {
	for name, put := range map[string]func(string) error{
		"link":   func(n string) error { return os.Symlink("/proc/self/exe", n) },
		"script": func(n string) error { return os.WriteFile(n, []byte("#!/proc/self/exe\n"), 0o755) },
	} {
		b := newBench(t, "trap")
		b.bin = filepath.Join(filepath.Dir(b.bin), build)
		must(t, put(filepath.Join(b.bundle, "rootfs/self")))
		bin, err := os.Stat(b.bin)
		must(t, err)
		r, w, err := os.Pipe()
		must(t, err)
		size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
		must(t, err)
		_, err = w.Write(make([]byte, size)) // so that what writes its help stands still
		must(t, err)
		open := func(pid int) *os.File {
			t.Helper()
			exe, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH, 0)
			must(t, err)
			t.Cleanup(func() { exe.Close() })
			return exe
		}
		var pids []int
		var files []*os.File
		// As the first process, and as one that joins.
		b.spec.Process.Args = []string{"/self", "--help"}
		b.write()
		cmd := b.cmd("create", "--bundle", b.bundle, b.id)
		cmd.Stdout, cmd.Stderr = w, w
		must(t, cmd.Run())
		b.ok("start", b.id)
		pids = append(pids, b.state().Pid)
		files = append(files, open(pids[0]))
		pidFile := filepath.Join(b.bundle, "pid")
		cmd = b.cmd("exec", "--detach", "--pid-file", pidFile, b.id, "/self", "--help")
		cmd.Stdout, cmd.Stderr = w, w
		must(t, cmd.Run())
		var pid int
		text, err := os.ReadFile(pidFile)
		must(t, err)
		_, err = fmt.Sscan(string(text), &pid)
		must(t, err)
		pids, files = append(pids, pid), append(files, open(pid))
		must(t, errors.Join(r.Close(), w.Close())) // now they fail to write
		for i, f := range files {
			waitPid(t, pids[i])
			is, err := f.Stat()
			must(t, err)
			if !os.SameFile(is, bin) {
				t.Errorf("%s, process %d: it executed %v, not the runtime", name, i, is)
			}
			if w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
				w.Close()
				t.Errorf("%s, process %d: opening the runtime for writing gave %v, want EROFS", name, i, err)
			}
		}
	}
}

// TestEntry: what starts, joins or makes a container is on a mount of its own that is read-only
// before it has read a word of what it is to do. What does none of that is spared it.
func TestEntry(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("there is an entry of our own for amd64 only")
	}
	b := newBench(t)
	dir := filepath.Dir(b.bin)
	for _, c := range []struct {
		verb, program string
		sealed        bool
	}{
		{"run", "snaprun", true}, {"create", "snaprun", true}, {"exec", "snaprun", true},
		{"state", "snaprun", false}, {"running", "snaprun", false}, {"exe", "snaprun", false}, {"creat", "snaprun", false},
		{"run", "snapctl", false}, {"run", "plain/snaprun", false},
	} {
		b.bin = filepath.Join(dir, c.program)
		if st := mountFlags(t, b, c.verb); st&unix.ST_RDONLY != 0 != c.sealed {
			t.Errorf("%s %s: sealed is %v, want %v", c.program, c.verb, !c.sealed, c.sealed)
		}
	}
}

// mountFlags are those of the mount that a call runs from which is wrong in any
// case: it says so, and then waits for somebody to read its log.
func mountFlags(t *testing.T, b *bench, verb string) int64 {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	must(t, unix.Mkfifo(log, 0o600))
	var line []string
	if filepath.Base(b.bin) == "snapctl" {
		line = []string{"runtime"}
	}
	cmd := exec.Command(b.bin, append(line, "--log", log, verb, "--none")...)
	r, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	if s, err := bufio.NewReader(r).ReadString('\n'); err != nil || s == "" {
		t.Fatalf("%s: %q, %v", verb, s, err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid), unix.O_PATH, 0)
	must(t, err)
	defer f.Close()
	var st unix.Statfs_t
	must(t, unix.Fstatfs(int(f.Fd()), &st))
	reader, err := os.OpenFile(log, os.O_RDONLY, 0)
	must(t, err)
	defer reader.Close()
	if err := cmd.Wait(); err == nil {
		t.Errorf("%s --none succeeded", verb)
	}
	return st.Flags
}

// TestPrivateState: what the runtime keeps about a container, other users of the host cannot
// see, and it listens nowhere, least of all at an abstract socket (CVE-2020-15257, CVE-2021-41103, CVE-2024-25621).
func TestPrivateState(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	b := newBench(t, "trap")
	b.create()
	n := 0
	must(t, filepath.WalkDir(b.root, func(name string, d os.DirEntry, err error) error {
		must(t, err)
		fi, err := d.Info()
		must(t, err)
		if n++; fi.Mode()&0o077 != 0 && (name == b.root || filepath.Dir(name) == b.root) {
			t.Errorf("%s is open to others: %v", name, fi.Mode())
		}
		if fi.Mode()&0o022 != 0 {
			t.Errorf("%s can be written by others: %v", name, fi.Mode())
		}
		return nil
	}))
	if n < 4 {
		t.Errorf("%d files of state", n)
	}
	pid := b.state().Pid
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	sockets, err := os.ReadFile("/proc/net/unix")
	must(t, err)
	for _, l := range links {
		target, err := os.Readlink(l)
		if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
			for line := range strings.Lines(string(sockets)) {
				if f := strings.Fields(line); len(f) > 7 && f[6]+"]" == inode {
					t.Errorf("a socket with a name: %s", line)
				}
			}
		}
	}
	b.ok("start", b.id)
	b.end()
}
