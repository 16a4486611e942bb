package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// A runner is one way to start the container and wait for its end.
type runner struct {
	name string
	run  func(ctx context.Context, n int) (time.Duration, error)
}

// starts times all runners.
func (c *config) starts(ctx context.Context) (_ []row, err error) {
	d, err := startDaemon(ctx, c.bin, filepath.Join(c.work, "starts"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	image := c.image
	if image == "" {
		exe, err := program(ctx, c.work)
		if err != nil {
			return nil, err
		}
		if image, err = makeImage(ctx, filepath.Join(c.work, "layout"), "true", base(exe)); err != nil {
			return nil, err
		}
	}
	step("pulling %s", image)
	if err := d.snapctl(ctx, "pull", "--quiet", image); err != nil {
		return nil, err
	}
	rootfs := filepath.Join(c.work, "rootfs")
	for _, dir := range []string{rootfs, rootfs + ".upper", rootfs + ".work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := d.snapctl(ctx, "mount", "--upper", rootfs+".upper", "--work", rootfs+".work", image, rootfs); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.snapctl(context.WithoutCancel(ctx), "umount", rootfs)) }()
	spec, forget, err := c.spec(ctx, d, image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, forget()) }()
	return c.interleave(ctx, d, image, spec, rootfs)
}

// spec has snapd make a container, and takes its spec. The container is kept
// until forget, because the spec mounts files of it.
func (c *config) spec(ctx context.Context, d *daemon, image string) (_ *specs.Spec, forget func() error, err error) {
	args := append([]string{"run", "--quiet", "--network", "none", "--name", "specimen", image}, c.command...)
	if err := d.snapctl(ctx, args...); err != nil {
		return nil, nil, err
	}
	dirs, err := filepath.Glob(filepath.Join(d.dir, "root", "containers", "*", monitor.ConfigFile))
	if err != nil || len(dirs) != 1 {
		return nil, nil, fmt.Errorf("%d containers: %w", len(dirs), err)
	}
	cfg, err := monitor.LoadConfig(filepath.Dir(dirs[0]))
	if err != nil {
		return nil, nil, err
	}
	if cfg.Spec.Linux.Seccomp == nil {
		return nil, nil, errors.New("the spec has no seccomp profile")
	}
	return cfg.Spec, func() error { return d.snapctl(context.WithoutCancel(ctx), "rm", "specimen") }, nil
}

func (c *config) interleave(ctx context.Context, d *daemon, image string, spec *specs.Spec, rootfs string) ([]row, error) {
	crun, err := startCrun(filepath.Join(c.work, "bundle"), spec, rootfs)
	if err != nil {
		return nil, err
	}
	defer crun.stop()
	root, err := os.Open(rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	snaprun, err := c.startSnaprun(filepath.Join(c.work, "snaprun"), spec, rootfs)
	if err != nil {
		return nil, err
	}
	runners := []runner{
		{"crun", crun.run},
		{"snaprun", snaprun},
		{"snapctl", c.snapctl(d, image, "--network", "none")},
		{"bridge", c.snapctl(d, image, "--network", "bridge")},
		{"published", c.snapctl(d, image, "--network", "bridge", "-p", "8080:80")},
		{"users", c.snapctl(d, image, "--network", "none", "--userns", "auto")},
		{"runtime", func(ctx context.Context, n int) (time.Duration, error) { return c.inProcess(ctx, n, spec, root) }},
	}
	times := make([][]time.Duration, len(runners))
	for round := range c.rounds + 1 { // the first one warms up and does not count
		for i := range runners {
			i = (i + round) % len(runners)
			time.Sleep(c.gap)
			t, err := runners[i].run(ctx, round)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", runners[i].name, err)
			}
			if round > 0 {
				times[i] = append(times[i], t)
			}
		}
	}
	var rows []row
	for i, r := range runners {
		rows = append(rows, newRow(r.name, times[i], times[0]))
	}
	return rows, nil
}

// snapctl starts containers by the daemon.
func (c *config) snapctl(d *daemon, image string, options ...string) func(context.Context, int) (time.Duration, error) {
	args := append(append([]string{"run", "--rm", "--quiet"}, options...), image)
	args = append(args, c.command...)
	return func(ctx context.Context, _ int) (time.Duration, error) {
		begin := time.Now()
		err := d.snapctl(ctx, args...)
		return time.Since(begin), err
	}
}

// startSnaprun makes a bundle for our own command line.
func (c *config) startSnaprun(bundle string, spec *specs.Spec, rootfs string) (func(context.Context, int) (time.Duration, error), error) {
	name := filepath.Join(c.work, "as", "snaprun")
	bin, err := filepath.Abs(filepath.Join(c.bin, "snapctl"))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Mkdir(filepath.Dir(name), 0o700), os.Symlink(bin, name)); err != nil {
		return nil, err
	}
	if err := writeBundle(bundle, spec, rootfs, "snaprun"); err != nil {
		return nil, err
	}
	return func(_ context.Context, n int) (time.Duration, error) {
		return runBundle(name, bundle, fmt.Sprintf("snaprun-%d", n))
	}, nil
}

// inProcess starts the container by package runtime.
func (c *config) inProcess(ctx context.Context, n int, spec *specs.Spec, root *os.File) (t time.Duration, err error) {
	s := *spec
	linux := *spec.Linux
	linux.CgroupsPath = ""
	s.Linux = &linux
	begin := time.Now()
	plan, err := runtime.NewPlan(&s, runtime.Options{
		ID: fmt.Sprintf("runtime-%d", n), CgroupParent: cgroupParent, SeccompCache: filepath.Join(c.work, "seccomp"),
	})
	if err != nil {
		return 0, err
	}
	ctr, err := runtime.Start(ctx, plan, runtime.Files{Rootfs: root})
	if err != nil {
		return 0, err
	}
	status, err := ctr.Init().Wait(ctx)
	err = errors.Join(err, ctr.Close())
	if err == nil && status.ExitCode() != 0 {
		err = fmt.Errorf("exit status %d", status.ExitCode())
	}
	return time.Since(begin), err
}
