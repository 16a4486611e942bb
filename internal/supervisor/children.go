package supervisor

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children reaps all children of the process with one goroutine; os/exec would
// need a thread for each, for as long as a container runs.
type children struct {
	signals chan os.Signal
	done    sync.WaitGroup

	mu   sync.Mutex
	ends map[int]chan unix.WaitStatus // of living children; capacity 1
}

func newChildren() *children {
	c := &children{signals: make(chan os.Signal, 1), ends: map[int]chan unix.WaitStatus{}}
	signal.Notify(c.signals, unix.SIGCHLD)
	c.done.Go(func() {
		for range c.signals {
			c.reap()
		}
	})
	return c
}

func (c *children) close() {
	signal.Stop(c.signals)
	close(c.signals)
	c.done.Wait()
}

// reap collects all that have ended. Signals of several ends may come as one.
func (c *children) reap() {
	c.mu.Lock() // so that no child ends before start has entered it
	defer c.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if end, ok := c.ends[pid]; ok {
			end <- status
			delete(c.ends, pid)
		}
	}
}

// start runs a program in a session of its own. Its exit status comes from end.
func (c *children) start(argv, env []string, dir string, files []*os.File) (pid int, end <-chan unix.WaitStatus, err error) {
	return c.startFile(argv[0], argv, env, dir, files, 0)
}

// startSealed is start of the program that exe is.
func (c *children) startSealed(exe *os.File, argv, env []string, dir string, files []*os.File) (pid int, err error) {
	exe, path, err := above(exe, files)
	if err != nil {
		return 0, err
	}
	defer exe.Close()
	pid, _, err = c.startFile(path, argv, env, dir, files, 0)
	return pid, err
}

// startMortal is start, and the program is killed when the calling thread ends.
func (c *children) startMortal(argv, env []string, dir string, files []*os.File) (pid int, end <-chan unix.WaitStatus, err error) {
	return c.startFile(argv[0], argv, env, dir, files, unix.SIGKILL)
}

func (c *children) startFile(path string, argv, env []string, dir string, files []*os.File, death unix.Signal) (pid int, end <-chan unix.WaitStatus, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: death},
	})
	if err != nil {
		return 0, nil, err
	}
	pid = p.Pid
	p.Release()
	ends := make(chan unix.WaitStatus, 1)
	c.ends[pid] = ends
	return pid, ends, nil
}
