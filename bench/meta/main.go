// Command meta times what a container does with its file system: names,
// attributes and reads, on overlay over ext4 and on ours, in one interleaved
// run; and what it costs to make and to mount the metadata image.
//
//	go run ./bench/meta -h
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const usage = `usage: meta [flags]

Shows one tree of files in four ways, each as the lower layer of a writable overlay:

  overlay   a plain directory on the file system of -work: what containerd's overlayfs does
  objects   EROFS metadata and a store that has every object as a file
  fuse      the same metadata, and every object served over FUSE by a process of its own
  sealed    EROFS metadata with the bytes of files up to 16 KiB in it, larger ones in the store

and times the same operations on each, one system after another, in another order
in every round. "cold" is after dropping all caches of the machine;
"warm" after each operation was done once. The table has the medians, and the
medians of the ratios to overlay of the same round; beside them those of the CPU
time of the thread that does it, which a busy machine disturbs less. (What the FUSE
server computes for it is not in there.)

Then it times the metadata of images of 30,000 and 300,000 files: from eStargz
tables of contents (5 layers) to the image, in a process of its own, with that
process's peak resident memory; and mounting the one of 30,000 files (EROFS,
overlay, attach), beside overlay on the plain directory.

Needs root, /dev/fuse and Linux 6.16. All of it happens in a mount namespace of its
own and below -work, which is removed.

`

// Verbs of the processes that this one starts of itself.
const (
	verbInside = "inside" // in the mount namespace: the whole run
	verbServe  = "serve"  // serves FUSE
	verbBuild  = "build"  // makes a metadata image
)

type config struct {
	Tree, Image, Work       string
	Rounds, LargeMiB        int
	JSON, NoFiles, NoImages bool
}

func flags(args []string) (*config, error) {
	c := new(config)
	f := flag.NewFlagSet("meta", flag.ContinueOnError)
	f.StringVar(&c.Tree, "tree", "", "directory to show; default: what go env GOROOT says")
	f.StringVar(&c.Image, "image", "", "image to show instead: oci:DIR:TAG or any other reference")
	f.StringVar(&c.Work, "work", "/var/tmp/snapfs-bench-meta", "directory for all state; must not exist")
	f.IntVar(&c.Rounds, "rounds", 15, "measurements of each operation on each system")
	f.IntVar(&c.LargeMiB, "large", 256, "MiB of the file that is read from end to end")
	f.BoolVar(&c.JSON, "json", false, "print JSON")
	f.BoolVar(&c.NoFiles, "no-files", false, "leave out the operations on files")
	f.BoolVar(&c.NoImages, "no-images", false, "leave out making and mounting metadata images")
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if c.Rounds < 1 || c.LargeMiB < 1 || f.NArg() > 0 {
		return nil, errors.New("-rounds and -large are positive, and there are no arguments")
	}
	return c, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "meta:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case verbServe:
		return serve(ctx, args[1], args[2], args[3])
	case verbBuild:
		return build(ctx, args[1], args[2:], os.Stdout)
	case verbInside:
		c, err := flags(args[1:])
		if err != nil {
			return err
		}
		return run(ctx, c)
	}
	if _, err := flags(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it mounts")
	}
	return inside(ctx, args)
}

// inside runs this program again where nobody else sees its mounts, and where
// they end with it.
func inside(ctx context.Context, args []string) error {
	cmd, err := self(append([]string{verbInside}, args...)...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
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

// A result is all that a run measured.
type result struct {
	Kernel string
	CPUs   int
	Tree   *treeInfo `json:",omitempty"`
	Files  []row     `json:",omitempty"`
	Builds []builds  `json:",omitempty"`
	Mounts []row     `json:",omitempty"`
}

func run(ctx context.Context, c *config) (err error) {
	if err := os.Mkdir(c.Work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Work)) }()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	r := &result{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU()}
	if c.Tree == "" && c.Image == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("go env GOROOT: %w: say -tree or -image", err)
		}
		c.Tree = strings.TrimSpace(string(out))
	}
	s, err := prepare(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r.Tree = &s.info
	if !c.NoFiles {
		if r.Files, err = s.measure(ctx, c.Rounds); err != nil {
			return err
		}
	}
	if !c.NoImages {
		if err := s.images(ctx, c, r); err != nil {
			return err
		}
	}
	return r.print(os.Stdout, c.JSON)
}

func (r *result) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(w)
}

func step(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }
