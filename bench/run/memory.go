package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// A process of the daemon and its resident memory, MB.
type process struct {
	Name      string
	Pid       int
	RSS, Anon float64
}

// A sample is the memory of all processes at one time.
type sample struct {
	When      string
	Processes []process
	Total     float64
}

// settle is how long the daemon is at rest before the second sample.
const settle = 20 * time.Second

// memory brings images in and mounts some.
func (c *config) memory(ctx context.Context) (_ []sample, err error) {
	dir := filepath.Join(c.work, "memory")
	d, err := startDaemon(ctx, c.bin, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	step("pulling %d images of %d files", c.images, c.files)
	var names []string
	for i := range c.images {
		name, err := makeImage(ctx, filepath.Join(dir, "layout"), fmt.Sprintf("i%d", i), append(base([]byte("#!\n")), many(i, c.files)...))
		if err != nil {
			return nil, err
		}
		if err := d.snapctl(ctx, "pull", "--quiet", name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	for i, name := range names[:c.mounted] {
		target := filepath.Join(dir, fmt.Sprintf("mnt%d", i))
		if err := os.Mkdir(target, 0o700); err != nil {
			return nil, err
		}
		if err := d.snapctl(ctx, "mount", name, target); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, d.snapctl(context.WithoutCancel(ctx), "umount", target)) }()
		if _, err := os.ReadFile(filepath.Join(target, "usr/lib/package0/some_module_name_0.py")); err != nil {
			return nil, err
		}
	}
	first, err := d.sample(ctx, "after the pulls")
	if err != nil {
		return nil, err
	}
	step("letting the daemon rest for %v", settle)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(settle):
	}
	second, err := d.sample(ctx, fmt.Sprintf("%v later", settle))
	return []sample{first, second}, err
}

// sample looks at supervisor, worker and keeper.
func (d *daemon) sample(ctx context.Context, when string) (s sample, err error) {
	s.When = when
	out, err := d.output(ctx, "info", "--json")
	if err != nil {
		return s, err
	}
	var info control.Info
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return s, fmt.Errorf("snapctl info: %w", err)
	}
	pids := map[string]int{"supervisor": info.Supervisor, "worker": info.Worker}
	if pids["keeper"], err = keeper(filepath.Join(d.dir, "run")); err != nil {
		return s, err
	}
	for _, name := range []string{"supervisor", "worker", "keeper"} {
		p := process{Name: name, Pid: pids[name]}
		if p.RSS, p.Anon, err = resident(p.Pid); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.Total += p.RSS
		s.Processes = append(s.Processes, p)
	}
	return s, nil
}

// keeper finds the keeper of run by its command line.
func keeper(run string) (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range lines {
		b, _ := os.ReadFile(path) // it may have ended
		args := strings.Split(string(bytes.TrimRight(b, "\x00")), "\x00")
		if len(args) >= 3 && args[len(args)-2] == "keeper" && args[len(args)-1] == run {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, errors.New("no keeper")
}

// resident is the memory of a process, all and what is not of files, MB.
func resident(pid int) (rss, anon float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		for name, p := range map[string]*float64{"VmRSS:": &rss, "RssAnon:": &anon} {
			if v, ok := strings.CutPrefix(line, name); ok {
				kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
				if err != nil {
					return 0, 0, err
				}
				*p = float64(kib) * 1024 / 1e6
			}
		}
	}
	return rss, anon, nil
}
