// Command run times starting a container: snapctl run against a snapd that knows
// the image, and package runtime alone, against crun, on the same root file
// system with the same spec; and shows what memory the daemon takes.
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const usage = `usage: run [flags]

Times these, one after another, another one first in every round, with a pause
before each, as nobody starts containers back to back (the first move of a process
between cgroups after some quiet costs the kernel about 10 ms):

  crun      crun run of the bundle
  snaprun   snaprun run of the bundle: snapctl as an OCI runtime
  snapctl   snapctl run --rm --network none IMAGE COMMAND, against a warm snapd
  bridge    the same with --network bridge: an address, a link, a way out
  published the same with -p 8080:80
  users     as snapctl, with --userns auto
  runtime   package runtime's NewPlan, Start, Wait and Close in this process

crun, snaprun and runtime get the spec of a container that snapd made, with Docker's seccomp
profile, and a root file system of the image, mounted already; snapctl run
makes container, monitor and overlay as well. The table has the medians from the
start of the command to its end, and the medians of the ratios to crun of the same round.

crun refuses a machine with controllers on both cgroup v1 and v2, so it runs in a mount
namespace without /sys/fs/cgroup/unified if there is one.

Then it pulls images without running them, mounts some, and prints the resident
memory of each process of the daemon.

With -idle N it starts N containers that do nothing, without a network and then on the
bridge, and prints what each costs when there are 1, N/5 and N: the memory of its
monitor, beside that of an empty Go program, the daemon's, the kernel's; and how long snapctl
ps and one more snapctl run --rm take then.

Needs root, crun in PATH, and Go, with which it builds snapd and snapctl. All of it
happens in a mount and a network namespace of its own and below -work, which is removed.

`

// Verbs of the processes that this one starts of itself.
const (
	verbInside = "inside" // in the mount namespace: the whole run
	verbCrun   = "crun"   // runs crun, where crun can
)

// cgroupParent is where all containers' cgroups are; it is removed.
const cgroupParent = "/snapfs-bench-run"

type config struct {
	image, work, bin       string
	rounds                 int
	gap                    time.Duration
	images, mounted, files int
	idle                   int
	json                   bool
	command                []string
}

func flags(args []string) (*config, error) {
	c := new(config)
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.StringVar(&c.image, "image", "", "image to run, any reference; default: a small one with a static Go program")
	f.StringVar(&c.work, "work", "/var/tmp/snapfs-bench-run", "directory for all state; must not exist")
	f.StringVar(&c.bin, "bin", "", "directory with snapd and snapctl; default: builds them")
	f.IntVar(&c.rounds, "rounds", 40, "starts of each")
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
	if c.rounds < 0 || c.images < 0 || c.mounted < 0 || c.idle < 0 || c.files < 1 {
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
	if len(args) > 0 && args[0] == verbCrun {
		return serveCrun(args[1])
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
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", c.bin+"/", "./cmd/snapd", "./cmd/snapctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w: %s", err, out)
		}
	}
	r := new(result)
	if c.rounds > 0 {
		if r.Starts, err = c.starts(ctx); err != nil {
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
			unix.Rmdir(d)
		}
	}
}

func step(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }
