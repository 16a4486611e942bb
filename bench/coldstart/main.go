// Command coldstart times containers from nothing to ready, by HelloBench's
// method: ours and its peers, over a link of stated bandwidth and latency.
//
//	go run ./bench/coldstart -h
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

	"github.com/snapfs/snapfs/bench/containerd"
	"golang.org/x/sys/unix"
)

const usage = `usage: coldstart [flags]
       coldstart -report FILE.jsonl… [-md FILE] [-html FILE] [-picture FILE]

Times the start of containers from nothing: for each image, system and round, in an
order that is shuffled within the round, it makes a new file system, starts the system's
daemons without any state, drops the page cache, and then pulls and starts the image's
task until it gives its sign that it is ready; then it starts the same again.
All from one registry in memory on loopback, over an emulated link.

The output is a line of JSON for each run, a summary in Markdown, and a page with plots
that needs nothing else. What is counted how is in bench/README.md.

Images come from an OCI layout and a table of tasks beside it: -corpus DIR has
DIR/oci and DIR/images.tsv. Without one there is one image, of this machine's Go toolchain.

Systems:
`

type config struct {
	corpus, work, cache, build, bin, snapfs string
	cgroup                                  string // of what is measured
	out, html, md, picture                  string
	images, systems, links                  list
	rounds, again                           int
	seed                                    uint64
	timeout                                 time.Duration
	short, report                           bool
	files                                   []string
}

// list is a flag of words separated by commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = nil
	if s != "" {
		*l = strings.Split(s, ",")
	}
	return nil
}

func flags(args []string) (*config, error) {
	c := &config{links: list{"100M/20ms"}, cgroup: systemCgroup}
	f := flag.NewFlagSet("coldstart", flag.ContinueOnError)
	f.StringVar(&c.corpus, "corpus", "", "directory with oci/ and images.tsv; default: an image of the Go toolchain")
	f.Var(&c.images, "images", "which images, by tag, separated by commas; default: all")
	f.Var(&c.systems, "systems", "which systems; default: all that this machine has programs for")
	f.Var(&c.links, "links", "links: RATE/ROUNDTRIP, as 100M/20ms,1G/5ms,0/0; 0 for no limit")
	f.IntVar(&c.rounds, "rounds", 5, "cold starts of each")
	f.IntVar(&c.again, "again", 3, "warm starts after each")
	f.Uint64Var(&c.seed, "seed", 1, "seed of the order")
	f.StringVar(&c.bin, "bin", "", "directories of the peers' programs, before PATH, separated by ':'")
	f.StringVar(&c.snapfs, "snapfs", "", "directory with snapd and snapctl; default: builds them")
	f.StringVar(&c.work, "work", "/var/tmp/snapfs-bench-coldstart", "directory for all state; must not exist")
	f.StringVar(&c.cache, "cache", "/var/tmp/snapfs-bench-cache", "directory for images that others' programs have converted; is kept")
	f.StringVar(&c.build, "build", containerd.Cache(), "directory to build containerd in; is kept")
	f.StringVar(&c.out, "out", "coldstart.jsonl", "file that a line for each run is added to")
	f.StringVar(&c.md, "md", "", "file for the summary; default: standard output")
	f.StringVar(&c.html, "html", "coldstart.html", "file for the page")
	f.StringVar(&c.picture, "picture", "", "file for a picture (SVG) of the times over the first link")
	f.DurationVar(&c.timeout, "timeout", 10*time.Minute, "the longest that one run may take")
	f.BoolVar(&c.short, "short", false, "one round, one warm start, and of the systems ours and overlayfs")
	f.BoolVar(&c.report, "report", false, "measure nothing: make summary and page of files of earlier runs")
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		for _, s := range systems {
			fmt.Fprintf(f.Output(), "  %-15s %s\n", s.Name, s.About)
		}
		fmt.Fprintln(f.Output())
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	c.files = f.Args()
	if c.short {
		set := make(map[string]bool)
		f.Visit(func(f *flag.Flag) { set[f.Name] = true })
		c.shorten(set)
	}
	return c, c.check()
}

// shorten makes the run short where flags have not said otherwise.
func (c *config) shorten(set map[string]bool) {
	if !set["rounds"] {
		c.rounds = 1
	}
	if !set["again"] {
		c.again = 1
	}
	if !set["systems"] {
		c.systems = list{"snapfs-nothing", "snapfs-index", "snapfs-profile", "snapfs-warm", "overlayfs", "overlayfs-par"}
	}
}

func (c *config) check() error {
	switch {
	case c.report && len(c.files) == 0:
		return errors.New("-report wants the files of earlier runs")
	case !c.report && len(c.files) > 0:
		return fmt.Errorf("unexpected %q", c.files)
	case c.rounds < 1 || c.again < 1 || len(c.links) == 0:
		return errors.New("want at least one round, one warm start and one link")
	case len(c.work) > 60:
		return errors.New("-work is too long a path for the sockets below it")
	}
	if _, err := chooseSystems(c.systems); err != nil {
		return err
	}
	for _, l := range c.links {
		if _, err := parseLink(l); err != nil {
			return err
		}
	}
	return nil
}

// verbInside is the process that measures, in a mount namespace of its own.
const verbInside = "inside"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "coldstart:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	isInside := len(args) > 0 && args[0] == verbInside
	if isInside {
		args = args[1:]
	}
	c, err := flags(args)
	if err != nil {
		return err
	}
	switch {
	case c.report:
		facts, err := loadFacts(c.files)
		if err != nil {
			return err
		}
		return c.render(facts)
	case isInside:
		return measureAll(ctx, c)
	case os.Geteuid() != 0:
		return errors.New("must run as root: it makes file systems and starts containers")
	}
	return inside(ctx, args)
}

// inside runs this program again where nobody else sees its mounts, and where
// they end with it.
func inside(ctx context.Context, args []string) error {
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
		return errors.New("the run failed")
	}
	return nil
}

// render writes summary and page.
func (c *config) render(facts []fact) error {
	s := summarize(facts)
	md := s.markdown()
	if c.md == "" {
		fmt.Print(md)
	} else if err := os.WriteFile(c.md, []byte(md), 0o644); err != nil {
		return err
	}
	if c.picture != "" {
		svg, err := s.picture()
		if err == nil {
			err = os.WriteFile(c.picture, svg, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if c.html == "" {
		return nil
	}
	page, err := s.page()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.html, page, 0o644); err != nil {
		return err
	}
	abs, err := filepath.Abs(c.html)
	fmt.Fprintln(os.Stderr, "page: file://"+abs)
	return err
}
