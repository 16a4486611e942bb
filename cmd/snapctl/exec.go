package main

import (
	"context"
	"fmt"
	"os"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func execute(ctx context.Context, env *Env, args []string) error {
	var a monitor.ExecArgs
	var s session
	var interactive bool
	f := &flagSet{
		usage:   "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		about:   "Run a further program in a running container. The exit status is that of COMMAND;\n125, 126 and 127 mean the same as with run. If snapctl goes away, COMMAND loses\nits input and output, and a terminal is hung up; it is not killed.",
		example: "snapctl exec -it web sh",
		stop:    true,
	}
	sessionFlags(f, &s)
	f.flag(&a.Detach, "d,detach", "do not wait for COMMAND")
	f.add("e,env", "NAME[=VALUE]", "set a variable, or pass this one on", func(s string) error {
		kv, ok, err := parseEnv(s, os.LookupEnv)
		if ok {
			a.Env = append(a.Env, kv)
		}
		return err
	})
	f.add("env-file", "FILE", "set the variables in FILE", func(s string) error {
		env, err := readEnvFile(s)
		a.Env = append(env, a.Env...)
		return err
	})
	f.flag(&interactive, "i,interactive", "connect standard input")
	f.flag(&a.Privileged, "privileged", "give COMMAND all capabilities")
	f.flag(&a.TTY, "t,tty", "give COMMAND a terminal")
	f.text(&a.User, "u,user", "USER[:GROUP]", "run as this user, by name or number")
	f.text(&a.Workdir, "w,workdir", "DIR", "start in DIR")
	rest, err := f.parse(env, args, 2, -1)
	if err != nil {
		return err
	}
	if a.TTY && interactive && !a.Detach && !terminal(env.Stdin) {
		return errNoTerminal
	}
	a.Args = rest[1:]
	c, err := env.running(ctx, rest[0])
	if err != nil {
		return err
	}
	if a.Detach {
		return startFailure(monitor.Call(ctx, c.Socket, monitor.OpExec, a, nil))
	}
	s.tty, s.stdin = a.TTY, interactive
	s.begin = func(ctx context.Context, streams monitor.IO, z monitor.Size) (*monitor.Attached, error) {
		a.Size = z
		return monitor.Exec(ctx, c.Socket, a, streams)
	}
	return env.finish(ctx, "", &s)
}

// running finds a container that has a monitor to talk to.
func (env *Env) running(ctx context.Context, name string) (c control.Container, err error) {
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: name}, &c); err != nil {
		return c, err
	}
	if c.Socket == "" || c.Status != monitor.StatusRunning && c.Status != monitor.StatusPaused {
		return c, fmt.Errorf("container %s is not running", c.Name)
	}
	return c, nil
}

func attach(ctx context.Context, env *Env, args []string) error {
	var s session
	var noStdin bool
	f := &flagSet{
		usage:   "attach [OPTIONS] CONTAINER",
		about:   "Connect this terminal to a running container. The exit status is the container's.",
		example: "snapctl attach --no-stdin web",
	}
	sessionFlags(f, &s)
	f.flag(&noStdin, "no-stdin", "do not connect standard input")
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	c, err := env.running(ctx, rest[0])
	if err != nil {
		return err
	}
	s.tty, s.stdin = c.TTY, !noStdin
	if c.TTY && s.stdin && !terminal(env.Stdin) {
		return errNoTerminal
	}
	s.begin = func(ctx context.Context, streams monitor.IO, z monitor.Size) (*monitor.Attached, error) {
		return monitor.Attach(ctx, c.Socket, monitor.AttachArgs{Size: z}, streams)
	}
	return env.finish(ctx, c.ID, &s)
}
