package oci

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
)

// making are the options of create and run.
type making struct {
	bundle, pidFile, consoleSocket, pidfdSocket string
	preserve                                    int
	noPivot, noKeyring                          bool
	detach, keep, dryRun                        bool
}

func (m *making) register(f *flag.FlagSet) {
	m.registerProcess(f)
	f.StringVar(&m.bundle, "bundle", "", "`DIR` with config.json (default: the working directory)")
	f.StringVar(&m.bundle, "b", "", "short for --bundle")
	f.BoolVar(&m.dryRun, "dry-run", false, "print what would be done, and do nothing")
	f.BoolVar(&m.noPivot, "no-pivot", false, "refused: the root is always pivoted to")
	f.BoolVar(&m.noKeyring, "no-new-keyring", false, "leave the container this session's keyring")
}

// registerProcess has those that exec has too.
func (m *making) registerProcess(f *flag.FlagSet) {
	f.StringVar(&m.pidFile, "pid-file", "", "`FILE` to write the process's number to")
	f.StringVar(&m.consoleSocket, "console-socket", "", "unix `SOCKET` that gets the outer end of the terminal")
	f.StringVar(&m.pidfdSocket, "pidfd-socket", "", "unix `SOCKET` that gets a pidfd of the process")
	f.IntVar(&m.preserve, "preserve-fds", 0, "pass `N` descriptors from 3 on")
}

// check finds what cannot be meant, before anything is made.
func (m *making) check(terminal, foreground bool) error {
	switch {
	case m.noPivot:
		return errors.New("--no-pivot: not supported; the root of the host has to be a mount point, not an initramfs")
	case m.preserve < 0 || m.preserve > runtime.MaxExtra:
		return fmt.Errorf("--preserve-fds %d: want 0 to %d", m.preserve, runtime.MaxExtra)
	case terminal && m.consoleSocket == "" && !foreground:
		return errors.New("process.terminal: there is no --console-socket to give the terminal to")
	case !terminal && m.consoleSocket != "":
		return errors.New("--console-socket: process.terminal is not set")
	}
	return nil
}

// files are the process's descriptors: this process's own, but for a terminal.
func (m *making) files(c *CLI, terminal bool, env *[]string) (runtime.Files, error) {
	var f runtime.Files
	if !terminal {
		f.Stdin, f.Stdout, f.Stderr = c.Stdin, c.Stdout, c.Stderr
	}
	n := m.preserve
	if s := c.Getenv("LISTEN_FDS"); s != "" { // sd_listen_fds(3)
		k, err := strconv.Atoi(s)
		if err != nil || k < 0 || k+n > runtime.MaxExtra {
			return f, fmt.Errorf("LISTEN_FDS=%s and --preserve-fds %d: want 0 to %d descriptors", s, n, runtime.MaxExtra)
		}
		if n += k; k > 0 && env != nil {
			*env = append(*env, "LISTEN_FDS="+s, "LISTEN_PID=1")
		}
	}
	for i := range n {
		fd := 3 + i
		// What is closed at exec was not inherited: it is Go's own.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			return f, fmt.Errorf("--preserve-fds: descriptor %d is not open", fd)
		}
		f.Extra = append(f.Extra, os.NewFile(uintptr(fd), "preserved "+strconv.Itoa(fd)))
	}
	return f, nil
}

// announce tells those who asked about a process that exists.
func (m *making) announce(ctx context.Context, p *runtime.Process) error {
	if m.consoleSocket != "" {
		tty := p.Console()
		err := runtime.SendFD(ctx, m.consoleSocket, []byte("/dev/ptmx"), int(tty.Fd()))
		if err = errors.Join(err, tty.Close()); err != nil {
			return fmt.Errorf("--console-socket: %w", err)
		}
	}
	if m.pidfdSocket != "" {
		fd, err := unix.PidfdOpen(p.Pid(), 0)
		if err == nil {
			err = errors.Join(runtime.SendFD(ctx, m.pidfdSocket, []byte("pidfd"), fd), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("--pidfd-socket: %w", err)
		}
	}
	if m.pidFile != "" {
		if err := replace(m.pidFile, []byte(strconv.Itoa(p.Pid())), 0o644); err != nil {
			return fmt.Errorf("--pid-file: %w", err)
		}
	}
	return nil
}

// A job is a container that is about to be made.
type job struct {
	making
	cli      *CLI
	k        *container
	config   []byte
	plan     *runtime.Plan
	files    runtime.Files
	terminal bool
}

// prepare reads and checks everything, and makes the container's directory last.
func (m making) prepare(c *CLI, id string, foreground bool) (*job, error) {
	if err := runtime.CheckID(id); err != nil {
		return nil, err
	}
	if !m.dryRun { // the container's program may be a link to this one
		if err := runtime.Seal(); err != nil {
			return nil, err
		}
	}
	bundle, err := filepath.Abs(m.bundle)
	if err != nil {
		return nil, err
	}
	j := &job{making: m, cli: c}
	name := filepath.Join(bundle, configFile)
	if j.config, err = readFile(name, maxConfig); err != nil {
		return nil, err
	}
	s, err := parseSpec(j.config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if s.Root == nil || s.Root.Path == "" {
		return nil, fmt.Errorf("%s: root.path is missing", name)
	}
	j.terminal = s.Process != nil && s.Process.Terminal
	if err := m.check(j.terminal, foreground); err != nil {
		return nil, err
	}
	var env *[]string
	if s.Process != nil {
		env = &s.Process.Env
	}
	if j.files, err = m.files(c, j.terminal, env); err != nil {
		return nil, err
	}
	if j.plan, err = c.plan(s, id, bundle, m.noKeyring, c.systemd); err != nil {
		return nil, err
	}
	for _, w := range j.plan.Warnings() {
		c.report("warning", w)
	}
	if m.dryRun {
		fmt.Fprint(c.Stdout, j.plan)
		return nil, errPrinted
	}
	if j.k, err = c.makeDir(id); err != nil {
		return nil, err
	}
	j.k.record = record{
		Version: s.Version, ID: id, Bundle: bundle, Rootfs: s.Root.Path, Created: time.Now().UTC(), Annotations: s.Annotations,
		Cgroup: j.plan.Cgroup(), Scope: j.plan.Scope(), PrivatePID: j.plan.PrivatePID(), Keyring: !m.noKeyring,
	}
	if err := errors.Join(os.WriteFile(filepath.Join(j.k.dir, configFile), j.config, 0o600), j.k.store()); err != nil {
		return nil, errors.Join(err, j.discard())
	}
	return j, nil
}

// errPrinted says that a plan was all that was wanted.
var errPrinted = &statusError{}

// discard forgets a container that did not come to be.
func (j *job) discard() error {
	j.k.release()
	return j.k.removeDir()
}

// recordProcess stores what later calls need to find the process.
func (j *job) recordProcess(c *runtime.Container) error {
	r, err := c.Record()
	if err != nil {
		return err
	}
	j.k.Process = &r
	return j.k.store()
}

// hooksBegin stores that poststop hooks have something to take away.
func (j *job) hooksBegin() error {
	j.k.Hooked = true
	return j.k.store()
}

func create(ctx context.Context, c *CLI, args []string) error {
	var m making
	f := c.flags("create", "[options] ID")
	m.register(f)
	rest, err := arguments(f, args, 1, 1)
	if err != nil {
		return err
	}
	j, err := m.prepare(c, rest[0], false)
	if err != nil {
		return err
	}
	j.files.Leave = true
	made, err := runtime.Create(ctx, j.plan, j.files, runtime.Parking{Dir: j.k.dir, Record: func(r *runtime.Container) error {
		if err := j.announce(ctx, r.Init()); err != nil {
			return err
		}
		return j.recordProcess(r)
	}, Hooks: j.hooksBegin})
	if err != nil {
		return errors.Join(fmt.Errorf("create: %w", err), j.discard())
	}
	defer j.k.release()
	return made.Release()
}

func start(ctx context.Context, c *CLI, args []string) error {
	rest, err := arguments(c.flags("start", "ID"), args, 1, 1)
	if err != nil {
		return err
	}
	k, status, fd, err := c.openStatus(rest[0])
	if err != nil {
		return err
	}
	defer k.release()
	if fd >= 0 {
		defer unix.Close(fd)
	}
	switch status {
	case specs.StateCreated:
	case specs.StateStopped:
		return errors.New("cannot start a container that has stopped")
	default:
		return fmt.Errorf("cannot start a container in the %s state", status)
	}
	_, plan, err := c.configOf(k)
	if err != nil {
		return err
	}
	r, err := runtime.Open(plan, *k.Process)
	if err != nil {
		return err
	}
	err = r.Execute(ctx, k.dir)
	if err == nil {
		err = r.Poststart(ctx)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotWaiting) {
		// The container is over (runtime specification 1.3, lifecycle); delete takes it away.
		return errors.Join(fmt.Errorf("start: %w", err), r.Kill(), r.Release())
	}
	return errors.Join(err, r.Release())
}

func run(ctx context.Context, c *CLI, args []string) error {
	var m making
	f := c.flags("run", "[options] ID")
	m.register(f)
	f.BoolVar(&m.detach, "detach", false, "do not wait for the container's end")
	f.BoolVar(&m.detach, "d", false, "short for --detach")
	f.BoolVar(&m.keep, "keep", false, "do not delete the container after its end")
	_ = f.Bool("no-subreaper", false, "ignored")
	rest, err := arguments(f, args, 1, 1)
	if err != nil {
		return err
	}
	caught := make(chan os.Signal, 64)
	if !m.detach {
		signal.Notify(caught, forwarded...) // before there is anybody to pass them on to
	}
	j, err := m.prepare(c, rest[0], !m.detach)
	if err != nil {
		return err
	}
	j.files.Leave = m.detach
	r, err := runtime.StartNoted(ctx, j.plan, j.files, j.hooksBegin)
	if err != nil {
		return errors.Join(fmt.Errorf("run: %w", err), j.discard())
	}
	if err := errors.Join(j.recordProcess(r), j.announce(ctx, r.Init())); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(err, r.Close(), j.plan.Poststop(context.WithoutCancel(ctx)), j.discard())
	}
	j.k.release()
	if m.detach {
		return r.Release()
	}
	status, err := c.attend(ctx, r.Init(), caught, j.terminal && m.consoleSocket == "")
	if err == nil && m.keep {
		return errors.Join(r.Release(), exit(status))
	}
	err = errors.Join(err, r.Close())
	if perr := j.plan.Poststop(context.WithoutCancel(ctx)); perr != nil {
		c.report("warning", perr.Error())
	}
	return errors.Join(err, j.discard(), exit(status))
}

// exit makes an exit status an error, unless it is 0.
func exit(status int) error {
	if status == 0 {
		return nil
	}
	return &statusError{status: status}
}

// forwarded are the signals that are passed on: those that people and
// supervisors send. Each costs a start about 6 µs, as a thread is woken and waited
// for; all of them would be 0.4 ms. It costs the same to stop that, which nobody does.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT,
	unix.SIGTSTP, unix.SIGALRM, unix.SIGIO, unix.SIGPWR, unix.SIGXCPU, syscall.Signal(34), syscall.Signal(37), syscall.Signal(38), // SIGRTMIN, +3, +4: systemd's halt and poweroff
}

// attend passes signals on to a process until it ends.
func (c *CLI) attend(ctx context.Context, p *runtime.Process, caught chan os.Signal, terminal bool) (int, error) {
	if terminal {
		t, err := c.connect(p)
		if err != nil {
			return 0, err
		}
		defer t.close()
	}
	for {
		select {
		case <-p.Done(): // and no signal keeps us from taking the rest away
			st, err := p.Wait(ctx)
			return st.ExitCode(), err
		case sig := <-caught:
			n, ok := sig.(syscall.Signal)
			switch {
			case !ok:
			case n == unix.SIGWINCH && terminal:
				_ = c.resize(p)
			default:
				if err := p.Signal(n); err != nil && !errors.Is(err, os.ErrProcessDone) {
					c.report("warning", fmt.Sprintf("pass on %v: %v", n, err))
				}
			}
		}
	}
}
