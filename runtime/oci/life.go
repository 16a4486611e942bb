package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// A shown is what state and list print: the specification's state and runc's additions.
type shown struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

func (k *container) shown() (shown, error) {
	status, fd, err := k.status()
	if err != nil {
		return shown{}, err
	}
	s := shown{Version: k.Version, ID: k.ID, Status: status, Bundle: k.Bundle, Rootfs: k.Rootfs, Created: k.Created, Annotations: k.Annotations, Owner: "root"}
	if fd >= 0 {
		unix.Close(fd)
		s.Pid = k.pid()
	}
	return s, nil
}

func (c *CLI) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = c.Stdout.Write(append(b, '\n'))
	return err
}

func state(_ context.Context, c *CLI, args []string) error {
	rest, err := arguments(c.flags("state", "ID"), args, 1, 1)
	if err != nil {
		return err
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	s, err := k.shown()
	if err != nil {
		return err
	}
	return c.printJSON(s)
}

func list(_ context.Context, c *CLI, args []string) error {
	f := c.flags("list", "[options]")
	format := text2(f, "format", "f", "table", "table or json")
	quiet := both(f, f.BoolVar, "quiet", "q", "IDs only")
	if _, err := arguments(f, args, 0, 0); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all := []shown{}
	for _, e := range entries {
		k, err := c.open(e.Name())
		if err != nil || !e.IsDir() {
			continue // it is being removed, or not a container
		}
		s, err := k.shown()
		if err != nil {
			c.report("warning", err.Error())
			continue
		}
		all = append(all, s)
	}
	switch {
	case *quiet:
		for _, s := range all {
			fmt.Fprintln(c.Stdout, s.ID)
		}
		return nil
	case *format == "json":
		return c.printJSON(all)
	case *format != "table":
		return fmt.Errorf("list: --format %q: want table or json", *format)
	}
	w := tabwriter.NewWriter(c.Stdout, 12, 1, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return w.Flush()
}

// parseSignal reads "TERM", "SIGTERM", "15" or "SIGRTMIN+3".
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d is not of 1 to 64", n)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} { // as glibc counts
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			off := 0
			var err error
			if rest != "" {
				off, err = strconv.Atoi(rest)
			}
			if n := base + off; err == nil && n >= 34 && n <= 64 {
				return unix.Signal(n), nil
			}
		}
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func kill(_ context.Context, c *CLI, args []string) error {
	f := c.flags("kill", "[options] ID [SIGNAL]")
	all := both(f, f.BoolVar, "all", "a", "signal all processes of the container")
	rest, err := arguments(f, args, 1, 2)
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if len(rest) == 2 {
		if sig, err = parseSignal(rest[1]); err != nil {
			return err
		}
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	status, fd, err := k.status()
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	// Without a pid namespace the others outlive the first process.
	if (*all || sig == unix.SIGKILL && !k.PrivatePID) && k.Cgroup != "" {
		return k.signalAll(sig)
	}
	if fd < 0 {
		return fmt.Errorf("%s: %w (it is %s)", k.ID, errNotRunning, status)
	}
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if err == unix.ESRCH {
		return fmt.Errorf("%s: %w", k.ID, errNotRunning)
	}
	if err == nil && sig == unix.SIGKILL && status == statusPaused {
		return k.thaw() // in a frozen version 1 group the signal would wait
	}
	return err
}

func (k *container) signalAll(sig unix.Signal) error {
	g, err := k.group()
	if err != nil {
		return err
	}
	err = g.Signal(sig)
	if k.Scope != "" && errors.Is(err, fs.ErrNotExist) {
		err = nil // it has ended, and systemd has taken it away
	}
	return errors.Join(err, g.Release())
}

func (k *container) thaw() error {
	g, err := k.group()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(g.Freeze(ctx, false), g.Release())
}

func remove(ctx context.Context, c *CLI, args []string) error {
	f := c.flags("delete", "[options] ID")
	force := both(f, f.BoolVar, "force", "f", "kill the container first if it runs, and take it for success if there is none")
	rest, err := arguments(f, args, 1, 1)
	if err != nil {
		return err
	}
	id := rest[0]
	k, err := c.open(id)
	if errors.Is(err, errNotExist) && *force {
		return nil
	}
	if err != nil {
		return err
	}
	if *force && k.Cgroup != "" {
		// Somebody may be creating it, and wait for one of its processes: end those first.
		if err := k.signalAll(unix.SIGKILL); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	k, status, fd, err := c.openStatus(id)
	if err != nil {
		if errors.Is(err, errNotExist) && *force {
			return nil
		}
		return err
	}
	defer k.release()
	if fd >= 0 {
		defer unix.Close(fd)
		if status != specs.StateCreated && !*force {
			return fmt.Errorf("cannot delete container %s that is not stopped: %s", id, status)
		}
		if err := end(fd); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return c.destroy(ctx, k)
}

// end kills a process and waits until it has ended.
func end(fd int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	list := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll(list, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("its process does not end, though it was killed")
		default:
			return nil
		}
	}
}

// destroy takes away what is left of a container whose process has ended.
func (c *CLI) destroy(ctx context.Context, k *container) error {
	if k.Cgroup != "" {
		g, err := k.group()
		if err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		err = g.Kill()
		if k.Scope != "" {
			if errors.Is(err, fs.ErrNotExist) {
				err = nil // systemd has taken it away
			}
			if g.Current() { // else it has ended, and its name may be another's
				if serr := runtime.EndScope(wait, k.Scope); serr != nil {
					c.report("warning", serr.Error()) // it ends by itself when the group is empty
				}
			}
		}
		if err := errors.Join(err, g.Remove(wait)); err != nil {
			return err
		}
	}
	_, plan, perr := c.configOf(k)
	if err := k.removeDir(); err != nil {
		return err
	}
	if perr == nil && (k.Process != nil || k.Hooked) {
		perr = plan.Poststop(ctx)
	}
	if perr != nil && !errors.Is(perr, fs.ErrNotExist) {
		c.report("warning", perr.Error())
	}
	return nil
}

func pause(ctx context.Context, c *CLI, args []string) error  { return freeze(ctx, c, args, true) }
func resume(ctx context.Context, c *CLI, args []string) error { return freeze(ctx, c, args, false) }

func freeze(ctx context.Context, c *CLI, args []string, on bool) error {
	rest, err := arguments(c.flags(args[0], "ID"), args, 1, 1)
	if err != nil {
		return err
	}
	k, status, fd, err := c.openStatus(rest[0])
	if err != nil {
		return err
	}
	defer k.release()
	if fd >= 0 {
		unix.Close(fd)
	}
	may := []specs.ContainerState{specs.StateCreated, specs.StateRunning}
	if !on {
		may = []specs.ContainerState{statusPaused}
	}
	switch {
	case fd < 0:
		return fmt.Errorf("%s: %w", k.ID, errNotRunning)
	case !slices.Contains(may, status):
		return fmt.Errorf("%s: cannot %s: the container is %s", k.ID, args[0], status)
	}
	g, err := cgroups.Open(k.Cgroup)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return errors.Join(g.Freeze(ctx, on), g.Release())
}
