package runtime

import (
	"encoding/json"
	"errors"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// small is the least spec there is.
func small() *specs.Spec {
	return &specs.Spec{Root: &specs.Root{Path: "/r"}, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "mount"}}}}
}

func idRanges(inside, outside, size uint32) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: inside, HostID: outside, Size: size}}
}

// user gives a spec a user namespace.
func user(s *specs.Spec, m []specs.LinuxIDMapping) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
	s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
}

// offset gives a spec a time namespace.
func offset(s *specs.Spec, clock string, o specs.LinuxTimeOffset) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{clock: o}
}

func TestPlanRefuses(t *testing.T) {
	one, two := 1, uint32(2)
	for want, change := range map[string]func(*specs.Spec){
		"process is missing":       func(s *specs.Spec) { s.Process = nil },
		"nothing to execute":       func(s *specs.Spec) { s.Process.Args = nil },
		"process.args":             func(s *specs.Spec) { s.Process.Args = []string{"a\x00"} },
		"process.env":              func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} },
		"process.cwd":              func(s *specs.Spec) { s.Process.Cwd = "rel" },
		"process.user":             func(s *specs.Spec) { s.Process.User.UID = 1 << 31 },
		"additionalGids":           func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1 << 31} },
		"oomScoreAdj":              func(s *specs.Spec) { n := 1001; s.Process.OOMScoreAdj = &n },
		"RLIMIT_X":                 func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"soft 2 is above hard 1":   func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS", Soft: 2, Hard: 1}} },
		"RLIMIT_AS is there twice": func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS"}, {Type: "RLIMIT_AS"}} },
		"effective has more": func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Effective: []string{"CAP_CHOWN"}}
		},
		"ambient has more":        func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{Ambient: []string{"CAP_CHOWN"}} },
		"hooks.poststop[0]: path": func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} },
		"hooks.createRuntime[0]: timeout": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x", Timeout: new(int)}}}
		},
		"NUL byte": func(s *specs.Spec) {
			//lint:ignore SA1019 a deprecated hook is one nevertheless
			s.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/x", Args: []string{"\x00"}}}}
		},
		"apparmorProfile":         func(s *specs.Spec) { s.Process.ApparmorProfile = "x\n" },
		"selinuxLabel":            func(s *specs.Spec) { s.Process.SelinuxLabel = strings.Repeat("x", 5000) },
		"mountLabel":              func(s *specs.Spec) { s.Linux.MountLabel = "\"" },
		"intelRdt: not supported": func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"memoryPolicy: mode":      func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} },
		"MPOL_BIND needs nodes":   func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} },
		"no list of memory nodes": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "a"}
		},
		"neither nodes nor flags": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolLocal, Nodes: "0"}
		},
		"both static and relative": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes, specs.MpolFRelativeNodes}}
		},
		"netDevices: the container has the host's": func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} },
		"no name of a device": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "network"})
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {Name: "a/b"}}
		},
		"two devices are to be called": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "network"})
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {Name: "x"}, "x": {}}
		},
		"policy \"x\" is none":  func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "x"} },
		"nice 20":               func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 20} },
		"only SCHED_FIFO":       func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Priority: 1} },
		"are of SCHED_DEADLINE": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Runtime: 1} },
		"class \"\" is none":    func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} },
		"ioPriority: priority 8": func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		},
		"is no list of CPUs":               func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0-99999"} },
		"linux.personality: domain":        func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{} },
		"there is no user namespace":       func(s *specs.Spec) { s.Linux.UIDMappings, s.Linux.GIDMappings = idRanges(0, 1, 1), idRanges(0, 1, 1) },
		"gidMappings: one is missing":      func(s *specs.Spec) { s.Linux.UIDMappings = idRanges(0, 1, 1) },
		"user namespace needs mappings":    func(s *specs.Spec) { user(s, nil) },
		"a range at 0 of no IDs":           func(s *specs.Spec) { user(s, idRanges(0, 1, 0)) },
		"goes beyond 32 bits":              func(s *specs.Spec) { user(s, idRanges(0, 1<<31, 1<<31)) },
		"overlap":                          func(s *specs.Spec) { user(s, append(idRanges(0, 1000, 10), idRanges(5, 2000, 10)...)) },
		"341 ranges":                       func(s *specs.Spec) { user(s, make([]specs.LinuxIDMapping, 341)) },
		"ID 7 is not mapped":               func(s *specs.Spec) { user(s, idRanges(0, 1000, 7)); s.Process.User.UID = 7 },
		"there is no new time namespace":   func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {}} },
		"none of monotonic and boottime":   func(s *specs.Spec) { offset(s, "realtime", specs.LinuxTimeOffset{}) },
		"nanoseconds are a second or more": func(s *specs.Spec) { offset(s, "boottime", specs.LinuxTimeOffset{Nanosecs: 1e9}) },
		"without a mount namespace":        func(s *specs.Spec) { s.Linux.Namespaces = nil },
		"mount is there twice":             func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) },
		"path \"x\" is not absolute": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid", Path: "x"})
		},
		"hostname":        func(s *specs.Spec) { s.Hostname = "x" },
		"source \"\"":     func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/a", Type: "bind"}} },
		"type is missing": func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/a"}} },
		"destination /":   func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/a/..", Type: "tmpfs"}} },
		"option tmpcopyup": func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/a", Type: "bind", Source: "/", Options: []string{"tmpcopyup"}}}
		},
		"option \"size=1\" means": func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/a", Type: "bind", Source: "/", Options: []string{"size=1"}}}
		},
		"idmap: there are no mappings": func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/a", Type: "bind", Source: "/", Options: []string{"ridmap"}}}
		},
		"not a bind mount: not supported": func(s *specs.Spec) {
			m := []specs.LinuxIDMapping{{Size: 1}}
			s.Mounts = []specs.Mount{{Destination: "/a", Type: "tmpfs", UIDMappings: m, GIDMappings: m}}
		},
		"rootfsPropagation":  func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" },
		"type \"x\" is none": func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/a", Type: "x"}} },
		"out of range": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/a", Type: "c", Major: 1 << 12, UID: &two}}
		},
		"maskedPaths":              func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"a"} },
		"readonlyPaths":            func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/a\x00"} },
		"it would change the host": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} },
		"shares that namespace":    func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} },
		"linux.seccomp":            func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"linux.resources": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"../x": "1"}}
		},
		"device rule": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Type: "z"}}}
		},
		"cgroup: path": func(s *specs.Spec) { s.Linux.CgroupsPath = "/a/../b" },
	} {
		s := small()
		change(s)
		if _, err := NewPlan(s, Options{ID: "x"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewPlan = %v, want an error with %q", err, want)
		} else if strings.Contains(want, "not supported") && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v is not ErrUnsupported", err)
		}
	}
	s := small()
	s.Process.OOMScoreAdj = &one
	s.Hooks = &specs.Hooks{}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_NEW_ONE", "chown"}}
	p, err := NewPlan(s, Options{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if w := p.Warnings(); len(w) != 1 || !strings.Contains(w[0], "CAP_NEW_ONE") {
		t.Errorf("Warnings() = %q, want one about CAP_NEW_ONE", w)
	}
}

func TestMountOptions(t *testing.T) {
	const ro, nosuid, noexec = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NOEXEC
	for _, c := range []struct {
		options string
		want    mount
	}{
		{"", mount{kind: "tmpfs"}},
		{"ro,nosuid", mount{kind: "tmpfs", set: ro | nosuid}},
		{"ro,rw,nosuid,suid,nosuid", mount{kind: "tmpfs", set: nosuid, clear: ro}},
		{"noatime", mount{kind: "tmpfs", set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}},
		{"noatime,strictatime", mount{kind: "tmpfs", set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}},
		{"relatime", mount{kind: "tmpfs", clear: unix.MOUNT_ATTR__ATIME}},
		{"rro,rnoexec", mount{kind: "tmpfs", setRec: ro | noexec}},
		{"mode=755,size=1m", mount{kind: "tmpfs", params: []string{"mode=755", "size=1m"}}},
		{"rslave", mount{kind: "tmpfs", propagation: unix.MS_SLAVE, propagationRec: true}},
		{"shared,private", mount{kind: "tmpfs", propagation: unix.MS_PRIVATE}},
		{"rbind,ro", mount{kind: "bind", set: ro, recursive: true, propagation: unix.MS_PRIVATE, propagationRec: true}},
	} {
		var opts []string
		if c.options != "" {
			opts = strings.Split(c.options, ",")
		}
		m, err := planMount(specs.Mount{Destination: "/d", Type: "tmpfs", Source: "/s", Options: opts})
		if err != nil {
			t.Errorf("%s: %v", c.options, err)
			continue
		}
		c.want.source, c.want.dest = "/s", "/d"
		if m.kind != c.want.kind || m.set != c.want.set || m.clear != c.want.clear || m.setRec != c.want.setRec || m.clearRec != c.want.clearRec ||
			m.recursive != c.want.recursive || m.propagation != c.want.propagation || m.propagationRec != c.want.propagationRec || !slices.Equal(m.params, c.want.params) {
			t.Errorf("%s: %+v, want %+v", c.options, m, c.want)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		want []string
	}{
		{"/bin/sh", []string{"PATH=/x"}, []string{"/bin/sh"}},
		{"./sh", nil, []string{"./sh"}},
		{"sh", []string{"PATH=/a:/b"}, []string{"/a/sh", "/b/sh"}},
		{"sh", []string{"PATH=/a", "PATH=/b::"}, []string{"/b/sh"}},
		{"sh", []string{"PATH="}, nil},
		{"sh", nil, []string{"/usr/local/sbin/sh", "/usr/local/bin/sh", "/usr/sbin/sh", "/usr/bin/sh", "/sbin/sh", "/bin/sh"}},
	} {
		p := process{args: []string{c.name}, env: c.env}
		if got := p.candidates(); !slices.Equal(got, c.want) {
			t.Errorf("%s with %q: %q, want %q", c.name, c.env, got, c.want)
		}
	}
}

func TestSysctlFile(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
	} {
		if got := sysctlFile(key); got != want {
			t.Errorf("sysctlFile(%q) = %q, want %q", key, got, want)
		}
	}
}

func TestCapabilityNames(t *testing.T) {
	for name, want := range map[string]int{"CAP_CHOWN": 0, "chown": 0, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE} {
		if got, ok := capability(name); !ok || got != want {
			t.Errorf("capability(%q) = %d, %v, want %d", name, got, ok, want)
		}
	}
	if n := len(strings.Fields(capNames)); n != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names, want %d", n, unix.CAP_LAST_CAP+1)
	}
}

func TestString(t *testing.T) {
	s := newSpecWithoutRoot(t)
	p, err := NewPlan(s, Options{ID: "abc", Init: true})
	if err != nil {
		t.Fatal(err)
	}
	want(t, p.String(), "cgroup /snapfs/abc, memory 1048576 bytes\n", "namespaces mount pid uts ipc network cgroup\n", "mount proc on /proc (nodev,noexec,nosuid)\n",
		"mount tmpfs on /dev (nosuid,mode=755,size=65536k)\n", "device /dev/null c666 1:3\n", "mask /proc/kcore\n", "make /proc/sys read-only\n",
		"mount /host on /in (rro,rprivate,rbind)\n", "hostname box\n", "chdir /\n", "capabilities ambient none\n", "capabilities bounding CHOWN DAC_OVERRIDE", "seccomp filter, default SCMP_ACT_ERRNO", "exec init", `exec ["/inside" "x"]`)
	again, err := NewPlan(s, Options{ID: "abc", Init: true})
	if err != nil || again.String() != p.String() {
		t.Errorf("a second plan of the same spec differs: %v", err)
	}
	s.Process.Cwd = "/\nexec nothing" // an image's word
	if p, err = NewPlan(s, Options{ID: "abc"}); err != nil {
		t.Fatal(err)
	}
	want(t, p.String(), `chdir "/\nexec nothing"`)
}

func newSpecWithoutRoot(t *testing.T) *specs.Spec {
	s := newSpec(t, "", "x")
	n := int64(1 << 20)
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/in", Source: "/host", Options: []string{"rbind", "rro"}})
	return s
}

// FuzzSpec: whatever a spec says, NewPlan gives a plan that can be printed, or an error.
func FuzzSpec(f *testing.F) {
	b, err := json.Marshal(small())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"process":{"args":["x"],"cwd":"/a","capabilities":{"bounding":["CAP_CHOWN"]}},"mounts":[{"destination":"a","type":"tmpfs","options":["rro","size=1"]}],"linux":{"namespaces":[{"type":"mount"}],"sysctl":{"net.x":"1"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &specs.Spec{}
		if json.Unmarshal(b, s) != nil {
			return
		}
		p, err := NewPlan(s, Options{ID: "x"})
		if err != nil {
			return
		}
		_ = p.String()
		for _, m := range p.mounts {
			if !path.IsAbs(m.dest) || path.Clean(m.dest) != m.dest || m.dest == "/" {
				t.Errorf("mount on %q", m.dest)
			}
		}
	})
}

// FuzzMount: options of a mount are attributes, propagation or parameters, and a
// bind mount takes no parameters.
func FuzzMount(f *testing.F) {
	f.Add("/a", "tmpfs", "", "rro,size=1,mode=700,nosuid")
	f.Add("a/../b", "", "/host", "rbind,rshared,noatime")
	f.Add("/proc/self", "bind", "/x", "")
	f.Fuzz(func(t *testing.T, dest, kind, source, options string) {
		list := strings.Split(options, ",")
		m, err := planMount(specs.Mount{Destination: dest, Type: kind, Source: source, Options: list})
		if err != nil {
			return
		}
		if m.kind == "" || !path.IsAbs(m.dest) || path.Clean(m.dest) != m.dest || m.dest == "/" || strings.ContainsRune(m.dest, 0) {
			t.Errorf("mount %+v", m)
		}
		if m.kind == "bind" && (len(m.params) > 0 || !path.IsAbs(m.source) || m.propagation == 0) {
			t.Errorf("bind mount %+v", m)
		}
		if strings.HasPrefix(m.dest, "/proc/") && !slices.Contains(procFiles, strings.TrimPrefix(m.dest, "/proc/")) {
			t.Errorf("mount on %s", m.dest)
		}
		if m.set&m.clear&^unix.MOUNT_ATTR__ATIME != 0 || m.setRec&m.clearRec&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Errorf("options %q both set and clear: %+v", options, m)
		}
		for _, p := range m.params {
			if p == "" || strings.ContainsRune(p, 0) {
				t.Errorf("parameter %q", p)
			}
		}
	})
}

// TestWalk has the corners of finding a place.
func TestWalk(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	for _, d := range []string{root + "/a/b", root + "/proc", other + "/x"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"/up": "../../../..", "/abs": "/a/b", "/a/rel": "../a/b", "/dangling": "/new/dir", "/self": "self", "/m2": "/mnt"} {
		if err := os.Symlink(target, root+name); err != nil {
			t.Fatal(err)
		}
	}
	open := func(dir string) int {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	var c closer
	defer c.close()
	tr := tree{root: open(root), closer: &c, mounts: []mounted{{path: "/mnt", fd: open(other)}, {path: "/proc", fd: -1, at: refBase + 5}}}
	c.add(tr.root)
	c.add(tr.mounts[0].fd)
	for _, w := range []struct {
		name   string
		create missing
		want   string // "" is an error
		host   string
	}{
		{"/a/b", mustExist, "/a/b", root + "/a/b"}, {"/", mustExist, "/", root}, {"/../../a", mustExist, "/a", root + "/a"},
		{"/abs", mustExist, "/a/b", root + "/a/b"}, {"/a/rel", mustExist, "/a/b", root + "/a/b"}, {"/up/a", mustExist, "/a", root + "/a"},
		{"/abs/../rel", mustExist, "/a/b", root + "/a/b"}, {"/none", mustExist, "", ""}, {"/self", mustExist, "", ""},
		{"/dangling/f", makeFile, "/new/dir/f", root + "/new/dir/f"}, {"/n/e/w", makeDir, "/n/e/w", root + "/n/e/w"}, {"/n/e/w/../f", makeFile, "/n/e/f", root + "/n/e/f"},
		{"/mnt", mustExist, "/mnt", other}, {"/mnt/x", mustExist, "/mnt/x", other + "/x"}, {"/m2/x/../y", makeDir, "/mnt/y", other + "/y"}, {"/mnt/../a", mustExist, "/a", root + "/a"},
		{"/new/dir/f/x", makeDir, "", ""},
	} {
		p, err := tr.find(w.name, w.create)
		if (err == nil) != (w.want != "") || p.path != w.want {
			t.Errorf("find(%q) = %q, %v, want %q", w.name, p.path, err, w.want)
			continue
		}
		if err != nil {
			continue
		}
		var got, want unix.Stat_t
		if err := errors.Join(unix.Fstat(p.fd, &got), unix.Stat(w.host, &want)); err != nil || got.Ino != want.Ino {
			t.Errorf("find(%q) is not %s: %v", w.name, w.host, err)
		}
	}
	if p, err := tr.find("/proc/sys/net", makeDir); err != nil || p.fd >= 0 || p.base != refBase+5 || p.rest != "sys/net" {
		t.Errorf("find below a mount made inside = %+v, %v", p, err)
	}
}
