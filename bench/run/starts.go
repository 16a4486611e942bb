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

// A runner is one way to do what a table compares.
type runner struct {
	name string
	run  func(ctx context.Context, n int) (time.Duration, error)
}

// starts makes all tables about starting, in r.
func (c *config) starts(ctx context.Context, r *result) (err error) {
	d, err := startDaemon(ctx, c.bin, filepath.Join(c.work, "starts"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	image, err := c.makeImage(ctx)
	if err != nil {
		return err
	}
	step("pulling %s", image)
	if err := d.snapctl(ctx, "pull", "--quiet", image); err != nil {
		return err
	}
	rootfs := filepath.Join(c.work, "rootfs")
	for _, dir := range []string{rootfs, rootfs + ".upper", rootfs + ".work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := d.snapctl(ctx, "mount", "--upper", rootfs+".upper", "--work", rootfs+".work", image, rootfs); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.snapctl(context.WithoutCancel(ctx), "umount", rootfs)) }()
	spec, forget, err := c.spec(ctx, d, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, forget()) }()
	b, err := openBox()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	systems, err := c.runtimes(ctx, b, spec, rootfs)
	if err != nil {
		return err
	}
	return c.tables(ctx, d, image, spec, rootfs, systems, r)
}

// makeImage makes an image, unless one was named.
func (c *config) makeImage(ctx context.Context) (string, error) {
	if c.image != "" {
		return c.image, nil
	}
	exe, err := program(ctx, c.work, "true", "")
	if err != nil {
		return "", err
	}
	sleep, err := program(ctx, c.work, "sleep", sleeping)
	if err != nil {
		return "", err
	}
	return makeImage(ctx, filepath.Join(c.work, "layout"), "true", append(base(exe), member{"bin/sleep", 0o755, sleep}))
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

// tables has everybody take turns, for one table after the other.
func (c *config) tables(ctx context.Context, d *daemon, image string, spec *specs.Spec, rootfs string, systems []*system, r *result) (err error) {
	root, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	var starts, batches []runner
	for _, s := range systems {
		starts = append(starts, runner{s.name, s.start})
		batches = append(batches, runner{s.name, s.batch(c.batch)})
	}
	starts = append(starts,
		runner{"snapctl", c.snapctl(d, image, "--network", "none")},
		runner{"bridge", c.snapctl(d, image, "--network", "bridge")},
		runner{"published", c.snapctl(d, image, "--network", "bridge", "-p", "8080:80")},
		runner{"users", c.snapctl(d, image, "--network", "none", "--userns", "auto")},
		runner{"runtime", func(ctx context.Context, n int) (time.Duration, error) { return c.inProcess(ctx, n, spec, root) }},
	)
	if c.docker {
		step("starting dockerd")
		engine, failed := startDocker(ctx, filepath.Join(c.work, "docker"), rootfs)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, engine.stop()) }()
		starts = append(starts, runner{"docker", func(context.Context, int) (time.Duration, error) { return engine.run(c.command) }})
	}
	step("starting containers, one after another")
	if r.Starts, err = compare(ctx, starts, c.rounds, c.gap); err != nil {
		return err
	}
	if c.batches > 0 {
		step("starting %d containers, %d at a time", c.batch, lanes)
		if r.Batches, err = compare(ctx, batches, c.batches, c.gap); err != nil {
			return err
		}
		r.Batch = c.batch
	}
	r.Execs, err = c.execs(ctx, d, image, systems)
	return err
}

// execs compares running a program in a container that is there.
func (c *config) execs(ctx context.Context, d *daemon, image string, systems []*system) (_ []row, err error) {
	var list []runner
	for _, s := range systems {
		if s.hold == nil {
			continue
		}
		if err := s.hold(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.release()) }()
		list = append(list, runner{s.name, s.inHeld})
	}
	const held = "held"
	if err := d.snapctl(ctx, append([]string{"run", "--quiet", "--detach", "--network", "none", "--name", held, image}, c.pause...)...); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.snapctl(context.WithoutCancel(ctx), "rm", "--force", held)) }()
	list = append(list, runner{"snapctl", timed(func(ctx context.Context) error {
		return d.snapctl(ctx, append([]string{"exec", held}, c.command...)...)
	})})
	step("executing programs in containers")
	return compare(ctx, list, c.rounds, c.gap)
}

// compare has the runners take turns, another one first in every round, with a
// pause before each. The first round warms up and does not count.
func compare(ctx context.Context, runners []runner, rounds int, gap time.Duration) ([]row, error) {
	times := make([][]time.Duration, len(runners))
	for round := range rounds + 1 {
		for i := range runners {
			i = (i + round) % len(runners)
			time.Sleep(gap)
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			t, err := runners[i].run(ctx, round)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", runners[i].name, err)
			}
			if round > 0 {
				times[i] = append(times[i], t)
			}
		}
	}
	bases := map[string][]time.Duration{}
	for i, r := range runners {
		if isBase(r.name) {
			bases[r.name] = times[i]
		}
	}
	var rows []row
	for i, r := range runners {
		rows = append(rows, newRow(r.name, times[i], bases))
	}
	return rows, nil
}

func timed(do func(context.Context) error) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		begin := time.Now()
		err := do(ctx)
		return time.Since(begin), err
	}
}

// snapctl starts containers by the daemon.
func (c *config) snapctl(d *daemon, image string, options ...string) func(context.Context, int) (time.Duration, error) {
	args := append(append([]string{"run", "--rm", "--quiet"}, options...), image)
	args = append(args, c.command...)
	return timed(func(ctx context.Context) error { return d.snapctl(ctx, args...) })
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
