package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A hook is a program of the host's that is run at a point of a container's life.
type hook struct {
	path    string
	args    []string
	env     []string
	timeout time.Duration // 0 none
}

// hooks are those of a spec, by when they run (runtime specification 1.3, "POSIX-platform Hooks").
type hooks struct {
	runtime   []hook // prestart and createRuntime: in our namespaces, before pivot_root
	container []hook // createContainer: a file of the host's, in the container's namespaces, before pivot_root
	start     []hook // startContainer: a file of the container's, in its namespaces, before the program
	poststart []hook
	poststop  []hook
}

func planHooks(h *specs.Hooks) (hooks, error) {
	var out hooks
	if h == nil {
		return out, nil
	}
	for _, l := range []struct {
		name string
		from []specs.Hook
		to   *[]hook
	}{
		//lint:ignore SA1019 a deprecated hook is one nevertheless
		{"prestart", h.Prestart, &out.runtime}, {"createRuntime", h.CreateRuntime, &out.runtime},
		{"createContainer", h.CreateContainer, &out.container}, {"startContainer", h.StartContainer, &out.start},
		{"poststart", h.Poststart, &out.poststart}, {"poststop", h.Poststop, &out.poststop},
	} {
		for i, s := range l.from {
			k, err := planHook(s)
			if err != nil {
				return out, fmt.Errorf("hooks.%s[%d]: %w", l.name, i, err)
			}
			*l.to = append(*l.to, k)
		}
	}
	return out, nil
}

func planHook(s specs.Hook) (hook, error) {
	k := hook{path: s.Path, args: s.Args, env: s.Env}
	if len(k.args) == 0 {
		k.args = []string{s.Path}
	}
	if !path.IsAbs(s.Path) {
		return k, fmt.Errorf("path %q is not absolute", s.Path)
	}
	for _, str := range append(append([]string{s.Path}, s.Args...), s.Env...) {
		if strings.ContainsRune(str, 0) {
			return k, fmt.Errorf("%q has a NUL byte", str)
		}
	}
	if s.Timeout != nil {
		if *s.Timeout <= 0 || *s.Timeout > 1<<31 {
			return k, fmt.Errorf("timeout %d: want a number of seconds above 0", *s.Timeout)
		}
		k.timeout = time.Duration(*s.Timeout) * time.Second
	}
	return k, nil
}

// state is what a hook gets on its standard input.
func (p *Plan) state(status specs.ContainerState, pid int) specs.State {
	return specs.State{Version: p.version, ID: p.id, Status: status, Pid: pid, Bundle: p.bundle, Annotations: p.annotations}
}

// A HookError says which hook did not do its work.
type HookError struct {
	Path   string
	Output string // the last of what it wrote
	Err    error
}

func (e *HookError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("hook %s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("hook %s: %v: %s", e.Path, e.Err, e.Output)
}

func (e *HookError) Unwrap() error { return e.Err }

// deadline bounds a hook's time.
func (h hook) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if h.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, h.timeout, fmt.Errorf("it was killed after its timeout of %v", h.timeout))
}

// run runs a hook in the namespaces of this process.
func (h hook) run(ctx context.Context, state []byte) error {
	ctx, cancel := h.deadline(ctx)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, h.path)
	cmd.Args, cmd.Env = h.args, h.env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would be this process's own
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(state), &out, &out
	cmd.WaitDelay = time.Second // somebody it left behind may hold the pipes
	err := cmd.Run()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) || errors.Is(err, unix.EPIPE) && cmd.ProcessState != nil && cmd.ProcessState.Success() {
		return nil // it need not read the state
	}
	return &HookError{h.path, out.String(), err}
}

// runHooks runs hooks one after the other, until one fails.
func runHooks(ctx context.Context, list []hook, state specs.State) error {
	if len(list) == 0 {
		return nil
	}
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := h.run(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// createHooks are those between the making of the namespaces and pivot_root.
func (c *Container) createHooks(ctx context.Context) error {
	st := c.plan.state(specs.StateCreating, c.init.pid)
	if err := runHooks(ctx, c.plan.hooks.runtime, st); err != nil {
		return err
	}
	return c.hooksInside(ctx, c.plan.hooks.container, st, hostFile)
}

// startHooks are those before the program is executed.
func (c *Container) startHooks(ctx context.Context) error {
	return c.hooksInside(ctx, c.plan.hooks.start, c.plan.state(specs.StateCreated, c.init.pid), containerFile)
}

// Poststart runs the hooks that follow the execution of the program. Start has
// done so; it is for whoever called Execute. If it fails the container has to be ended.
func (c *Container) Poststart(ctx context.Context) error {
	return runHooks(ctx, c.plan.hooks.poststart, c.plan.state(specs.StateRunning, c.init.pid))
}

// Poststop runs the hooks that follow a container's removal, all of them. What
// fails is for a log: the container is gone.
func (p *Plan) Poststop(ctx context.Context) error {
	var errs []error
	for _, h := range p.hooks.poststop {
		errs = append(errs, runHooks(ctx, []hook{h}, p.state(specs.StateStopped, 0)))
	}
	return errors.Join(errs...)
}

// hookFile says whose file a hook inside of the namespaces is, and with whose rights it runs.
type hookFile int

const (
	hostFile      hookFile = iota // before pivot_root, as root of the container's user namespace
	containerFile                 // as the container's own process
)

// hooksInside runs hooks in the namespaces of the waiting child.
func (c *Container) hooksInside(ctx context.Context, list []hook, state specs.State, whose hookFile) error {
	if len(list) == 0 {
		return nil
	}
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := c.hookInside(ctx, h, b, whose); err != nil {
			return err
		}
	}
	return nil
}

func (c *Container) hookInside(ctx context.Context, h hook, state []byte, whose hookFile) (err error) {
	ctx, cancel := h.deadline(ctx)
	defer cancel()
	in, err := memfile("hook state", state)
	if err != nil {
		return err
	}
	defer in.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	var out tail
	copied := make(chan struct{})
	go func() { // ends with the pipe, of which we close our end below
		defer close(copied)
		_, _ = io.Copy(&out, r)
	}()
	defer func() {
		_ = r.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // somebody it left behind may hold it
		<-copied
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			err = &HookError{h.path, out.String(), err}
		}
	}()
	p, err := c.startHook(ctx, h, whose, Files{Stdin: in, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return err
	}
	defer p.pidfd.Close()
	st, err := p.Wait(ctx)
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		<-p.done
		return err
	}
	if st.ExitCode() != 0 {
		return errors.New(st.String())
	}
	return nil
}

// startHook starts a hook as Exec does a program.
func (c *Container) startHook(ctx context.Context, h hook, whose hookFile, f Files) (*Process, error) {
	plan := *c.plan
	pr := plan.proc
	pr.terminal, pr.oomScore, pr.cwd = false, nil, "/"
	if whose == hostFile {
		pr = process{cwd: "/", umask: 0o022, caps: everything()}
		plan.seccomp = nil
	}
	pr.args, pr.env = h.args, h.env
	pr.file = h.path
	s := newStart(&plan, pr)
	defer s.close()
	s.hook = true
	if err := s.prepareExec(c, f); err != nil {
		return nil, err
	}
	s.handle = s.handleSync(ctx, c) // a startContainer hook has the filter, and so a notifier
	return s.run(ctx, c.group, 0)
}

// memfile is a file of some bytes, at its beginning.
func memfile(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// tail keeps the last bytes that were written to it.
type tail struct{ b []byte }

const tailSize = 2 << 10 // bytes; for an error message

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.b = append(t.b, p[max(0, n-tailSize):]...)
	t.b = t.b[max(0, len(t.b)-tailSize):]
	return n, nil
}

func (t *tail) String() string { return strings.TrimSpace(strings.ToValidUTF8(string(t.b), "?")) }
