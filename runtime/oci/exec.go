package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
)

// execFailed is the status of exec when it is not that of the program.
const execFailed = 255

// maxProcess is how large a file of --process may be, in bytes.
const maxProcess = 4 << 20

// A tweak is what the command line says about the process of exec.
type tweak struct {
	process, cwd, user   string
	env, caps, groups    []string
	terminal, noNewPrivs bool
	selinux, apparmor    string
	detach, ignorePaused bool
	making
}

func execute(ctx context.Context, c *CLI, args []string) error {
	err := c.execute(ctx, args)
	var st *statusError
	if err == nil || errors.As(err, &st) {
		return err
	}
	return &statusError{execFailed, fmt.Errorf("exec failed: %w", err)}
}

func (c *CLI) execute(ctx context.Context, args []string) error {
	var t tweak
	f := c.flags("exec", "[options] ID [COMMAND [ARG...]]")
	t.registerProcess(f)
	process := text2(f, "process", "p", "", "`FILE` with the process, as in config.json")
	user := text2(f, "user", "u", "", "`UID[:GID]`")
	f.StringVar(&t.cwd, "cwd", "", "working `DIR`")
	each(f, &t.env, "`NAME=VALUE` to add", "env", "e")
	each(f, &t.caps, "`CAPABILITY` to add", "cap", "c")
	each(f, &t.groups, "supplementary `GID` to add", "additional-gids", "g")
	tty := both(f, f.BoolVar, "tty", "t", "give it a terminal")
	detach := both(f, f.BoolVar, "detach", "d", "do not wait for its end")
	f.BoolVar(&t.noNewPrivs, "no-new-privs", false, "set no_new_privs")
	f.BoolVar(&t.ignorePaused, "ignore-paused", false, "wait for a paused container to go on instead of failing")
	f.StringVar(&t.selinux, "process-label", "", "SELinux `LABEL`")
	f.StringVar(&t.apparmor, "apparmor", "", "AppArmor `PROFILE`")
	cgroup := f.String("cgroup", "", "refused: the process belongs into the container's own")
	rest, err := arguments(f, args, 1, -1)
	if err != nil {
		return err
	}
	t.process, t.user, t.terminal, t.detach = *process, *user, *tty, *detach
	if *cgroup != "" && *cgroup != "/" {
		return errors.New("--cgroup: not supported")
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	if k.Process == nil {
		return fmt.Errorf("%s: %w", k.ID, errNotRunning)
	}
	s, plan, err := c.configOf(k)
	if err != nil {
		return err
	}
	if plan.HostRoot() {
		if err := runtime.Seal(); err != nil {
			return err
		}
	}
	proc, err := t.apply(s.Process, rest[1:])
	if err != nil {
		return err
	}
	if err := t.check(proc.Terminal, !t.detach); err != nil {
		return err
	}
	files, err := t.files(c, proc.Terminal, &proc.Env)
	if err != nil {
		return err
	}
	r, err := runtime.Open(plan, *k.Process)
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot exec in a stopped container: %w", errNotRunning)
	}
	if err != nil {
		return err
	}
	return errors.Join(c.executeIn(ctx, r, proc, files, &t), r.Release())
}

func (c *CLI) executeIn(ctx context.Context, r *runtime.Container, proc *specs.Process, files runtime.Files, t *tweak) error {
	caught := make(chan os.Signal, 64)
	if !t.detach {
		signal.Notify(caught, forwarded...)
	}
	files.Leave = t.detach
	start := r.Exec
	if t.ignorePaused {
		start = r.ExecPaused
	}
	p, err := start(ctx, proc, files)
	if err != nil {
		return err
	}
	if err := t.announce(ctx, p); err != nil {
		return errors.Join(err, p.Signal(unix.SIGKILL))
	}
	if t.detach {
		return nil
	}
	status, err := c.attend(ctx, p, caught, proc.Terminal && t.consoleSocket == "")
	return errors.Join(err, exit(status))
}

// apply makes the process of exec: that of a file, or the container's own with another command.
func (t *tweak) apply(own *specs.Process, command []string) (*specs.Process, error) {
	if t.process != "" {
		b, err := readFile(t.process, maxProcess)
		if err != nil {
			return nil, fmt.Errorf("--process: %w", err)
		}
		p := new(specs.Process)
		if err := json.Unmarshal(b, p); err != nil {
			return nil, fmt.Errorf("--process %s: %w", t.process, err)
		}
		if len(command) > 0 {
			return nil, errors.New("--process: a command was given as well")
		}
		p.Terminal = p.Terminal || t.terminal
		return p, nil
	}
	if len(command) == 0 {
		return nil, errors.New("there is no command, and no --process")
	}
	p := *own
	p.Args, p.Terminal, p.ConsoleSize = command, t.terminal, nil
	p.Env = append(slices.Clip(p.Env), t.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || t.noNewPrivs
	for _, o := range []struct{ from, to *string }{{&t.cwd, &p.Cwd}, {&t.selinux, &p.SelinuxLabel}, {&t.apparmor, &p.ApparmorProfile}} {
		if *o.from != "" {
			*o.to = *o.from
		}
	}
	if err := t.applyUser(&p.User); err != nil {
		return nil, err
	}
	if len(t.caps) > 0 {
		p.Capabilities = withCaps(p.Capabilities, t.caps)
	}
	return &p, nil
}

// applyUser takes numbers only, and all of them: what is not one is not taken
// for 0 or for a name (CVE-2026-30892).
func (t *tweak) applyUser(u *specs.User) error {
	for _, g := range t.groups {
		n, err := parseID(g)
		if err != nil {
			return fmt.Errorf("--additional-gids: %w", err)
		}
		u.AdditionalGids = append(slices.Clip(u.AdditionalGids), n)
	}
	if t.user == "" {
		return nil
	}
	uid, gid, hasGroup := strings.Cut(t.user, ":")
	var err error
	if u.UID, err = parseID(uid); err == nil && hasGroup {
		u.GID, err = parseID(gid)
	}
	u.Username = ""
	if err != nil {
		return fmt.Errorf("--user %q: %w", t.user, err)
	}
	return nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a number of 0 to %d", s, 1<<31-1)
	}
	return uint32(n), nil
}

// withCaps adds capabilities to the bounding, permitted and effective sets, as runc does.
func withCaps(c *specs.LinuxCapabilities, add []string) *specs.LinuxCapabilities {
	var out specs.LinuxCapabilities
	if c != nil {
		out = *c
	}
	for _, set := range []*[]string{&out.Bounding, &out.Permitted, &out.Effective} {
		*set = append(slices.Clip(*set), add...)
	}
	return &out
}
