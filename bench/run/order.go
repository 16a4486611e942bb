package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unified is the cgroup v2 mount of a hybrid machine.
const unified = "/sys/fs/cgroup/unified"

// An order is command lines to run: those of a lane one after another, the lanes at once.
type order struct{ Lanes [][][]string }

// one is the order of a single command line.
func one(line ...string) order { return order{[][][]string{{line}}} }

// run returns how long all of it took.
func (o order) run() (time.Duration, error) {
	outputs := make([]*os.File, len(o.Lanes))
	for i := range outputs {
		f, err := os.CreateTemp("", "snapfs-bench-run-*")
		if err != nil {
			return 0, err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		outputs[i] = f
	}
	errs := make([]error, len(o.Lanes))
	var lanes sync.WaitGroup
	begin := time.Now()
	for i, lines := range o.Lanes {
		lanes.Go(func() {
			for _, line := range lines {
				if errs[i] = execute(line, outputs[i]); errs[i] != nil {
					return
				}
			}
		})
	}
	lanes.Wait()
	return time.Since(begin), errors.Join(errs...)
}

// execute runs a command line with a file for what it writes: a pipe would have
// to be read, and a container that goes on would keep it open.
func execute(line []string, output *os.File) error {
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	err := cmd.Run()
	if err == nil {
		return nil
	}
	text, rerr := os.ReadFile(output.Name())
	return errors.Join(&commandError{line, text, err}, rerr)
}

// A commandError is what a command ended with, and all that its lane wrote.
type commandError struct {
	line   []string
	output []byte
	err    error
}

func (e *commandError) Error() string {
	return fmt.Sprintf("%s: %v: %s", strings.Join(e.line, " "), e.err, strings.ReplaceAll(strings.TrimSpace(string(e.output)), "\n", "; "))
}

func (e *commandError) Unwrap() error { return e.err }

// A box is a process of ours that runs orders where there is no cgroup v2 beside
// v1: it gets an order a line, and answers with nanoseconds, or what went wrong.
type box struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func openBox() (*box, error) {
	b := new(box)
	var err error
	if b.cmd, err = self(verbBox); err != nil {
		return nil, err
	}
	b.cmd.Stderr = os.Stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.out = bufio.NewReader(out)
	return b, b.cmd.Start()
}

type answer struct {
	Time  time.Duration
	Error string
}

func (b *box) run(o order) (time.Duration, error) {
	if err := json.NewEncoder(b.in).Encode(o); err != nil {
		return 0, err
	}
	line, err := b.out.ReadBytes('\n')
	if err != nil {
		return 0, err
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return 0, fmt.Errorf("%w: %s", err, bytes.TrimSpace(line))
	}
	if a.Error != "" {
		return 0, errors.New(a.Error)
	}
	return a.Time, nil
}

func (b *box) close() error { return errors.Join(b.in.Close(), b.cmd.Wait()) }

// serveBox is that process.
func serveBox() error {
	if err := unix.Unmount(unified, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("umount %s: %w", unified, err)
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		t, err := o.run()
		a := answer{Time: t}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}
