package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// stopTimeout bounds the wait for a daemon that was told to stop.
const stopTimeout = 30 * time.Second

func daemon(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "daemon start|stop|restart|status",
		about:   "Control the daemon. Containers and mounts live on while it is stopped; what of an image\nis not local yet can then not be read.\nstatus exits with 3 if no daemon runs.",
		example: "snapctl daemon restart",
	}
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	quiet := *env
	quiet.NoAutostart = true
	switch rest[0] {
	case "start":
		return env.daemonStart(ctx, &quiet)
	case "stop":
		return quiet.daemonStop(ctx)
	case "restart":
		return env.daemonRestart(ctx, &quiet)
	case "status":
		return quiet.daemonStatus(ctx)
	}
	return usageErrorf("daemon: %q: want start, stop, restart or status", rest[0])
}

func (env *Env) daemonStart(ctx context.Context, quiet *Env) error {
	var v control.Version
	if err := quiet.call(ctx, control.OpVersion, nil, &v); err == nil {
		fmt.Fprintf(env.Stderr, "snapctl: it runs already (worker %d)\n", v.Pid)
		return nil
	}
	env.NoAutostart = false
	return env.call(ctx, control.OpVersion, nil, &v)
}

func (env *Env) daemonStop(ctx context.Context) error {
	path, err := env.socket()
	if err != nil {
		return err
	}
	if err := env.call(ctx, control.OpStop, nil, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for {
		c, err := control.Dial(ctx, path)
		if err != nil && notListening(err) {
			return nil
		}
		if err == nil {
			c.Close()
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return errors.New("the daemon was told to stop, but has not done so yet")
		}
	}
}

// daemonRestart starts the new daemon with the directories of the old one.
func (env *Env) daemonRestart(ctx context.Context, quiet *Env) error {
	var i control.Info
	err := quiet.call(ctx, control.OpInfo, nil, &i)
	if err == nil {
		if err := quiet.daemonStop(ctx); err != nil {
			return err
		}
		env.Root = i.Root
	}
	path, err := env.socket()
	if err != nil {
		return err
	}
	snapd, err := findDaemon()
	if err != nil {
		return err
	}
	return env.startDaemon(ctx, snapd, filepath.Dir(path), path)
}

func (env *Env) daemonStatus(ctx context.Context) error {
	var i control.Info
	if err := env.call(ctx, control.OpInfo, nil, &i); err != nil {
		return &exitError{3, err}
	}
	if env.JSON {
		return env.printJSON(i)
	}
	_, err := fmt.Fprintf(env.Stdout, "running: supervisor %d, worker %d (replaced %d times), root %s, run %s\n", i.Supervisor, i.Worker, i.Restarts, i.Root, i.Run)
	return err
}
