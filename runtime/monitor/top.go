package monitor

import (
	"bytes"
	"errors"
	"os"
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

// descendants lists the processes below pid: the monitor's children are the
// container's first process and those of exec. Other processes in /proc are not
// looked at, because doing so may hang: one that is being executed from a file
// system that does not answer makes whoever looks wait for it.
func descendants(pid int) []Proc {
	list := []Proc{}
	for _, child := range children(pid) {
		if p, err := readProc(child); err == nil { // it may have ended meanwhile
			list = append(list, p)
			list = append(list, descendants(child)...)
		}
	}
	return list
}

// children reads /proc/PID/task/TID/children (proc_tid_children(5)).
func children(pid int) (pids []int) {
	threads, _ := os.ReadDir(procFile(pid, "task"))
	for _, t := range threads {
		b, _ := os.ReadFile(procFile(pid, "task/"+t.Name()+"/children"))
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

var errMalformed = errors.New("malformed")

// readProc reads fields of /proc/PID/stat and cmdline (proc_pid_stat(5)).
func readProc(pid int) (Proc, error) {
	p := Proc{Pid: pid}
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return p, err
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, errMalformed
	}
	f := strings.Fields(string(b[end+1:])) // from field 3
	if len(f) < 13 {
		return p, errMalformed
	}
	p.State = f[0]
	p.PPid, _ = strconv.Atoi(f[1])
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	p.Ticks = user + system
	status, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return p, err
	}
	if _, rest, ok := strings.Cut(string(status), "\nUid:\t"); ok {
		uid, _, _ := strings.Cut(rest, "\t")
		n, _ := strconv.ParseUint(uid, 10, 32)
		p.UID = uint32(n)
	}
	line, _ := os.ReadFile(procFile(pid, "cmdline"))
	if line = bytes.TrimRight(line, "\x00"); len(line) == 0 {
		p.Args = []string{"[" + string(b[open+1:end]) + "]"}
		return p, nil
	}
	p.Args = strings.Split(string(line), "\x00")
	return p, nil
}
