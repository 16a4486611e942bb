package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// unified is the cgroup v2 mount of a hybrid machine.
const unified = "/sys/fs/cgroup/unified"

// crunner is the process that runs crun: it gets a line with an ID, and answers with
// one that has nanoseconds, or what went wrong.
type crunner struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startCrun makes the bundle.
func startCrun(bundle string, spec *specs.Spec, rootfs string) (*crunner, error) {
	if err := writeBundle(bundle, spec, rootfs, "crun"); err != nil {
		return nil, err
	}
	c := new(crunner)
	var err error
	if c.cmd, err = self(verbCrun, bundle); err != nil {
		return nil, err
	}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.cmd.Start()
}

// writeBundle makes a bundle of a spec, on a root file system.
func writeBundle(bundle string, spec *specs.Spec, rootfs, cgroup string) error {
	s := *spec
	s.Version = "1.0.2" // crun 1.8 knows none after 1.0
	s.Root = &specs.Root{Path: rootfs, Readonly: spec.Root.Readonly}
	linux := *spec.Linux
	linux.CgroupsPath = path.Join(cgroupParent, cgroup)
	s.Linux = &linux
	b, err := json.Marshal(&s)
	if err != nil {
		return err
	}
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600)
}

func (c *crunner) run(_ context.Context, n int) (time.Duration, error) {
	if _, err := fmt.Fprintf(c.in, "crun-%d\n", n); err != nil {
		return 0, err
	}
	line, err := c.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	line = strings.TrimSpace(line)
	ns, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return 0, errors.New(line)
	}
	return time.Duration(ns), nil
}

func (c *crunner) stop() error { return errors.Join(c.in.Close(), c.cmd.Wait()) }

// serveCrun is that process.
func serveCrun(bundle string) error {
	if err := unix.Unmount(unified, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("umount %s: %w", unified, err)
	}
	for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
		t, err := runBundle("crun", bundle, sc.Text())
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(t.Nanoseconds())
	}
	return nil
}

// runBundle runs a bundle with a runtime that has runc's command line.
func runBundle(program, bundle, id string) (time.Duration, error) {
	cmd := exec.Command(program, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, id)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	err := cmd.Run()
	t := time.Since(begin)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.ReplaceAll(strings.TrimSpace(out.String()), "\n", "; "))
	}
	return t, err
}
