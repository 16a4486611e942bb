package integration

import (
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
	"github.com/snapfs/snapfs/internal/peers"
)

const systemdProgram = "/lib/systemd/systemd"

// systemdScript makes a place for a service manager: its own /run and cgroups, of all hierarchies,
// as at its end it removes every empty group that it sees, and for the rest the machine as it is. Mounts below the machine's directory, $1, which
// is shared, are seen by all, as those of a service without a mount namespace.
const systemdScript = `
set -e
for d in / /run /sys /sys/fs/cgroup; do mount --make-private $d 2>/dev/null || true; done
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR/systemd" "$XDG_CONFIG_HOME"
chmod 700 "$XDG_RUNTIME_DIR"
cp -r "$1/units" "$XDG_RUNTIME_DIR/systemd/user"
ln -s "$XDG_RUNTIME_DIR/systemd/private" /run/systemd/private # as if it were the machine's
cp /proc/self/mounts /run/mounts
while read -r _ dir type options _; do
	case $type:$options in
	cgroup:*name=*) options=none,name=${options##*name=} ;;
	cgroup:*) options=${dir##*/} ;;
	cgroup2:*) options=rw ;;
	*) continue ;;
	esac
	umount "$dir"
	mount -t $type -o $options none "$dir"
done </run/mounts
[ -z "$2" ] || { umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; }
exec ` + systemdProgram + ` --user --unit=basic.target --log-target=console --log-level=warning
`

// A serviceManager is a systemd with the units of packaging/systemd, changed in
// nothing but paths.
type serviceManager struct {
	*machine
	cgroups []string
	unified bool // it sees cgroups of version 2 only
	target  int  // a process in its namespaces, if it is not systemd itself
}

// newServiceManager starts a systemd for a machine. dropIns are files for the service.
func newServiceManager(m *machine, dropIns map[string]string) *serviceManager {
	m.Helper()
	return (&serviceManager{machine: m}).begin(dropIns)
}

func (s *serviceManager) begin(dropIns map[string]string) *serviceManager {
	m := s.machine
	m.Helper()
	if !exists(systemdProgram) {
		m.Skip("needs " + systemdProgram)
	}
	for _, p := range []string{"unshare", "systemctl", "nsenter"} {
		needProgram(m, p)
	}
	m.share()
	m.Cleanup(s.cleanUp)
	s.units(dropIns)
	name := filepath.Base(m.dir) + "-systemd"
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if exists("/sys/fs/cgroup/cgroup.procs") {
		tops = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, top := range tops {
		top = filepath.Dir(top)
		if fi, err := os.Lstat(top); err != nil || !fi.IsDir() { // cpu is a link to cpu,cpuacct on some
			continue
		}
		d := filepath.Join(top, name)
		s.cgroups = append(s.cgroups, d)
		if err := os.Mkdir(d, 0o755); err != nil {
			m.Fatal(err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // of version 1, whose groups begin without any
			if b, err := os.ReadFile(filepath.Join(top, file)); err == nil && exists(filepath.Join(d, "cgroup.clone_children")) {
				if err := errors.Join(os.WriteFile(filepath.Join(d, file), b, 0), os.WriteFile(filepath.Join(d, "cgroup.clone_children"), []byte("1"), 0)); err != nil {
					m.Fatal(err)
				}
			}
		}
	}
	enter := ""
	for _, d := range s.cgroups {
		enter += "echo $$ >" + d + "/cgroup.procs\n"
	}
	cmd := exec.Command("/bin/sh", "-ec", enter+`exec unshare --mount --cgroup --propagation unchanged /bin/sh -c "$0" sh "$1" "$2"`, systemdScript, m.dir, map[bool]string{true: "unified"}[s.unified])
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/run/home", "XDG_RUNTIME_DIR=/run/user/0", "XDG_CONFIG_HOME=/run/home/.config"}
	d := &daemon{cmd: cmd}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &d.log, &d.log, time.Second
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	d.wait = sync.OnceValue(cmd.Wait)
	m.d = d
	s.until("systemd answers", func() bool {
		_, err := s.systemctl("show", "--property=Version")
		return err == nil
	})
	return s
}

// prefix is of command lines that run where this systemd is the machine's.
func (s *serviceManager) prefix() []string {
	s.Helper()
	enter := ""
	for _, d := range s.cgroups {
		if !exists(filepath.Join(d, "tasks")) { // with version 2 nobody is in a group that has others below
			d = filepath.Join(d, "runner")
			if err := os.Mkdir(d, 0o755); err != nil && !os.IsExist(err) {
				s.Fatal(err)
			}
		}
		enter += "echo $$ >" + d + "/cgroup.procs; "
	}
	target := s.target
	if target == 0 {
		target = s.d.cmd.Process.Pid
	}
	return []string{"/bin/sh", "-ec", fmt.Sprintf(`%sexec nsenter --target %d --mount --cgroup -- "$@"`, enter, target), "sh"}
}

// units copies the units that we ship, and says what is different here.
func (s *serviceManager) units(dropIns map[string]string) {
	s.Helper()
	units := filepath.Join(s.dir, "units")
	if err := os.CopyFS(units, os.DirFS("../packaging/systemd")); err != nil {
		s.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(units, "snapfs.service.d")); err != nil {
		s.Fatal(err)
	}
	config := filepath.Join(s.dir, "snapd.toml")
	write := func(path, text string) {
		path = filepath.Join(units, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			s.Fatal(err)
		}
	}
	write("snapfs.service.d/zz-here.conf", fmt.Sprintf("[Unit]\nRequiresMountsFor=\n[Service]\nExecStart=\nExecStart=%s --config %s --root %s --run %s\nStandardError=append:%s/snapd.log\n",
		s.snapd, config, s.root, s.run, s.dir))
	write("snapfs.socket.d/zz-here.conf", fmt.Sprintf("[Socket]\nListenStream=\nListenStream=%s/snapd.sock\nListenStream=%s/containerd.sock\n", s.run, s.run))
	for name, text := range dropIns {
		write("snapfs.service.d/"+name, text)
	}
	if err := os.WriteFile(config, []byte(s.config+"\n[network]\ndefault = 'none'\n"), 0o600); err != nil {
		s.Fatal(err)
	}
}

// systemctl runs systemctl against this systemd.
func (s *serviceManager) systemctl(args ...string) (string, error) {
	cmd := exec.Command("systemctl", append([]string{"--user"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), fmt.Sprintf("XDG_RUNTIME_DIR=/proc/%d/root/run/user/0", s.d.cmd.Process.Pid)}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (s *serviceManager) does(args ...string) {
	s.Helper()
	if _, err := s.systemctl(args...); err != nil {
		s.Fatalf("%v\n%s", err, s.said())
	}
}

// said is what snapd said, and systemd.
func (s *serviceManager) said() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "snapd.log"))
	return string(b) + s.d.log.String()
}

func (s *serviceManager) show(property string) string {
	out, err := s.systemctl("show", "--value", "--property="+property, "snapfs.service")
	if err != nil {
		return err.Error()
	}
	return out
}

func (s *serviceManager) until(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("waited for: %s\n%s", what, s.said())
		}
	}
}

// ready waits until the service is up with another supervisor than pid.
func (s *serviceManager) ready(not int) int {
	s.Helper()
	pid := 0
	s.until("the service is up", func() bool {
		pid, _ = strconv.Atoi(s.show("MainPID"))
		st, err := s.status()
		return s.show("ActiveState") == "active" && err == nil && st.Ready && st.Supervisor == pid && pid != not
	})
	return pid
}

func (s *serviceManager) cleanUp() {
	if s.d != nil {
		if s.Failed() {
			s.Log(s.said())
		}
		s.systemctl("stop", "snapfs.service", "snapfs.socket")
		if s.Failed() { // its keeper may have to be ended
			s.systemctl("kill", "--kill-who=all", "--signal=KILL", "snapfs.service")
		}
		s.d.cmd.Process.Signal(unix.SIGTERM)
		if !s.ends(s.d, patience) {
			s.Errorf("systemd does not end: %s", s.d.log.String())
			s.d.cmd.Process.Kill()
		}
		s.d = nil
	}
	for _, top := range s.cgroups {
		var all []string
		filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for i := range all {
			if err := rmdir(all[len(all)-1-i]); err != nil {
				s.Error(err)
			}
		}
	}
}

// share makes what is mounted below the machine's directory in one mount
// namespace appear there in others, as below /run on most systems.
func (m *machine) share() {
	m.Helper()
	if err := unix.Mount(m.dir, m.dir, "", unix.MS_BIND, ""); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		left, err := mounts.List(m.dir)
		if err != nil || len(left) != 1 {
			m.Errorf("left mounted: %+v, %v", left, err)
		}
		if err := mounts.Unmount(m.dir, true); err != nil {
			m.Error(err)
		}
	})
	if err := unix.Mount("", m.dir, "", unix.MS_SHARED, ""); err != nil {
		m.Fatal(err)
	}
}

// TestUnits: systemd understands what is in the units.
func TestUnits(t *testing.T) {
	needProgram(t, "systemd-analyze")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../packaging/systemd")); err != nil {
		t.Fatal(err)
	}
	service := filepath.Join(dir, "snapfs.service")
	text, err := os.ReadFile(service)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(service, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/snapd", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", "snapfs.service", "snapfs.socket")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "SYSTEMD_LOG_LEVEL=warning")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		// Debian 12's systemd 252 does not know them; the unit says so.
		if strings.Contains(line, "'RestartSteps'") || strings.Contains(line, "'RestartMaxDelaySec'") || !strings.Contains(line, "snapfs") {
			continue
		}
		t.Error(strings.TrimSpace(line))
	}
}

// TestSystemd: the units that we ship, and a systemd, on which containerd's
// containers read all the while what is missing. No read fails, whatever is done.
func TestSystemd(t *testing.T) {
	t.Parallel()
	hardened, err := os.ReadFile("../packaging/systemd/snapfs.service.d/containerd-only.conf")
	if err != nil {
		t.Fatal(err)
	}
	for name, dropIns := range map[string]map[string]string{"plain": nil, "containerd-only": {"containerd-only.conf": string(hardened)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testSystemd(t, dropIns)
		})
	}
}

func testSystemd(t *testing.T, dropIns map[string]string) {
	hub := newHub(t)
	m := newMachine(t, "")
	m.config = fmt.Sprintf("pull.complete = false\n[[containerd]]\naddress = %q\n", filepath.Join(m.dir, "c", "c.sock"))
	s := newServiceManager(m, dropIns)

	// The sockets are there before snapd is, and start it.
	s.does("start", "snapfs.socket")
	for _, name := range []string{"snapd.sock", "containerd.sock"} {
		if st, err := os.Lstat(filepath.Join(m.run, name)); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("%s: %v, %v", name, st, err)
		}
	}
	if got := s.show("ActiveState"); got != "inactive" {
		t.Errorf("the service is %s before anybody has asked for anything", got)
	}
	c := m.containerd("c", kind{peer: peers.Containerd24})
	im := newImage(t, eStargz, base(t), someFiles(1600, "data", 60))
	ref := hub.put(t, "systemd", im)
	c.pull(ref)
	pid := s.ready(0)
	if got := s.show("NFileDescriptorStore"); got != "2" {
		t.Errorf("systemd stores %s descriptors, want 2", got)
	}
	if got := s.show("StatusText"); !strings.HasPrefix(got, "worker ") {
		t.Errorf("status %q", got)
	}
	// Owners are shifted by a user namespace that the supervisor makes.
	if got := c.ctr(c.runArgs([]string{"--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"}, ref, c.unique("user"), "/inside", "owner", "/data/f000")...); got != "0 0\n" {
		t.Errorf("in a user namespace root's file belongs to %q", got)
	}
	s.until("the mount for it goes with it", func() bool {
		left, err := filepath.Glob(filepath.Join(m.run, "images", "*-mapped-*"))
		return len(left) == 0 && err == nil
	})
	container := c.stays(ref)
	top, unmount := c.mountImage(ref)
	unmountOnce := sync.OnceFunc(unmount)
	t.Cleanup(unmountOnce)
	stop := im.load(t, top)
	t.Cleanup(func() { // before load's own
		if t.Failed() { // readers may wait for a daemon that is not there
			s.systemctl("reset-failed")
			s.systemctl("start", "snapfs.service")
		}
	})
	works := func(what string) {
		t.Helper()
		t.Logf("after %s", what)
		m.evict()
		// It waits a second for a connection, and then makes a pause. Usually no
		// call fails; but that is a matter of time, and of stops not at all.
		s.until("containerd has connected again", func() bool {
			_, err := c.command(t.Context(), "ctr", "snapshots", "--snapshotter", c.snapshotter, "ls")
			return err == nil
		})
		im.checkSums(t, "data/", c.exec(container, "/inside", "sums", "/data"))
		im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
	}
	processes := func() (all []int) {
		st, err := m.status()
		if err != nil {
			t.Fatal(err)
		}
		return []int{st.Supervisor, st.Keeper, st.Worker}
	}

	s.does("restart", "snapfs.service")
	pid = s.ready(pid)
	works("systemctl restart")

	before := processes()
	s.does("reload", "snapfs.service")
	s.until("another worker", func() bool { now, err := m.status(); return err == nil && now.Ready && now.Worker != before[2] })
	if now := processes(); now[0] != before[0] || now[1] != before[1] {
		t.Errorf("supervisor and keeper were %v, and are %v after a reload", before, now)
	}
	works("systemctl reload")

	kill9(t, pid)
	pid = s.ready(pid)
	works("kill -9 of the supervisor")

	for _, p := range processes() {
		kill9(t, p)
	}
	pid = s.ready(pid)
	works("kill -9 of supervisor, keeper and worker")

	// A stop leaves reads waiting for the next start. It takes the sockets, so that
	// nobody starts the service by accident.
	before = processes()
	s.does("stop", "snapfs.service", "snapfs.socket")
	if alive(before[0]) || alive(before[2]) || !alive(before[1]) {
		t.Errorf("after a stop supervisor, keeper and worker %v live: %v %v %v, want the keeper only", before, alive(before[0]), alive(before[1]), alive(before[2]))
	}
	s.does("start", "snapfs.service")
	s.ready(pid)
	works("systemctl stop and start")

	c.kill()
	s.does("restart", "snapfs.service")
	c.start()
	works("a restart of snapd while containerd was dead")

	r := stop()
	t.Logf("%d files read, %d failed, %d wrong", r.read.Load(), r.failed.Load(), r.wrong.Load())
	if r.read.Load() == 0 {
		t.Error("nothing was read")
	}
	unmountOnce()
	c.end(container)
	c.empty()
	keeper := processes()[1]
	s.does("stop", "snapfs.service", "snapfs.socket")
	s.until("the keeper's end", func() bool { return !alive(keeper) })
	if got := s.show("NFileDescriptorStore"); got != "0" {
		t.Errorf("systemd stores %s descriptors of a service that has nothing mounted", got)
	}
	if left, err := mounts.List(m.run); len(left) > 0 || err != nil {
		t.Errorf("left mounted: %+v, %v", left, err)
	}
}
