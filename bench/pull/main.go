// Command pull times the first pull of images: ours against containerd's, from
// one registry on loopback, one after another, several rounds.
//
//	go run ./bench/pull -h
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/containerd"
	"github.com/snapfs/snapfs/bench/disk"
)

const usage = `usage: pull [flags]

Times the first pull of the images of an OCI layout, from nothing to unpacked,
by each of these systems in turn, from one registry on loopback:

  ours           layers/tarindex, layers/objects and layers/indexfile in a process of their own;
                 with -ours-pull, any daemon and its pull command instead
  overlayfs      containerd's overlayfs snapshotter, one layer after another
  overlayfs-par  the same with max_concurrent_unpacks = 4
  erofs          containerd's erofs snapshotter (wants mkfs.erofs 1.8 or newer)

Every pull begins with a new daemon on a new ext4, without any state. Rounds are
interleaved: all images and systems, then all again. The table has the medians
in seconds, their ratio to the base system's, the least and most, and the peak
resident memory of the daemon in MB (without its children: unpigz, mkfs.erofs).

containerd and ctr 2.4.2 are looked for in -bin and PATH, and built from the Go
module proxy into -build when they are not there. unpigz in PATH makes containerd
faster: install pigz. Needs root. All state goes into -work, and is removed.

`

type config struct {
	corpus, work, build, bin, images, systems, base string
	oursDaemon, oursSocket, oursPull                string
	rounds                                          int
	timeout                                         time.Duration
	sameDisk                                        bool
}

func flags() *config {
	c := new(config)
	flag.StringVar(&c.corpus, "corpus", "/var/tmp/corpus/oci", "OCI layout with the images")
	flag.StringVar(&c.images, "images", "debian,redis,zoo", "which of them, by tag")
	flag.StringVar(&c.systems, "systems", "ours,overlayfs,overlayfs-par,erofs", "which systems")
	flag.StringVar(&c.base, "base", "overlayfs-par", "the system that ratios are to")
	flag.IntVar(&c.rounds, "rounds", 5, "pulls of each image by each system")
	flag.StringVar(&c.work, "work", "/var/tmp/snapfs-bench-pull", "directory for all state; must not exist")
	flag.StringVar(&c.build, "build", containerd.Cache(), "directory to build containerd in; is kept")
	flag.StringVar(&c.bin, "bin", "", "directories of programs, before PATH, separated by ':'")
	flag.StringVar(&c.oursDaemon, "ours-daemon", "", "daemon under test: a command with {work}, {bin}")
	flag.StringVar(&c.oursSocket, "ours-socket", "{work}/run/snapd.sock", "what shows that it is up")
	flag.StringVar(&c.oursPull, "ours-pull", "", "its pull: a command with {work}, {socket}, {ref}")
	flag.DurationVar(&c.timeout, "timeout", 5*time.Minute, "the longest that one pull may take")
	flag.BoolVar(&c.sameDisk, "same-disk", false, "use the file system of -work, not a new ext4 in a loop device for each pull")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	return c
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == childVerb {
		if err := child(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "pull:", err)
			os.Exit(1)
		}
		return
	}
	c := flags()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

// A result is one pull.
type result struct {
	seconds float64
	peak    int64 // kB
}

func run(ctx context.Context, c *config) (err error) {
	if err := os.Mkdir(c.work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.work)) }()
	reg, err := serve(c.corpus)
	if err != nil {
		return err
	}
	defer reg.Close()
	systems, err := c.list(ctx)
	if err != nil {
		return err
	}
	images := strings.Split(c.images, ",")
	results := make(map[[2]string][]result)
	for round := range c.rounds {
		for _, image := range images {
			for i := range systems { // not always the same one first
				s := systems[(i+round)%len(systems)]
				r, err := c.measure(ctx, s, reg.ref(image))
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, image, err)
				}
				results[[2]string{image, s.name}] = append(results[[2]string{image, s.name}], r)
				fmt.Fprintf(os.Stderr, "%d %-8s %-14s %6.3f s %5d MB\n", round+1, image, s.name, r.seconds, r.peak>>10)
			}
		}
	}
	report(c, images, systems, results)
	return nil
}

// measure times one pull with nothing there before.
func (c *config) measure(ctx context.Context, s *system, ref string) (r result, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	work := filepath.Join(c.work, s.name)
	if err := os.Mkdir(work, 0o700); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if !c.sameDisk {
		d, err := disk.New(work+".img", work)
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, d.Remove()) }()
	}
	d, err := s.start(ctx, work)
	if d != nil {
		defer func() { err = errors.Join(err, d.stop(), unmountBelow(work)) }()
	}
	if err != nil {
		return r, err
	}
	if err := syncfs(work); err != nil { // what came before is not to be paid for now
		return r, err
	}
	begin := time.Now()
	if err := d.pull(ctx, ref); err != nil {
		return r, fmt.Errorf("%w\n%s", err, d.log())
	}
	r.seconds = time.Since(begin).Seconds()
	r.peak, err = d.peak()
	return r, err
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

func report(c *config, images []string, systems []*system, results map[[2]string][]result) {
	fmt.Printf("%-10s %-14s %9s %9s %9s %9s %9s\n", "image", "system", "median s", "ratio", "least", "most", "peak MB")
	for _, image := range images {
		base := median(results[[2]string{image, c.base}])
		for _, s := range systems {
			list := results[[2]string{image, s.name}]
			m := median(list)
			ratio := "-"
			if base > 0 {
				ratio = fmt.Sprintf("%.2f", m/base)
			}
			peak := slices.MaxFunc(list, func(a, b result) int { return int(a.peak - b.peak) }).peak
			fmt.Printf("%-10s %-14s %9.3f %9s %9.3f %9.3f %9d\n", image, s.name, m, ratio, list[0].seconds, list[len(list)-1].seconds, peak>>10)
		}
	}
}

// median sorts the list by time and returns its middle, 0 of none.
func median(list []result) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.SortFunc(list, func(a, b result) int {
		switch {
		case a.seconds < b.seconds:
			return -1
		case a.seconds > b.seconds:
			return 1
		}
		return 0
	})
	n := len(list)
	return (list[n/2].seconds + list[(n-1)/2].seconds) / 2
}
