package monitor

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
)

// handleTop lists the container's processes.
func (m *Monitor) handleTop(r *control.Request) error {
	if _, err := m.live(); err != nil {
		return err
	}
	return r.Reply(descendants(os.Getpid()))
}

// Bounds of a list of processes: a container may have any number of them, each
// with a command line of megabytes, and a monitor's memory is not its container's.
const (
	maxProcs   = 10_000
	maxCommand = 4 << 10  // bytes of a command line
	maxLines   = 8 << 20  // bytes of all of them, with 64 for the rest of each process
	maxThreads = 1 << 10  // of a process, that are asked for children
	maxKids    = 64 << 10 // bytes of a thread's list of them
)

// descendants lists the processes below pid, a process before its children: the
// monitor's are the container's first process and those of exec. Other processes
// in /proc are not looked at, because doing so may hang: one that is being
// executed from a file system that does not answer makes whoever looks wait for it.
func descendants(pid int) []Proc {
	list := []Proc{}
	todo, size := children(pid), 0 // the next one is the last
	slices.Reverse(todo)
	for len(todo) > 0 && len(list) < maxProcs && size < maxLines {
		child := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		p, err := readProc(child)
		if err != nil { // it has ended meanwhile
			continue
		}
		list = append(list, p)
		for _, a := range p.Args {
			size += len(a)
		}
		size += 64
		next := children(child)
		slices.Reverse(next)
		todo = append(todo, next...)
	}
	return list
}

// children reads /proc/PID/task/TID/children (proc_tid_children(5)).
func children(pid int) (pids []int) {
	threads, _ := os.ReadDir(procFile(pid, "task"))
	for _, t := range threads[:min(len(threads), maxThreads)] {
		b, _ := readSome(procFile(pid, "task/"+t.Name()+"/children"), maxKids)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// readSome reads the beginning of a file.
func readSome(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

var errMalformed = errors.New("malformed")

// readProc reads fields of /proc/PID/stat and cmdline (proc_pid_stat(5)).
func readProc(pid int) (Proc, error) {
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return Proc{}, err
	}
	p, err := parseStat(b)
	if err != nil {
		return p, err
	}
	p.Pid = pid
	status, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return p, err
	}
	if _, rest, ok := strings.Cut(string(status), "\nUid:\t"); ok {
		uid, _, _ := strings.Cut(rest, "\t")
		n, _ := strconv.ParseUint(uid, 10, 32)
		p.UID = uint32(n)
	}
	line, _ := readSome(procFile(pid, "cmdline"), maxCommand)
	if line = bytes.TrimRight(line, "\x00"); len(line) > 0 {
		p.Args = strings.Split(string(line), "\x00")
	}
	return p, nil
}

// parseStat reads a line of /proc/PID/stat. Its second field is the program's own
// choice, in parentheses: it may have blanks, newlines and parentheses. Args is
// what is said of a process without a command line.
func parseStat(b []byte) (p Proc, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, errMalformed
	}
	f := strings.Fields(string(b[end+1:])) // from field 3
	if len(f) < 13 {
		return p, errMalformed
	}
	p.State, p.Args = f[0], []string{"[" + string(b[open+1:end]) + "]"}
	p.PPid, _ = strconv.Atoi(f[1])
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	p.Ticks = user + system
	return p, nil
}
