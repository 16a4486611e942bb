package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/monitor"
)

// A crowd is what many containers that do nothing cost.
type crowd struct {
	Network string
	N       int // containers

	// Of a monitor, on average, KiB: its share of all pages, pages that are its own, and tables of pages.
	PSS, Private, Tables float64
	Threads              float64

	Daemon float64 // PSS of supervisor, worker and keeper, MB
	Slab   float64 // of the kernel's, that cannot be reclaimed, more than without containers, KiB of each container
	All    float64 // memory that is no longer available, KiB of each container, with its own program
	Ps     float64 // snapctl ps, median, ms
	Start  float64 // snapctl run --rm of one more, median, ms
}

// Repetitions of what is timed while the containers are there.
const (
	massPs     = 31
	massStarts = 21
)

// idleSettle is how long containers are left alone before they are measured. A
// monitor gives back what it needed for the start after some seconds.
const idleSettle = 12 * time.Second

// crowds starts up to c.idle containers, and looks at them on the way.
func (c *config) crowds(ctx context.Context) (list []crowd, err error) {
	dir := filepath.Join(c.work, "idle")
	d, err := startDaemon(ctx, c.bin, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	exe, err := waiter(ctx, dir)
	if err != nil {
		return nil, err
	}
	floor, err := floor(ctx, filepath.Join(dir, "wait"))
	if err != nil {
		return nil, err
	}
	list = append(list, floor)
	image, err := makeImage(ctx, filepath.Join(dir, "layout"), "wait", base(exe))
	if err != nil {
		return nil, err
	}
	if err := d.snapctl(ctx, "pull", "--quiet", image); err != nil {
		return nil, err
	}
	for _, network := range []string{"none", "bridge"} {
		rows, err := c.crowd(ctx, d, image, network)
		if err != nil {
			return nil, err
		}
		list = append(list, rows...)
	}
	return list, nil
}

// waiter builds a static program that ends at once, or, with an argument, never.
func waiter(ctx context.Context, dir string) ([]byte, error) {
	src, exe := filepath.Join(dir, "wait.go"), filepath.Join(dir, "wait")
	text := "package main\n\nimport (\n\t\"os\"\n\t\"syscall\"\n)\n\nfunc main() {\n\tif len(os.Args) > 1 {\n\t\tsyscall.Pause()\n\t}\n}\n"
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	return os.ReadFile(exe)
}

// floorCopies is how many share the text of the program that the floor is measured with.
const floorCopies = 20

// floor is a monitor that does nothing: an empty Go program that waits.
func floor(ctx context.Context, exe string) (r crowd, err error) {
	r.Network = "(a Go program that waits)"
	var pids []int
	for range floorCopies {
		cmd := exec.CommandContext(ctx, exe, "for ever")
		cmd.Env = []string{"GOMAXPROCS=2"}
		if err := cmd.Start(); err != nil {
			return r, err
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		pids = append(pids, cmd.Process.Pid)
	}
	time.Sleep(time.Second)
	return r, r.look(pids)
}

// look measures processes.
func (r *crowd) look(pids []int) error {
	r.N = len(pids)
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		n := float64(len(pids))
		r.PSS += m["Pss"] / n
		r.Private += (m["Private_Clean"] + m["Private_Dirty"]) / n
		r.Tables += m["VmPTE"] / n
		r.Threads += m["Threads"] / n
	}
	return nil
}

// memoryOf reads /proc/PID/smaps_rollup and /proc/PID/status (proc(5)), KiB.
func memoryOf(pid int) (map[string]float64, error) {
	m := map[string]float64{}
	for _, name := range []string{"smaps_rollup", "status"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			return nil, err
		}
		addNumbers(m, b)
	}
	return m, nil
}

// addNumbers adds the lines NAME: NUMBER …
func addNumbers(m map[string]float64, text []byte) {
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		if f := strings.Fields(value); len(f) > 0 {
			if n, err := strconv.ParseFloat(f[0], 64); err == nil {
				m[name] += n
			}
		}
	}
}

// crowd measures 1, a fifth, and all of the containers of one network.
func (c *config) crowd(ctx context.Context, d *daemon, image, network string) (list []crowd, err error) {
	var names []string
	defer func() {
		if len(names) > 0 {
			step("removing %d containers", len(names))
			err = errors.Join(err, d.snapctl(context.WithoutCancel(ctx), append([]string{"rm", "-f"}, names...)...))
		}
	}()
	if _, err := c.oneMore(ctx, d, image, network); err != nil { // what is made once
		return nil, err
	}
	before, err := machine()
	if err != nil {
		return nil, err
	}
	for _, n := range []int{1, max(c.idle/5, 2), c.idle} {
		step("%d idle containers, network %s", n, network)
		for len(names) < n {
			name := fmt.Sprintf("idle-%s-%d", network, len(names))
			if err := d.snapctl(ctx, "run", "-d", "--quiet", "--network", network, "--name", name, image, "true", "for ever"); err != nil {
				return list, err
			}
			names = append(names, name)
		}
		r, err := c.measureCrowd(ctx, d, image, network, before)
		if err != nil {
			return list, err
		}
		list = append(list, r)
	}
	return list, nil
}

func (c *config) measureCrowd(ctx context.Context, d *daemon, image, network string, before map[string]float64) (r crowd, err error) {
	r.Network = network
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-time.After(idleSettle):
	}
	dirs, err := filepath.Glob(filepath.Join(d.dir, "root", "containers", "*"))
	if err != nil {
		return r, err
	}
	var pids []int
	for _, dir := range dirs {
		s, err := monitor.LoadState(dir)
		if err != nil || s.Status != monitor.StatusRunning {
			return r, fmt.Errorf("%s: %s: %w", dir, s.Status, err)
		}
		pids = append(pids, s.Monitor)
	}
	if err := r.look(pids); err != nil {
		return r, err
	}
	after, err := machine()
	if err != nil {
		return r, err
	}
	n := float64(r.N)
	r.Slab, r.All = (after["SUnreclaim"]-before["SUnreclaim"])/n, (before["MemAvailable"]-after["MemAvailable"])/n
	s, err := d.sample(ctx, "")
	if err != nil {
		return r, err
	}
	for _, p := range s.Processes {
		m, err := memoryOf(p.Pid)
		if err != nil {
			return r, err
		}
		r.Daemon += m["Pss"] * 1024 / 1e6
	}
	var ps, starts []float64
	for range massPs {
		begin := time.Now()
		if err := d.snapctl(ctx, "ps"); err != nil {
			return r, err
		}
		ps = append(ps, time.Since(begin).Seconds()*1e3)
	}
	for range massStarts {
		time.Sleep(c.gap)
		t, err := c.oneMore(ctx, d, image, network)
		if err != nil {
			return r, err
		}
		starts = append(starts, t.Seconds()*1e3)
	}
	r.Ps, r.Start = percentile(ps, 50), percentile(starts, 50)
	return r, nil
}

func (c *config) oneMore(ctx context.Context, d *daemon, image, network string) (time.Duration, error) {
	begin := time.Now()
	err := d.snapctl(ctx, "run", "--rm", "--quiet", "--network", network, image, "true")
	return time.Since(begin), err
}

// machine is /proc/meminfo, KiB.
func machine() (map[string]float64, error) {
	unix.Sync()
	b, err := os.ReadFile("/proc/meminfo")
	m := map[string]float64{}
	addNumbers(m, b)
	return m, err
}

// printCrowds writes a table.
func printCrowds(w io.Writer, list []crowd) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\nidle containers\t\tmonitor: PSS KiB\tprivate\tpage tables\tthreads\tdaemon MB\tslab KiB each\tall KiB each\tps ms\trun ms\t\n")
	for _, r := range list {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t", r.Network, r.N, r.PSS, r.Private, r.Tables, r.Threads)
		if r.Daemon > 0 {
			fmt.Fprintf(t, "%.1f\t%.0f\t%.0f\t%.1f\t%.1f\t", r.Daemon, r.Slab, r.All, r.Ps, r.Start)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
