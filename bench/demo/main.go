// Command demo shows on this machine what snapfs does: it makes an image of the
// Go toolchain, serves it from a registry behind a slow link, and starts it cold,
// warm, and after a full download. With IMAGE=REFERENCE it uses that image and
// the network instead. With KEEP=1 all of it stays up until Ctrl-C.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/snapfs/snapfs/bench/link"
	"github.com/snapfs/snapfs/bench/sample"
	"github.com/snapfs/snapfs/layers/registry"
)

const (
	bandwidth = 100e6
	roundTrip = 20 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one run: a scratch directory and what serves from it.
type demo struct {
	bin, dir string
	image    string
	link     *link.Link     // nil: the real network
	stops    []func() error // of the daemons
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it mounts images and starts containers")
	}
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	d := &demo{bin: bin, image: os.Getenv("IMAGE")}
	if d.dir, err = os.MkdirTemp("/var/tmp", "snapfs-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	commands := [][]string{{"go", "version"}, {"go", "run", "hello.go"}}
	if d.image == "" {
		ctx, cancel := context.WithCancel(ctx)
		var serving sync.WaitGroup
		defer serving.Wait()
		defer cancel()
		if err := d.serveImage(ctx, &serving); err != nil {
			return err
		}
	} else {
		commands = [][]string{strings.Fields(cmp.Or(os.Getenv("COMMAND"), "true"))}
	}
	defer func() {
		for _, stop := range d.stops {
			err = errors.Join(err, stop())
		}
	}()
	r := &report{demo: d}
	if err := d.measure(ctx, r, commands); err != nil {
		return err
	}
	r.print(os.Stdout)
	if os.Getenv("KEEP") == "1" {
		fmt.Printf("\nKept until Ctrl-C: SNAPFS_HOST=unix://%s/run/snapd.sock bin/snapctl …   (state in %s)\n", d.node("lazy"), d.dir)
		<-ctx.Done()
	}
	return nil
}

// serveImage makes the sample image and serves it behind the slow link until ctx ends.
func (d *demo) serveImage(ctx context.Context, serving *sync.WaitGroup) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = d.dir
	}
	layout := filepath.Join(cache, "snapfs", "demo-"+runtime.Version()+"-1")
	if err := os.MkdirAll(filepath.Dir(layout), 0o755); err != nil {
		return err
	}
	step("making an eStargz image of this machine's Go toolchain (kept in %s)", layout)
	from, err := sample.Make(ctx, layout, "demo", true)
	if err != nil {
		return fmt.Errorf("make the sample image: %w", err)
	}
	blobs := filepath.Join(d.dir, "registry")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	server := &http.Server{Handler: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithBlobHandler(ggcr.NewDiskBlobHandler(blobs)))}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving.Go(func() { server.Serve(l) })
	context.AfterFunc(ctx, func() { server.Close() })
	if err := copyImage(ctx, from, l.Addr().String()+"/golang:demo"); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	slow, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.link = &link.Link{BitsPerSecond: bandwidth, RTT: roundTrip}
	serving.Go(func() { d.link.Serve(ctx, slow, l.Addr().String()) })
	_, port, _ := net.SplitHostPort(slow.Addr().String())
	d.image = "localhost:" + port + "/golang:demo"
	return nil
}

func copyImage(ctx context.Context, from registry.Ref, to string) error {
	reg := registry.New(registry.Options{})
	defer reg.Close()
	img, err := reg.Resolve(ctx, from, "")
	if err != nil {
		return err
	}
	dst, err := registry.ParseRef(to)
	if err != nil {
		return err
	}
	_, err = reg.Push(ctx, dst, img.Source(), nil)
	return err
}

func step(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }

func (d *demo) node(name string) string { return filepath.Join(d.dir, name) }

// start starts a daemon with an empty state directory.
func (d *demo) start(ctx context.Context, name string) (err error) {
	node := d.node(name)
	if err := os.MkdirAll(node, 0o700); err != nil {
		return err
	}
	config := filepath.Join(node, "snapd.toml")
	// What a start needs is to be seen, not what comes after it.
	if err := os.WriteFile(config, []byte("[pull]\ncomplete = false\n"), 0o600); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(node, "snapd.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(filepath.Join(d.bin, "snapd"), "--config", config, "--root", filepath.Join(node, "root"), "--run", filepath.Join(node, "run"))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to pass on
	if err := cmd.Start(); err != nil {
		return err
	}
	for range 500 {
		if _, err = d.snapctl(ctx, name, "version").Output(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop := func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	}
	if err != nil {
		text, _ := os.ReadFile(logFile.Name())
		return errors.Join(fmt.Errorf("snapd does not answer: %s", bytes.TrimSpace(text)), stop())
	}
	d.stops = append(d.stops, stop)
	return nil
}

func (d *demo) snapctl(ctx context.Context, name string, args ...string) *exec.Cmd {
	sock := filepath.Join(d.node(name), "run", "snapd.sock")
	return exec.CommandContext(ctx, filepath.Join(d.bin, "snapctl"), append([]string{"--no-autostart", "--host", "unix://" + sock}, args...)...)
}

// timed runs a command in a new container and returns when its first byte and its end came.
func (d *demo) timed(ctx context.Context, name string, command []string) (first, total time.Duration, output string, err error) {
	args := append([]string{"run", "--rm", "--quiet", "--network", "none", d.image}, command...)
	cmd := d.snapctl(ctx, name, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, "", err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, "", err
	}
	r := bufio.NewReader(out)
	r.Peek(1)
	first = time.Since(begin)
	text, _ := io.ReadAll(r)
	if err := cmd.Wait(); err != nil {
		return 0, 0, "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return first, time.Since(begin), strings.TrimSpace(string(text)), nil
}

func (d *demo) stat(ctx context.Context, name string) (map[string]int64, error) {
	out, err := d.snapctl(ctx, name, "stat", "--json").Output()
	if err != nil {
		return nil, err
	}
	m := map[string]int64{}
	return m, json.Unmarshal(out, &m)
}
