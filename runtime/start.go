package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

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
	// Leave says that the process is for somebody else to wait for, who becomes its
	// parent when the caller has ended. It is not reaped, however soon it ends.
	Leave bool
	// Extra become the descriptors 3 and up, at most MaxExtra of them.
	Extra []*os.File
}

// MaxExtra is how many descriptors a process can get besides the standard ones, if the process's own limit allows it.
const MaxExtra = 1 << 16

// Start starts a container. It returns when the program has been executed; if
// it returns an error, nothing is left. If ctx ends first the child is killed.
//
// The calling process becomes the container's parent and is made undumpable
// (PR_SET_DUMPABLE), so that nobody inside can look into a child of it that
// joins the container. A thread sleeps in vfork until the program is
// executed: a process that serves the container's file systems must not call this.
func Start(ctx context.Context, p *Plan, f Files) (*Container, error) {
	return StartNoted(ctx, p, f, nil)
}

// StartNoted is Start that calls note before the first hook, so that somebody
// knows to call Poststop even if the caller is killed in one. If note fails, none runs.
func StartNoted(ctx context.Context, p *Plan, f Files, note func() error) (*Container, error) {
	if note != nil {
		note = sync.OnceValue(note)
	}
	c, err := startOrCreate(ctx, p, f, nil, note)
	if err != nil {
		return nil, err
	}
	if note != nil && len(p.hooks.poststart) > 0 {
		err = note()
	}
	if err == nil {
		err = c.Poststart(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(), p.Poststop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// startOrCreate is Start and Create.
func startOrCreate(ctx context.Context, p *Plan, f Files, park *Parking, note func() error) (_ *Container, err error) {
	if !supported {
		return nil, fmt.Errorf("start a container on this architecture: %w", ErrUnsupported)
	}
	s := newStart(p, p.proc)
	s.park, s.note = park, note
	defer s.close()
	c := &Container{plan: p, devpts: -1, root: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
			if c.hooked {
				err = errors.Join(err, p.Poststop(context.WithoutCancel(ctx)))
			}
		}
	}()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, &StepError{"PR_SET_DUMPABLE", err}
	}
	group, joined, err := p.makeGroup(ctx)
	if err != nil {
		return nil, &StepError{"cgroup " + p.cgroup, err}
	}
	c.group = group
	defer joined()
	if err := s.prepare(c, f); err != nil {
		return nil, err
	}
	if err := s.delegate(c.group); err != nil {
		return nil, &StepError{"delegate the cgroup", err}
	}
	if err := c.keep(s); err != nil {
		return nil, err
	}
	s.handle = s.handleSync(ctx, c)
	init, err := s.run(ctx, c.group, s.cloneFlags)
	if err != nil {
		c.init = nil // it has been reaped
		return nil, err
	}
	c.init = init
	return c, nil
}

// start is the making of one process.
type start struct {
	plan *Plan
	proc process
	prog *program
	fds  closer
	tree tree

	stdin   []int // 0, 1, 2 and the extra ones
	scratch int
	devpts  int // descriptor of the mount; -1 if there is none
	procfs  ref
	console *pty

	report, reportEnd int // a pipe from init; -1 if there is none

	cloneFlags uintptr // namespaces that clone3 makes
	threadNS   []threadNS
	page       []byte // an outcome, shared with the child

	line        *line // nil if the child need not wait
	lineAt      uintptr
	handle      func(kind uint64, p *Process) error
	forks       bool // the first child makes a second one
	forksInside bool // and this when it has joined and given up everything
	park        *Parking
	note        func() error // before the first hook
	fifos       [2]int
	parkedAt    int
	leave       bool
	exec        bool   // a further process
	hook        bool   // and that a hook's
	extra       int    // descriptors from 3 on
	ahead       *Ahead // the process exists
	copied      int64  // bytes that tmpcopyup has copied
	container   *Container
}

func newStart(p *Plan, pr process) *start {
	s := &start{plan: p, proc: pr, prog: newProgram(), devpts: -1, report: -1, reportEnd: -1}
	s.tree.closer = &s.fds
	s.tree.owner = p.ids.root()
	return s
}

func (s *start) close() {
	s.fds.close()
	s.line.close()
	if s.page != nil {
		_ = unix.Munmap(s.page)
	}
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
		{"descriptors", func() error { return s.reserve(f) }},
		{"rootfs", func() error { return s.openRoot(f.Rootfs) }},
		{"user", func() error { return s.lookup(s.tree.root) }},
		{"labels", s.checkLabels},
		{"", s.needLine},
		{"namespaces", func() error { return s.enter(c.group) }},
		{"scratch", s.makeScratch},
		{"", func() error { return s.attach(f.Rootfs != nil) }},
		{"", func() error { return s.placeMounts(c.group) }},
		{"", s.makeDevices},
		{"stdio", func() error { return s.openStdio(f) }},
		{"cwd", s.makeCwd},
		{"make the root read-only", s.protectRoot},
		{"", func() error { return s.finish(c) }},
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

// delegate gives the container's cgroup to its user, if it is made to manage
// that: it is the root of a cgroup namespace, and mounted writable
// (config-linux.md of the runtime specification 1.3, "Cgroup ownership").
func (s *start) delegate(g *cgroups.Group) error {
	writable := func(m mount) bool { return m.kind == "cgroup" && m.set&unix.MOUNT_ATTR_RDONLY == 0 }
	if s.plan.newNS&unix.CLONE_NEWCGROUP == 0 || !slices.ContainsFunc(s.plan.mounts, writable) {
		return nil
	}
	uid, err := s.plan.ids.uid.host(s.proc.uid)
	if err != nil || uid == 0 {
		return err
	}
	return g.Delegate(uid)
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
func (s *start) finish(c *Container) error {
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
	if len(plan.hooks.runtime)+len(plan.hooks.container) > 0 {
		c.hooked = true
		s.sync(msgCreateHooks)
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
	if err := s.finishProcess(plan.init); err != nil {
		return err
	}
	if s.park != nil {
		c.first, c.steps = s.parkedAt, slices.Clone(p.names[s.parkedAt:])
	}
	return nil
}

// finishProcess writes the part that Start and Exec have in common.
func (s *start) finishProcess(withInit bool) error {
	p, pr := s.prog, &s.proc
	own, err := ownCaps()
	if err != nil {
		return err
	}
	f := s.ahead.filterOf(s.plan.seccomp)
	if s.plan.seccomp != nil && f == nil {
		if f, err = seccomp.Cached(s.plan.seccompCache, s.plan.seccomp); err != nil {
			return &StepError{"seccomp", err}
		}
	}
	if !s.forksInside {
		p.stdio(s.stdin, s.proc.terminal)
	}
	s.setOOMScore()
	p.defaultSignals(ignoredSignals())
	p.chdir(pr.cwd)
	p.schedule(pr)
	if !s.hook {
		p.memoryPolicy(s.plan.memPolicy)
	}
	labels := s.openLabels()
	p.rlimits(pr.rlimits) // nothing is opened any more
	keep := reportFD + s.extra
	if !withInit {
		s.identity(own, f, keep, nil, labels)
		p.exec(pr)
		p.link()
		return nil
	}
	if s.extra > 0 {
		return fmt.Errorf("descriptors besides the standard ones, with an init: %w", ErrUnsupported)
	}
	if err := s.openReport(); err != nil {
		return err
	}
	file, err := openInit()
	if err != nil {
		return &StepError{"init", err}
	}
	s.fds.add(file)
	s.identity(own, f, keep+1, []uintptr{uintptr(file)}, labels)
	s.execInit(file)
	p.link()
	return nil
}

// ownProcfs is a procfs that we made, so that nothing in it is somebody's fake
// (CVE-2019-16884, CVE-2025-52881): the container's, or one nobody else sees.
func (s *start) ownProcfs() ref {
	if s.procfs == 0 {
		step := s.prog.step
		s.prog.step = "procfs of our own"
		s.procfs = s.prog.makeFS(&mount{kind: "proc"}, nil)
		s.prog.step = step
	}
	return s.procfs
}

func cutParam(s string) (key, val string, ok bool) { return strings.Cut(s, "=") }
