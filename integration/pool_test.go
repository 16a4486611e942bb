package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// pool is what snapctl pool says.
func (m *machine) pool() (p control.Pool) {
	m.Helper()
	if err := json.Unmarshal([]byte(m.ok("pool", "--json")), &p); err != nil {
		m.Fatal(err)
	}
	return p
}

// filled waits until the pool is full, of slots that are not any of not.
func (m *machine) filled(not ...int) control.Pool {
	m.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		p := m.pool()
		old := slices.ContainsFunc(p.Slots, func(s control.PoolSlot) bool { return slices.Contains(not, s.Pid) })
		if len(p.Slots) == p.Size && !old {
			return p
		}
		if time.Now().After(deadline) {
			m.Fatalf("the pool is not full: %+v; the daemon said:\n%s", p, m.d.log.String())
		}
	}
}

// gone waits until nothing is left of slots, process or cgroup.
func (m *machine) gone(slots []control.PoolSlot) {
	m.Helper()
	for _, s := range slots {
		for deadline := time.Now().Add(patience); alive(s.Pid) || len(groups(s.Cgroup)) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				m.Fatalf("left of a slot: process %d: %v, cgroups %v", s.Pid, alive(s.Pid), groups(s.Cgroup))
			}
		}
	}
}

// groups are the directories of a cgroup.
func groups(path string) (list []string) {
	if path == "" {
		return nil
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		some, _ := filepath.Glob(pattern + path)
		list = append(list, some...)
	}
	return list
}

func pids(slots []control.PoolSlot) (list []int) {
	for _, s := range slots {
		list = append(list, s.Pid)
	}
	return list
}

// TestPool: containers start in monitors and sandboxes that were there before them, each used once;
// and whoever of those involved is killed, nothing is left, and starts go on.
func TestPool(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "[pool]\nsize = 2\n")
	im := newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t)}, someFiles(1500, "data", 5))
	ref := hub.put(t, "pool", im)
	m.pull(ref, true)

	p := m.filled()
	if len(p.Slots) != 2 || p.Slots[0].Cgroup == "" {
		t.Fatalf("pool at first: %+v", p)
	}
	first := p.Slots
	im.checkSums(t, "data/", m.ok("run", "--rm", ref, "/inside", "sums", "/data"))
	p = m.filled(first[0].Pid)
	if p.Counts.Hits != 1 || p.Counts.Sandboxes != 1 || len(p.Counts.Misses) != 0 {
		t.Errorf("after a start: %+v", p.Counts)
	}
	m.gone(first[:1])
	for name, row := range map[string]struct {
		args []string
		code int
	}{
		"exit status":       {[]string{"run", "--rm", ref, "/inside", "exit", "7"}, 7},
		"no command":        {[]string{"run", "--rm", ref, "/nothing"}, 127},
		"no permission":     {[]string{"run", "--rm", ref, "/data"}, 126},
		"init":              {[]string{"run", "--rm", "--init", ref, "/inside", "exit", "3"}, 3},
		"its own user":      {[]string{"run", "--rm", "-u", "7:8", ref, "/inside", "exit", "4"}, 4},
		"read-only":         {[]string{"run", "--rm", "--read-only", ref, "/inside", "exit", "5"}, 5},
		"host's pids":       {[]string{"run", "--rm", "--pid", "host", ref, "/inside", "exit", "6"}, 6},
		"privileged":        {[]string{"run", "--rm", "--privileged", ref, "/inside", "exit", "8"}, 8},
		"a limit too small": {[]string{"run", "--rm", "-m", "1k", ref, "/inside", "exit", "0"}, 125},
	} {
		m.filled()
		if _, code := m.snapctl(row.args...); code != row.code {
			t.Errorf("%s: exit status %d, want %d", name, code, row.code)
		}
	}
	if c := m.pool().Counts; c.Bare["namespaces"] != 1 || c.Sandboxes != 8 {
		t.Errorf("counts: %+v", c)
	}

	// The limits are the container's, not the slot's.
	m.filled()
	m.ok("run", "-d", "--name", "limited", "-m", "64m", "--pids-limit", "50", ref, "/inside", "wait")
	cgroup := m.cgroupOf("limited")
	if !strings.Contains(cgroup, "/pool-") {
		t.Errorf("the container is in cgroup %s, want a slot's", cgroup)
	}
	if at := "/sys/fs/cgroup/memory" + cgroup + "/memory.limit_in_bytes"; exists(at) {
		b, err := os.ReadFile(at)
		if must(t, err); strings.TrimSpace(string(b)) != strconv.Itoa(64<<20) {
			t.Errorf("memory limit is %s", b)
		}
		b, err = os.ReadFile("/sys/fs/cgroup/pids" + cgroup + "/pids.max")
		if must(t, err); strings.TrimSpace(string(b)) != "50" {
			t.Errorf("limit of processes is %s", b)
		}
	}
	if out := m.ok("exec", "limited", "/inside", "cat", "/proc/self/mountinfo"); strings.Contains(out, m.dir+"/root/containers/-") {
		t.Errorf("the container sees a slot's: %s", out)
	}

	// It was in a slot, and lives on without everybody.
	p = m.filled()
	m.kill()
	m.gone(p.Slots)
	m.start()
	m.ok("exec", "limited", "/inside", "exit", "0")
	p = m.filled()

	s, err := m.status()
	must(t, err)
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	m.gone(p.Slots)
	p = m.filled(pids(p.Slots)...)

	// Its monitor is killed.
	for _, pid := range m.monitors("limited") {
		kill9(t, pid)
	}
	for deadline := time.Now().Add(patience); len(groups(cgroup)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left of a container: %v", groups(cgroup))
		}
	}
	m.ok("rm", "limited")

	// Slots are killed while they wait: they are not handed out.
	for range 3 {
		p = m.filled()
		for _, s := range p.Slots {
			kill9(t, s.Pid)
		}
		m.ok("run", "--rm", ref, "/inside", "exit", "0")
		m.gone(p.Slots)
	}

	// And while they start a container: it starts, or says why not, and is gone.
	for i := range 12 {
		p = m.filled()
		done := make(chan struct{})
		go func() {
			defer close(done)
			time.Sleep(time.Duration(i) * 500 * time.Microsecond)
			unix.Kill(p.Slots[0].Pid, unix.SIGKILL)
		}()
		m.snapctl("run", "--rm", ref, "/inside", "exit", "0")
		<-done
		m.gone(p.Slots[:1])
	}
	if out := m.ok("ps", "-q"); out != "" {
		t.Errorf("containers run: %q", out)
	}

	// A container that has ended starts again, in the cgroup that it has had.
	m.filled()
	if _, code := m.snapctl("run", "--name", "again", ref, "/inside", "exit", "9"); code != 9 {
		t.Errorf("exit status %d, want 9", code)
	}
	m.filled()
	if _, code := m.snapctl("start", "-a", "again"); code != 9 {
		t.Errorf("started again: exit status %d, want 9", code)
	}
	m.ok("rm", "again")

	m.ok("pool", "--drain")
	m.gone(p.Slots)
	m.ok("pool", "--size", "0")
	m.ok("run", "--rm", ref, "/inside", "exit", "0")
	if p := m.pool(); len(p.Slots) != 0 || p.Size != 0 {
		t.Errorf("without a pool: %+v", p)
	}
	m.ok("pool", "--size", "1")
	m.filled()
	if out := m.ok("stat", "--prometheus"); !strings.Contains(out, `snapfs_pool_ready{kind="slot"} 1`) {
		t.Errorf("metrics:\n%s", out)
	}
	for _, c := range strings.Fields(m.ok("ps", "-a", "-q")) {
		m.ok("rm", c)
	}
	m.ok("rmi", ref)
	m.nothingLeft()
}

// cgroupOf is the cgroup of a container.
func (m *machine) cgroupOf(name string) string {
	m.Helper()
	var list []struct {
		Config struct {
			Spec struct{ Linux struct{ CgroupsPath string } }
		}
	}
	if err := json.Unmarshal([]byte(m.ok("inspect", name)), &list); err != nil || len(list) != 1 {
		m.Fatalf("inspect: %d, %v", len(list), err)
	}
	return list[0].Config.Spec.Linux.CgroupsPath
}
