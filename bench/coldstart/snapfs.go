package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// snapctlClient is our own.
type snapctlClient struct {
	n       *node
	snapctl string
	socket  string
}

// startSnapd starts a daemon of ours; settings are added to its configuration.
func startSnapd(ctx context.Context, n *node, bin, settings string) (*snapctlClient, error) {
	config := filepath.Join(n.dir, "snapd.toml")
	if err := os.WriteFile(config, []byte("cgroup_parent = \""+n.cgroup+"\"\n"+settings), 0o600); err != nil {
		return nil, err
	}
	run := filepath.Join(n.dir, "run")
	c := &snapctlClient{n, filepath.Join(bin, "snapctl"), filepath.Join(run, "snapd.sock")}
	if err := n.spawn(ctx, c.socket, filepath.Join(bin, "snapd"), "--config", config, "--root", filepath.Join(n.dir, "root"), "--run", run); err != nil {
		return nil, err
	}
	_, err := c.output(ctx, "version")
	return c, err
}

func (c *snapctlClient) argv(args ...string) []string {
	return append([]string{c.snapctl, "--no-autostart", "--host", "unix://" + c.socket}, args...)
}

func (c *snapctlClient) output(ctx context.Context, args ...string) (string, error) {
	return c.n.output(ctx, c.argv(args...)...)
}

// pull does nothing: run asks the registry itself.
func (c *snapctlClient) pull(context.Context, string) error { return nil }

func (c *snapctlClient) start(name, ref string, t task) (*started, error) {
	return c.run(name, ref, t, nil)
}

func (c *snapctlClient) run(name, ref string, t task, flags []string) (*started, error) {
	argv := append(c.argv("run", "--quiet", "--network", "none", "--name", name), flags...)
	detach := t.Ready.Kind == "tcp"
	if detach {
		argv = append(argv, "--detach") // so that the end of the command says that there is a process
	}
	s, err := c.n.begin(t.Ready, append(append(argv, ref), t.Args...)...)
	if err == nil {
		s.detached = detach
	}
	return s, err
}

func (c *snapctlClient) inspect(ctx context.Context, name string) (row control.Container, err error) {
	_, err = control.Call(ctx, c.socket, control.OpResolve, control.ContainerArgs{ID: name}, &row, nil)
	return row, err
}

func (c *snapctlClient) pid(ctx context.Context, name string) (int, error) {
	row, err := c.inspect(ctx, name)
	switch {
	case err != nil:
	case row.Status == "exited" || row.Status == "dead":
		err = fmt.Errorf("%w: status %d %s", errEnded, row.ExitCode, row.Error)
	case row.Pid == 0:
		err = errNoProcess
	}
	return row.Pid, err
}

func (c *snapctlClient) times(ctx context.Context, name string) (usable, running time.Time, err error) {
	row, err := c.inspect(ctx, name)
	return row.Created, row.Started, err
}

func (c *snapctlClient) stop(ctx context.Context, name string, s *started) error {
	_, err := c.output(ctx, "rm", "-f", name)
	for n := 0; err != nil && n < 20 && ctx.Err() == nil; n++ { // it may be ending just then
		time.Sleep(50 * time.Millisecond)
		_, err = c.output(ctx, "rm", "-f", name)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL)
		<-s.done
	}
	return err
}

// A published state of an image is made on a first node, with these commands
// of snapctl, and used by a second one. {ref} stands for the image, {ready} for
// what makes its task ready.
var publications = map[string][][]string{
	formIndex: {
		{"pull", "--wait", "--quiet", "{ref}"},
		{"index", "--push", "{ref}"},
	},
	formProfile: {
		{"pull", "--wait", "--quiet", "{ref}"},
		{verbStart, "--record", "--ready", "{ready}"},
		{"index", "--push", "{ref}"},
	},
}

// verbStart in publications starts the task as it is measured, with these flags
// added, waits until it is ready, and stops it.
const verbStart = "(start)"

// publish carries out what makes a published state of an image.
func (c *snapctlClient) publish(ctx context.Context, form, ref string, t task) error {
	for _, step := range publications[form] {
		args := expand(step[1:], ref, t)
		if step[0] == verbStart {
			start := func(name, ref string, t task) (*started, error) { return c.run(name, ref, t, args) }
			// The daemon has to have seen it, too.
			seen := func(ctx context.Context) error {
				_, err := c.output(ctx, "wait", "--ready", "record")
				return err
			}
			if err := once(ctx, c, start, "record", ref, t, seen); err != nil {
				return err
			}
			continue
		}
		if _, err := c.output(ctx, append(step[:1:1], args...)...); err != nil {
			return err
		}
	}
	return nil
}

// expand fills in what the words of a step stand for.
func expand(words []string, ref string, t task) (args []string) {
	for i, w := range words {
		switch w {
		case "{ref}":
			args = append(args, ref)
		case "{ready}":
			if t.Ready.Kind == "exit" { // which needs no telling
				args = args[:i-1]
				continue
			}
			args = append(args, t.Ready.flag())
		default:
			args = append(args, w)
		}
	}
	return args
}

// flag is what snapctl run's --ready takes.
func (r ready) flag() string {
	if r.Kind == "tcp" {
		return "port=" + strconv.Itoa(r.Port)
	}
	return "line=" + regexp.QuoteMeta(r.Text)
}

// once starts a task, waits until it is ready, does what else is to be done then
// if anything, and stops it.
func once(ctx context.Context, c client, start func(name, ref string, t task) (*started, error), name, ref string, t task, then func(context.Context) error) error {
	s, err := start(name, ref, t)
	if err != nil {
		return err
	}
	_, err = s.untilReady(ctx, t.Ready, func() (int, error) { return c.pid(ctx, name) })
	if err == nil && then != nil {
		err = then(ctx)
	}
	if e := c.stop(context.WithoutCancel(ctx), name, s); err == nil {
		err = e
	}
	return err
}
