package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// TestRunRefuses: an error of run names the option, and leaves nothing behind.
func TestRunRefuses(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "[network]\ndefault = 'none'")
	ref := netImage(t, hub, "refuses")
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte("of the host"), 0o600))
	long := filepath.Join(t.TempDir(), "long")
	must(t, os.WriteFile(long, []byte("X="+strings.Repeat("x", 1<<17)), 0o600)) // MAX_ARG_STRLEN
	for _, row := range []struct{ args, want string }{
		{"--stop-signal nonsense", "--stop-signal"},
		{"--hostname " + strings.Repeat("a", 65), "--hostname"},
		{"--cpuset-cpus 65535", "--cpuset-cpus \"65535\": this machine has"},
		{"--pids-limit 99999999", "--pids-limit"},
		{"--memory 1k", "--memory"},
		{"-v " + file + "/x:/x", "--volume " + file + "/x"},
		{"--mount type=bind,source=/nonexistent,target=/x", "--mount source=/nonexistent"},
		{"--device /nonexistent", "--device /nonexistent"},
		{"--ulimit nofile=2147483647", "fs.nr_open"},
		{"--user nobody-knows", "nobody-knows"},
		{"--group-add nobody-knows", "nobody-knows"},
		{"--ipc container:none", "--ipc container:none"},
		{"--network container:none", "--network container:none"},
		{"--env-file " + long, "environment"},
	} {
		args := append(append([]string{"run", "-q", "--rm"}, strings.Fields(row.args)...), ref, "/inside", "exit", "0")
		if text := m.fails(args...); !strings.Contains(text, row.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("run %.60s: %q, want one line with %q", row.args, text, row.want)
		}
	}
	if out := m.ok("ps", "-a", "-q"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
	if out := m.ok("run", "--rm", "-v", file+":/file", ref, "/inside", "cat", "/file"); out != "of the host" {
		t.Errorf("a file that is shown by -v: %q", out)
	}
}

// state is the recorded state of a container.
func (m *machine) state(id string) monitor.State {
	m.Helper()
	st, err := monitor.LoadState(filepath.Join(m.root, "containers", id))
	must(m, err)
	return st
}

// TestMonitorKilledInTheStart: a monitor that is killed in the middle of a start
// has recorded no process, but may have made one. With the next monitor it is gone.
func TestMonitorKilledInTheStart(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "[network]\ndefault = 'none'")
	id := strings.TrimSpace(m.ok("create", "--name", "half", netImage(t, hub, "half"), "/inside", "wait"))
	orphan := func(id string) (*exec.Cmd, string) {
		path := m.cgroup() + "/" + id
		g, err := cgroups.Create(path, nil)
		must(t, err)
		defer g.Release()
		c := exec.Command("sleep", "1000")
		must(t, c.Start())
		time.AfterFunc(patience, func() { c.Process.Signal(unix.SIGTERM) }) // what is waited for is another signal
		for _, d := range g.Dirs() {
			must(t, os.WriteFile(filepath.Join(d.Path, "cgroup.procs"), fmt.Append(nil, c.Process.Pid), 0))
		}
		return c, g.Dirs()[0].Path
	}
	c, dir := orphan(id)
	kill9(t, m.state(id).Monitor)
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("what is left of a start ended by itself: %v", err)
	}
	m.eventually("the cgroup goes", func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) })
	m.kill() // and while there is no daemon
	c, dir = orphan(id)
	removed := strings.Repeat("ab", 32) // whose monitor was killed while it removed it
	trash := filepath.Join(m.root, "containers", monitor.TrashPrefix+removed)
	must(t, os.MkdirAll(filepath.Join(trash, "upper/dir"), 0o700))
	half, halfDir := orphan(removed)
	m.start()
	half.Wait()
	m.eventually("a half removed container goes", func() bool {
		_, err := os.Stat(halfDir)
		_, terr := os.Stat(trash)
		return os.IsNotExist(err) && os.IsNotExist(terr)
	})
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("what is left of a start ended by itself: %v", err)
	}
	m.eventually("the cgroup goes", func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) })
	m.ok("start", "half")
	m.ok("rm", "-f", "half")
}

// TestStoppedMonitor: a monitor that does not answer keeps nobody from seeing the
// others, and its container can be got rid of.
func TestStoppedMonitor(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "[network]\ndefault = 'none'")
	ref := netImage(t, hub, "stopped")
	id := strings.TrimSpace(m.ok("run", "-d", "--name", "deaf", ref, "/inside", "wait"))
	other := strings.TrimSpace(m.ok("run", "-d", ref, "/inside", "wait"))
	pid := m.state(id).Monitor
	must(t, unix.Kill(pid, unix.SIGSTOP))
	defer unix.Kill(pid, unix.SIGCONT)
	if out := m.ok("ps", "-q", "--no-trunc"); !strings.Contains(out, id) || !strings.Contains(out, other) {
		t.Errorf("ps: %q", out)
	}
	m.ok("inspect", "deaf")
	m.ok("logs", "deaf")
	m.ok("rm", "-f", other)
	if text := m.fails("rm", "-f", "deaf"); !strings.Contains(text, fmt.Sprintf("kill -9 %d", pid)) {
		t.Errorf("rm -f: %q", text)
	}
	must(t, unix.Kill(pid, unix.SIGKILL))
	m.eventually("it is dead", func() bool {
		var c control.Container
		m.must(control.OpResolve, control.ContainerArgs{ID: id}, &c)
		return c.Status == monitor.StatusDead
	})
	m.ok("rm", "deaf")
}

// TestUnreadableContainer: what a daemon cannot read of a container it leaves alone, and serves the others.
func TestUnreadableContainer(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "[network]\ndefault = 'none'")
	ref := netImage(t, hub, "unreadable")
	id := strings.TrimSpace(m.ok("create", ref, "/inside", "make", "/mine"))
	m.ok("start", "-a", id)
	m.stop()
	name := filepath.Join(m.root, "containers", id, monitor.ConfigFile)
	b, err := os.ReadFile(name)
	must(t, err)
	must(t, os.WriteFile(name, bytes.Replace(b, []byte(`"ID"`), []byte(`"DI"`), 1), 0o600))
	m.start()
	if out := m.ok("ps", "-a", "-q"); out != "" {
		t.Errorf("ps: %q", out)
	}
	m.ok("run", "--rm", ref, "/inside", "exit", "0")
	m.stop()
	must(t, os.WriteFile(name, b, 0o600))
	m.start()
	var c control.Container
	m.must(control.OpResolve, control.ContainerArgs{ID: id}, &c)
	if _, err := os.Stat(filepath.Join(m.root, "containers", id, "upper/mine")); err != nil || c.Status != monitor.StatusExited {
		text, _ := json.Marshal(c)
		t.Errorf("the container after its configuration is back: %s, %v", text, err)
	}
	m.ok("rm", id)
}

// TestRunClientKilled: a client that is killed while its container is being made leaves
// that, or nothing: no monitor that nobody knows.
func TestRunClientKilled(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "[pool]\nsize = 1\n")
	ref := hub.put(t, "killed", newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t)}))
	m.pull(ref, true)
	for i := range 24 {
		c := exec.Command(filepath.Join(filepath.Dir(m.snapd), "snapctl"), "--host", "unix://"+filepath.Join(m.run, "snapd.sock"), "run", "--rm", ref, "/inside", "wait")
		must(t, c.Start())
		time.Sleep(time.Duration(i) * 1500 * time.Microsecond)
		must(t, c.Process.Kill())
		c.Wait()
		if i%2 == 0 {
			m.filled()
		}
	}
	m.ok("pool", "--size", "0")
	var left []int
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		for _, id := range strings.Fields(m.ok("ps", "-a", "-q")) {
			m.snapctl("rm", "-f", id)
		}
		left = left[:0]
		for _, pid := range m.processesNow() {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(b), "\x00monitor\x00") {
				left = append(left, pid)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("%d monitors of no container are left: %v; the daemon said:\n%s", len(left), left, m.d.log.String())
		for _, pid := range left {
			kill9(t, pid)
		}
	}
}
