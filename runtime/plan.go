package runtime

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/seccomp"
)

// ErrUnsupported is wrapped by the errors of NewPlan that refuse a part of a spec by name.
var ErrUnsupported = errors.New("not supported")

// Options are what a plan needs besides the spec. The zero value but for ID works.
type Options struct {
	// ID names the container; [A-Za-z0-9_+][A-Za-z0-9_+.-]*, at most 128 bytes.
	ID string
	// Bundle is the directory that hooks are told; it is not looked at.
	Bundle string
	// CgroupParent is the cgroup that the container's is made below, by default
	// /snapfs. A cgroupsPath of the spec wins.
	CgroupParent string
	// SeccompCache is a directory for compiled filters, made with mode 0700;
	// without it a filter is compiled at every start (about a millisecond).
	SeccompCache string
	// Init runs the program below a tiny PID 1 that reaps orphans and passes signals on.
	Init bool
	// Systemd makes the cgroup a transient scope of systemd: cgroupsPath is SLICE:PREFIX:NAME,
	// of which the first two have defaults, and CgroupParent means nothing.
	Systemd bool
	// NoNewKeyring leaves the container the caller's session keyring.
	NoNewKeyring bool
}

// A Plan is what a start will do, worked out from a spec alone. It is immutable.
type Plan struct {
	id          string
	version     string
	bundle      string
	annotations map[string]string
	hooks       hooks

	cgroup    string // below the mount points of the hierarchies
	scope     *scope // the unit that it is of; nil none
	resources *specs.LinuxResources

	rootPath     string
	rootReadonly bool
	propagation  uintptr // MS_* of the root, 0 for private

	newNS       uintptr // CLONE_NEW* of the namespaces to make
	join        []joinNS
	ids         ids // of a user namespace
	netDevices  []netDevice
	timeOffsets string // for /proc/PID/timens_offsets
	mountLabel  string
	noKeyring   bool

	mounts   []mount
	devices  []device
	masked   []string
	readonly []string
	sysctls  []sysctl

	hostname, domainname string

	proc         process
	memPolicy    *memPolicy
	seccomp      *specs.LinuxSeccomp
	seccompCache string
	init         bool
	warnings     []string
}

// joinNS is a namespace that exists already.
type joinNS struct {
	kind uintptr // CLONE_NEW*
	path string
}

type sysctl struct{ key, value string }

// Warnings are the parts of the spec that have no effect, one line each.
func (p *Plan) Warnings() []string { return p.warnings }

// NewPlan works out what it takes to start a container. It touches nothing,
// and refuses by name what the package does not support.
func NewPlan(spec *specs.Spec, o Options) (*Plan, error) {
	if err := CheckID(o.ID); err != nil {
		return nil, err
	}
	if spec == nil || spec.Process == nil {
		return nil, errors.New("spec: process is missing")
	}
	if err := refuse(spec); err != nil {
		return nil, err
	}
	p := &Plan{
		id: o.ID, version: spec.Version, bundle: o.Bundle, annotations: spec.Annotations, init: o.Init, noKeyring: o.NoNewKeyring,
		seccompCache: o.SeccompCache, hostname: spec.Hostname, domainname: spec.Domainname,
	}
	if spec.Root != nil {
		p.rootPath, p.rootReadonly = spec.Root.Path, spec.Root.Readonly
	}
	linux := spec.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	for _, step := range []func() error{
		func() error { return p.planNamespaces(linux) },
		func() (err error) {
			p.netDevices, err = planNetDevices(linux, p.own())
			return within("linux.netDevices", err)
		},
		func() (err error) { p.hooks, err = planHooks(spec.Hooks); return err },
		func() error { return p.planCgroup(linux, o) },
		func() error { return p.planMounts(spec.Mounts, linux) },
		func() error { return p.planDevices(linux.Devices) },
		func() error { return p.planPaths(linux) },
		func() error { return p.planSysctls(linux.Sysctl) },
		func() error { return p.planSeccomp(linux.Seccomp) },
		func() (err error) { p.proc, err = planProcess(spec.Process, &p.warnings); return err },
		func() (err error) {
			p.proc.persona, err = planPersonality(linux.Personality)
			return within("linux.personality", err)
		},
		func() (err error) {
			p.memPolicy, err = planMemPolicy(linux.MemoryPolicy)
			return within("linux.memoryPolicy", err)
		},
		p.checkMapped,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("spec: %w", err)
		}
	}
	return p, nil
}

// CheckID keeps an ID harmless as a path component and as an argument.
func CheckID(id string) error {
	for i, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && c != '_' && c != '+' && (i == 0 || c != '.' && c != '-') {
			return fmt.Errorf("container ID %q: byte %d is not of [A-Za-z0-9_+.-], or the first and not of [A-Za-z0-9_+]", id, i)
		}
	}
	if id == "" || len(id) > 128 {
		return fmt.Errorf("container ID %q: want 1 to 128 bytes", id)
	}
	return nil
}

// refuse names the first part of the spec that is valid but not supported.
func refuse(s *specs.Spec) error {
	l := s.Linux
	if l == nil {
		l = &specs.Linux{}
	}
	for _, c := range []struct {
		name string
		used bool
	}{
		{"linux.intelRdt", l.IntelRdt != nil},
		{"vm", s.VM != nil},
	} {
		if c.used {
			return fmt.Errorf("spec: %s: %w", c.name, ErrUnsupported)
		}
	}
	return nil
}

// within says where in the spec an error is from.
func within(name string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// namespaces maps the spec's names to clone flags.
var namespaces = map[specs.LinuxNamespaceType]uintptr{
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

func (p *Plan) planNamespaces(l *specs.Linux) error {
	var seen uintptr
	for _, n := range l.Namespaces {
		kind, ok := namespaces[n.Type]
		switch {
		case !ok:
			return fmt.Errorf("linux.namespaces: %s: %w", n.Type, ErrUnsupported)
		case seen&kind != 0:
			return fmt.Errorf("linux.namespaces: %s is there twice", n.Type)
		case n.Path == "":
			p.newNS |= kind
		case kind == unix.CLONE_NEWNS:
			return fmt.Errorf("linux.namespaces: mount: path: %w", ErrUnsupported)
		case !path.IsAbs(n.Path):
			return fmt.Errorf("linux.namespaces: %s: path %q is not absolute", n.Type, n.Path)
		default:
			p.join = append(p.join, joinNS{kind, n.Path})
		}
		seen |= kind
	}
	if p.newNS&unix.CLONE_NEWNS == 0 {
		return fmt.Errorf("linux.namespaces: without a mount namespace: %w", ErrUnsupported)
	}
	if (p.hostname != "" || p.domainname != "") && seen&unix.CLONE_NEWUTS == 0 {
		return errors.New("hostname: it would be the host's, as there is no uts namespace")
	}
	return errors.Join(p.planUser(l, seen), p.planTime(l, seen))
}

// planUser reads the mappings of a user namespace. Those of one that exists
// are what it has; the spec repeats them, for mounts.
func (p *Plan) planUser(l *specs.Linux, seen uintptr) (err error) {
	if p.ids, err = planIDs(l.UIDMappings, l.GIDMappings); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	switch {
	case seen&unix.CLONE_NEWUSER == 0 && !p.ids.none():
		return errors.New("linux.uidMappings: there is no user namespace")
	case seen&unix.CLONE_NEWUSER != 0 && p.ids.none():
		return errors.New("linux.uidMappings: a user namespace needs mappings; those of an existing one are to be repeated")
	}
	return nil
}

func (p *Plan) planTime(l *specs.Linux, seen uintptr) error {
	if len(l.TimeOffsets) == 0 {
		return nil
	}
	if p.newNS&unix.CLONE_NEWTIME == 0 {
		return errors.New("linux.timeOffsets: there is no new time namespace")
	}
	var b strings.Builder
	for _, clock := range sortedKeys(l.TimeOffsets) {
		o := l.TimeOffsets[clock]
		if clock != "monotonic" && clock != "boottime" {
			return fmt.Errorf("linux.timeOffsets: %q is none of monotonic and boottime", clock)
		}
		if o.Nanosecs >= 1e9 {
			return fmt.Errorf("linux.timeOffsets: %s: %d nanoseconds are a second or more", clock, o.Nanosecs)
		}
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	p.timeOffsets = b.String()
	return nil
}

// checkMapped refuses a user that the user namespace does not have.
func (p *Plan) checkMapped() error {
	if p.proc.user != "" {
		return nil // known when the container's files have been read
	}
	if _, err := p.ids.owner(p.proc.uid, p.proc.gid); err != nil {
		return fmt.Errorf("process.user: %w", err)
	}
	return nil
}

// own are the namespaces that are not the host's, as clone flags.
func (p *Plan) own() uintptr {
	f := p.newNS
	for _, j := range p.join {
		f |= j.kind
	}
	return f
}

func (p *Plan) planCgroup(l *specs.Linux, o Options) error {
	parent := o.CgroupParent
	if parent == "" {
		parent = "/snapfs"
	}
	p.cgroup, p.resources = parent+"/"+p.id, l.Resources
	switch {
	case o.Systemd:
		if err := p.planScope(l); err != nil {
			return err
		}
	case strings.HasPrefix(l.CgroupsPath, "/"):
		p.cgroup = l.CgroupsPath
	case l.CgroupsPath != "":
		p.cgroup = parent + "/" + l.CgroupsPath // where a relative one is from is the runtime's choice
	}
	if err := cgroups.CheckPath(p.cgroup); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := cgroups.CheckResources(l.Resources); err != nil {
		return fmt.Errorf("linux.resources: %w", err)
	}
	return nil
}

func (p *Plan) planSeccomp(s *specs.LinuxSeccomp) error {
	if s == nil {
		return nil
	}
	if err := seccomp.Check(s); err != nil {
		return fmt.Errorf("linux.seccomp: %w", err)
	}
	p.seccomp = s
	return nil
}

func (p *Plan) planPaths(l *specs.Linux) error {
	for _, list := range []struct {
		name  string
		paths []string
		to    *[]string
	}{{"maskedPaths", l.MaskedPaths, &p.masked}, {"readonlyPaths", l.ReadonlyPaths, &p.readonly}} {
		for _, s := range list.paths {
			clean, err := cleanPath(s)
			if err != nil {
				return fmt.Errorf("linux.%s: %w", list.name, err)
			}
			*list.to = append(*list.to, clean)
		}
	}
	return nil
}

// cleanPath cleans a path of the container.
func cleanPath(s string) (string, error) {
	switch {
	case !path.IsAbs(s):
		return "", fmt.Errorf("path %q is not absolute", s)
	case strings.ContainsRune(s, 0):
		return "", fmt.Errorf("path %q has a NUL byte", s)
	case len(s) >= unix.PathMax:
		return "", fmt.Errorf("path of %d bytes is too long", len(s))
	}
	return path.Clean(s), nil
}

// planSysctls takes the sysctls that belong to a namespace of the container's own.
func (p *Plan) planSysctls(m map[string]string) error {
	for _, key := range sortedKeys(m) {
		name := strings.ReplaceAll(key, "/", ".")
		var ns uintptr
		switch {
		case strings.HasPrefix(name, "net."):
			ns = unix.CLONE_NEWNET
		case strings.HasPrefix(name, "fs.mqueue.") || ipcSysctl(name):
			ns = unix.CLONE_NEWIPC
		default:
			return fmt.Errorf("linux.sysctl: %s is not of a namespace: it would change the host", key)
		}
		if p.own()&ns == 0 {
			return fmt.Errorf("linux.sysctl: %s would change the host: the container shares that namespace", key)
		}
		file := sysctlFile(key)
		for part := range strings.SplitSeq(file, "/") {
			if part == "" || part == "." || part == ".." {
				return fmt.Errorf("linux.sysctl: %q is no name of a sysctl", key)
			}
		}
		p.sysctls = append(p.sysctls, sysctl{file, m[key]})
	}
	return nil
}

// sysctlFile turns a key into a path below /proc/sys. As sysctl(8) has it, the
// first separator decides: in a key of dots a slash stands for a dot, as in
// net.ipv4.conf.eth0/1.forwarding.
func sysctlFile(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '/' {
		return key
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(key)
}

func ipcSysctl(name string) bool {
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return true
	}
	return false
}

// Cgroup is the container's cgroup, below the mount points of the hierarchies.
func (p *Plan) Cgroup() string { return p.cgroup }

// HostRoot tells whether root inside may write to what is the host's root's, if it gets hold of it.
func (p *Plan) HostRoot() bool { return !p.inUser() }

// PrivatePID tells whether the container has a pid namespace of its own, so
// that its processes end with its first one.
func (p *Plan) PrivatePID() bool { return p.newNS&unix.CLONE_NEWPID != 0 }
