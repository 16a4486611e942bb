// Snapctl is the command line of snapfs: it asks snapd for images and
// containers, and talks to a container's monitor directly. The same executable
// is that monitor, and the keeper of snapd's FUSE mount (hidden verbs).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "unknown"

func main() {
	env := &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	if isRuntime(os.Args[0]) {
		os.Exit(env.report(ociRuntime(runtimeName)(context.Background(), env, os.Args[1:]), 1))
	}
	os.Exit(env.main(os.Args[1:]))
}

// main runs a command line and returns the exit status.
func (env *Env) main(args []string) int {
	if len(args) > 0 {
		if run := hidden[args[0]]; run != nil {
			return env.report(run(context.Background(), env, args[1:]), 1)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	rest, err := env.globals(args)
	if err != nil {
		return env.report(err, 2)
	}
	if len(rest) == 0 {
		fmt.Fprint(env.Stderr, overview())
		return 2
	}
	v := lookup(rest[0])
	if v == nil {
		return env.report(usageErrorf("unknown command %q; see snapctl --help", rest[0]), 2)
	}
	return env.report(v.run(ctx, env, rest[1:]), v.failure())
}

// report says what went wrong and returns the exit status for it; failure is the one of ordinary errors.
func (env *Env) report(err error, failure int) int {
	status, said := failure, ""
	switch e, ok := errors.AsType[*exitError](err); {
	case err == nil, errors.Is(err, errHelp):
		return 0
	case ok:
		status = e.status
		if _, quiet := errors.AsType[*silent](err); e.err != nil && !quiet {
			said = e.err.Error()
		}
	default:
		said = explain(err)
	}
	if e, ok := errors.AsType[*usageError](err); ok && status == 1 {
		status, said = 2, e.Error()
	}
	if said != "" {
		fmt.Fprintf(env.Stderr, "snapctl: %s\n", plainText(said))
	}
	return status
}

// An exitError ends snapctl with a status of its own; without err, silently.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// A silent error is one that the user need not be told.
type silent struct{ error }

func (s *silent) Unwrap() error { return s.error }

// A usageError is the user's: something on the command line cannot be meant.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usageErrorf(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// errHelp says that help was asked for and has been given.
var errHelp = errors.New("help")
