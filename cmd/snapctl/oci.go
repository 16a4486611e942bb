package main

import (
	"context"
	"path/filepath"

	"github.com/snapfs/snapfs/runtime/oci"
)

// runtimeName is the name that makes this program an OCI runtime: what follows
// it is runc's command line.
const runtimeName = "snaprun"

// isRuntime tells whether the program was called by that name.
func isRuntime(argv0 string) bool { return filepath.Base(argv0) == runtimeName }

// ociRuntime is the verb runtime, and all of the program under its other name.
func ociRuntime(name string) func(context.Context, *Env, []string) error {
	return func(_ context.Context, env *Env, args []string) error {
		c := &oci.CLI{Name: name, Version: version, Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr, Getenv: env.Getenv}
		if status := c.Main(args); status != 0 {
			return &exitError{status: status}
		}
		return nil
	}
}
