package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func splitComma(s string) []string { return strings.Split(s, ",") }

// sessionFlags registers the options of verbs that connect a terminal.
func sessionFlags(f *flagSet, s *session) {
	s.sigProxy = true
	s.detachKeys, _ = parseDetachKeys(defaultDetachKeys)
	f.add("detach-keys", "KEYS", "keys that leave the container's terminal (default "+defaultDetachKeys+")", func(v string) (err error) {
		s.detachKeys, err = parseDetachKeys(v)
		return err
	})
	f.flag(&s.sigProxy, "sig-proxy", "pass signals on, without a terminal (default true)")
}

func run(ctx context.Context, env *Env, args []string) error {
	var a control.CreateArgs
	var s session
	var detach, quiet, dry bool
	var cid cidFile
	f := &flagSet{
		usage: "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		about: "Start a container on an image. Where the image allows, nothing is downloaded first:\nwhat the container reads comes while it runs.\nThe exit status is that of COMMAND; 125 if snapctl failed, 126 if COMMAND cannot be\nexecuted, 127 if it does not exist, 128+N if signal N ended it.\n" + aboutDry,
		example: "snapctl run -it --rm docker.io/library/debian:stable bash\n" +
			"snapctl run -d --name web --network host -v /srv/www:/www:ro docker.io/library/busybox httpd -f -p 8080 -h /www",
	}
	createFlags(f, &a)
	f.text(&cid.name, "cidfile", "FILE", "write the container's ID to FILE")
	dryFlag(f, &dry)
	sessionFlags(f, &s)
	f.flag(&detach, "d,detach", "run in the background and print the container's ID")
	f.flag(&quiet, "q,quiet", "do not show how the image comes in")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	if err := created(env, &a, rest); err != nil {
		return err
	}
	if a.TTY && a.OpenStdin && !detach && !terminal(env.Stdin) {
		return errNoTerminal
	}
	a.Begin = true
	if dry {
		return env.plan(ctx, &a, quiet)
	}
	c, err := env.createContainer(ctx, &a, &cid, quiet)
	if err != nil {
		return err
	}
	if detach {
		if err := monitor.Call(ctx, c.Socket, monitor.OpStart, nil, nil); err != nil {
			return startFailure(err)
		}
		_, err := fmt.Fprintln(env.Stdout, c.ID)
		return err
	}
	s.tty, s.stdin = a.TTY, a.OpenStdin
	s.begin = func(ctx context.Context, streams monitor.IO, z monitor.Size) (*monitor.Attached, error) {
		return monitor.Attach(ctx, c.Socket, monitor.AttachArgs{Start: true, CloseStdin: true, Size: z}, streams)
	}
	err = env.finish(ctx, c.ID, &s)
	if errors.Is(err, errNeverStarted) && a.Remove { // nobody else will
		err = errors.Join(err, env.call(context.WithoutCancel(ctx), control.OpRm, control.RemoveContainerArgs{ID: c.ID, Force: true}, nil))
	}
	if _, broken := errors.AsType[*monitor.BrokenError](err); broken && a.Remove {
		err = errors.Join(err, env.abandon(c.Socket))
	}
	return err
}

// abandon asks for the end of a container that was to be gone by now, without
// waiting for it: whoever read its output does not want any more, as in
// "snapctl run --rm IMAGE yes | head". One that is kept goes on, as with docker.
func (env *Env) abandon(socket string) error {
	c, err := control.Dial(context.Background(), socket)
	if err != nil {
		return nil // it has ended
	}
	defer c.Close()
	return c.Begin(monitor.OpStop, monitor.StopArgs{Signal: "KILL"})
}

var errNoTerminal = errors.New("the input device is not a TTY")

// aboutDry says whether --dry-run pulls.
const aboutDry = "With --dry-run nothing is pulled: of an image that is not here, manifest and config\nare read, and with --pull never not even these."

func dryFlag(f *flagSet, dry *bool) {
	f.flag(dry, "dry-run", "print what would be done, and do nothing; with --json, the OCI spec")
}

// plan shows what would be done to make a container, and to start it.
func (env *Env) plan(ctx context.Context, a *control.CreateArgs, quiet bool) error {
	var c control.Planned
	p := env.progress(quiet)
	_, err := env.request(ctx, control.OpPlan, a, &c, p.event)
	p.close()
	if err != nil {
		return err
	}
	env.warn(c.Warnings)
	if env.JSON {
		return env.printJSON(c.Spec)
	}
	_, err = env.Stdout.WriteString(plainText(c.Text))
	return err
}

// warn shows what the daemon warns of.
func (env *Env) warn(list []string) {
	for _, w := range list {
		fmt.Fprintf(env.Stderr, "snapctl: warning: %s\n", plainText(w))
	}
}

// createContainer has a container made, and unmade if the user loses patience just then.
func (env *Env) createContainer(ctx context.Context, a *control.CreateArgs, cid *cidFile, quiet bool) (_ *control.Created, err error) {
	if err := cid.open(); err != nil {
		return nil, err
	}
	var c control.Created
	defer func() { err = errors.Join(err, cid.close(c.ID)) }()
	p := env.progress(quiet)
	_, err = env.request(ctx, control.OpCreate, a, &c, p.event)
	p.close()
	if err != nil {
		return nil, err
	}
	env.warn(c.Warnings)
	if ctx.Err() != nil {
		err := env.call(context.WithoutCancel(ctx), control.OpRm, control.RemoveContainerArgs{ID: c.ID, Force: true}, nil)
		return nil, errors.Join(ctx.Err(), err)
	}
	return &c, nil
}

// finish runs a session to its end and makes an exit status of it.
func (env *Env) finish(ctx context.Context, id string, s *session) error {
	exit, err := s.run(ctx, env)
	_, ours := errors.AsType[*exitError](err)
	switch {
	case ours: // what this end of it came to, such as that nobody reads the output
		return err
	case errors.Is(err, errDetached):
		fmt.Fprint(env.Stderr, "\r\nsnapctl: left "+shortID(id)+" running\r\n")
		return nil
	case monitor.Gone(err) && id != "":
		return env.lost(ctx, id)
	case err != nil:
		return startFailure(err)
	case exit.Error != "":
		return &exitError{exit.Code, errors.New(exit.Error)}
	case exit.OOMKilled:
		return &exitError{exit.Code, errors.New("a process was killed: the container's memory limit was reached")}
	case exit.Code != 0:
		return &exitError{status: exit.Code}
	}
	return nil
}

// errNeverStarted says that there is no use in waiting for a container.
var errNeverStarted = errors.New("the container's monitor was killed before it started the container")

// lost finds out how a container ended whose monitor did not tell.
func (env *Env) lost(ctx context.Context, id string) error {
	var c control.Container
	if err := env.call(context.WithoutCancel(ctx), control.OpResolve, control.ContainerArgs{ID: id}, &c); err != nil {
		return fmt.Errorf("%w, and so has the container", monitor.ErrLost)
	}
	switch {
	case c.Status == monitor.StatusCreated:
		return errNeverStarted
	case c.Status != monitor.StatusExited:
		return fmt.Errorf("%w: the container is %s", monitor.ErrLost, c.Status)
	}
	if c.ExitCode != 0 || c.Error != "" {
		e := &exitError{status: c.ExitCode}
		if c.Error != "" {
			e.err = errors.New(c.Error)
		}
		return e
	}
	return nil
}

// startFailure gives an error of a monitor its exit status.
func startFailure(err error) error {
	if e, ok := errors.AsType[*control.Error](err); ok {
		switch e.Code {
		case monitor.CodeNoCommand:
			return &exitError{127, err}
		case monitor.CodeCannotExec:
			return &exitError{126, err}
		}
	}
	return err
}

func create(ctx context.Context, env *Env, args []string) error {
	var a control.CreateArgs
	var quiet, dry bool
	var cid cidFile
	f := &flagSet{
		usage:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		about:   "Make a container without starting it, and print its ID.\n" + aboutDry,
		example: "snapctl create --name db docker.io/library/postgres:18\nsnapctl start db",
	}
	createFlags(f, &a)
	f.text(&cid.name, "cidfile", "FILE", "write the container's ID to FILE")
	dryFlag(f, &dry)
	f.flag(&quiet, "q,quiet", "do not show how the image comes in")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	if err := created(env, &a, rest); err != nil {
		return err
	}
	if dry {
		return env.plan(ctx, &a, quiet)
	}
	c, err := env.createContainer(ctx, &a, &cid, quiet)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(env.Stdout, c.ID)
	return err
}

func start(ctx context.Context, env *Env, args []string) error {
	var s session
	var follow, interactive bool
	f := &flagSet{
		usage:   "start [OPTIONS] CONTAINER...",
		about:   "Start containers that were created or have ended.",
		example: "snapctl start -a db",
	}
	sessionFlags(f, &s)
	f.flag(&follow, "a,attach", "show the output, and exit as the container does")
	f.flag(&interactive, "i,interactive", "connect standard input, too")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	if !follow && !interactive {
		return env.each(rest, func(name string) error { return env.startOne(ctx, name) })
	}
	if len(rest) > 1 {
		return usageErrorf("start: only one container can be attached to")
	}
	var row control.Container
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: rest[0]}, &row); err != nil {
		return err
	}
	var c control.Created
	if err := env.call(ctx, control.OpStart, control.ContainerArgs{ID: row.ID}, &c); err != nil {
		return err
	}
	s.tty, s.stdin = row.TTY, interactive
	s.begin = func(ctx context.Context, streams monitor.IO, z monitor.Size) (*monitor.Attached, error) {
		return monitor.Attach(ctx, c.Socket, monitor.AttachArgs{Start: true, Size: z, CloseStdin: true}, streams)
	}
	return env.finish(ctx, row.ID, &s)
}

func (env *Env) startOne(ctx context.Context, name string) error {
	var c control.Created
	if err := env.call(ctx, control.OpStart, control.ContainerArgs{ID: name}, &c); err != nil {
		return err
	}
	err := monitor.Call(ctx, c.Socket, monitor.OpStart, nil, nil)
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == monitor.CodeRunning {
		err = nil
	}
	if err == nil {
		_, err = fmt.Fprintln(env.Stdout, name)
	}
	return startFailure(err)
}

// each does something to all names, and goes on when it fails for one.
func (env *Env) each(names []string, do func(string) error) error {
	var failed error
	for _, name := range names {
		if err := do(name); err != nil {
			if len(names) == 1 {
				return err
			}
			fmt.Fprintf(env.Stderr, "snapctl: %s\n", plainText(explain(err)))
			failed = err
		}
	}
	if failed != nil {
		return &exitError{status: 1}
	}
	return nil
}

// printJSON prints v on one line.
func (env *Env) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = env.Stdout.Write(append(plainJSON(b), '\n'))
	return err
}
