package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/snapfs/snapfs/bench/containerd"
)

// A system is one way to pull.
type system struct {
	name  string
	start func(ctx context.Context, work string) (*daemon, error)
}

// A daemon is a running system.
type daemon struct {
	cmd  *exec.Cmd
	out  *os.File // what it says
	done chan error
	pull func(ctx context.Context, ref string) error
}

// list returns the systems asked for.
func (c *config) list(ctx context.Context) (list []*system, err error) {
	names := strings.Split(c.systems, ",")
	if slices.ContainsFunc(names, func(n string) bool { return containerd.Settings[n] != "" }) {
		if err := c.findContainerd(ctx); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		switch {
		case name == "ours" && c.oursPull == "":
			list = append(list, &system{name, startChild})
		case name == "ours":
			list = append(list, &system{name, c.startOurs})
		case containerd.Settings[name] != "":
			list = append(list, &system{name, func(ctx context.Context, work string) (*daemon, error) {
				return c.startContainerd(ctx, work, name)
			}})
		default:
			return nil, fmt.Errorf("no system %q", name)
		}
	}
	return list, nil
}

// startOurs starts a daemon of ours by its command line.
func (c *config) startOurs(ctx context.Context, work string) (*daemon, error) {
	fill := func(s, ref string) []string {
		r := strings.NewReplacer("{work}", work, "{ref}", ref, "{socket}", strings.ReplaceAll(c.oursSocket, "{work}", work))
		return strings.Fields(r.Replace(s))
	}
	d, err := c.spawn(work, fill(c.oursDaemon, ""), fill(c.oursSocket, "")[0])
	if err != nil {
		return d, err
	}
	d.pull = func(ctx context.Context, ref string) error { return c.command(ctx, fill(c.oursPull, ref)) }
	return d, nil
}

// newDaemon prepares a daemon whose errors go to a file in its work directory.
func newDaemon(work string, argv []string) (*daemon, error) {
	out, err := os.Create(filepath.Join(work, "log"))
	if err != nil {
		return nil, err
	}
	d := &daemon{cmd: exec.Command(argv[0], argv[1:]...), out: out, done: make(chan error, 1)}
	d.cmd.Stderr = out
	return d, nil
}

// spawn starts a daemon and waits until its socket accepts.
func (c *config) spawn(work string, argv []string, socket string) (*daemon, error) {
	if len(argv) == 0 {
		return nil, errors.New("no daemon's command")
	}
	d, err := newDaemon(work, argv)
	if err != nil {
		return nil, err
	}
	d.cmd.Env = c.env()
	d.cmd.Stdout = d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.done <- d.cmd.Wait() }()
	for range 3000 {
		if conn, err := net.Dial("unix", socket); err == nil {
			return d, conn.Close()
		}
		select {
		case err := <-d.done:
			d.done <- err
			return d, fmt.Errorf("%s ended: %v\n%s", argv[0], err, d.log())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return d, fmt.Errorf("%s: nothing listens at %s", argv[0], socket)
}

func (c *config) command(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = c.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func (c *config) env() []string { return append(os.Environ(), "PATH="+c.path()) }

func (c *config) path() string {
	return strings.Join([]string{c.bin, os.Getenv("PATH")}, ":")
}

// log is the end of what the daemon said.
func (d *daemon) log() string {
	p, err := os.ReadFile(d.out.Name())
	if err != nil {
		return err.Error()
	}
	return string(p[max(0, len(p)-2000):])
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() error {
	defer d.out.Close()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		err := d.cmd.Process.Kill()
		<-d.done
		return err
	}
	return nil
}

// peak is the most memory in kB that the daemon and, of snapd, its worker and
// keeper had resident.
func (d *daemon) peak() (int64, error) {
	total, err := vmHWM(d.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	parent := fmt.Sprintf("PPid:\t%d\n", d.cmd.Process.Pid)
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, err
	}
	for _, status := range all {
		if b, err := os.ReadFile(status); err != nil || !strings.Contains(string(b), parent) || !ours(string(b)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(status)))
		if err != nil {
			return 0, err
		}
		if kb, err := vmHWM(pid); err == nil {
			total += kb
		}
	}
	return total, nil
}

// ours tells whether a process is of snapd: its worker is started as /proc/self/exe.
func ours(status string) bool {
	name, _, _ := strings.Cut(strings.TrimPrefix(status, "Name:\t"), "\n")
	return name == "exe" || name == "snapd" || name == "snapctl"
}

func vmHWM(pid int) (int64, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(p)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		}
	}
	return 0, errors.New("no VmHWM")
}

// unmountBelow unmounts what a daemon left mounted below a directory.
func unmountBelow(dir string) error {
	p, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(p)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			mounts = append(mounts, at)
		}
	}
	slices.Sort(mounts)
	for _, at := range slices.Backward(mounts) {
		err = errors.Join(err, syscall.Unmount(at, syscall.MNT_DETACH))
	}
	return err
}
