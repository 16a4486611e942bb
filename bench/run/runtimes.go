package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	kernel "github.com/snapfs/snapfs/bench/floor"
	"github.com/snapfs/snapfs/internal/peers"
)

// lanes is how many starts go on at once in a batch. Each has a bundle of its own, as a bundle names a cgroup.
const lanes = 4

// A system starts containers by command lines.
type system struct {
	name string
	// line is the command line that runs a container to its end.
	line func(lane, n int) []string
	do   func(order) (time.Duration, error)
	// hold makes a container that stays, and exec is the command line that runs a program in it;
	// nil where there is no such thing.
	hold, release func() error
	exec          func(n int) []string
}

// start is one container from start to end.
func (s *system) start(_ context.Context, n int) (time.Duration, error) {
	return s.do(one(s.line(0, n)...))
}

// batch starts many, lanes at a time.
func (s *system) batch(starts int) func(context.Context, int) (time.Duration, error) {
	return func(_ context.Context, n int) (time.Duration, error) {
		var o order
		for lane := range lanes {
			var lines [][]string
			for i := lane; i < starts; i += lanes {
				lines = append(lines, s.line(lane, n*starts+i))
			}
			o.Lanes = append(o.Lanes, lines)
		}
		return s.do(o)
	}
}

func (s *system) inHeld(_ context.Context, n int) (time.Duration, error) {
	return s.do(one(s.exec(n)...))
}

// newRuntime makes the bundles of a program with runc's command line.
func (c *config) newRuntime(name, program string, spec *specs.Spec, rootfs string, do func(order) (time.Duration, error)) (*system, error) {
	id, _, _ := strings.Cut(name, " ")
	dir := filepath.Join(c.work, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	bundle := func(kind string) string { return filepath.Join(dir, kind) }
	for lane := range lanes {
		if err := writeBundle(bundle(strconv.Itoa(lane)), spec, rootfs, fmt.Sprintf("%s-%d", id, lane), spec.Process.Args); err != nil {
			return nil, err
		}
	}
	if err := writeBundle(bundle("held"), spec, rootfs, id+"-held", c.pause); err != nil {
		return nil, err
	}
	line := func(args ...string) []string { return append([]string{program, "--root", bundle("state")}, args...) }
	held := id + "-held"
	call := func(args ...string) error {
		_, err := do(one(line(args...)...))
		return err
	}
	return &system{
		name: name, do: do,
		line: func(lane, n int) []string {
			return line("run", "--bundle", bundle(strconv.Itoa(lane)), fmt.Sprintf("%s-%d-%d", id, lane, n))
		},
		hold:    func() error { return call("run", "--detach", "--bundle", bundle("held"), held) },
		release: func() error { return call("delete", "--force", held) },
		exec:    func(int) []string { return line(append([]string{"exec", held}, c.command...)...) },
	}, nil
}

// writeBundle makes a bundle of a spec, on a root file system.
func writeBundle(bundle string, spec *specs.Spec, rootfs, cgroup string, args []string) error {
	s := *spec
	s.Version = "1.0.2" // crun 1.8 knows none after 1.0
	s.Root = &specs.Root{Path: rootfs, Readonly: spec.Root.Readonly}
	linux := *spec.Linux
	linux.CgroupsPath = path.Join(cgroupParent, cgroup)
	s.Linux = &linux
	process := *spec.Process
	process.Args = args
	s.Process = &process
	b, err := json.Marshal(&s)
	if err != nil {
		return err
	}
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600)
}

// runtimes are crun and runc, in the box, our own, and the floor.
func (c *config) runtimes(ctx context.Context, b *box, spec *specs.Spec, rootfs string) ([]*system, error) {
	crun, err := c.newRuntime("crun", "crun", spec, rootfs, b.run)
	if err != nil {
		return nil, err
	}
	list := []*system{crun}
	if program, err := c.findRunc(ctx); err != nil {
		step("without runc: %v", err)
	} else if program != "" {
		name, spec := "runc", spec
		if !filters(ctx, program) {
			step("%s is built without seccomp: its containers have no filter", program)
			linux := *spec.Linux
			linux.Seccomp = nil
			unfiltered := *spec
			unfiltered.Linux = &linux
			name, spec = "runc (no seccomp)", &unfiltered
		}
		runc, err := c.newRuntime(name, program, spec, rootfs, b.run)
		if err != nil {
			return nil, err
		}
		list = append(list, runc)
	}
	program, err := c.linkSnaprun()
	if err != nil {
		return nil, err
	}
	snaprun, err := c.newRuntime("snaprun", program, spec, rootfs, order.run)
	if err != nil {
		return nil, err
	}
	list = append(list, snaprun)
	if !kernel.Supported {
		step("without the floor: it is for amd64")
		return list, nil
	}
	least, err := c.newFloor(spec, rootfs)
	if err != nil {
		return nil, err
	}
	return append(list, least), nil
}

// findRunc is the newest runc, from the cache of peers. If there is none, and no C compiler to build it with, it is left out.
func (c *config) findRunc(ctx context.Context) (string, error) {
	switch c.runc {
	case "none":
		return "", nil
	case "":
	default:
		return exec.LookPath(c.runc)
	}
	cache, err := peers.Cache()
	if err != nil {
		return "", err
	}
	dir, err := peers.Runc.Find(ctx, cache, os.Stderr)
	return filepath.Join(dir, "runc"), err
}

// filters tells whether a runc can install seccomp filters, which it needs a C library for.
func filters(ctx context.Context, program string) bool {
	out, err := exec.CommandContext(ctx, program, "features").Output()
	return err == nil && bytes.Contains(out, []byte(`"SCMP_ACT_ALLOW"`))
}

// linkSnaprun gives snapctl its name as a runtime.
func (c *config) linkSnaprun() (string, error) {
	name := filepath.Join(c.work, "as", "snaprun")
	bin, err := filepath.Abs(filepath.Join(c.bin, "snapctl"))
	if err != nil {
		return "", err
	}
	return name, errors.Join(os.Mkdir(filepath.Dir(name), 0o700), os.Symlink(bin, name))
}

// newFloor writes the program that is the floor, one for each lane.
func (c *config) newFloor(spec *specs.Spec, rootfs string) (*system, error) {
	dir := filepath.Join(c.work, "floor")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var programs [lanes]*kernel.Floor
	for lane := range programs {
		name := fmt.Sprintf("floor-%d", lane)
		var err error
		if programs[lane], err = kernel.Write(filepath.Join(dir, name), spec, rootfs, path.Join(cgroupParent, name)); err != nil {
			return nil, err
		}
	}
	do := func(o order) (time.Duration, error) {
		t, err := o.run()
		if e, ok := errors.AsType[*commandError](err); ok {
			err = errors.Join(programs[0].Explain(e.output), e.err)
		}
		return t, err
	}
	return &system{name: "floor", do: do, line: func(lane, _ int) []string { return []string{programs[lane].Name} }}, nil
}
