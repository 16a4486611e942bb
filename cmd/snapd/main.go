// Command snapd is the daemon of snapfs: it makes images known, serves their
// missing bytes over FUSE, and keeps the book of containers. It is a supervisor
// that owns what must outlive a crash, and a worker that does the work (see
// package internal/supervisor).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/supervisor"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings passed in. It returns the exit status: 0,
// 1 for a failure, 2 for a misuse.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "containerd" {
		return runNode(args[1:], stdout, stderr)
	}
	c, done, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "snapd: %v\n", err)
		return 2
	case done:
		return 0
	}
	log := c.Log.logger()
	setContainerdLog(c.Log)
	if err := withoutCore(); err != nil {
		log.Warn("a core of this process would have credentials in it", "err", err)
	}
	if supervisor.IsWorker() {
		err = work(c, log)
	} else {
		err = supervise(c, log)
	}
	switch {
	case errors.Is(err, supervisor.ErrWorker): // which has said why
		return 1
	case err != nil:
		fmt.Fprintf(stderr, "snapd: %v\n", err)
		if errors.Is(err, errOpen) {
			return supervisor.ExitFatal
		}
		return 1
	}
	return 0
}

// given is what the command line says.
type given struct {
	file, root, run, level *string
	version                *bool
}

func flags(stderr io.Writer) (*flag.FlagSet, given) {
	f := flag.NewFlagSet("snapd", flag.ContinueOnError)
	f.SetOutput(stderr)
	return f, given{
		file:    f.String("config", "", "read the configuration from `FILE` (default "+defaultConfigFile+", if it exists)"),
		root:    f.String("root", "", "keep state in `DIR` (default /var/lib/snapfs)"),
		run:     f.String("run", "", "keep sockets and mounts in `DIR` (default /run/snapfs)"),
		level:   f.String("log-level", "", "log `LEVEL` and above: debug, info, warn or error"),
		version: f.Bool("version", false, "print the version and exit"),
	}
}

// parse reads the command line and the configuration file that it names.
func parse(args []string, stdout, stderr io.Writer) (c Config, done bool, err error) {
	f, p := flags(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, "usage: snapd [flags]\n\nsnapd mounts container images without downloading them first.\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, true, err
		}
		return c, true, fmt.Errorf("%w (see snapd --help)", err)
	}
	if f.NArg() > 0 {
		return c, true, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if *p.version {
		fmt.Fprintln(stdout, "snapd", version)
		return c, true, nil
	}
	if c, err = LoadConfig(*p.file); err != nil {
		return c, true, err
	}
	for dst, v := range map[*string]string{&c.Root: *p.root, &c.Run: *p.run, &c.Log.Level: *p.level} {
		if v != "" {
			*dst = v
		}
	}
	for _, dir := range []*string{&c.Root, &c.Run} {
		if abs, err := filepath.Abs(*dir); err == nil {
			*dir = abs
		}
	}
	return c, false, c.Validate()
}

// worker is the command line of a worker, which begins in another directory: what
// args name relative to this one is made absolute.
func (c *Config) worker(args []string) ([]string, error) {
	f, p := flags(io.Discard)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	argv := []string{"/proc/self/exe"}
	if *p.file != "" {
		file, err := filepath.Abs(*p.file)
		if err != nil {
			return nil, err
		}
		argv = append(argv, "--config", file)
	}
	if *p.level != "" {
		argv = append(argv, "--log-level", *p.level)
	}
	return append(argv, "--root", c.Root, "--run", c.Run), nil
}

// supervise is the first process: it checks what cannot be cured later, and
// then keeps a worker alive.
func supervise(c Config, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it mounts file systems (rootless operation is not supported yet)")
	}
	runner, err := c.runner()
	if err != nil {
		return err
	}
	for _, dir := range []string{c.Root, c.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := checkVersion(c.Root); err != nil {
		return err
	}
	kernel, err := mounts.Probe(c.Root)
	if err != nil {
		return err
	}
	backend, err := kernel.Backend(c.Backend)
	if err != nil {
		return err
	}
	if backend.Name != mounts.BackendErofs && c.Backend == "" {
		_, why := kernel.Backend(mounts.BackendErofs)
		log.Warn("images are fetched and unpacked as a whole before they start", "err", why)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	worker, err := c.worker(os.Args[1:])
	if err != nil {
		return err
	}
	reload, end := reloads(ctx, c, log)
	defer end()
	keeper := []string{runner, "keeper"}
	if c.KeeperCgroup != "" {
		keeper = append(keeper, "--cgroup", c.KeeperCgroup)
		defer c.dropKeeperCgroup()
	}
	return supervisor.Run(ctx, supervisor.Options{
		Reload: reload, Worker: worker, Backend: backend.Name,
		Root: c.Root, Run: c.Run, Log: log, Keeper: keeper, Sockets: c.sockets(),
		InUse: func() bool { return inUse(c.Run) },
	})
}

// dropKeeperCgroup removes the keeper's cgroup if it was told to end.
func (c *Config) dropKeeperCgroup() {
	g, err := cgroups.Open(c.KeeperCgroup)
	if err != nil {
		return // there is none
	}
	defer g.Release()
	if pids, err := g.Procs(); err != nil || len(pids) > 0 && !ending(pids) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	g.Remove(ctx)
}

// ending waits a moment for processes that were told to end.
func ending(pids []int) bool {
	for range 100 {
		pids = slices.DeleteFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) != nil })
		if len(pids) == 0 {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// inUse tells whether a container or a mount lives that may yet read from the FUSE mount.
func inUse(run string) bool {
	for _, pattern := range []string{"containers/*/sock", images.MountMarks + "/*"} {
		if found, err := filepath.Glob(filepath.Join(run, pattern)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// runner finds the snapctl executable.
func (c Config) runner() (string, error) {
	if c.Runner != "" {
		return c.Runner, checkExecutable(c.Runner)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "snapctl")
		if checkExecutable(beside) == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("snapctl")
	if err != nil {
		return "", errors.New("snapctl is neither beside snapd nor in PATH: set runner in the configuration")
	}
	return filepath.Abs(path)
}

func checkExecutable(path string) error {
	fi, err := os.Stat(path)
	if err == nil && (!fi.Mode().IsRegular() || fi.Mode()&0o111 == 0) {
		err = fmt.Errorf("runner %s: not an executable file", path)
	}
	return err
}
