// Command run times starting a container, and a program in one: snapctl run
// against a snapd that knows the image, snaprun, and package runtime alone,
// against crun, runc, Docker and what the kernel alone takes, on the same root
// file system with the same spec; and shows what memory the daemon takes.
//
//	go run ./bench/run -h
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const usage = `usage: run [flags]

Times these, one after another, another one first in every round, with a pause
before each, as nobody starts containers back to back (the first move of a process
between cgroups after some quiet costs the kernel about 10 ms):

  crun      crun run of the bundle
  runc      runc run of the bundle
  snaprun   snaprun run of the bundle: snapctl as an OCI runtime
  floor     the same container by the fewest system calls, without any check (bench/floor)
  snapctl   snapctl run --rm --network none IMAGE COMMAND, against a warm snapd
  bridge    the same with --network bridge: an address, a link, a way out
  published the same with -p 8080:80
  users     as snapctl, with --userns auto
  runtime   package runtime's NewPlan, Start, Wait and Close in this process
  docker    docker run --rm IMAGE COMMAND, against a dockerd; with -docker only

crun, runc, snaprun, floor and runtime get the spec of a container that snapd made, with
Docker's seccomp profile, and a root file system of the image, mounted already; snapctl run
and docker run make container, monitor and overlay as well. The table has the medians from the
start of the command to its end, and the medians of the ratios to crun, the floor and docker in the same round.

Then the first four start many containers, four at a time, of four bundles; and
the runtimes, and snapctl, execute COMMAND in a container that sleeps.

crun refuses a machine with controllers on both cgroup v1 and v2, so it runs in a mount
namespace without /sys/fs/cgroup/unified if there is one; and so does runc.

dockerd has its state below -work, and namespaces of its own that end with it. Without iptables in
PATH it does without, too.

Then the time to the first byte of a container, with slots, sandboxes and connections
made ahead and without any (pool.go): ratios are to the first row.

Then it pulls images without running them, mounts some, and prints the resident
memory of each process of the daemon.

With -idle N it starts N containers that do nothing, without a network and then on the
bridge, and prints what each costs when there are 1, N/5 and N: the memory of its
monitor, beside that of an empty Go program, the daemon's, the kernel's; and how long snapctl
ps and one more snapctl run --rm take then.

Needs root, crun in PATH, and make and Go, with which it builds snapd and snapctl, and runc if it was not
built before (that wants a C compiler). All of it happens in a mount and a network namespace of its own and below -work, which is removed.

`

// Verbs of the processes that this one starts of itself.
const (
	verbInside = "inside" // in the mount namespace: the whole run
	verbBox    = "box"    // runs crun, where crun can
	verbDocker = "docker" // dockerd's parent
)

// cgroupParent is where all containers' cgroups of this run are; it is removed.
var cgroupParent = fmt.Sprintf("/snapfs-bench-run-%d", os.Getpid())

type config struct {
	image, work, bin, runc string
	rounds, batches, batch int
	gap                    time.Duration
	images, mounted, files int
	idle                   int
	docker, json           bool
	command, pause         []string
}

func flags(args []string) (*config, error) {
	c := new(config)
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.StringVar(&c.image, "image", "", "image to run, any reference; default: a small one with a static Go program")
	f.StringVar(&c.work, "work", "/var/tmp/snapfs-bench-run", "directory for all state; must not exist")
	f.StringVar(&c.bin, "bin", "", "directory with snapd and snapctl; default: builds them")
	f.StringVar(&c.runc, "runc", "", "runc's `PROGRAM`, none to leave it out; default: the newest, from the cache of make peers")
	pause := f.String("sleep", "sleep infinity", "`COMMAND` of the image that does not end, to execute programs beside it")
	f.BoolVar(&c.docker, "docker", false, "compare with docker run, too; needs dockerd, docker, containerd and runc in PATH")
	f.IntVar(&c.rounds, "rounds", 40, "starts of each")
	f.IntVar(&c.batches, "batches", 3, "batches of each; 0 leaves them out")
	f.IntVar(&c.batch, "batch", 100, "starts in a batch")
	f.DurationVar(&c.gap, "gap", 60*time.Millisecond, "pause before each start")
	f.IntVar(&c.images, "images", 20, "images that the daemon knows when its memory is looked at; 0 leaves that out")
	f.IntVar(&c.mounted, "mounted", 5, "how many of them are mounted")
	f.IntVar(&c.files, "files", 5000, "files in each of them")
	f.IntVar(&c.idle, "idle", 0, "containers that do nothing; 0 leaves that out")
	f.BoolVar(&c.json, "json", false, "print JSON")
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	c.command = f.Args()
	if len(c.command) == 0 {
		c.command = []string{"true"}
	}
	c.mounted = min(c.mounted, c.images)
	c.pause = strings.Fields(*pause)
	if len(c.pause) == 0 {
		return nil, errors.New("-sleep: no command")
	}
	if c.rounds < 0 || c.batches < 0 || c.batch < lanes || c.images < 0 || c.idle < 0 || c.mounted < 0 || c.files < 1 {
		return nil, errors.New("a number is out of range")
	}
	return c, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == verbBox:
		return serveBox()
	case len(args) == 3 && args[0] == verbDocker:
		return serveDocker(args[1], args[2])
	}
	isInside := len(args) > 0 && args[0] == verbInside
	if isInside {
		args = args[1:]
	}
	c, err := flags(args)
	if err != nil {
		return err
	}
	if isInside {
		return run(ctx, c)
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it starts containers")
	}
	if _, err := exec.LookPath("crun"); err != nil && c.rounds > 0 {
		return fmt.Errorf("%w: install crun, or leave starts out with -rounds 0", err)
	}
	for _, name := range dockerPrograms {
		if _, err := exec.LookPath(name); err != nil && c.docker {
			return fmt.Errorf("-docker: %w", err)
		}
	}
	return inside(ctx, args)
}

// inside runs this program again where nobody else sees its mounts and links, and
// where they end with it.
func inside(ctx context.Context, args []string) error {
	cmd, err := self(append([]string{verbInside}, args...)...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })()
	if err := cmd.Wait(); err != nil {
		return errors.New("the run failed")
	}
	return nil
}

func self(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	return exec.Command(exe, args...), err
}

func run(ctx context.Context, c *config) (err error) {
	if err := os.Mkdir(c.work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.work)) }()
	defer removeCgroups()
	if c.bin == "" {
		c.bin = filepath.Join(c.work, "bin")
		step("building snapd and snapctl")
		cmd := exec.CommandContext(ctx, "make", "build", "BIN="+c.bin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make build: %w: %s", err, out)
		}
	}
	r := new(result)
	if c.rounds > 0 {
		if err = c.starts(ctx, r); err != nil {
			return err
		}
	}
	if c.rounds > 0 {
		if r.Pool, err = c.firstBytes(ctx); err != nil {
			return err
		}
	}
	if c.images > 0 {
		if r.Memory, err = c.memory(ctx); err != nil {
			return err
		}
	}
	if c.idle > 0 {
		if r.Idle, err = c.crowds(ctx); err != nil {
			return err
		}
	}
	return r.print(os.Stdout, c.json)
}

// removeCgroups removes what is left of cgroupParent, in all hierarchies. Its
// cgroups are empty by now; what is not stays, and can be seen.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(pattern + cgroupParent)
		for _, d := range dirs {
			removeGroup(d)
		}
	}
}

// removeGroup removes a group and those in it; dockerd leaves the one that it made for all of its.
func removeGroup(at string) {
	entries, _ := os.ReadDir(at)
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(filepath.Join(at, e.Name()))
		}
	}
	unix.Rmdir(at)
}

func step(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }
