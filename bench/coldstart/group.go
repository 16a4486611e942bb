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
	dir     string
	mounted string // where its hierarchy is
	v2      bool
	launch  chan func() // carried out on a thread that is in the group (v1)
	idle    chan struct{}
}

// systemCgroup is the group of the system under test, in the hierarchy that
// counts time. Its containers' is beside it, in all hierarchies.
const systemCgroup = "/snapfs-bench-coldstart"

func containersOf(cgroup string) string { return cgroup + "-containers" }

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

// newGroup makes one of a name that is a path in the hierarchy.
func newGroup(name string) (*group, error) {
	_, at, v2, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &group{dir: at + name, mounted: at, v2: v2, launch: make(chan func()), idle: make(chan struct{})}
	os.Remove(g.dir) // an empty one of a session that was killed
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, fmt.Errorf("is there another session? %w", err)
	}
	joined := make(chan error)
	go func() {
		defer close(g.idle)
		runtime.LockOSThread()
		home, err := g.join()
		joined <- err
		for f := range g.launch {
			f()
		}
		if home == "" || err == nil && moveThread(home) == nil {
			runtime.UnlockOSThread() // else the thread ends here
		}
	}()
	if err := <-joined; err != nil {
		close(g.launch)
		<-g.idle
		return nil, errors.Join(fmt.Errorf("join %s: %w", g.dir, err), os.Remove(g.dir))
	}
	return g, nil
}

// join moves the calling thread into a group of v1, and returns where it was.
// Version 2 has no groups of threads; there, start gives the group's descriptor.
func (g *group) join() (home string, err error) {
	if g.v2 {
		return "", nil
	}
	b, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && strings.Contains(","+f[1]+",", ",cpuacct,") {
			home = filepath.Join(g.mounted, f[2])
		}
	}
	return home, moveThread(g.dir)
}

// moveThread moves the calling thread into a group of v1.
func moveThread(dir string) error {
	return os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0)
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

// removeContainers ends what is left of containers in a cgroup.
func removeContainers(cgroup string) (err error) {
	all, _, _, err := hierarchies()
	if err != nil {
		return err
	}
	for _, at := range all {
		dir := at + cgroup
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
