package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// What a container is doing.
const (
	StatusCreated = "created" // never started
	StatusRunning = "running"
	StatusPaused  = "paused" // State.Status keeps StatusRunning; a view of it
	StatusExited  = "exited"
	StatusDead    = "dead" // its monitor died: what became of it is not known
)

// State is what became of a container so far.
type State struct {
	Status    string
	Monitor   int             `json:",omitempty"` // pid of the monitor that wrote this
	Pid       int             `json:",omitempty"` // of the container's first process
	PidStart  uint64          `json:",omitempty"` // when that pid was given out, clock ticks since boot: pids are used again
	Paused    bool            `json:",omitempty"`
	Started   time.Time       `json:",omitzero"`
	Finished  time.Time       `json:",omitzero"`
	ExitCode  int             // 128+N if signal N ended it
	Signal    string          `json:",omitempty"` // that ended it: "SIGKILL"
	OOMKilled bool            `json:",omitempty"`
	Error     string          `json:",omitempty"` // why it could not be started
	Ready     time.Time       `json:",omitzero"`  // when it was, since Started
	ReadyBy   string          `json:",omitempty"` // what said so: ReadyByLine, …
	Health    *control.Health `json:",omitempty"` // nil without a health check; never changed, but replaced
}

// LoadState reads the state of the container in dir. Without a state, or with a
// torn one, it is that of a container whose fate is not known: after a power
// cut everything but the last state may have been lost.
func LoadState(dir string) (State, error) {
	b, err := os.ReadFile(filepath.Join(dir, StateFile))
	if errors.Is(err, os.ErrNotExist) {
		return State{Status: StatusCreated}, nil
	}
	if err != nil {
		return State{}, err
	}
	return decodeState(b), nil
}

func decodeState(b []byte) State {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{Status: StatusDead, ExitCode: 255, Error: fmt.Sprintf("the recorded state is damaged: %v", err)}
	}
	switch s.Status {
	case StatusCreated, StatusRunning, StatusExited, StatusDead:
		return s
	}
	return State{Status: StatusDead, ExitCode: 255, Error: fmt.Sprintf("the recorded state is damaged: status %q", s.Status)}
}

// save records s. On a full disk it goes where the last one is: what the
// container does is to be known also then.
func (s State) save(dir string, sync bool) error {
	err := writeJSON(dir, StateFile, s, sync)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if overwrite(dir, StateFile, s) == nil {
			return nil
		}
	}
	return err
}

// lock takes the lock on the file at path, and waits for it.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err {
		case nil:
			return f, nil
		case unix.EINTR:
		default:
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// Alive says whether the container in dir has a monitor.
func Alive(dir string) bool { return locked(filepath.Join(dir, lockFile)) }

// Busy says whether a monitor has anything of the container in dir, which may have ended.
func Busy(dir string) bool { return locked(filepath.Join(dir, busyFile)) }

// Trash is what the directory of a container is called while its monitor removes it (Config.Remove).
func Trash(dir string) string {
	return filepath.Join(filepath.Dir(dir), TrashPrefix+filepath.Base(dir))
}

// TrashPrefix begins the name of a container's directory that is being removed;
// what a killed monitor left of one has no configuration, and is the daemon's to remove.
const TrashPrefix = ".rm-"

// locked is called for every row of a list, so it does without what os.File has
// more than a descriptor.
func locked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return errors.Is(unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Recover makes the state of a container that has no monitor true again, and
// returns it. If the monitor was killed, the container's first process is killed
// too: nobody reads what it writes, nor would anybody learn how it ended. With
// its pid namespace that ends all of it; its cgroup is left to the caller. A
// container that has a monitor is left alone.
func Recover(dir string) (State, error) {
	s, err := LoadState(dir)
	if err != nil || s.Status != StatusRunning || Alive(dir) {
		return s, err
	}
	if err := killStale(s.Pid, s.PidStart); err != nil {
		return s, err
	}
	s.Status, s.Paused, s.Monitor = StatusDead, false, 0
	s.ExitCode, s.Error, s.Finished = 255, "its monitor was killed", now()
	return s, s.save(dir, true)
}

// killStale kills pid if it is still the process that began at start, and waits for its end.
func killStale(pid int, start uint64) error {
	if pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if began, err := startTime(pid); err != nil || began != start {
		return nil // the pid is somebody else's now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(staleWait/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		err = nil
	}
	return err
}

// staleWait bounds the wait for a killed process; one in uninterruptible sleep may take its time.
const staleWait = 2 * time.Second

// IsProcess says whether pid is still the process that began at start, as in State.
func IsProcess(pid int, start uint64) bool {
	began, err := startTime(pid)
	return err == nil && began == start
}

// startTime is field 22 of /proc/PID/stat (proc_pid_stat(5)), clock ticks since boot.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	start, err := parseStartTime(b)
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return start, nil
}

// parseStartTime reads a line as parseStat does.
func parseStartTime(b []byte) (uint64, error) {
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3, the state
	if len(fields) < 20 {
		return 0, errMalformed
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
