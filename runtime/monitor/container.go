package monitor

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Runner makes a container's processes. Package runtime is the one in use.
type Runner interface {
	// Prepare does ahead of time what does not need the container to exist. It may be called again.
	Prepare(*Config) error
	// Start starts the container's first process and returns when its program
	// was executed. An error with an ExitCode method says why that was impossible.
	Start(context.Context, *Config, Files) (Container, error)
	// Join has the container started in namespaces that exist, instead of new
	// ones of these kinds. The files are the Runner's from now on.
	Join([]Namespace)
	// Release lets go of the root file system and of namespaces.
	Release() error
}

// A Namespace is one that exists: Kind is as the runtime specification calls it.
type Namespace struct {
	Kind string
	File *os.File
}

// Users is the Kind of a user namespace. The owners of the image's files are shown by its mappings.
const Users = "user"

// SharedMemory is the Kind of a mount namespace whose /dev/shm the container gets.
const SharedMemory = "shm"

func closeNamespaces(list []Namespace) {
	for _, n := range list {
		n.File.Close()
	}
}

// Files are a process's standard streams; nil is /dev/null. With a terminal all are nil.
type Files struct{ Stdin, Stdout, Stderr *os.File }

func (f Files) close() {
	for _, f := range []*os.File{f.Stdin, f.Stdout, f.Stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// A Container is a started container.
type Container interface {
	Init() Process
	Exec(context.Context, *specs.Process, Files) (Process, error)
	Kill() error // SIGKILL to all its processes
	Pause() error
	Resume() error
	OOMKilled() bool // valid once Init has ended
	Close() error    // kills what is left and removes the cgroup
}

// A Process is one process of a container that the monitor started.
type Process interface {
	Pid() int
	Wait(context.Context) (Status, error)
	Signal(unix.Signal) error
	KillGroup() error  // SIGKILL to it and what it has started and left in its process group
	Console() *os.File // pty master, non-blocking; nil without a terminal
	Resize(height, width uint16) error
}

// Status says how a process ended: with exit status Code, or by Signal.
type Status struct {
	Code   int
	Signal unix.Signal
}

func (s Status) exit() Exit {
	if s.Signal != 0 {
		return Exit{Code: 128 + int(s.Signal), Signal: signalName(s.Signal)}
	}
	return Exit{Code: s.Code}
}

func signalName(n unix.Signal) string {
	if name := unix.SignalName(n); name != "" {
		return name
	}
	return n.String()
}
