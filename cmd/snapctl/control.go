package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func stop(ctx context.Context, env *Env, args []string) error {
	a := monitor.StopArgs{Timeout: 10, Own: true}
	f := &flagSet{
		usage:   "stop [OPTIONS] CONTAINER...",
		about:   "End containers: each gets its stop signal, and SIGKILL if it is still there later.",
		example: "snapctl stop -t 30 db",
	}
	f.text(&a.Signal, "s,signal", "SIGNAL", "signal to send instead of the container's own")
	f.add("t,timeout,time", "SECONDS", "time until SIGKILL; -1 is for ever (default the container's --stop-timeout, or 10)", func(s string) (err error) {
		if a.Timeout, err = strconv.Atoi(s); err != nil {
			err = fmt.Errorf("%q: want a number", s)
		}
		a.Own = false
		return err
	})
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.together(rest, func(name string) error {
		err := env.monitorCall(ctx, name, monitor.OpStop, a)
		if e, ok := errors.AsType[*control.Error](err); ok && e.Code == monitor.CodeNotRunning {
			err = nil // that is what was wanted
		}
		return err
	})
}

func kill(ctx context.Context, env *Env, args []string) error {
	var a monitor.KillArgs
	f := &flagSet{
		usage:   "kill [OPTIONS] CONTAINER...",
		about:   "Send the first process of containers a signal.",
		example: "snapctl kill -s HUP web",
	}
	f.text(&a.Signal, "s,signal", "SIGNAL", "name or number (default KILL)")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.together(rest, func(name string) error { return env.monitorCall(ctx, name, monitor.OpKill, a) })
}

func pause(ctx context.Context, env *Env, args []string) error {
	return env.simple(ctx, args, monitor.OpPause, "pause", "Freeze containers: none of their processes runs until unpause.")
}

func unpause(ctx context.Context, env *Env, args []string) error {
	return env.simple(ctx, args, monitor.OpUnpause, "unpause", "Let frozen containers go on.")
}

func (env *Env) simple(ctx context.Context, args []string, op, name, about string) error {
	f := &flagSet{usage: name + " CONTAINER...", about: about, example: "snapctl " + name + " web"}
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.together(rest, func(name string) error { return env.monitorCall(ctx, name, op, nil) })
}

// monitorCall makes a request of the monitor of a container.
func (env *Env) monitorCall(ctx context.Context, name, op string, args any) error {
	var c control.Container
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: name}, &c); err != nil {
		return err
	}
	notRunning := &control.Error{Code: monitor.CodeNotRunning, Message: fmt.Sprintf("container %s is not running", c.Name)}
	if c.Socket == "" {
		return notRunning
	}
	err := monitor.Call(ctx, c.Socket, op, args, nil)
	if monitor.Gone(err) {
		return notRunning
	}
	return err
}

// together does something to all containers at once and prints their names as given.
func (env *Env) together(names []string, do func(string) error) error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = do(name) })
	}
	all.Wait()
	i := -1
	return env.each(names, func(name string) error {
		if i++; errs[i] != nil {
			return errs[i]
		}
		_, err := fmt.Fprintln(env.Stdout, name)
		return err
	})
}

func wait(ctx context.Context, env *Env, args []string) error {
	var ready bool
	f := &flagSet{
		usage:   "wait [OPTIONS] CONTAINER...",
		about:   "Wait for containers to end, and print their exit statuses, one a line. With --ready, wait\nuntil they are ready, and print what said so and how long after the start, in seconds:\nline, port or file (see run --ready), health (a first success), quiet (nothing was read\nany more that was not local), or exit. It is a failure if one ends before it is ready.",
		example: "snapctl wait job\nsnapctl run -d --name web --network host --ready port=8080 IMAGE && snapctl wait --ready web",
	}
	f.flag(&ready, "ready", "wait until they are ready, not for their end")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	if ready {
		return env.each(rest, func(name string) error { return env.waitReady(ctx, name) })
	}
	return env.each(rest, func(name string) error {
		code, err := env.waitOne(ctx, name)
		if err == nil {
			_, err = fmt.Fprintln(env.Stdout, code)
		}
		return err
	})
}

func (env *Env) waitOne(ctx context.Context, name string) (int, error) {
	var c control.Container
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: name}, &c); err != nil {
		return 0, err
	}
	if c.Socket != "" && c.Status != monitor.StatusExited && c.Status != monitor.StatusDead {
		var exit monitor.Exit
		err := monitor.Call(ctx, c.Socket, monitor.OpWait, nil, &exit)
		if !monitor.Gone(err) {
			return exit.Code, err
		}
		if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: c.ID}, &c); err != nil {
			return 0, err
		}
	}
	if c.Status == monitor.StatusCreated {
		return 0, fmt.Errorf("container %s was never started", c.Name)
	}
	return c.ExitCode, nil
}

// waitReady waits until a container is ready, and prints by what and when.
func (env *Env) waitReady(ctx context.Context, name string) error {
	var c control.Container
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: name}, &c); err != nil {
		return err
	}
	if c.Socket != "" { // it runs, or is about to be started: what it was before does not count
		s, err := monitor.WaitReady(ctx, c.Socket, nil)
		switch {
		case err == nil:
			c.Started, c.Ready, c.ReadyBy, c.ExitCode, c.Error = s.Started, s.Ready, s.ReadyBy, s.ExitCode, s.Error
		case !monitor.Gone(err):
			return err
		default:
			if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: c.ID}, &c); err != nil {
				return err
			}
		}
	}
	switch {
	case c.Status == monitor.StatusCreated && c.Started.IsZero():
		return fmt.Errorf("container %s was never started", c.Name)
	case c.Ready.IsZero() || c.ReadyBy == monitor.ReadyByExit && c.ExitCode != 0:
		return fmt.Errorf("container %s ended before it was ready, with exit status %d%s", c.Name, c.ExitCode, after(": ", c.Error))
	}
	_, err := fmt.Fprintf(env.Stdout, "%s %.3f\n", c.ReadyBy, c.Ready.Sub(c.Started).Seconds())
	return err
}

// after is text after a separator, if there is any.
func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

func rm(ctx context.Context, env *Env, args []string) error {
	var force bool
	f := &flagSet{
		usage:   "rm [OPTIONS] CONTAINER...",
		about:   "Remove containers, with all that they have written.",
		example: "snapctl rm -f web",
	}
	f.flag(&force, "f,force", "kill running ones")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.together(rest, func(name string) error {
		a := control.RemoveContainerArgs{ID: name, Force: force}
		err := env.call(ctx, control.OpRm, a, nil)
		if errors.Is(err, errWentAway) { // whether it was done is found out by doing it again
			err = env.call(ctx, control.OpRm, a, nil)
			if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeNotFound {
				return nil
			}
		}
		if e, ok := errors.AsType[*control.Error](err); ok && force && e.Code == control.CodeNotFound {
			fmt.Fprintf(env.Stderr, "snapctl: %s\n", plainText(err.Error()))
			err = nil
		}
		return err
	})
}
