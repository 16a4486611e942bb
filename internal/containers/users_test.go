package containers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	fsmounts "github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/userns"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// noUsers is a UserNamespaces that nobody asks.
type noUsers struct{}

func (noUsers) UserNamespace(context.Context, fsmounts.IDMap, bool) (*os.File, *os.File, error) {
	return nil, nil, os.ErrInvalid
}

// book is a Service of a pool with room for containers of 10 users.
func book(t *testing.T, root string, room int) *Service {
	t.Helper()
	s, err := Open(t.Context(), Options{
		Root: root, Run: filepath.Join(root, "run"), CgroupParent: "/snapfs-users-test",
		IDs: UserOptions{Make: noUsers{}, Range: 10, Pool: userns.Pool{IDRange: control.IDRange{UID: 100_000, GID: 200_000, Size: uint32(10 * room)}, From: "the test"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func containerID(n int) string { return strings.Repeat(fmt.Sprintf("%08x", n), 8) }

// enter makes a container known as Create does, up to the monitor.
func enter(t *testing.T, s *Service, id string, remove bool, state string) *monitor.Config {
	t.Helper()
	a := &control.CreateArgs{ID: id, Name: "n" + id[:8]}
	if c, err := s.reserve(a); err != nil || c != nil {
		t.Fatal(c, err)
	}
	defer s.unreserve(a)
	a.UserNS = "auto"
	m, ids, err := s.users(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	c := &monitor.Config{
		ID: id, Name: a.Name, Remove: remove, IDs: ids, Socket: s.socket(id), Created: time.Now(),
		Spec: &specs.Spec{Process: &specs.Process{Args: []string{"x"}}, Linux: &specs.Linux{CgroupsPath: "/snapfs-users-test/" + id}},
	}
	mapUsers(c.Spec, a, *m)
	if err := os.MkdirAll(s.dir(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if state != "" {
		if err := os.WriteFile(filepath.Join(s.dir(id), monitor.StateFile), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Save(s.dir(id)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.known[id] = c
	s.mu.Unlock()
	return c
}

func uniqueRanges(t *testing.T, list []*monitor.Config) {
	t.Helper()
	for i, a := range list {
		for _, b := range list[:i] {
			if a.IDs.UID < b.IDs.UID+b.IDs.Size && b.IDs.UID < a.IDs.UID+a.IDs.Size {
				t.Errorf("%v and %v overlap", *a.IDs, *b.IDs)
			}
		}
	}
}

// TestRanges: each container has its own, keeps it over deaths of the daemon, and gives it back when it is removed.
func TestRanges(t *testing.T) {
	root := t.TempDir()
	s := book(t, root, 4)
	var all []*monitor.Config
	for i := range 4 {
		all = append(all, enter(t, s, containerID(i+1), false, `{"Status":"exited"}`))
	}
	uniqueRanges(t, all)
	full := func(s *Service, when string) {
		t.Helper()
		_, _, err := s.users(t.Context(), &control.CreateArgs{ID: containerID(9), HostOptions: control.HostOptions{UserNS: "auto"}})
		if err == nil || !strings.Contains(err.Error(), "userns.size") {
			t.Errorf("%s: %v, want an error that names the setting", when, err)
		}
	}
	full(s, "full")
	// A daemon dies, with a container half made: its directory is there, its record is not.
	if err := os.MkdirAll(s.dir(containerID(7)), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = book(t, root, 4)
	full(s, "full, to the next daemon")
	if row, _ := s.row(all[1].ID); row.IDs == nil || *row.IDs != *all[1].IDs {
		t.Errorf("the next daemon's row has %v, want %v", row.IDs, all[1].IDs)
	}
	if _, err := s.Remove(t.Context(), all[1].ID, false); err != nil {
		t.Fatal(err)
	}
	fifth := enter(t, s, containerID(5), false, `{"Status":"exited"}`)
	if *fifth.IDs != *all[1].IDs {
		t.Errorf("the range is %v, want that of the one that was removed, %v", *fifth.IDs, *all[1].IDs)
	}
	full(s, "full again")
	// One removes itself while nobody looks.
	if err := os.RemoveAll(s.dir(all[2].ID)); err != nil {
		t.Fatal(err)
	}
	if sixth := enter(t, s, containerID(6), false, ""); *sixth.IDs != *all[2].IDs {
		t.Errorf("the range is %v, want %v", *sixth.IDs, *all[2].IDs)
	}
}

// TestRangeAfterFailure: what came to nothing keeps nothing.
func TestRangeAfterFailure(t *testing.T) {
	s := book(t, t.TempDir(), 1)
	for i := range 3 {
		a := &control.CreateArgs{ID: containerID(i + 1), HostOptions: control.HostOptions{UserNS: "auto"}}
		if _, err := s.reserve(a); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.users(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		s.unreserve(a)
	}
}

// TestRangeOfWhatIsLeft: as long as a removed container's cgroup is there, so may be its processes.
func TestRangeOfWhatIsLeft(t *testing.T) {
	r := ranges{of: map[string]control.IDRange{}, going: map[string]going{}}
	c := &monitor.Config{ID: "x", IDs: &control.IDRange{UID: 1, GID: 2, Size: 3}, Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: "/a/x"}}}
	r.enter(c)
	there := true
	exists := func(path string) bool { return path == "/a/x" && there }
	if got := r.use(exists); len(got) != 1 {
		t.Errorf("in use: %v", got)
	}
	r.leave(c)
	if got := r.use(exists); len(got) != 1 || got[0] != *c.IDs {
		t.Errorf("in use, while the cgroup is there: %v", got)
	}
	there = false
	if got := r.use(exists); len(got) != 0 || len(r.going) != 0 {
		t.Errorf("in use, without a cgroup: %v", got)
	}
	if cgroupExists("/snapfs-users-test/none") {
		t.Error("a cgroup exists that was never made")
	}
}

func TestRangesAtOnce(t *testing.T) {
	s := book(t, t.TempDir(), 50)
	var mu sync.Mutex
	var all []*monitor.Config
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			c := enter(t, s, containerID(i+1), false, "")
			mu.Lock()
			defer mu.Unlock()
			all = append(all, c)
		})
	}
	group.Wait()
	uniqueRanges(t, all)
}

func TestUsersThatCannotBe(t *testing.T) {
	s := book(t, t.TempDir(), 4)
	for want, change := range map[string]func(*control.CreateArgs){
		"--privileged":                    func(a *control.CreateArgs) { a.Privileged = true },
		"--pid host":                      func(a *control.CreateArgs) { a.PID = "host" },
		"--pid container:x":               func(a *control.CreateArgs) { a.PID = "container:x" },
		"--ipc host":                      func(a *control.CreateArgs) { a.IPC = "host" },
		"--ipc container:x":               func(a *control.CreateArgs) { a.IPC = "container:x" },
		"--network container:x":           func(a *control.CreateArgs) { a.Network = "container:x" },
		`unknown option "colour"`:         func(a *control.CreateArgs) { a.UserNS = "auto:colour=red" },
		"other containers have":           func(a *control.CreateArgs) { a.UserNS = "auto:uidmapping=5:100000:1" },
		"gidmapping=5:200039:1":           func(a *control.CreateArgs) { a.UserNS = "auto:gidmapping=5:200039:1" },
		"all containers together have 40": func(a *control.CreateArgs) { a.UserNS = "auto:size=41" },
		"add --userns auto": func(a *control.CreateArgs) {
			a.UserNS, a.Mounts = "host", []control.MountSpec{{Type: "bind", Options: []string{"idmap"}}}
		},
		"no such container":                        func(a *control.CreateArgs) { a.UserNS = "container:nobody" },
		"--network container:nobody, none or host": func(a *control.CreateArgs) { a.UserNS, a.Network = "container:nobody", "bridge" },
		"want host, auto or container:NAME":        func(a *control.CreateArgs) { a.UserNS = "keep-id" },
		"overlap":                                  func(a *control.CreateArgs) { a.UserNS = "auto:uidmapping=1:7:3,uidmapping=2:70:1" },
	} {
		a := &control.CreateArgs{ID: containerID(1), Network: "none", HostOptions: control.HostOptions{UserNS: "auto"}}
		change(a)
		_, _, err := s.users(t.Context(), a)
		s.unreserve(a)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	s.IDs.Default = "auto"
	if _, _, err := s.users(t.Context(), &control.CreateArgs{HostOptions: control.HostOptions{Privileged: true}}); err == nil || !strings.Contains(err.Error(), "userns.default = auto") {
		t.Errorf("by default: %v", err)
	}
}

func TestMapUsers(t *testing.T) {
	s, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := userns.Parse("auto:gidmapping=5:70:1")
	if err != nil {
		t.Fatal(err)
	}
	m, err := q.Map(control.IDRange{UID: 100_000, GID: 200_000, Size: 10})
	if err != nil {
		t.Fatal(err)
	}
	mapUsers(s, &control.CreateArgs{Network: control.NetworkHost}, m)
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		t.Error("it has no user namespace")
	}
	if got := s.Linux.Sysctl[pingGroups]; got != "0 4" {
		t.Errorf("%s is %q", pingGroups, got)
	}
	if got := mapOf(&monitor.Config{Spec: s, IDs: &control.IDRange{}}); got == nil || got.String() != m.String() {
		t.Errorf("the spec's mappings are %v, want %v", got, m)
	}
	if mapOf(&monitor.Config{Spec: s}) != nil {
		t.Error("a container without users of its own has mappings")
	}
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys" })
	if sys := s.Mounts[i]; sys.Type != "bind" || !slices.Contains(sys.Options, "ro") || slices.Contains(sys.Options, "rbind") {
		t.Errorf("/sys on the host's network: %+v", sys)
	}
}

// TestSharedUsers: the users of another container stay taken until both are gone.
func TestSharedUsers(t *testing.T) {
	root := t.TempDir()
	s := book(t, root, 1)
	first := enter(t, s, containerID(1), false, `{"Status":"exited"}`)
	a := &control.CreateArgs{ID: containerID(2), Network: "container:" + first.Name, HostOptions: control.HostOptions{UserNS: "container:" + first.Name, PID: "container:" + first.ID}}
	m, ids, err := s.users(t.Context(), a)
	if err != nil || *ids != *first.IDs || m.String() != mapOf(first).String() {
		t.Fatalf("%v, %v, %v, want those of the first, %v", m, ids, err, *first.IDs)
	}
	s.mu.Lock()
	s.names[first.Name] = containerID(9) // it is another's by now
	s.mu.Unlock()
	joins, err := s.joins(a)
	if err != nil || joins["user"] != first.ID || joins["pid"] != first.ID {
		t.Errorf("it joins %v, %v", joins, err)
	}
	if _, err := s.Remove(t.Context(), first.ID, false); err != nil {
		t.Fatal(err)
	}
	third := &control.CreateArgs{ID: containerID(3), HostOptions: control.HostOptions{UserNS: "auto"}}
	if _, _, err := s.users(t.Context(), third); err == nil {
		t.Error("the users of one that is still there were given to another")
	}
	s.unreserve(a)
	if _, _, err := s.users(t.Context(), third); err != nil {
		t.Error(err)
	}
}
