// Package cgroups makes a control group for a container, limits it and takes
// it away again, in version 1, version 2 and hybrid hierarchies as they are found.
//
// Nothing is ever moved into a Group from outside: that waits for an RCU grace
// period, 9 to 11 ms after some quiet (measured on 6.18 with both versions). A
// child is cloned into the version 2 group (Unified with CLONE_INTO_CGROUP),
// and moves itself into those of version 1 by writing "0" to their tasks files
// (OpenTasks), which takes no global lock (cgroup_procs_write_start of
// kernel/cgroup/cgroup.c).
//
// In a hybrid set-up the version 2 hierarchy may have no controllers at all. It
// is used nevertheless: freezing and killing are part of its core.
package cgroups

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrMissing says that the machine has no controller for a limit that was asked for.
var ErrMissing = errors.New("no such cgroup controller")

// CheckPath tells whether a path below the hierarchies is one that Create takes.
func CheckPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("path %q: want a clean absolute one below /", p)
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if len(part) > 255 || strings.ContainsAny(part, "\n\x00") {
			return fmt.Errorf("path %q: bad name %q", p, part)
		}
	}
	return nil
}

// A hierarchy is one mounted tree of groups.
type hierarchy struct {
	mount       string
	controllers []string // version 1: from the mount options; version 2: cgroup.controllers
	v2          bool
}

// hierarchies reads what is mounted from a mountinfo file (proc_pid_mountinfo(5)).
func hierarchies(r io.Reader) ([]hierarchy, error) {
	var list []hierarchy
	seen := map[string]bool{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if !bytes.Contains(sc.Bytes(), []byte(" - cgroup")) {
			continue // there may be hundreds of others
		}
		before, after, ok := strings.Cut(sc.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 || g[0] != "cgroup" && g[0] != "cgroup2" {
			continue
		}
		h := hierarchy{mount: unescape(f[4]), v2: g[0] == "cgroup2"}
		key := "2"
		if !h.v2 {
			for o := range strings.SplitSeq(g[2], ",") {
				if o != "rw" && o != "ro" && o != "xattr" && o != "noprefix" && !strings.HasPrefix(o, "release_agent=") {
					h.controllers = append(h.controllers, o)
				}
			}
			key = strings.Join(h.controllers, ",")
		}
		if !seen[key] { // further mounts of one hierarchy show the same groups
			seen[key] = true
			list = append(list, h)
		}
	}
	return list, sc.Err()
}

// unescape undoes mountinfo's \040 for a space and its like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mounted returns the machine's hierarchies, with the controllers of version 2.
func mounted() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := hierarchies(f)
	if err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	for i := range list {
		if !list[i].v2 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(list[i].mount, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		list[i].controllers = strings.Fields(string(b))
	}
	if len(list) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return list, nil
}

// Mode tells what the machine has: "v1", "v2" or "hybrid".
func Mode() (string, error) {
	list, err := mounted()
	if err != nil {
		return "", err
	}
	v2 := slices.ContainsFunc(list, func(h hierarchy) bool { return h.v2 })
	switch {
	case v2 && len(list) == 1:
		return "v2", nil
	case v2:
		return "hybrid", nil
	}
	return "v1", nil
}

// A Group is a control group in each hierarchy that matters to a container.
type Group struct {
	path    string
	dirs    []dir
	unified *os.File // directory of the version 2 group; nil without that version
	device  *os.File // version 2's device filter, to replace it
	adopted bool     // systemd has made it
}

type dir struct {
	hierarchy
	path string
}

// always are the controllers that every group uses, where they are.
var always = []string{"memory", "cpu", "cpuacct", "pids", "devices"}

// both are the elements of a that are in b.
func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

// Create makes a group, writes its limits, and only then may be joined. The
// group must not exist, but for an empty one that a dead container left.
func Create(p string, r *specs.LinuxResources) (_ *Group, err error) {
	if err := CheckPath(p); err != nil {
		return nil, err
	}
	list, err := mounted()
	if err != nil {
		return nil, err
	}
	g := &Group{path: p}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err = errors.Join(err, g.Remove(ctx))
		}
	}()
	want := wanted(list, r)
	for _, h := range list {
		if h.v2 || slices.ContainsFunc(h.controllers, func(c string) bool { return slices.Contains(want, c) }) {
			if err := g.make(h, want); err != nil {
				return nil, err
			}
		}
	}
	return g, g.apply(r, true)
}

// Open returns a group that exists, in the hierarchies where it does.
func Open(p string) (*Group, error) {
	if err := CheckPath(p); err != nil {
		return nil, err
	}
	list, err := mounted()
	if err != nil {
		return nil, err
	}
	g := &Group{path: p}
	for _, h := range list {
		at := filepath.Join(h.mount, p)
		if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, errors.Join(err, g.Release())
		}
		g.dirs = append(g.dirs, dir{h, at})
		if h.v2 && g.unified == nil {
			if g.unified, err = os.Open(at); err != nil {
				return nil, errors.Join(err, g.Release())
			}
		}
	}
	return g, nil
}

// wanted are the controllers that a group with some limits uses.
func wanted(list []hierarchy, r *specs.LinuxResources) []string {
	want := append(slices.Clone(always), needed(r)...)
	if !slices.ContainsFunc(list, func(h hierarchy) bool { return h.v2 }) {
		want = append(want, "freezer")
	}
	return want
}

// needed are the controllers that only some limits ask for.
func needed(r *specs.LinuxResources) []string {
	var want []string
	if r == nil {
		return nil
	}
	for _, c := range []struct {
		name string
		used bool
	}{
		{"cpuset", r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "")},
		{"blkio", r.BlockIO != nil}, {"io", r.BlockIO != nil}, {"hugetlb", len(r.HugepageLimits) > 0}, {"rdma", len(r.Rdma) > 0},
		{"net_cls", r.Network != nil && r.Network.ClassID != nil},
		{"net_prio", r.Network != nil && len(r.Network.Priorities) > 0},
	} {
		if c.used {
			want = append(want, c.name)
		}
	}
	for name := range r.Unified {
		want = append(want, controllerOf(name))
	}
	return want
}

// make makes the group in one hierarchy, and what is above it.
func (g *Group) make(h hierarchy, want []string) error {
	if !h.v2 && !slices.Contains(h.controllers, "cpuset") { // most of the time all that is above exists
		at := filepath.Join(h.mount, g.path)
		if err := os.Mkdir(at, 0o755); err == nil {
			g.dirs = append(g.dirs, dir{h, at})
			return nil
		}
	}
	at := h.mount
	parts := strings.Split(g.path[1:], "/")
	for i, part := range parts {
		if h.v2 {
			if err := enable(at, both(h.controllers, want)); err != nil {
				return err
			}
		}
		at = filepath.Join(at, part)
		err := os.Mkdir(at, 0o755)
		if errors.Is(err, fs.ErrExist) && i == len(parts)-1 && !g.adopted {
			if err = removeTree(at); err == nil {
				err = os.Mkdir(at, 0o755)
			}
			if err != nil {
				return fmt.Errorf("%s exists and is in use: %w", at, err)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if slices.Contains(h.controllers, "cpuset") && !h.v2 {
			if err := inheritCpuset(at); err != nil {
				return err
			}
		}
	}
	g.dirs = append(g.dirs, dir{h, at})
	if !h.v2 {
		return nil
	}
	f, err := os.Open(at)
	g.unified = f
	return err
}

// enable hands version 2's controllers to the groups below a directory, each
// by itself so that one that cannot be does not keep back the others. A limit
// that misses its controller says so when it is written.
func enable(at string, controllers []string) error {
	b, err := os.ReadFile(filepath.Join(at, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	on := strings.Fields(string(b))
	missing := slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return slices.Contains(on, c) })
	if len(missing) == 0 || occupied(at) {
		return nil
	}
	for _, c := range missing {
		if err := write(at, "cgroup.subtree_control", "+"+c); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// occupied tells whether a group but the root of all has processes of its own.
// It can hand down controllers of threads only (cpu, pids), and if it did no
// process could be in a group below it (cgroup_is_valid_domain of kernel/cgroup/cgroup.c).
func occupied(at string) bool {
	if _, err := os.Stat(filepath.Join(at, "cgroup.type")); err != nil { // the root has none
		return false
	}
	procs, err := read(at, "cgroup.procs")
	return err == nil && procs != ""
}

// inheritCpuset fills the files that version 1 leaves empty in a new group.
func inheritCpuset(at string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(at, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) != "" {
			continue
		}
		up, err := os.ReadFile(filepath.Join(filepath.Dir(at), name))
		if err != nil {
			return err
		}
		if err := write(at, name, strings.TrimSpace(string(up))); err != nil {
			return err
		}
	}
	return nil
}

// Path is the group's path below the hierarchies.
func (g *Group) Path() string { return g.path }

// ID tells a group from a later one with its path: the inode of version 2's, or
// else of the first there is; 0 if there is none. Inodes of kernfs carry a
// generation on 64-bit machines (fs/kernfs/dir.c, __kernfs_new_node).
func (g *Group) ID() (uint64, error) {
	var st unix.Stat_t
	switch {
	case g.unified != nil:
		err := unix.Fstat(int(g.unified.Fd()), &st)
		return st.Ino, os.NewSyscallError("fstat", err)
	case len(g.dirs) > 0:
		err := unix.Stat(g.dirs[0].path, &st)
		return st.Ino, os.NewSyscallError("stat", err)
	}
	return 0, nil
}

// Current tells whether the group has not been taken away since it was made or opened.
func (g *Group) Current() bool {
	if g.unified == nil {
		return len(g.dirs) > 0
	}
	var own, now unix.Stat_t
	return unix.Fstat(int(g.unified.Fd()), &own) == nil && unix.Stat(g.unified.Name(), &now) == nil && own.Ino == now.Ino
}

// Unified is the directory to give to CLONE_INTO_CGROUP; nil without version 2. It belongs to the group.
func (g *Group) Unified() *os.File { return g.unified }

// OpenTasks opens the files of version 1 that a joining thread writes "0" to.
// The caller closes them.
func (g *Group) OpenTasks() (fds []int, err error) {
	for _, d := range g.dirs {
		if d.v2 {
			continue
		}
		fd, err := unix.Open(filepath.Join(d.path, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			for _, f := range fds {
				unix.Close(f)
			}
			return nil, fmt.Errorf("open %s/tasks: %w", d.path, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// A Dir is the group in one hierarchy. Name is what the hierarchy's mount point
// is called; it is "" where version 2 is all there is.
type Dir struct{ Name, Path string }

// Dirs are the group's directories, one per hierarchy.
func (g *Group) Dirs() []Dir {
	if len(g.dirs) == 1 && g.dirs[0].v2 {
		return []Dir{{"", g.dirs[0].path}}
	}
	var list []Dir
	for _, d := range g.dirs {
		list = append(list, Dir{filepath.Base(d.mount), d.path})
	}
	return list
}

// find returns the group's directory of a controller.
func (g *Group) find(controller string) (dir, bool) {
	for _, d := range g.dirs {
		if slices.Contains(d.controllers, controller) {
			return d, true
		}
	}
	return dir{}, false
}

// write writes a value to a file of a group, in one call.
func write(at, name, value string) error {
	f, err := os.OpenFile(filepath.Join(at, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err != nil {
		err = fmt.Errorf("write %q: %w", value, err)
	}
	return errors.Join(err, f.Close())
}

// Dir is the group's directory in the hierarchy of a controller, and whether that is version 2's.
func (g *Group) Dir(controller string) (at string, v2, ok bool) {
	d, ok := g.find(controller)
	return d.path, d.v2, ok
}
