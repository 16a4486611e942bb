package monitor

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Operations of a monitor's socket, with the types of their arguments and results.
const (
	OpState     = "state"      // nil → State
	OpStart     = "start"      // nil → State: started, with nobody attached
	OpAttach    = "attach"     // AttachArgs and descriptors, events Event, further frames Input → Exit
	OpExec      = "exec"       // ExecArgs and descriptors, events Event, further frames Input → Exit
	OpWait      = "wait"       // nil → Exit, when the container has ended
	OpWaitReady = "wait.ready" // nil, event State when it has started → State, when it is ready or has ended
	OpQuiet     = "quiet"      // QuietArgs → State: it misses nothing any more, so it is ready unless it says so itself
	OpKill      = "kill"       // KillArgs → State: the signal was sent
	OpStop      = "stop"       // StopArgs → Exit
	OpResize    = "resize"     // Size
	OpPause     = "pause"      // nil → State
	OpUnpause   = "unpause"    // nil → State
	OpTop       = "top"        // nil → []Proc
	OpJoin      = "join"       // JoinArgs and descriptors: the container will be started in these namespaces, and in none of before
	OpJoined    = "joined"     // nil → JoinArgs: those it has been given for its next start, or its last
	OpRelease   = "release"    // nil: a monitor whose container is not running ends
)

// Error codes of a monitor beyond those of package control.
const (
	CodeNotRunning = "not_running"
	CodeRunning    = "already_running"
	CodeNoCommand  = "no_command"    // the program does not exist: exit status 127
	CodeCannotExec = "cannot_invoke" // the program cannot be executed: exit status 126
)

// Streams says which descriptors come with a request, in this order. Stdin is
// the read end of a pipe; the others are where output goes.
type Streams struct {
	Stdin, Stdout, Stderr bool `json:",omitempty"`
}

func (s Streams) count() (n int) {
	for _, on := range []bool{s.Stdin, s.Stdout, s.Stderr} {
		if on {
			n++
		}
	}
	return n
}

// AttachArgs connects a client's streams. With Start the container is started
// once they are connected, so that no byte is lost.
type AttachArgs struct {
	Streams
	Start      bool `json:",omitempty"`
	CloseStdin bool `json:",omitempty"` // the end of the client's input is the end of the container's
	Size
}

// Size is that of a terminal, in characters; 0 is unknown.
type Size struct {
	Height, Width uint16 `json:",omitempty"`
}

// ExecArgs runs a further program in the container. A client that goes away
// leaves the program without input and readers: one on a terminal is hung up.
type ExecArgs struct {
	Streams
	Args       []string
	Env        []string `json:",omitempty"` // NAME=VALUE, over the container's
	User       string   `json:",omitempty"` // "" is the container's
	Workdir    string   `json:",omitempty"` // "" is the container's
	TTY        bool     `json:",omitempty"`
	Privileged bool     `json:",omitempty"` // all capabilities; the seccomp filter stays the container's
	Detach     bool     `json:",omitempty"` // answer when it has started
	Size
}

// An Event tells an attached client what happened.
type Event struct {
	Started bool   `json:",omitempty"`
	Pid     int    `json:",omitempty"` // with Started, of the process
	Broken  string `json:",omitempty"` // "stdout" or "stderr" takes no more output
	// Errno says why, with Broken; 0, of a monitor that does not tell, is EPIPE.
	Errno unix.Errno `json:",omitempty"`
}

// Input is a frame that the client of an attach or exec may send.
type Input struct {
	Resize *Size  `json:",omitempty"`
	Signal string `json:",omitempty"`
}

// Exit says how a process ended.
type Exit struct {
	Code      int    // exit status, or 128+N if signal N ended it
	Signal    string `json:",omitempty"` // "SIGKILL"
	OOMKilled bool   `json:",omitempty"`
	Error     string `json:",omitempty"`
}

// JoinArgs says of what kind the namespaces are whose descriptors come with it,
// as the runtime specification calls them: "network", "pid", "ipc".
type JoinArgs struct{ Kinds []string }

// QuietArgs says since when a container has missed nothing.
type QuietArgs struct{ At time.Time }

// KillArgs is a signal by name ("SIGTERM", "TERM") or number; "" is SIGKILL.
type KillArgs struct{ Signal string }

// StopArgs asks a container to end: its stop signal, and SIGKILL after Timeout seconds.
type StopArgs struct {
	Signal  string `json:",omitempty"` // "" is the container's own
	Timeout int    // seconds; negative: never SIGKILL
	Own     bool   `json:",omitempty"` // the container's own timeout, if it has one, instead
}

// Proc is a process of a container.
type Proc struct {
	Pid, PPid int
	UID       uint32
	State     string
	Ticks     uint64 // CPU time, clock ticks
	Args      []string
}

// parseSignal reads a signal's name or number; "" is def.
func parseSignal(s string, def unix.Signal) (unix.Signal, error) {
	if s == "" {
		return def, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > maxSignal {
			return 0, fmt.Errorf("signal %d: want 1 to %d", n, maxSignal)
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
	if n, ok := realtime(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q: unknown", s)
}

// Realtime signals as glibc counts them: it keeps two for itself (signal(7)).
const (
	minRealtime = 34
	maxSignal   = 64
)

// realtime reads SIGRTMIN, SIGRTMIN+N, SIGRTMAX and SIGRTMAX-N.
func realtime(name string) (unix.Signal, bool) {
	for prefix, base := range map[string]int{"SIGRTMIN": minRealtime, "SIGRTMAX": maxSignal} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return unix.Signal(base), true
		}
		n, err := strconv.ParseUint(rest[1:], 10, 6)
		switch {
		case err != nil:
			return 0, false
		case rest[0] == '+':
			base += int(n)
		case rest[0] == '-':
			base -= int(n)
		default:
			return 0, false
		}
		return unix.Signal(base), base >= minRealtime && base <= maxSignal
	}
	return 0, false
}

// ParseSignal reads a signal's name ("TERM", "SIGRTMIN+3") or number.
func ParseSignal(s string) (unix.Signal, error) {
	if s == "" {
		return 0, fmt.Errorf("signal %q: unknown", s)
	}
	return parseSignal(s, 0)
}
