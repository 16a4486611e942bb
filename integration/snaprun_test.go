package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/peers"
)

// snaprun is the OCI runtime, by the name that makes snapctl one.
func (m *machine) snaprun() string {
	m.Helper()
	name := filepath.Join(m.dir, "snaprun")
	if err := os.Symlink(filepath.Join(filepath.Dir(m.snapd), "snapctl"), name); err != nil && !os.IsExist(err) {
		m.Fatal(err)
	}
	return name
}

// boxImage is an image of busybox.
func boxImage(t *testing.T) *image { return newImage(t, gzipTar, busybox(t)) }

// logged starts a container whose output goes to a log.
func (p *pod) logged(ref string, more object, args ...string) (id string) {
	p.Helper()
	name := p.unique("container")
	config := object{"metadata": object{"name": name}, "image": object{"image": ref}, "command": args, "log_path": name + ".log", "linux": object{}}
	for k, v := range more {
		config[k] = v
	}
	id = p.do("create", p.id, p.file(config), p.config)
	p.do("start", id)
	return id
}

// ended waits until a container has ended, and returns its status.
func (p *pod) ended(id string) int {
	p.Helper()
	var s struct {
		Status struct {
			State    string
			ExitCode int
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		unmarshal(p, []byte(p.do("inspect", "-o", "json", id)), &s)
		if s.Status.State == "CONTAINER_EXITED" {
			return s.Status.ExitCode
		}
		if time.Now().After(deadline) {
			p.Fatalf("container %s is %s", id, s.Status.State)
		}
	}
}

// TestSnaprunPods: pods as a kubelet has them, with snaprun below containerd.
func TestSnaprunPods(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	k := m.kubelet("c", kind{peer: peers.Containerd24, snaprun: true}, hub.put(t, "pause", pauseImage(t)))
	ref := hub.put(t, "box", boxImage(t))
	k.do("pull", ref)
	testPods(k, ref)
	k.emptyCRI()
	m.nothingLeftSoon()
}

// testPods does what kubectl run, exec, attach, logs and delete do.
func testPods(k *kubelet, ref string) {
	k.Helper()
	p := k.pod(object{"network": 0}) // POD: namespaces of its own
	const script = `trap 'echo term; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done`
	id := p.logged(ref, object{"linux": object{"resources": object{"memory_limit_in_bytes": 64 << 20, "cpu_shares": 256, "cpu_quota": 50000, "cpu_period": 100000},
		"security_context": object{"seccomp": object{"profile_type": 0}, "readonly_rootfs": true, "namespace_options": object{"pid": 1}}}}, "sh", "-c", script)
	if got := p.exec(id, "sh", "-c", "echo $$; cat /proc/1/comm; touch /x 2>&1; true"); !strings.HasSuffix(got, "touch: /x: Read-only file system") || !strings.Contains(got, "\nsh\n") {
		k.Errorf("exec: %q", got)
	}
	if _, err := p.try("exec", "-s", id, "sh", "-c", "exit 3"); err == nil || !strings.Contains(err.Error(), "3") {
		k.Errorf("exec exit 3: %v", err)
	}
	if got := p.stream("in\n", "exec", "-i", id, "cat"); got != "in\n" {
		k.Errorf("exec -i cat: %q", got)
	}
	p.do("update", "--memory", "33554432", "--cpu-share", "512", id)
	var stats struct{ Stats []json.RawMessage }
	unmarshal(k, []byte(p.do("stats", "-o", "json", id)), &stats)
	if len(stats.Stats) != 1 {
		k.Errorf("stats: %+v", stats)
	}

	// Two containers of a pod see each other's processes, if they want, and share its host name.
	second := p.logged(ref, object{"linux": object{"security_context": object{"namespace_options": object{"pid": 0}}}}, "sh", "-c", "sleep 1000")
	third := p.logged(ref, object{"linux": object{"security_context": object{"namespace_options": object{"pid": 0}}}}, "sh", "-c", "sleep 2000")
	if got := p.exec(third, "ps", "-o", "args"); !strings.Contains(got, "sleep 1000") || !strings.Contains(got, "sleep 2000") || strings.Contains(got, "trap") {
		k.Errorf("processes of the pod: %s", got)
	}
	p.do("stop", "--timeout", "0", second, third)
	if got := p.ended(second); got != 137 {
		k.Errorf("a container that was killed has status %d, want 137", got)
	}

	// Attach: what is typed goes in, and what is written comes out.
	echo := p.logged(ref, object{"stdin": true}, "sh", "-c", "read line; echo got $line; read line; exit 5")
	p.attach(echo, "hello\n", "got hello", "bye\n")
	if got := p.ended(echo); got != 5 {
		k.Errorf("exit code %d, want 5", got)
	}
	p.do("stop", "--timeout", "30", id)
	if got := p.ended(id); got != 7 {
		k.Errorf("a container that was told to stop has status %d, want 7", got)
	}
	if got, err := p.try("logs", id); err != nil || !strings.HasPrefix(got, "out\n") || !strings.HasSuffix(got, "term\n") {
		k.Errorf("logs: %q, %v", got, err)
	}

	none := p.file(object{"metadata": object{"name": "none"}, "image": object{"image": ref}, "command": []string{"/no/such/program"}, "linux": object{}})
	bad := p.do("create", p.id, none, p.config)
	if _, err := p.try("start", bad); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		k.Errorf("start of a program that is not there: %v", err)
	}
	p.remove()
	onHostPod := k.podWith(object{"namespace_options": onHost, "privileged": true})
	privileged := onHostPod.logged(ref, object{"linux": object{"security_context": object{"namespace_options": onHost, "privileged": true}}}, "sh", "-c", "sleep 1000")
	if got := onHostPod.exec(privileged, "sh", "-c", "ls -d /dev/fuse; grep CapBnd /proc/self/status"); !strings.Contains(got, "/dev/fuse\n") {
		k.Errorf("privileged: %s", got)
	}
	host := onHostPod.logged(ref, object{"linux": object{"security_context": object{"namespace_options": onHost}}}, "sh", "-c", "echo host; exit 0")
	if got := onHostPod.ended(host); got != 0 {
		k.Errorf("on the host's network: status %d", got)
	}
	onHostPod.remove()
}

// stream runs crictl with an input, and returns what comes back.
func (p *pod) stream(in string, args ...string) string {
	p.Helper()
	out := new(lockedBuffer)
	cmd, stdin := p.streaming(out, args...)
	_, err := io.WriteString(stdin, in)
	if err := errors.Join(err, stdin.Close(), cmd.Wait()); err != nil { // the program ends with its input
		p.Fatalf("crictl %s: %v: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// attach types in a container, and what makes it end only after its answer:
// containerd lets go of who is attached when the container has ended, whatever is still on its way.
func (p *pod) attach(id, in, want, last string) {
	p.Helper()
	out := new(lockedBuffer)
	cmd, stdin := p.streaming(out, "attach", "-i", id)
	_, err := io.WriteString(stdin, in)
	for deadline := time.Now().Add(patience); err == nil && !strings.Contains(out.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			err = fmt.Errorf("it does not say %q", want)
		}
	}
	if err == nil {
		_, err = io.WriteString(stdin, last)
	} else {
		cmd.Process.Kill()
	}
	if err := errors.Join(err, cmd.Wait(), stdin.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
		p.Fatalf("attach: %v: %q", err, out.String())
	}
}

func (p *pod) streaming(out io.Writer, args ...string) (*exec.Cmd, io.WriteCloser) {
	p.Helper()
	endpoint := "unix://" + p.socket()
	cmd := exec.CommandContext(p.Context(), p.crictl, append([]string{"--config", "/dev/null", "-r", endpoint, "-i", endpoint, "-t", "30s"}, args...)...)
	cmd.Env = p.environment()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		p.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	return cmd, stdin
}

// TestSnaprunCritest: of the suite what concerns runtimes, with snaprun.
func TestSnaprunCritest(t *testing.T) {
	t.Parallel()
	testCritest(t, kind{peer: peers.Containerd24, snaprun: true}, snaprunFocus, snaprunSkip)
}

// What concerns the runtime, and not how images come. With runc (built without
// libseccomp, as here) three of seccomp fail besides.
const (
	snaprunFocus = "PodSandbox|basic operations on container|Container Mount|Security Context|Streaming|OOM"
	snaprunSkip  = criSkip +
		// They want images of Google's: nginx, httpd, nonewprivs, and a busybox with ipcs.
		"|portforward|HostPID|HostIpc is|PodPID|ContainerPID|NoNewPrivs" +
		"|MaskedPaths" + // of /bin/ls, which the shell of Debian's busybox has in itself
		// containerd 2.4.2 has none yet when the test asks for them, with runc neither.
		"|pod sandbox metrics"
)

// TestSnaprunNerdctl: nerdctl run --runtime snaprun.
func TestSnaprunNerdctl(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	nerdctl := filepath.Join(needPeer(t, peers.Nerdctl), "nerdctl")
	files := append(busybox(t), reg("etc/hostname", nil), reg("etc/hosts", nil), reg("etc/resolv.conf", nil)) // nerdctl mounts over them
	ref := hub.put(t, "nerdctl", newImage(t, gzipTar, files))
	c := m.containerd("c", kind{peer: peers.Containerd24})
	try := func(args ...string) (string, error) {
		t.Helper()
		out, err := c.command(t.Context(), nerdctl, append([]string{"--address", c.socket(), "--namespace", "default", "--snapshotter", c.snapshotter,
			"--data-root", filepath.Join(c.home, "n"), "--cgroup-manager", "cgroupfs", "--insecure-registry", "--cni-netconfpath", filepath.Join(c.home, "cni")}, args...)...)
		return strings.TrimSpace(out), err
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil {
			t.Fatalf("%v\ncontainerd said:\n%s", err, c.said())
		}
		return out
	}
	how := []string{"--runtime", m.snaprun(), "--net", "none", "--cgroup-parent", c.cgroup}
	run("pull", "-q", ref)
	if got := run(append(append([]string{"run", "--rm"}, how...), "--hostname", "named", "-m", "64m", "--pids-limit", "50", "--tmpfs", "/scratch:size=1m", "-e", "A=b", "-w", "/tmp", ref,
		"sh", "-c", "hostname; pwd; echo $A; grep -c . /proc/net/dev; grep ' /scratch ' /proc/mounts | cut -d' ' -f1-3")...); got != "named\n/tmp\nb\n3\ntmpfs /scratch tmpfs" {
		t.Errorf("run: %q", got)
	}
	if _, err := try(append(append([]string{"run", "--rm"}, how...), ref, "sh", "-c", "exit 9")...); err == nil || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("run of exit 9: %v", err)
	}
	run(append(append([]string{"run", "-d", "--name", "stays"}, how...), ref, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")...)
	if got := run("exec", "stays", "sh", "-c", "cat /proc/1/comm"); got != "sh" {
		t.Errorf("exec: %q", got)
	}
	run("pause", "stays")
	if got := run("inspect", "--format", "{{.State.Status}}", "stays"); got != "paused" {
		t.Errorf("it is %q, want paused", got)
	}
	run("unpause", "stays")
	run("stop", "stays")
	run("rm", "stays")
	run("rmi", "-f", ref)
	c.empty()
	m.nothingLeftSoon()
}

// A bundle is one that snaprun runs where a systemd is the machine's.
type bundle struct {
	*serviceManager
	dir, root, id, slice string
	spec                 *specs.Spec
	path                 string // of the group
}

// newBundle makes a bundle of busybox, which does what a shell script says.
func (s *serviceManager) newBundle(t *testing.T, id, script string) *bundle {
	t.Helper()
	b := &bundle{serviceManager: s, dir: filepath.Join(s.dir, id), root: filepath.Join(s.dir, "state"), id: id, slice: s.slice()}
	prog, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	if err := os.MkdirAll(filepath.Join(b.dir, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "rootfs/bin/busybox"), prog, 0o755); err != nil {
		t.Fatal(err)
	}
	b.do("spec", "--bundle", b.dir)
	text, err := os.ReadFile(filepath.Join(b.dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	b.spec = new(specs.Spec)
	unmarshal(t, text, b.spec)
	b.spec.Process.Terminal, b.spec.Process.Args = false, []string{"/bin/busybox", "sh", "-c", script}
	b.spec.Process.Rlimits = nil
	b.spec.Linux.CgroupsPath = b.slice + ":oci:" + id
	b.path = "/" + b.slice + "/" + b.unit()
	return b
}

// slice is one that no other test has.
func (s *serviceManager) slice() string { return "snapfs" + filepath.Base(s.dir) + ".slice" }

func (b *bundle) unit() string { return "oci-" + b.id + ".scope" }

// write writes config.json.
func (b *bundle) write() {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), marshal(b, b.spec), 0o600); err != nil {
		b.Fatal(err)
	}
}

// try runs snaprun there.
func (b *bundle) try(args ...string) (string, error) {
	b.Helper()
	line := append(append(b.prefix(), b.snaprun(), "--root", b.root, "--systemd-cgroup"), args...)
	cmd := exec.Command(line[0], line[1:]...)
	f, err := os.CreateTemp(b.dir, "output") // not a pipe: a container that stays has it, too
	if err != nil {
		return "", err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, rerr := os.ReadFile(f.Name())
	if err != nil {
		err = fmt.Errorf("snaprun %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), errors.Join(err, rerr)
}

func (b *bundle) do(args ...string) string {
	b.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.Fatalf("%v\n%s", err, b.said())
	}
	return out
}

// property is one of the unit's.
func (b *bundle) property(name string) string {
	out, err := b.systemctl("show", "--value", "--property="+name, b.unit())
	if err != nil {
		return err.Error()
	}
	return out
}

// file reads a file of the group's in a hierarchy of version 1.
func (b *bundle) file(name string) string {
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", filepath.Dir(name), filepath.Base(b.cgroups[0]), b.path, filepath.Base(name)))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

func (b *bundle) wants(what string, got map[string]string, look func(string) string) {
	b.Helper()
	for name, want := range got {
		if have := look(name); have != want {
			b.Errorf("%s: %s is %q, want %q", what, name, have, want)
		}
	}
}

// gone waits until systemd knows the unit no more, and nothing is left of its group.
func (b *bundle) gone(what string) {
	b.Helper()
	b.until(what+": the unit is gone", func() bool { return b.property("LoadState") == "not-found" })
	left, _ := filepath.Glob("/sys/fs/cgroup/*" + b.path)
	more, _ := filepath.Glob("/sys/fs/cgroup/*/*" + b.path)
	if left = append(left, more...); len(left) > 0 {
		b.Errorf("%s: left behind: %v", what, left)
	}
}

// TestSnaprunSystemd: groups of containers that are scopes of a systemd.
func TestSnaprunSystemd(t *testing.T) {
	t.Parallel()
	for _, unified := range []bool{false, true} {
		t.Run(map[bool]string{false: "as the machine is", true: "version 2 alone"}[unified], func(t *testing.T) {
			t.Parallel()
			testSnaprunSystemd(t, unified)
		})
	}
}

const staysScript = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

func testSnaprunSystemd(t *testing.T, unified bool) {
	s := &serviceManager{machine: newMachine(t, ""), unified: unified}
	s.begin(nil)
	has := func(controller string) bool { return !unified && exists("/sys/fs/cgroup/"+controller) }
	limited := has("memory") && has("cpu") && has("pids")

	b := s.newBundle(t, "one", staysScript)
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rw"}}}
	b.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/test", Type: "c", Major: 10, Minor: 229}, {Path: "/dev/other", Type: "c", Major: 10, Minor: 200}}
	properties := map[string]string{"Slice": b.slice, "Delegate": "yes", "DevicePolicy": "strict", "ActiveState": "active", "CollectMode": "inactive-or-failed", "ControlGroup": b.path}
	files := map[string]string{}
	if limited {
		r.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20))}
		r.CPU = &specs.LinuxCPU{Shares: new(uint64(512)), Quota: new(int64(50000)), Period: new(uint64(100000))}
		r.Pids = &specs.LinuxPids{Limit: new(int64(77))}
		for name, value := range map[string]string{"MemoryLimit": "67108864", "CPUShares": "512", "CPUQuotaPerSecUSec": "500ms", "TasksMax": "77"} {
			properties[name] = value
		}
		files = map[string]string{"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000", "pids/pids.max": "77"}
	}
	b.spec.Linux.Resources = r
	b.write()
	b.do("create", "--bundle", b.dir, b.id)
	t.Cleanup(func() {
		if t.Failed() {
			b.try("delete", "--force", b.id)
		}
	})
	b.wants("created", properties, b.property)
	b.wants("created", files, b.file)
	var state struct{ Pid int }
	unmarshal(t, []byte(b.do("state", b.id)), &state)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", state.Pid))
	if err != nil || !strings.Contains(string(groups), "0::") || strings.Count(string(groups), b.path+"\n") < map[bool]int{true: 1, false: 2}[unified] {
		t.Errorf("the process is in %s, %v, want %s", groups, err, b.path)
	}
	if pids := strings.Fields(b.do("ps", "--format", "json", b.id)); len(pids) != 1 || pids[0] != fmt.Sprintf("[%d]", state.Pid) {
		t.Errorf("processes of the group: %s, want %d", pids, state.Pid)
	}
	b.do("start", b.id)
	devices := func() string {
		t.Helper()
		return b.do("exec", b.id, "/bin/busybox", "sh", "-c", "(: </dev/test) && echo yes; (: </dev/other) || echo no; (: </dev/null) && echo null")
	}
	can := func(when string, want bool) {
		t.Helper()
		if got := devices(); strings.Contains(got, "yes\n") != want || want && !strings.Contains(got, "no\n") || !strings.HasSuffix(got, "null\n") {
			t.Errorf("devices %s: %q", when, got)
		}
	}
	can("of a new container", true)
	// The same unit again is somebody's.
	other := *b
	other.id = "other"
	if _, err := other.try("create", "--bundle", b.dir, "other"); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("create with the same cgroupsPath: %v", err)
	}
	if b.property("ActiveState") != "active" {
		t.Error("that took the first one's unit")
	}
	// Whatever systemd writes again is what stands there.
	if limited {
		b.do("update", "--pids-limit", "66", "--memory", "33554432", "--cpu-share", "1024", b.id)
		b.wants("updated", map[string]string{"TasksMax": "66", "MemoryLimit": "33554432", "CPUShares": "1024", "CPUQuotaPerSecUSec": "500ms"}, b.property)
		files = map[string]string{"memory/memory.limit_in_bytes": "33554432", "cpu/cpu.shares": "1024", "cpu/cpu.cfs_quota_us": "50000", "pids/pids.max": "66"}
	}
	s.does("daemon-reload")
	b.wants("after daemon-reload", files, b.file)
	can("after daemon-reload", true)
	changed := filepath.Join(b.dir, "resources")
	if err := os.WriteFile(changed, []byte(`{"devices": [{"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.do("update", "--resources", changed, b.id)
	can("after an update of them", false)
	b.do("pause", b.id)
	b.do("resume", b.id)
	b.do("kill", b.id, "TERM")
	b.until("its end", func() bool {
		var s struct{ Status string }
		return json.Unmarshal([]byte(b.do("state", b.id)), &s) == nil && s.Status == "stopped"
	})
	b.do("delete", b.id)
	b.gone("deleted")

	// In one call, with its status; and a name may come again at once.
	once := s.newBundle(t, "once", "exit 5")
	once.write()
	for range 2 {
		var e *exec.ExitError
		if _, err := once.try("run", "--bundle", once.dir, once.id); !errors.As(err, &e) || e.ExitCode() != 5 {
			t.Errorf("run: %v, want status 5", err)
		}
		once.gone("after run")
	}
	// A container of which the program is missing leaves no unit.
	once.spec.Process.Args = []string{"/none"}
	once.write()
	if _, err := once.try("run", "--bundle", once.dir, once.id); err == nil {
		t.Error("run of nothing worked")
	}
	once.gone("after a start that failed")

	// systemd ends, and is not the end of containers.
	b.write()
	b.do("create", "--bundle", b.dir, b.id)
	b.do("start", b.id)
	s.stay()
	s.d.cmd.Process.Kill()
	s.d.wait()
	var now struct {
		Pid    int
		Status string
	}
	if unmarshal(t, []byte(b.do("state", b.id)), &now); now.Status != "running" {
		t.Errorf("when systemd was killed the container is %s", now.Status)
	}
	if _, err := once.try("run", "--bundle", once.dir, once.id); err == nil || !strings.Contains(err.Error(), "no systemd answers") {
		t.Errorf("run without systemd: %v", err)
	}
	b.do("delete", "--force", b.id)
	if alive(now.Pid) {
		t.Error("delete --force has left the process")
	}
}

// stay keeps the namespaces of this systemd when it ends.
func (s *serviceManager) stay() {
	s.Helper()
	line := append(s.prefix(), "sleep", "1000")
	cmd := exec.Command(line[0], line[1:]...)
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	link := func(pid int) string {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		return name
	}
	s.until("somebody stays in the namespaces", func() bool { return link(cmd.Process.Pid) == link(s.d.cmd.Process.Pid) })
	s.target = cmd.Process.Pid
}

// TestSnaprunSystemdPods: as on a Kubernetes node: SystemdCgroup = true, and pods in slices.
func TestSnaprunSystemdPods(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	s := &serviceManager{machine: newMachine(t, "")}
	s.begin(nil)
	k := s.kubelet("c", kind{peer: peers.Containerd24, overlayfs: true, snaprun: true, slice: s.slice(), prefix: s.prefix()}, hub.put(t, "pause", pauseImage(t)))
	ref := hub.put(t, "box", boxImage(t))
	k.do("pull", ref)
	p := k.pod(onHost)
	id := p.logged(ref, object{"linux": object{"resources": object{"memory_limit_in_bytes": 64 << 20}}}, "sh", "-c", staysScript)
	units, err := s.systemctl("list-units", "--plain", "--no-legend", "cri-containerd-*.scope")
	if err != nil || strings.Count(units, ".scope") != 2 || !strings.Contains(units, "cri-containerd-"+id+".scope") {
		t.Errorf("units %q, %v, want those of the pod and of the container %s", units, err, id)
	}
	if got, err := s.systemctl("show", "--value", "--property=Slice", "cri-containerd-"+id+".scope"); got != s.slice() {
		t.Errorf("it is in %q, %v, want %s", got, err, s.slice())
	}
	p.remove()
	testPods(k, ref)
	s.until("all units are gone", func() bool {
		units, err := s.systemctl("list-units", "--all", "--plain", "--no-legend", "cri-containerd-*.scope")
		return err == nil && units == ""
	})
	k.emptyCRI()
}
