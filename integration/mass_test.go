package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/network/networktest"
)

// symlink is a member of a layer.
func symlink(name, to string) file {
	return file{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, ModTime: epoch}, nil}
}

// TestMonitorIsSealed: an image whose program is a link to /proc/self/exe executes the monitor's file inside. Who keeps
// hold of it, and outlives everybody who executes it, cannot write to it (CVE-2019-5736).
func TestMonitorIsSealed(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "")
	runner := filepath.Join(m.dir, "snapctl") // of its own: all who run it are killed; and static, as it is released, for the image has no libraries
	build := exec.Command("go", "build", "-trimpath", "-o", runner, "github.com/snapfs/snapfs/cmd/snapctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	program, err := os.ReadFile(runner)
	must(t, err)
	m.stop()
	m.config = fmt.Sprintf("runner = '%s'", runner)
	m.start()
	ref := hub.put(t, "sealed", newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t), symlink("self", "/proc/self/exe")}))
	m.pull(ref, true)
	m.ok("run", "-d", "--name", "evil", ref, "/inside", "take", "/result")
	m.says("evil", "waiting")
	m.ok("exec", "-d", "evil", "/self", "keeper", "/tmp") // which stays
	m.says("evil", "holding")
	containers, err := filepath.Glob(filepath.Join(m.root, "containers", "*"))
	must(t, err)
	m.kill()
	for _, pid := range m.processesNow() { // the keeper and the monitors
		kill9(t, pid)
	}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	must(t, err)
	is, err := os.Stat(runner)
	must(t, err)
	for _, exe := range exes { // those inside
		if e, err := os.Stat(exe); err == nil && os.SameFile(e, is) {
			pid, err := strconv.Atoi(strings.Split(exe, "/")[2])
			must(t, err)
			kill9(t, pid)
		}
	}
	for _, c := range containers {
		result := filepath.Join(c, "upper", "result")
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			said, err := os.ReadFile(result)
			if err == nil {
				if !strings.HasSuffix(string(said), unix.EROFS.Error()) {
					t.Errorf("writing to the monitor's program: %s, want %v", said, unix.EROFS)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("nobody has tried: %v", err)
			}
		}
	}
	if now, err := os.ReadFile(runner); err != nil || !bytes.Equal(now, program) {
		t.Errorf("the monitor's program was changed: %v", err)
	}
	m.start()
	m.ok("rm", "-f", "evil")
}

// says waits until a container has written that.
func (m *machine) says(name, text string) {
	m.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(m.ok("logs", name), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.Fatalf("%s does not say %q", name, text)
		}
	}
}

// A census is how many there are of what containers are made of, by name.
type census map[string]int

// census counts what this machine has, of descriptors and namespaces those in the daemon's processes.
func (m *machine) census(bridge string) census {
	m.Helper()
	c := census{}
	s, err := m.status()
	must(m, err)
	for name, pid := range map[string]int{"supervisor": s.Supervisor, "worker": s.Worker, "keeper": s.Keeper} {
		c.process(m, name, pid)
	}
	for _, pid := range m.processesNow() {
		if pid != s.Supervisor && pid != s.Worker && pid != s.Keeper {
			c["other processes"]++
		}
	}
	c["children that nobody waits for"] = zombies(s.Supervisor)
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(m, err)
	c["mounts"] = strings.Count(string(info), m.dir)
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, err := filepath.Glob(pattern + filepath.Base(m.dir) + "/*/")
		must(m, err)
		c["cgroups"] += len(dirs)
	}
	for name, top := range map[string]string{"files of the root": m.root, "files of run": m.run} {
		must(m, filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if p == filepath.Join(m.run, "lazy") || p == filepath.Join(m.run, "images") {
				return fs.SkipDir
			}
			if err == nil {
				c[name]++
			}
			return nil // it is on its way out
		}))
	}
	if b, err := net.InterfaceByName(bridge); err == nil {
		c["links"] = networktest.Links(m, "sv"+strconv.FormatInt(int64(b.Index), 36)+".")
		c["elements of tables"] = networktest.Elements(m, bridge)
	}
	return c
}

// process counts what a process has.
func (c census) process(t testing.TB, name string, pid int) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(proc + "fd")
	must(t, err)
	c["descriptors of the "+name] = len(fds)
	for _, fd := range fds {
		kind, inode, _ := strings.Cut(must1(os.Readlink(proc+"fd/"+fd.Name())), ":[")
		if inode != "" && kind != "socket" && kind != "pipe" {
			c[kind+" namespaces in the "+name]++
		}
	}
	threads, err := os.ReadDir(proc + "task")
	must(t, err)
	c["threads of the "+name] = len(threads)
	status, err := os.ReadFile(proc + "status")
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(kib)[0])
			must(t, err)
			c["KiB of the "+name] = n
		}
	}
}

func must1(s string, _ error) string { return s }

// zombies counts those of a process.
func zombies(parent int) (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range all {
		b, _ := os.ReadFile(p)
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			n++
		}
	}
	return n
}

// slack is how much of something may come and go by itself: Go makes threads as it needs them and keeps them, its
// heap has its ups and downs, and some descriptors are opened once, when they are first needed.
func slack(name string) int {
	switch {
	case strings.HasPrefix(name, "descriptors"):
		return 3
	case strings.HasPrefix(name, "threads"):
		return 12
	case strings.HasPrefix(name, "KiB"):
		return 32 << 10
	}
	return 0
}

// more lists of what there is more than there was.
func (c census) more(than census) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c[name] > than[name]+slack(name) {
			list = append(list, fmt.Sprintf("%s: %d, %d before", name, c[name], than[name]))
		}
	}
	return list
}

// TestManyShortContainers runs as many as SNAPFS_CONTAINERS says, 10,000 for example, one after another, some in the
// background and some that are removed by force, and looks at what is left of them: nothing.
func TestManyShortContainers(t *testing.T) {
	t.Parallel()
	count := 48
	if s := os.Getenv("SNAPFS_CONTAINERS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("SNAPFS_CONTAINERS: %v", err)
		}
	}
	hub, m := newHub(t), networkMachine(t)
	bridge := strings.TrimSpace(strings.Trim(m.config[strings.LastIndex(m.config, "=")+1:], " '\n"))
	ref := netImage(t, hub, "many")
	m.pull(ref, true)
	run := func(i int) {
		t.Helper()
		network := []string{"none", "bridge"}[i%2]
		switch name := fmt.Sprintf("c%d", i); i % 12 {
		case 8, 9: // with a port, and removed while it runs
			m.ok("run", "-d", "-q", "--network", network, "--name", name, "-P", "--expose", "80", ref, "/inside", "wait")
			m.ok("rm", "-f", name)
		case 10, 11: // kept until it is removed, and started twice
			m.ok("run", "-q", "--network", network, "--name", name, ref, "/inside", "exit", "0")
			m.ok("start", "-a", name)
			m.ok("rm", name)
		default:
			m.ok("run", "--rm", "-q", "--network", network, ref, "/inside", "exit", "0")
		}
	}
	for i := range 36 { // until everything that stays is there
		run(i)
	}
	var before census
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) { // links take a second to go
		last := before
		before = m.census(bridge)
		if last != nil && len(before.more(last))+len(last.more(before)) == 0 || time.Now().After(deadline) {
			break
		}
	}
	begun := time.Now()
	for i := range count {
		if run(i); t.Failed() {
			t.Fatalf("after %d containers", i)
		}
	}
	took := time.Since(begun)
	var after census
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		after = m.census(bridge)
		if len(after.more(before)) == 0 || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%d containers, %.1f/s\nbefore: %v\nafter:  %v", count, float64(count)/took.Seconds(), before, after)
	for _, line := range after.more(before) {
		t.Error(line)
	}
	m.ok("rmi", ref)
}
