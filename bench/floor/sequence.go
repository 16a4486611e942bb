package floor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/seccomp"
)

const (
	fdcwd     = ^uint64(99) // AT_FDCWD
	unifiedFD = 3           // the first descriptor that the program opens
)

// A sequence is a program about a spec.
type sequence struct {
	program
	spec   *specs.Spec
	root   string // the root file system, here
	groups []cgroups.Dir
	v2     string   // the group of version 2; "" if there is none
	device string   // the group of version 1's devices
	rules  []string // and what it allows
}

// Write makes the program for a spec, on a root file system that is mounted, in a
// cgroup that does not exist (below the mount points of the hierarchies; what is
// above it is made). It makes the places of mounts that the root file system lacks.
func Write(name string, spec *specs.Spec, rootfs, cgroup string) (*Floor, error) {
	if !Supported {
		return nil, errors.New("there is no floor for this architecture")
	}
	s := &sequence{spec: spec, root: rootfs}
	if err := s.lookAtGroup(cgroup); err != nil {
		return nil, err
	}
	s.makeGroups()
	namespaces, err := namespaces(spec.Linux.Namespaces)
	if err != nil {
		return nil, err
	}
	child := s.clone(namespaces)
	s.joinGroups(namespaces)
	for _, step := range []func() error{s.mounts, s.devices, s.paths, s.pivot, s.process} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	s.ops[child].skip = uint64(len(s.ops) - child - 1)
	s.end(child)
	return s.write(name)
}

// lookAtGroup makes the group as the runtime would, to see what there is, and removes it.
func (s *sequence) lookAtGroup(cgroup string) (err error) {
	g, err := cgroups.Create(cgroup, s.spec.Linux.Resources)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Remove(context.Background())) }()
	s.groups = g.Dirs()
	if g.Unified() != nil {
		s.v2 = g.Unified().Name()
	}
	at, v2, ok := g.Dir("devices")
	if !ok || v2 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(at, "devices.list"))
	s.device, s.rules = at, strings.Split(strings.TrimSpace(string(b)), "\n")
	return err
}

func (s *sequence) makeGroups() {
	for _, g := range s.groups {
		s.step = "mkdir " + g.Path
		s.add(unix.SYS_MKDIRAT, fdcwd, s.str(g.Path), 0o755)
	}
	if s.v2 != "" {
		s.open(s.v2, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	if s.device == "" {
		return
	}
	s.writeTo(s.device+"/devices.deny", "a")
	s.writeTo(s.device+"/devices.allow", s.rules...)
}

// open opens a file and returns the op.
func (s *sequence) open(name string, flags uint64) int {
	s.step = "open " + name
	return s.add(unix.SYS_OPENAT, fdcwd, s.str(name), flags|unix.O_CLOEXEC)
}

// writeTo writes to a file, a call for each text.
func (s *sequence) writeTo(name string, texts ...string) {
	f := s.open(name, unix.O_WRONLY)
	for _, text := range texts {
		s.step = fmt.Sprintf("write %q to %s", text, name)
		s.add(unix.SYS_WRITE, resultAt(f), s.str(text), uint64(len(text)))
		s.flag(flagArg0)
	}
}

// namespaces are those to make, as clone flags.
func namespaces(list []specs.LinuxNamespace) (flags uint64, err error) {
	kinds := map[specs.LinuxNamespaceType]uint64{
		specs.MountNamespace: unix.CLONE_NEWNS, specs.PIDNamespace: unix.CLONE_NEWPID, specs.UTSNamespace: unix.CLONE_NEWUTS,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	}
	for _, n := range list {
		if n.Path != "" || kinds[n.Type] == 0 {
			return 0, fmt.Errorf("%s namespace %s: there is no floor with it", n.Type, n.Path)
		}
		flags |= kinds[n.Type]
	}
	if flags&unix.CLONE_NEWNS == 0 {
		return 0, errors.New("there is no floor without a mount namespace")
	}
	return flags, nil
}

// clone makes the child; the parent sleeps until that has executed its program.
func (s *sequence) clone(namespaces uint64) int {
	args := struct{ flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64 }{
		flags: unix.CLONE_VM | unix.CLONE_VFORK | namespaces&^unix.CLONE_NEWCGROUP, exitSignal: uint64(unix.SIGCHLD),
	}
	if s.v2 != "" {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = unifiedFD
	}
	s.step = "clone3"
	i := s.add(unix.SYS_CLONE3, value(&s.program, args), uint64(unsafe.Sizeof(args)))
	s.flag(flagFork)
	return i
}

// joinGroups has the child move itself into the groups of version 1. A cgroup namespace shows where it is.
func (s *sequence) joinGroups(namespaces uint64) {
	for _, g := range s.groups {
		if g.Path != s.v2 {
			s.writeTo(g.Path+"/tasks", "0")
		}
	}
	s.step = "session keyring"
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); err != unix.ENOSYS {
		s.add(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	}
	if namespaces&unix.CLONE_NEWCGROUP != 0 {
		s.step = "cgroup namespace"
		s.add(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
}

// mount is mount(2). Names are below the working directory, which is the root to be.
func (s *sequence) mount(source, target, kind string, flags uint64, data string) {
	s.step = fmt.Sprintf("mount %s on %s", source, target)
	s.add(unix.SYS_MOUNT, s.str(source), s.str(target), s.str(kind), flags, s.str(data))
}

// bind mounts a file or directory on another, with flags.
func (s *sequence) bind(source, target string, flags uint64) {
	s.mount(source, target, "", unix.MS_BIND|flags&unix.MS_REC, "")
	if flags &^= unix.MS_REC; flags != 0 {
		s.mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
	}
}

func (s *sequence) mkdir(name string) {
	s.step = "mkdir " + name
	s.add(unix.SYS_MKDIRAT, fdcwd, s.str(name), 0o755)
	s.flag(flagExists)
}

func (s *sequence) mounts() error {
	s.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	s.bind(s.root, s.root, unix.MS_REC)
	s.step = "chdir " + s.root
	s.add(unix.SYS_CHDIR, s.str(s.root))
	for _, m := range s.spec.Mounts {
		flags, data := options(m.Options)
		target := strings.TrimPrefix(filepath.Clean(m.Destination), "/")
		if err := s.place(target, m); err != nil {
			return err
		}
		switch {
		case m.Type == "cgroup" || m.Type == "cgroup2":
			s.mountGroups(target, flags)
		case flags&unix.MS_BIND != 0 || m.Type == "bind":
			s.bind(m.Source, target, flags&^unix.MS_BIND)
		default:
			s.mount(m.Source, target, m.Type, flags, data)
		}
	}
	return nil
}

// place makes sure that there is something to mount on.
func (s *sequence) place(target string, m specs.Mount) error {
	if strings.HasPrefix(target, "dev/") { // in a file system that does not exist yet
		s.mkdir(target)
		return nil
	}
	at := filepath.Join(s.root, target)
	if strings.HasPrefix(target, "proc/") || strings.HasPrefix(target, "sys/") {
		return nil
	}
	if fi, err := os.Stat(m.Source); m.Type == "bind" && err == nil && !fi.IsDir() {
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(at, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	return os.MkdirAll(at, 0o755)
}

// mountGroups shows the container its own groups.
func (s *sequence) mountGroups(target string, flags uint64) {
	if len(s.groups) == 1 && s.groups[0].Name == "" {
		s.bind(s.groups[0].Path, target, flags)
		return
	}
	s.mount("tmpfs", target, "tmpfs", flags&^unix.MS_RDONLY, "mode=755")
	for _, g := range s.groups {
		at := filepath.Join(target, g.Name)
		s.mkdir(at)
		s.bind(g.Path, at, flags)
	}
	s.mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

// options are those of mount(8) as flags, and the rest.
func options(list []string) (flags uint64, data string) {
	names := map[string]uint64{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
		"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC,
		"rw": 0, "private": 0, "rprivate": 0,
	}
	var rest []string
	for _, o := range list {
		if f, ok := names[o]; ok {
			flags |= f
		} else {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

func (s *sequence) devices() error {
	s.step = "umask"
	s.add(unix.SYS_UMASK, 0)
	node := func(name string, mode uint64, major, minor uint32) {
		s.step = "mknod " + name
		s.add(unix.SYS_MKNODAT, fdcwd, s.str(name), mode, unix.Mkdev(major, minor))
		s.flag(flagExists)
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		node("dev/"+d.name, unix.S_IFCHR|0o666, d.major, d.minor)
	}
	for _, d := range s.spec.Linux.Devices {
		kind, ok := map[string]uint64{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
		if !ok {
			return fmt.Errorf("device %s: type %q", d.Path, d.Type)
		}
		mode := uint64(0o666)
		if d.FileMode != nil {
			mode = uint64(d.FileMode.Perm())
		}
		node(strings.TrimPrefix(d.Path, "/"), kind|mode, uint32(d.Major), uint32(d.Minor))
	}
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}} {
		s.step = "link " + l[1]
		s.add(unix.SYS_SYMLINKAT, s.str(l[0]), fdcwd, s.str("dev/"+l[1]))
		s.flag(flagExists)
	}
	return nil
}

// paths masks and protects. What the container's /proc and /sys have, this machine's do.
func (s *sequence) paths() error {
	here := func(name string) string {
		if strings.HasPrefix(name, "/proc/") || strings.HasPrefix(name, "/sys/") {
			return name
		}
		return filepath.Join(s.root, name)
	}
	empty := ""
	for _, name := range s.spec.Linux.MaskedPaths {
		fi, err := os.Stat(here(name))
		rel := strings.TrimPrefix(name, "/")
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		case !fi.IsDir():
			s.bind("dev/null", rel, 0)
		case empty == "":
			empty = rel
			s.mount("tmpfs", rel, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k")
		default:
			s.bind(empty, rel, 0)
		}
	}
	for _, name := range s.spec.Linux.ReadonlyPaths {
		if _, err := os.Stat(here(name)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		rel := strings.TrimPrefix(name, "/")
		s.bind(rel, rel, unix.MS_REC|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
	}
	return nil
}

func (s *sequence) pivot() error {
	s.step = "pivot_root"
	dot := s.str(".")
	s.add(unix.SYS_PIVOT_ROOT, dot, dot)
	s.step = "leave the host's file systems"
	s.add(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	if s.spec.Root.Readonly {
		s.mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	cwd := s.spec.Process.Cwd
	s.step = "chdir " + cwd
	s.add(unix.SYS_CHDIR, s.str(cwd))
	if h := s.spec.Hostname; h != "" {
		s.step = "hostname"
		s.add(unix.SYS_SETHOSTNAME, s.str(h), uint64(len(h)))
	}
	s.step = "bring up lo"
	sock := s.add(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	req := struct { // struct ifreq, net/if.h
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{[unix.IFNAMSIZ]byte{'l', 'o'}, unix.IFF_UP, [22]byte{}}
	s.add(unix.SYS_IOCTL, resultAt(sock), unix.SIOCSIFFLAGS, value(&s.program, req))
	s.flag(flagArg0)
	return nil
}

// process is what concerns the container's first process alone.
func (s *sequence) process() error {
	p := s.spec.Process
	if p.Terminal {
		return errors.New("there is no floor with a terminal")
	}
	s.step = "setsid"
	s.add(unix.SYS_SETSID)
	if n := p.OOMScoreAdj; n != nil {
		s.writeTo("/proc/self/oom_score_adj", fmt.Sprint(*n))
	}
	for _, l := range p.Rlimits {
		i := slices.Index(rlimits, l.Type)
		if i < 0 {
			return fmt.Errorf("rlimit %s", l.Type)
		}
		s.step = l.Type
		s.add(unix.SYS_PRLIMIT64, 0, uint64(i), value(&s.program, unix.Rlimit{Cur: l.Soft, Max: l.Hard}), 0)
	}
	caps, err := capabilities(p.Capabilities)
	if err != nil {
		return err
	}
	s.step = "drop the bounding set"
	for c := range uintptr(64) {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err == nil && has == 1 && caps.bounding&(1<<c) == 0 {
			s.add(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uint64(c), 0, 0, 0)
		}
	}
	if err := s.filter(); err != nil {
		return err
	}
	s.identity(caps)
	s.step = "umask"
	umask := uint32(0o022)
	if p.User.Umask != nil {
		umask = *p.User.Umask
	}
	s.add(unix.SYS_UMASK, uint64(umask))
	file, err := s.find(p)
	if err != nil {
		return err
	}
	s.step = "exec " + file
	s.add(unix.SYS_EXECVE, s.str(file), s.strings(p.Args), s.strings(p.Env))
	return nil
}

// filter installs the seccomp filter while that needs no more than to be root.
func (s *sequence) filter() error {
	if s.spec.Linux.Seccomp == nil {
		return nil
	}
	f, err := seccomp.Compile(s.spec.Linux.Seccomp)
	if err != nil {
		return err
	}
	insns := unsafe.Slice((*byte)(unsafe.Pointer(&f.Insns[0])), len(f.Insns)*int(unsafe.Sizeof(f.Insns[0])))
	prog := struct{ n, insns uint64 }{uint64(len(f.Insns)), s.put(insns)} // struct sock_fprog
	s.step = "seccomp"
	s.add(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uint64(f.Flags), value(&s.program, prog))
	return nil
}

func (s *sequence) identity(caps sets) {
	u := s.spec.Process.User
	groups := []uint32{u.GID}
	for _, g := range u.AdditionalGids {
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	s.step = "user"
	s.add(unix.SYS_SETGROUPS, uint64(len(groups)), s.put(unsafe.Slice((*byte)(unsafe.Pointer(&groups[0])), 4*len(groups))))
	if u.UID != 0 || u.GID != 0 {
		s.add(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		s.add(unix.SYS_SETRESGID, uint64(u.GID), uint64(u.GID), uint64(u.GID))
		s.add(unix.SYS_SETRESUID, uint64(u.UID), uint64(u.UID), uint64(u.UID))
	}
	s.step = "capabilities"
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		at := 32 * i
		data[i] = unix.CapUserData{Effective: uint32(caps.effective >> at), Permitted: uint32(caps.permitted >> at), Inheritable: uint32(caps.inheritable >> at)}
	}
	s.add(unix.SYS_CAPSET, value(&s.program, hdr), value(&s.program, data))
	if s.spec.Process.NoNewPrivileges {
		s.step = "no_new_privs"
		s.add(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
}

// find looks the program up, as execvp(3) would inside.
func (s *sequence) find(p *specs.Process) (string, error) {
	if strings.Contains(p.Args[0], "/") {
		return p.Args[0], nil
	}
	for _, e := range p.Env {
		search, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(search, ":") {
			name := filepath.Join("/", dir, p.Args[0])
			if _, err := os.Lstat(filepath.Join(s.root, name)); err == nil {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w", p.Args[0], os.ErrNotExist)
}

// end is the rest of the parent.
func (s *sequence) end(child int) {
	status := s.put(make([]byte, 8))
	s.step = "wait"
	s.add(unix.SYS_WAIT4, resultAt(child), status, 0, 0)
	s.flag(flagArg0)
	for _, g := range s.groups {
		s.step = "rmdir " + g.Path
		s.add(unix.SYS_UNLINKAT, fdcwd, s.str(g.Path), unix.AT_REMOVEDIR)
		s.flag(flagBusy)
	}
	s.step = "the container"
	s.add(unix.SYS_GETPID, 0, status)
	s.flag(flagStatus)
	s.step = "exit"
	s.add(unix.SYS_EXIT_GROUP, 0)
}

// rlimits are the names by number (asm-generic/resource.h).
var rlimits = []string{"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
	"RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME"}

type sets struct{ bounding, effective, permitted, inheritable uint64 }

// capabilities reads the sets that matter. It takes the spec's names for numbers by what the kernel's headers say.
func capabilities(c *specs.LinuxCapabilities) (out sets, err error) {
	if c == nil {
		return out, nil
	}
	if len(c.Ambient) > 0 {
		return out, errors.New("there is no floor with ambient capabilities")
	}
	for _, set := range []struct {
		names []string
		to    *uint64
	}{{c.Bounding, &out.bounding}, {c.Effective, &out.effective}, {c.Permitted, &out.permitted}, {c.Inheritable, &out.inheritable}} {
		for _, name := range set.names {
			i := slices.Index(capNames, strings.TrimPrefix(name, "CAP_"))
			if i < 0 {
				return out, fmt.Errorf("capability %s", name)
			}
			*set.to |= 1 << i
		}
	}
	return out, nil
}

// capNames are the capabilities by number (include/uapi/linux/capability.h of Linux 6.18).
var capNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE
	SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
	SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
