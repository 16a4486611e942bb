package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/seccomp"
	"github.com/snapfs/snapfs/runtime/users"
)

// Files are the descriptors a process gets. Start and Exec duplicate and close none of them.
type Files struct {
	// Rootfs, of Start only, is a detached mount or a directory; nil is the spec's root.path.
	Rootfs *os.File
	// Stdin, Stdout and Stderr are /dev/null where they are nil. With a terminal all
	// are nil. They are made blocking, and a pipe's owner is the process's user afterwards.
	Stdin, Stdout, Stderr *os.File
}

// Start starts a container. It returns when the program has been executed; if
// it returns an error, nothing is left. If ctx ends first the child is killed.
//
// The calling process becomes the container's parent and is made undumpable
// (PR_SET_DUMPABLE), so that nobody inside can look into a child of it that
// joins the container. A thread sleeps in vfork until the program is
// executed: a process that serves the container's file systems must not call this.
func Start(ctx context.Context, p *Plan, f Files) (_ *Container, err error) {
	if !supported {
		return nil, fmt.Errorf("start a container on this architecture: %w", ErrUnsupported)
	}
	s := newStart(p, p.proc)
	defer s.close()
	c := &Container{plan: p, devpts: -1, root: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, &StepError{"PR_SET_DUMPABLE", err}
	}
	if c.group, err = cgroups.Create(p.cgroup, p.resources); err != nil {
		return nil, &StepError{"cgroup " + p.cgroup, err}
	}
	if err := s.prepare(c, f); err != nil {
		return nil, err
	}
	c.init, err = s.run(ctx, c.group, p.newNS&^unix.CLONE_NEWCGROUP)
	if err != nil {
		return nil, err
	}
	if err := c.keep(s); err != nil {
		return nil, err
	}
	return c, nil
}

// start is the making of one process.
type start struct {
	plan *Plan
	proc process
	prog *program
	fds  closer
	tree tree

	stdin   [3]int
	scratch int
	devpts  int // descriptor of the mount; -1 if there is none
	procfs  ref
	pidns   int // to join; -1 if there is none
	console *pty

	report, reportEnd int // a pipe from init; -1 if there is none
}

func newStart(p *Plan, pr process) *start {
	s := &start{plan: p, proc: pr, prog: newProgram(), devpts: -1, pidns: -1, report: -1, reportEnd: -1}
	s.tree.closer = &s.fds
	return s
}

func (s *start) close() {
	s.fds.close()
	s.closeReport()
	if s.console != nil {
		s.console.master.Close()
	}
}

// prepare opens and makes on the host's side all that can be, and writes the program for the rest.
func (s *start) prepare(c *Container, f Files) error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"rootfs", func() error { return s.openRoot(f.Rootfs) }},
		{"user", func() error { return s.proc.lookup(s.tree.root) }},
		{"namespaces", func() error { return s.enter(c.group) }},
		{"scratch", s.makeScratch},
		{"", s.attach},
		{"", func() error { return s.placeMounts(c.group) }},
		{"", s.makeDevices},
		{"stdio", func() error { return s.openStdio(f) }},
		{"cwd", s.makeCwd},
		{"make the root read-only", s.protectRoot},
		{"", s.finish},
	} {
		if err := step.do(); err != nil {
			if step.name == "" {
				return err
			}
			return &StepError{step.name, err}
		}
	}
	return nil
}

// openRoot makes the root a detached mount of our own. A detached mount that
// was given is cloned where the kernel can (6.15), else it is used itself.
func (s *start) openRoot(f *os.File) error {
	dir := -1
	if f != nil {
		dir = int(f.Fd())
	} else {
		if !path.IsAbs(s.plan.rootPath) {
			return fmt.Errorf("root.path %q is not absolute", s.plan.rootPath)
		}
		fd, err := unix.Open(s.plan.rootPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", s.plan.rootPath, err)
		}
		s.fds.add(fd)
		dir = fd
	}
	root, err := cloneTree(dir, true)
	if err == unix.EINVAL && f != nil {
		root, err = dupHigh(dir)
	}
	if err != nil {
		return err
	}
	s.fds.add(root)
	s.tree.root = root
	return setAttrs(root, 0, 0, unix.MS_PRIVATE, true)
}

// lookup turns a user's name into numbers and completes the environment.
func (pr *process) lookup(root int) error {
	home := ""
	if pr.user != "" || !pr.hasEnv("HOME") {
		spec := pr.user
		if spec == "" {
			spec = fmt.Sprintf("%d:%d", pr.uid, pr.gid)
		}
		u, err := users.Lookup(root, spec)
		if err != nil {
			return err
		}
		home = u.Home
		if pr.user != "" {
			pr.uid, pr.gid = u.UID, u.GID
			pr.groups = append(u.Groups[:len(u.Groups):len(u.Groups)], pr.groups...)
		}
	}
	if !slices.Contains(pr.groups, pr.gid) {
		pr.groups = append([]uint32{pr.gid}, pr.groups...) // CVE-2023-25173
	}
	if !pr.hasEnv("HOME") {
		pr.env = append(pr.env[:len(pr.env):len(pr.env)], "HOME="+home)
	}
	return nil
}

func (pr *process) hasEnv(name string) bool { _, ok := pr.getenv(name); return ok }

// enter puts the child into its cgroup and its namespaces, before anything else.
func (s *start) enter(g *cgroups.Group) error {
	if err := s.joinCgroup(g); err != nil {
		return err
	}
	p := s.prog
	p.step = "new session keyring"
	p.add(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	p.tolerate(unix.ENOSYS, 0)
	for _, j := range s.plan.join {
		fd, err := openNamespace(j)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		if j.kind == unix.CLONE_NEWPID {
			s.pidns = fd
			continue
		}
		p.step = "join " + j.path
		p.add(unix.SYS_SETNS, uintptr(fd), j.kind)
	}
	if s.plan.newNS&unix.CLONE_NEWCGROUP != 0 {
		p.step = "cgroup namespace"
		p.add(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	return nil
}

// joinCgroup moves the child into the hierarchies of version 1. A thread that
// writes "0" to tasks moves itself, which takes no global lock and so does not
// wait for an RCU grace period, as moving another process does for about 10 ms
// (cgroup_procs_write_start in kernel/cgroup/cgroup.c, since Linux 5.6). It is
// the child's first act: nothing of the container happens outside.
func (s *start) joinCgroup(g *cgroups.Group) error {
	tasks, err := g.OpenTasks()
	if err != nil {
		return err
	}
	s.prog.step = "join the cgroup"
	for _, fd := range tasks {
		s.fds.add(fd)
		s.prog.write(uintptr(fd), "0")
	}
	return nil
}

func openNamespace(j joinNS) (int, error) {
	fd, err := unix.Open(j.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", j.path, err)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || uintptr(kind) != j.kind {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: it is not a namespace of the kind that is wanted", j.path)
	}
	return fd, nil
}

// makeCwd makes the working directory if it is missing (CVE-2026-55686: below the root only).
func (s *start) makeCwd() error {
	if s.proc.cwd == "/" {
		return nil
	}
	_, err := s.tree.walk(s.proc.cwd, makeDir, 40)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) && s.plan.rootReadonly {
		return fmt.Errorf("working directory: %w", err)
	}
	return err
}

func (s *start) protectRoot() error {
	if !s.plan.rootReadonly {
		return nil
	}
	return setAttrs(s.tree.root, unix.MOUNT_ATTR_RDONLY, 0, 0, false)
}

// finish writes what the child does once all its mounts are placed.
func (s *start) finish() error {
	p, plan := s.prog, s.plan
	for _, sc := range plan.sysctls {
		p.step = "sysctl " + sc.key
		f := p.open(s.ownProcfs(), "sys/"+sc.key, unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
		p.write(f, sc.value)
	}
	root := uintptr(s.tree.root)
	for _, name := range plan.masked {
		p.mask(root, name, uintptr(s.scratch))
	}
	for _, name := range plan.readonly {
		p.protect(root, name)
	}
	p.pivot(root)
	if plan.propagation != 0 {
		p.step = "propagation of the root"
		p.mount("", "/", "", plan.propagation)
	}
	if plan.hostname != "" {
		p.step = "hostname " + plan.hostname
		p.add(unix.SYS_SETHOSTNAME, p.str(plan.hostname), uintptr(len(plan.hostname)))
	}
	if plan.domainname != "" {
		p.step = "domainname " + plan.domainname
		p.add(unix.SYS_SETDOMAINNAME, p.str(plan.domainname), uintptr(len(plan.domainname)))
	}
	if plan.newNS&unix.CLONE_NEWNET != 0 {
		p.loopback()
	}
	return s.finishProcess(plan.init)
}

// finishProcess writes the part that Start and Exec have in common.
func (s *start) finishProcess(withInit bool) error {
	p, pr := s.prog, &s.proc
	own, err := ownCaps()
	if err != nil {
		return err
	}
	var f *seccomp.Filter
	if s.plan.seccomp != nil {
		if f, err = seccomp.Cached(s.plan.seccompCache, s.plan.seccomp); err != nil {
			return &StepError{"seccomp", err}
		}
	}
	p.stdio(s.stdin, s.proc.terminal)
	p.oomScore(pr.oomScore, s.ownProcfs)
	p.defaultSignals(ignoredSignals())
	p.chdir(pr.cwd)
	p.rlimits(pr.rlimits) // nothing is opened any more
	keep := reportFD
	if withInit {
		if err := s.openReport(); err != nil {
			return err
		}
		keep++
	}
	p.identity(pr, own, f, keep)
	if withInit {
		err = s.execInit()
	} else {
		p.exec(pr)
	}
	p.link()
	return err
}

// ownProcfs is a procfs that we made, so that nothing in it is somebody's fake
// (CVE-2019-16884, CVE-2025-52881): the container's, or one nobody else sees.
func (s *start) ownProcfs() ref {
	if s.procfs == 0 {
		step := s.prog.step
		s.prog.step = "procfs of our own"
		s.procfs = s.prog.makeFS(&mount{kind: "proc"})
		s.prog.step = step
	}
	return s.procfs
}

func cutParam(s string) (key, val string, ok bool) { return strings.Cut(s, "=") }
