package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// A Parking is a place for a container between its creation and its start:
// another process may start it when the one that created it is gone.
type Parking struct {
	// Dir is a directory of the caller's, mode 0700, in which two FIFOs are made.
	// The waiting child holds both: it reads the first and writes to the second.
	Dir string
	// Record is called when all is done but for the filter and the program. It
	// stores what Open needs; if it fails, or the caller dies in it, nothing is left.
	Record func(*Container) error
	// Hooks, if not nil, is called before the first of the hooks that Create runs,
	// so that Poststop is called even if the caller is killed in one. If it fails, none runs.
	Hooks func() error
}

// Names in a Parking's directory.
const (
	fifoStart   = "start"   // one byte lets the container start
	fifoStarted = "started" // ends when the program has been executed, or has an outcome
)

// Create is Start without its last step: the container's process exists and
// waits, as the process it will be, until Execute is called with the same
// directory, from any process. It returns when Record has.
//
// The container is not the caller's to Close when it is to live on: see Release.
func Create(ctx context.Context, p *Plan, f Files, park Parking) (*Container, error) {
	return startOrCreate(ctx, p, f, &park, park.Hooks)
}

// openParking makes the FIFOs and opens them for the child.
func (s *start) openParking() error {
	for i, name := range []string{fifoStart, fifoStarted} {
		at := filepath.Join(s.park.Dir, name)
		if err := unix.Mkfifo(at, 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: at, Err: err}
		}
		low, err := unix.Open(at, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) // neither waits for another end
		if err != nil {
			return &os.PathError{Op: "open", Path: at, Err: err}
		}
		defer unix.Close(low)
		fd, err := dupHigh(low)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		s.fifos[i] = fd
	}
	return nil
}

// waitForStart parks the child. Its outcome then goes to the second FIFO, which takes the line's place.
func (s *start) waitForStart() {
	p := s.prog
	// It may wait for long, and holds nothing else of ours meanwhile: no lock, no directory.
	p.step = "park"
	p.closeAllBut(uintptr(3+s.extra), uintptr(s.fifos[0]), uintptr(s.fifos[1]), s.lineFD())
	s.sync(msgParked)
	p.step = "park"
	p.add(unix.SYS_DUP3, uintptr(s.fifos[1]), s.lineFD(), unix.O_CLOEXEC)
	p.add(unix.SYS_CLOSE, uintptr(s.fifos[1]))
	s.await(uintptr(s.fifos[0]))
	s.parkedAt = len(p.ops)
}

// A Record is what Open needs to know of a container.
type Record struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // when the process started, in clock ticks after boot
	// Cgroup is the ID of the container's group; 0 if it is not known.
	Cgroup uint64 `json:"cgroup,omitempty"`
	// First and Steps name what is left to do after Execute, for its errors.
	First int      `json:"first,omitempty"`
	Steps []string `json:"steps,omitempty"`
}

// Record describes the container for another process.
func (c *Container) Record() (Record, error) {
	start, err := startTime(c.init.pid)
	if err != nil {
		return Record{}, err
	}
	group, err := c.group.ID()
	return Record{c.init.pid, start, group, c.first, c.steps}, err
}

// Open returns a container that another process created or started, by the
// plan it was made from. Init is no child of the caller's then: its Wait tells
// the end but not the status. The caller calls Release, or Close to end it.
//
// If the container's process has ended, the error is os.ErrProcessDone.
func Open(p *Plan, r Record) (_ *Container, err error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, &StepError{"PR_SET_DUMPABLE", err}
	}
	fd, err := OpenPid(r.Pid, r.Start)
	if err != nil {
		return nil, err
	}
	c := &Container{plan: p, root: -1, devpts: -1, first: r.First, steps: r.Steps, init: newForeign(r.Pid, fd)}
	if c.group, err = cgroups.Open(p.cgroup); err != nil {
		return nil, errors.Join(&StepError{"cgroup " + p.cgroup, err}, c.init.pidfd.Close())
	}
	return c, nil
}

// OpenPid returns a pidfd of the process that has a number and started at a
// certain time, as Record has them; os.ErrProcessDone if there is none any more.
func OpenPid(pid int, start uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, &StepError{"pidfd_open", err}
	}
	// Whoever has the number now is who the descriptor is of.
	if now, err := startTime(pid); err != nil || now != start {
		unix.Close(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// startTime reads when a process started; os.ErrProcessDone if it has ended, reaped or not.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, os.ErrProcessDone
	}
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %q is too short", pid, b)
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// Waiting tells whether the container of a Parking's directory still waits for its start.
func Waiting(dir string) bool {
	fd, err := unix.Open(filepath.Join(dir, fifoStart), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false // ENXIO: nobody has it open, so the program has been executed
	}
	unix.Close(fd)
	return true
}

// ErrNotWaiting says that a container cannot be started, because it was already, or has ended.
var ErrNotWaiting = errors.New("the container does not wait for its start")

// Execute lets a created container start, after its startContainer hooks, and
// returns when its program has been executed. On an error the container has ended, or (from a hook) has to be.
func (c *Container) Execute(ctx context.Context, dir string) error {
	started, err := openFIFO(filepath.Join(dir, fifoStarted), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer started.Close()
	start, err := openFIFO(filepath.Join(dir, fifoStart), os.O_WRONLY)
	if err != nil {
		return err
	}
	defer start.Close()
	if err := c.startHooks(ctx); err != nil {
		return err
	}
	if _, err := start.Write([]byte{goAhead}); err != nil {
		return err
	}
	var b [24]byte
	n, err := io.ReadFull(started, b[:])
	switch {
	case n == 0 && err == io.EOF:
		return errors.Join(os.Remove(start.Name()), os.Remove(started.Name()))
	case err != nil:
		return fmt.Errorf("start: %w", err)
	}
	out := &outcome{index: int(binary.LittleEndian.Uint64(b[:])), errno: int(binary.LittleEndian.Uint64(b[8:]))}
	step := execStep
	if i := out.index - c.first; i >= 0 && i < len(c.steps) {
		step = c.steps[i]
	}
	return failure(step, c.plan.proc.name(), unix.Errno(-out.errno))
}

func openFIFO(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, flags|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotWaiting
	}
	return f, err
}

// Release lets go of a container without ending it.
func (c *Container) Release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for _, fd := range []int{c.root, c.devpts} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	for _, p := range append(slices.Clone(c.execs), c.init) {
		if p != nil {
			errs = append(errs, p.pidfd.Close())
		}
	}
	return errors.Join(append(errs, c.group.Release())...)
}
