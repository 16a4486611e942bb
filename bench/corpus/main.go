// Command corpus makes images to measure with, of Debian packages: what a
// registry's official images of the same names are, as near as packages come.
//
//	go run ./bench/corpus DIR [IMAGE…]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const usage = `usage: corpus [flags] DIR [IMAGE…]

Makes images of several layers in the OCI layout DIR/oci, and DIR/images.tsv with the task
of each, as bench/coldstart wants them. Images that begin with the same layers share them.
The base layer is made by mmdebstrap, each further one by installing packages in a chroot
over an overlay of the layers below it. Layers are kept in DIR/layers and not made twice.

Needs root, and Debian's mmdebstrap. Packages come from the mirror that apt knows.

Images:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// verbInside is the process that makes them, in a mount namespace of its own.
const verbInside = "inside"

func dispatch(ctx context.Context, args []string) error {
	isInside := len(args) > 0 && args[0] == verbInside
	if isInside {
		args = args[1:]
	}
	f := flag.NewFlagSet("corpus", flag.ContinueOnError)
	suite := f.String("suite", "bookworm", "Debian's suite")
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		for _, r := range recipes {
			fmt.Fprintf(f.Output(), "  %-10s %s\n", r.name, strings.Join(r.layers, ", "))
		}
		fmt.Fprintln(f.Output())
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		f.Usage()
		return errors.New("no directory")
	}
	list, err := choose(f.Args()[1:])
	if err != nil {
		return err
	}
	if !isInside {
		return inside(ctx, args)
	}
	dir, err := filepath.Abs(f.Arg(0))
	if err != nil {
		return err
	}
	b := &builder{dir: dir, suite: *suite}
	for _, r := range list {
		if err := b.image(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return b.table()
}

func choose(names []string) ([]*recipe, error) {
	if len(names) == 0 {
		return recipes, nil
	}
	var list []*recipe
	for _, n := range names {
		i := slices.IndexFunc(recipes, func(r *recipe) bool { return r.name == n })
		if i < 0 {
			return nil, fmt.Errorf("no image %q", n)
		}
		list = append(list, recipes[i])
	}
	return list, nil
}

// inside runs this program again where nobody else sees its mounts, and where
// they end with it.
func inside(ctx context.Context, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it mounts and installs")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("%w: install mmdebstrap", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, append([]string{verbInside}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })()
	if err := cmd.Wait(); err != nil {
		return errors.New("the images are not made")
	}
	return nil
}

// table writes the table of tasks, of all images that are there.
func (b *builder) table() error {
	ix, err := b.index()
	if err != nil {
		return err
	}
	var t strings.Builder
	t.WriteString("image\tready\ttask\n")
	for _, r := range recipes {
		if !slices.Contains(tags(ix), r.name) {
			continue
		}
		task := "-"
		if r.task != nil {
			text, err := json.Marshal(r.task)
			if err != nil {
				return err
			}
			task = string(text)
		}
		fmt.Fprintf(&t, "%s\t%s\t%s\n", r.name, r.ready, task)
	}
	return os.WriteFile(filepath.Join(b.dir, "images.tsv"), []byte(t.String()), 0o644)
}
