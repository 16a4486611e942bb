package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A group is a cgroup for all processes of one system: its daemons, the
// commands given to them, and what either starts, but not the containers, which
// have a cgroup elsewhere. It counts their processor time, those that have ended
// included, and lets none get away.
type group struct {
	dir    string
	v2     bool
	launch chan func() // carried out on a thread that is in the group (v1)
	idle   chan struct{}
}

// Names of cgroups, in each hierarchy.
const (
	systemCgroup    = "/snapfs-bench-coldstart"            // of the system under test
	containerCgroup = "/snapfs-bench-coldstart-containers" // of its containers
)

// hierarchies returns where cgroups are mounted: all, and the one that counts time.
func hierarchies() (all []string, counts string, v2 bool, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, "", false, err
	}
	unified := ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		at := f[4]
		_, rest, _ := strings.Cut(line, " - ")
		kind, options, _ := strings.Cut(rest, " ")
		switch kind {
		case "cgroup2":
			unified = at
		case "cgroup":
			_, options, _ = strings.Cut(strings.TrimSpace(options), " ")
			if strings.Contains(","+options+",", ",cpuacct,") {
				counts = at
			}
		default:
			continue
		}
		all = append(all, at)
	}
	if counts == "" {
		counts, v2 = unified, true
	}
	if counts == "" {
		return nil, "", false, errors.New("no cgroup file system is mounted")
	}
	return all, counts, v2, nil
}

func newGroup() (*group, error) {
	_, at, v2, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &group{dir: at + systemCgroup, v2: v2, launch: make(chan func()), idle: make(chan struct{})}
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	ready := make(chan error)
	go func() {
		defer close(g.idle)
		runtime.LockOSThread() // never unlocked: the thread ends, and does not leave the group as another's
		if !v2 {
			ready <- os.WriteFile(filepath.Join(g.dir, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0)
		} else {
			ready <- nil
		}
		for f := range g.launch {
			f()
		}
	}()
	if err := <-ready; err != nil {
		close(g.launch)
		return nil, fmt.Errorf("join %s: %w", g.dir, err)
	}
	return g, nil
}

// start starts a command in the group.
func (g *group) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is ours to pass on
	if g.v2 {
		d, err := os.Open(g.dir)
		if err != nil {
			return err
		}
		defer d.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	err := make(chan error)
	g.launch <- func() { err <- cmd.Start() }
	return <-err
}

// cpu is the processor time that the group has used.
func (g *group) cpu() (time.Duration, error) {
	if !g.v2 {
		b, err := os.ReadFile(filepath.Join(g.dir, "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(ns), err
	}
	b, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if us, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(us), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat: no usage_usec", g.dir)
}

func members(dir string) (pids []int) {
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil && n != os.Getpid() {
				pids = append(pids, n)
			}
		}
		return nil
	})
	return pids
}

// A process is one of a group and the most memory that it has had resident.
type process struct {
	Name string
	Peak int64 // bytes
}

// processes returns those of the group that live.
func (g *group) processes() (list []process) {
	for _, pid := range members(g.dir) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has ended
		}
		p := process{Name: programName(pid)}
		for line := range strings.Lines(string(b)) {
			if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")), 10, 64)
				p.Peak = n << 10
			}
		}
		list = append(list, p)
	}
	return list
}

// programName is the program a process was started as.
func programName(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(string(b), "\x00")
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		args[0] = exe
	}
	name := filepath.Base(args[0])
	if name == "snapctl" && len(args) > 1 { // monitor, keeper or a command
		name += " " + args[1]
	}
	return name
}

// close ends the group's processes and removes it.
func (g *group) close() error {
	err := killAll(g.dir)
	close(g.launch)
	<-g.idle
	for range 100 {
		if rm := os.Remove(g.dir); rm == nil || errors.Is(rm, fs.ErrNotExist) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // the thread is ending
	}
	return errors.Join(err, os.Remove(g.dir))
}

// killAll kills the processes of a cgroup and those below it, and waits for their end.
func killAll(dir string) error {
	for range 500 {
		pids := members(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s: processes that do not end: %v", dir, members(dir))
}

// removeContainerCgroups ends what is left of containers.
func removeContainerCgroups() (err error) {
	all, _, _, err := hierarchies()
	if err != nil {
		return err
	}
	for _, at := range all {
		dir := at + containerCgroup
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		err = errors.Join(err, killAll(dir))
		var dirs []string
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			for range 100 {
				if os.Remove(dirs[i]) == nil {
					break
				}
				time.Sleep(10 * time.Millisecond) // a process is ending
			}
		}
	}
	return err
}
