package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/disk"
)

// A node is a machine with one system on it, as far as this one can be many: a
// new ext4 for all state, daemons without any, and a cgroup.
type node struct {
	dir     string // of the state, on disk
	cgroup  string // of containers
	disk    *disk.Disk
	group   *group
	daemons []*daemon
}

// A daemon is a program that runs until its node is closed.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

// newNode makes a node without daemons below work.
func newNode(work, cgroup string) (n *node, err error) {
	n = &node{dir: filepath.Join(work, "node"), cgroup: containersOf(cgroup)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return n, err
	}
	if n.disk, err = disk.New(n.dir+".img", n.dir); err != nil {
		return n, err
	}
	n.group, err = newGroup(cgroup)
	return n, err
}

// spawn starts a daemon and waits until its socket accepts.
func (n *node) spawn(ctx context.Context, socket string, argv ...string) error {
	name := filepath.Base(argv[0])
	log, err := os.Create(filepath.Join(n.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d := &daemon{cmd: exec.Command(argv[0], argv[1:]...), log: log.Name(), done: make(chan error, 1)}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(os.Environ(), "TMPDIR="+n.dir, "OTEL_TRACES_EXPORTER=none")
	if err := n.group.start(d.cmd); err != nil {
		return err
	}
	n.daemons = append(n.daemons, d)
	go func() { d.done <- d.cmd.Wait() }() // ends with the daemon, which close ends
	for range 3000 {
		if c, err := net.Dial("unix", socket); err == nil {
			return c.Close()
		}
		select {
		case err := <-d.done:
			d.done <- err
			return fmt.Errorf("%s ended: %v: %s", name, err, tail(d.log))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not listen: %s", name, tail(d.log))
}

// command prepares a program to be run to its end, in the node's group.
func (n *node) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+n.dir)
	return cmd
}

// output runs a command and returns what it printed.
func (n *node) output(ctx context.Context, argv ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := n.command(argv...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := n.group.start(cmd); err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })()
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, lastLines(complaint.String()+out.String(), 300))
	}
	return strings.TrimSpace(out.String()), nil
}

// logs is the end of what the daemons said.
func (n *node) logs() string {
	var b strings.Builder
	for _, d := range n.daemons {
		fmt.Fprintf(&b, "%s: %s\n", filepath.Base(d.cmd.Path), tail(d.log))
	}
	return b.String()
}

func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(b), 600)
}

func lastLines(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = "…" + s[len(s)-n:]
	}
	return strings.ReplaceAll(s, "\n", " | ")
}

// close ends the daemons, the last one first, and removes all state.
func (n *node) close() (err error) {
	for _, d := range slices.Backward(n.daemons) {
		d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
		case <-time.After(20 * time.Second):
			d.cmd.Process.Kill()
			<-d.done
		}
	}
	err = removeContainers(n.cgroup)
	if n.group != nil {
		err = errors.Join(err, n.group.close())
	}
	err = errors.Join(err, unmountBelow(n.dir))
	if n.disk != nil {
		err = errors.Join(err, n.disk.Remove())
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}

// unmountBelow unmounts what a system left mounted below a directory.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			mounts = append(mounts, at)
		}
	}
	for _, at := range slices.Backward(mounts) { // later ones may be on top of earlier ones
		err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
	}
	return err
}
