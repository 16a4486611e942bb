package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/containerd"
	"github.com/snapfs/snapfs/bench/serve"
)

// A bench is one session: registry, links, images and systems.
type bench struct {
	conf     *config
	bin      string // with snapd and snapctl
	registry *serve.Registry
	host     string // of the registry, without a link
	paths    []*path
	watch    observer
	tasks    []task
	systems  []*system
	unfit    map[[2]string]error // by form and image: why it could not be made
	out      *os.File
	facts    []fact
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }

// measureAll is a whole session.
func measureAll(ctx context.Context, c *config) (err error) {
	if err := os.Mkdir(c.work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.work)) }()
	if c.bin != "" {
		os.Setenv("PATH", c.bin+":"+os.Getenv("PATH"))
	}
	b := &bench{conf: c, registry: new(serve.Registry)}
	b.registry.Seen = b.watch.seen
	if b.systems, err = chooseSystems(c.systems); err != nil {
		return err
	}
	if err := b.programs(ctx); err != nil {
		return err
	}
	if err := b.images(ctx); err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	wait, err := b.serve(serving)
	defer wait()
	defer stop()
	if err != nil {
		return err
	}
	if b.out, err = os.OpenFile(c.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.out.Close()) }()
	err = b.session(ctx)
	if len(b.facts) > 0 {
		err = errors.Join(err, c.render(b.facts))
	}
	return err
}

// programs sees to it that there are snapd and snapctl, and containerd if it is wanted.
func (b *bench) programs(ctx context.Context) error {
	b.bin = b.conf.snapfs
	if b.bin == "" {
		b.bin = filepath.Join(b.conf.work, "bin")
		b.say("building snapd and snapctl")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.bin+"/", "./cmd/snapd", "./cmd/snapctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w: %s", err, out)
		}
	}
	for _, s := range b.systems {
		if len(s.needs) == 0 {
			continue
		}
		if err := containerd.Find(ctx, b.conf.build); err != nil {
			b.say("no containerd: %v", err) // its systems will say that they miss it
		}
		break
	}
	return nil
}

// images makes the images known to the registry.
func (b *bench) images(ctx context.Context) (err error) {
	dir := b.conf.corpus
	if dir == "" {
		if dir, err = makeSample(ctx, b.conf.cache); err != nil {
			return err
		}
	}
	if b.tasks, err = loadTasks(filepath.Join(dir, "images.tsv"), b.conf.images); err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for _, t := range b.tasks {
		wanted[t.Image] = true
	}
	return b.registry.AddLayout(filepath.Join(dir, "oci"), func(tag string) (string, string) {
		if !wanted[tag] {
			return "", ""
		}
		return repo(formPlain, tag), "latest"
	})
}

// serve serves the registry, with and without links, until ctx ends.
func (b *bench) serve(ctx context.Context) (wait func(), err error) {
	var waits []func()
	wait = func() {
		for _, w := range waits {
			w()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return wait, err
	}
	b.host = l.Addr().String()
	server := &http.Server{Handler: b.registry, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(smallBuffers{l})
	}()
	context.AfterFunc(ctx, func() { server.Close() })
	waits = append(waits, func() { <-served })
	for _, s := range b.conf.links {
		p, err := parseLink(s)
		if err != nil {
			return wait, err
		}
		w, err := p.serve(ctx, b.host, b.watch.arrived)
		if err != nil {
			return wait, err
		}
		waits = append(waits, w)
		b.paths = append(b.paths, p)
	}
	return wait, nil
}

// smallBuffers accepts connections whose sends end about when the link takes
// what was sent, so that the time of a request's end means something.
type smallBuffers struct{ net.Listener }

func (s smallBuffers) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetWriteBuffer(32 << 10)
	}
	return c, err
}

// session prepares and measures.
func (b *bench) session(ctx context.Context) error {
	s, err := b.describe(ctx)
	if err != nil {
		return err
	}
	if err := b.note(fact{Session: s}); err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.touches(ctx); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(b.conf.seed, 0))
	for round := range b.conf.rounds {
		for _, p := range b.paths {
			for _, i := range random.Perm(len(b.tasks)) {
				if err := b.column(ctx, round, b.tasks[i], p, random); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// column measures all systems with one image.
func (b *bench) column(ctx context.Context, round int, t task, p *path, random *rand.Rand) error {
	for _, i := range random.Perm(len(b.systems)) {
		s := b.systems[i]
		if s.missing(ctx) != nil {
			continue
		}
		r, err := b.measure(ctx, s, t, p)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Round = round + 1
		if err != nil {
			r.Error = err.Error()
			b.say("%s %d %-10s %-15s %v", p.name, r.Round, t.Image, s.Name, err)
		} else {
			b.say("%s %d %-10s %-15s %7.3f s  again %6.3f s %8.2f MB %3d requests", p.name, r.Round, t.Image, s.Name,
				r.Total, median(r.Again), float64(r.Down)/1e6, r.Requests)
		}
		if err := b.note(fact{Run: r}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) note(f fact) error {
	b.facts = append(b.facts, f)
	return writeFact(b.out, f)
}

// touches finds what each image's start reads, if there is a containerd to ask.
func (b *bench) touches(ctx context.Context) error {
	if err := (&system{needs: ctrPrograms}).missing(ctx); err != nil {
		b.say("no floor: %v", err)
		return nil
	}
	for _, t := range b.tasks {
		f, err := b.touch(ctx, t)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			b.say("no floor of %s: %v", t.Image, err)
			continue
		}
		b.say("%s reads %d files, %d chunks: %.2f MB, %.2f MB gzip, %.2f MB zstd", t.Image, f.Files, f.Chunks,
			float64(f.Plain)/1e6, float64(f.Gzip)/1e6, float64(f.Zstd)/1e6)
		if err := b.note(fact{Touched: f}); err != nil {
			return err
		}
	}
	return nil
}

// describe says where and with what this is measured.
func (b *bench) describe(ctx context.Context) (*session, error) {
	s := &session{Begun: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Seed: b.conf.seed, Rounds: b.conf.rounds}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		s.Commit = strings.TrimSpace(string(out))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		s.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err == nil {
		s.MemoryMB = int64(i.Totalram) * int64(i.Unit) >> 20
	}
	s.CPU = cpuName()
	for _, sys := range b.systems {
		a := about{Name: sys.Name, About: sys.About}
		if err := sys.missing(ctx); err != nil {
			a.Missing = err.Error()
			b.say("without %s: %v", sys.Name, err)
		}
		s.Systems = append(s.Systems, a)
	}
	for _, t := range b.tasks {
		d, size, err := b.registry.Load(repo(formPlain, t.Image), "latest")
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", t.Image, err)
		}
		s.Images = append(s.Images, picture{Name: t.Image, Digest: d.String(), Size: size, Ready: t.Ready.String(), Task: t.Args})
	}
	return s, nil
}

func cpuName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
