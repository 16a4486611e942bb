package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeRunner runs the spec's program as an ordinary process of this machine.
type fakeRunner struct {
	err      error // of Start
	prepared int
	released int
	joined   []Namespace

	mu     sync.Mutex
	closed bool
	last   *fakeContainer
}

func (r *fakeRunner) Prepare(*Config) error { r.prepared++; return nil }
func (r *fakeRunner) Join(list []Namespace) { r.joined = list }
func (r *fakeRunner) Release() error        { r.released++; return nil }

func (r *fakeRunner) Start(_ context.Context, cfg *Config, f Files) (Container, error) {
	if r.err != nil {
		return nil, r.err
	}
	p := *cfg.Spec.Process
	p.ConsoleSize = &specs.Box{Height: uint(cfg.Height), Width: uint(cfg.Width)}
	init, err := startFake(&p, f)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = &fakeContainer{runner: r, init: init}
	return r.last, nil
}

// started is the container that Start made last. A test learns of the start over
// a socket, which orders nothing for the race detector: the lock does.
func (r *fakeRunner) started() *fakeContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

type fakeContainer struct {
	runner *fakeRunner
	init   *fakeProcess

	mu     sync.Mutex
	paused bool
	execs  []*fakeProcess
}

func (c *fakeContainer) Init() Process   { return c.init }
func (c *fakeContainer) OOMKilled() bool { return false }
func (c *fakeContainer) Pause() error    { return c.freeze(true) }
func (c *fakeContainer) Resume() error   { return c.freeze(false) }

func (c *fakeContainer) freeze(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = on
	sig := unix.SIGCONT
	if on {
		sig = unix.SIGSTOP
	}
	return c.init.Signal(sig)
}

// programs are those that Exec started, oldest first.
func (c *fakeContainer) programs() []*fakeProcess {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.execs)
}

func (c *fakeContainer) Exec(_ context.Context, p *specs.Process, f Files) (Process, error) {
	x, err := startFake(p, f)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs = append(c.execs, x)
	return x, nil
}

// Kill kills the process group of everything that was started.
func (c *fakeContainer) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range append(slices.Clone(c.execs), c.init) {
		syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	return nil
}

func (c *fakeContainer) Close() error {
	c.Kill()
	for _, p := range append(c.programs(), c.init) {
		<-p.done
	}
	c.runner.mu.Lock()
	defer c.runner.mu.Unlock()
	c.runner.closed = true
	return nil
}

type fakeProcess struct {
	cmd     *exec.Cmd
	console *os.File
	done    chan struct{}
}

type fakeExecError struct{ name string }

func (e fakeExecError) Error() string { return "exec " + e.name + ": no such file" }
func (e fakeExecError) ExitCode() int { return 127 }

func startFake(spec *specs.Process, f Files) (*fakeProcess, error) {
	path, err := exec.LookPath(spec.Args[0])
	if err != nil {
		return nil, fakeExecError{spec.Args[0]}
	}
	p := &fakeProcess{done: make(chan struct{}), cmd: &exec.Cmd{Path: path, Args: spec.Args, Env: spec.Env}}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	files := []*os.File{f.Stdin, f.Stdout, f.Stderr}
	if spec.Terminal {
		slave, err := p.openPty(spec.ConsoleSize)
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		p.cmd.SysProcAttr.Setctty = true
		files = []*os.File{slave, slave, slave}
	}
	// A nil *os.File must not become a non-nil io.Reader.
	if files[0] != nil {
		p.cmd.Stdin = files[0]
	}
	if files[1] != nil {
		p.cmd.Stdout = files[1]
	}
	if files[2] != nil {
		p.cmd.Stderr = files[2]
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait()
	}()
	return p, nil
}

func (p *fakeProcess) openPty(size *specs.Box) (slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p.console = os.NewFile(uintptr(fd), "ptmx")
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	if size != nil && size.Height > 0 {
		p.Resize(uint16(size.Height), uint16(size.Width))
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
}

func (p *fakeProcess) Pid() int          { return p.cmd.Process.Pid }
func (p *fakeProcess) Console() *os.File { return p.console }

func (p *fakeProcess) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return Status{}, errors.New("no status")
	}
	if ws.Signaled() {
		return Status{Signal: ws.Signal()}, nil
	}
	return Status{Code: ws.ExitStatus()}, nil
}

func (p *fakeProcess) KillGroup() error { return syscall.Kill(-p.Pid(), syscall.SIGKILL) }

func (p *fakeProcess) Signal(n unix.Signal) error { return p.cmd.Process.Signal(n) }

func (p *fakeProcess) Resize(height, width uint16) error {
	raw, err := p.console.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}), err)
}

func sh(lines ...string) []string { return []string{"sh", "-c", strings.Join(lines, "\n")} }
