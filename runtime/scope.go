package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/systemd"
)

// A scope is the unit of systemd whose group is the container's.
type scope struct{ slice, unit string }

// unitPrefix is of the names of units whose cgroupsPath says none.
const unitPrefix = "snaprun"

// planScope reads a cgroupsPath as runc's systemd driver has it: SLICE:PREFIX:NAME
// is the unit PREFIX-NAME.scope in SLICE.
func (p *Plan) planScope(l *specs.Linux) error {
	slice, prefix, name := "", unitPrefix, p.id
	if s := l.CgroupsPath; s != "" {
		part := strings.Split(s, ":")
		if len(part) != 3 || part[2] == "" {
			return fmt.Errorf("linux.cgroupsPath: %q: want SLICE:PREFIX:NAME, as systemd is to make the cgroup", s)
		}
		slice, prefix, name = part[0], part[1], part[2]
	}
	if slice == "" {
		slice = "system.slice"
	}
	if strings.HasSuffix(name, ".slice") {
		return fmt.Errorf("linux.cgroupsPath: %q: a slice holds no processes: %w", l.CgroupsPath, ErrUnsupported)
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	s := &scope{slice, name + ".scope"}
	path, err := systemd.Path(s.slice)
	if err == nil {
		err = systemd.CheckUnit(s.unit)
	}
	if err != nil {
		return fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	p.scope, p.cgroup = s, strings.TrimSuffix(path, "/")+"/"+s.unit
	for _, key := range sortedKeys(p.annotations) {
		if strings.HasPrefix(key, "org.systemd.property.") {
			p.warnings = append(p.warnings, "annotation "+key+": has no effect")
		}
	}
	return nil
}

// Scope is the unit of systemd that the container's cgroup is of; "" if it is of none.
func (p *Plan) Scope() string {
	if p.scope == nil {
		return ""
	}
	return p.scope.unit
}

// makeGroup makes the container's group. After release, which is to be called
// when a process of the container is in it, or none will be, an empty group of systemd's goes.
func (p *Plan) makeGroup(ctx context.Context) (g *cgroups.Group, release func(), err error) {
	if p.scope == nil {
		g, err = cgroups.Create(p.cgroup, p.resources)
		return g, func() {}, err
	}
	h, err := hold()
	if err != nil {
		return nil, nil, err
	}
	err = p.scope.start(ctx, p, h.process.pid)
	if err != nil {
		h.end()
		return nil, nil, err
	}
	if g, err = cgroups.Adopt(p.cgroup, p.resources); err != nil {
		h.end() // systemd would wait for it
		return nil, nil, errors.Join(err, p.removeGroup(context.WithoutCancel(ctx), nil))
	}
	return g, h.end, nil
}

// start makes the unit, with a process in it: systemd makes none without.
func (s *scope) start(ctx context.Context, p *Plan, pid int) (err error) {
	limits, err := cgroups.Unit(p.resources, true)
	if err != nil {
		return err
	}
	c, err := dialSystemd(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	properties := append([]systemd.Property{
		{Name: "Description", Value: "container " + p.id},
		{Name: "Slice", Value: s.slice},
		{Name: "PIDs", Value: []uint32{uint32(pid)}},
		{Name: "Delegate", Value: true}, // the group is ours, and what is below it the container's
		{Name: "DefaultDependencies", Value: false},
		{Name: "CollectMode", Value: "inactive-or-failed"},
		{Name: "MemoryAccounting", Value: true}, {Name: "CPUAccounting", Value: true},
		{Name: "IOAccounting", Value: true}, {Name: "TasksAccounting", Value: true},
	}, limits...)
	err = c.Start(ctx, s.unit, properties)
	if errors.Is(err, systemd.ErrExists) && p.emptyGroup() {
		// A dead container left it: of a runtime that was killed, or failed.
		if err = c.Stop(ctx, s.unit); err == nil {
			err = c.Start(ctx, s.unit, properties)
		}
	}
	if err != nil {
		return fmt.Errorf("unit %s: %w", s.unit, err)
	}
	return s.placed(p.cgroup, pid)
}

func dialSystemd(ctx context.Context) (*systemd.Conn, error) {
	c, err := systemd.Dial(ctx, systemd.Socket)
	if errors.Is(err, systemd.ErrAbsent) {
		err = fmt.Errorf("--systemd-cgroup: %w (without systemd use the cgroupfs driver: SystemdCgroup = false in containerd, cgroupDriver: cgroupfs of the kubelet)", err)
	}
	return c, err
}

// emptyGroup tells whether nobody is in the group that the container is to have.
func (p *Plan) emptyGroup() bool {
	g, err := cgroups.Open(p.cgroup)
	if err != nil {
		return false
	}
	pids, err := g.Procs()
	return errors.Join(err, g.Release()) == nil && len(pids) == 0
}

// placed makes sure that systemd sees the groups that we do: it may be another
// machine's, whose socket somebody has mounted here.
func (s *scope) placed(path string, pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	var at []string
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, where, _ := strings.Cut(rest, ":")
		if name != "" && name != "name=systemd" {
			continue
		}
		if where == path {
			return nil
		}
		at = append(at, where)
	}
	return fmt.Errorf("unit %s: systemd put it in %s, not in %s: it is not the one of this machine", s.unit, strings.Join(at, ", "), path)
}

// removeGroup takes away a group, and the unit that it is of. A nil group is looked for.
func (p *Plan) removeGroup(ctx context.Context, g *cgroups.Group) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var err error
	if p.scope != nil && (g == nil || g.Current()) { // else it has ended, and its name may be another's
		err = EndScope(ctx, p.scope.unit)
	}
	if g == nil {
		var oerr error
		if g, oerr = cgroups.Open(p.cgroup); oerr != nil {
			return errors.Join(err, oerr)
		}
	}
	return errors.Join(err, g.Remove(ctx))
}

// EndScope ends a unit of Plan.Scope. If there is no systemd any more it is no
// error: the unit has ended with it, or will when its group is empty.
func EndScope(ctx context.Context, unit string) error {
	c, err := systemd.Dial(ctx, systemd.Socket)
	if errors.Is(err, systemd.ErrAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(c.Stop(ctx, unit), c.Close())
}

// UpdateScope tells systemd of limits of a unit, which are to be written besides.
func UpdateScope(ctx context.Context, unit string, r *specs.LinuxResources) error {
	list, err := cgroups.Unit(r, false)
	if err != nil || len(list) == 0 {
		return err
	}
	c, err := dialSystemd(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Set(ctx, unit, list), c.Close()); err != nil {
		return fmt.Errorf("unit %s: %w", unit, err)
	}
	return nil
}

// A holder is a process that does nothing but to be there, and ends with this one.
type holder struct {
	start   *start
	process *Process
}

func hold() (_ *holder, err error) {
	s := newStart(&Plan{}, process{})
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.openLine(); err != nil {
		return nil, err
	}
	s.await(s.lineFD())
	s.prog.link()
	pidfd := int32(-1)
	pid, err := s.fork(&cloneArgs{
		flags: unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND, pidfd: uint64(uintptr(unsafe.Pointer(&pidfd))), exitSignal: uint64(unix.SIGCHLD),
	}, s.outcome())
	if err != nil {
		return nil, err
	}
	s.line.closeChild()
	return &holder{s, newProcess(pid, int(atomic.LoadInt32(&pidfd)), nil, false)}, nil
}

func (h *holder) end() {
	h.process.bury()
	h.start.close()
}
