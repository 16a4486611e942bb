package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// connected returns both ends of a slot's socket.
func connected(t *testing.T) (worker, slot *control.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*control.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = control.NewConn(c.(*net.UnixConn))
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// likeOne is what a worker sends ahead: a container of no image.
func likeOne(t *testing.T) *Config {
	t.Helper()
	c := new(Config)
	if os.Geteuid() == 0 {
		realConfig(t, c, "none")
	} else {
		c.ID, c.Spec = "like", &specs.Spec{Process: &specs.Process{Args: []string{"/none"}, Cwd: "/"}, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}}
	}
	c.Socket = "/none"
	c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	c.Spec.Linux.CgroupsPath = fmt.Sprintf("/snapfs-monitor-test/pool-%d", os.Getpid())
	return c
}

// aSlot is the whole life of a slot in this process; result tells how it ended.
func aSlot(t *testing.T) (s *Slot, result chan error) {
	t.Helper()
	worker, conn := connected(t)
	result = make(chan error, 1)
	go func() { // ends with conn
		a, err := Await(conn)
		if err == nil {
			err = Run(t.Context(), a.Dir, a.Options)
		}
		result <- err
	}()
	t.Cleanup(func() { removeGroups(t) })
	s = NewSlot(worker, os.Getpid(), likeOne(t))
	t.Cleanup(func() { s.Close() })
	if err := s.Wait(t.Context()); err != nil {
		t.Fatalf("Wait: %v", err)
	}
	return s, result
}

func removeGroups(t *testing.T) {
	for _, at := range []string{"/sys/fs/cgroup/*/snapfs-monitor-test", "/sys/fs/cgroup/snapfs-monitor-test"} {
		list, _ := filepath.Glob(at)
		for _, dir := range list {
			if err := os.Remove(dir); err != nil {
				t.Errorf("a cgroup is left: %v", err)
			}
		}
	}
}

// TestSlot: it becomes the monitor of the container that it is given, and starts it in its sandbox.
func TestSlot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	s, result := aSlot(t)
	if has, why := s.Sandbox(); !has || !s.Alive() {
		t.Fatalf("there is no sandbox: %s", why)
	}
	var cgroup string
	h := prepare(t, nil, func(c *Config) {
		realConfig(t, c, "cat")
		c.OpenStdin = true
		c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		c.Spec.Linux.CgroupsPath, cgroup = s.Cgroup, s.Cgroup
	})
	if err := s.Give(t.Context(), h.dir, filepath.Join(h.dir, "log"), nil, h.cfg); err != nil {
		t.Fatalf("Give: %v", err)
	}
	if err := s.Give(t.Context(), h.dir, filepath.Join(h.dir, "log"), nil, nil); err == nil {
		t.Error("it takes a second container")
	}
	s.Close() // it needs nobody any more
	streams := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true, CloseStdin: true}, streams)
	go func() { io.WriteString(streams.in, "through a slot\n"); streams.in.Close() }()
	exit, err := c.Wait(t.Context(), nil)
	if got := readAll(t, streams.out); err != nil || exit.Code != 0 || got != "through a slot\n" {
		t.Errorf("Wait = %+v, %v; output %q", exit, err, got)
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	if list, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroup); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// TestSlotMisfit: a container that the sandbox does not fit is started all the same, and the sandbox goes.
func TestSlotMisfit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	s, result := aSlot(t)
	h := prepare(t, nil, func(c *Config) { realConfig(t, c, "echo", "misfit") })
	if err := s.Give(t.Context(), h.dir, filepath.Join(h.dir, "log"), nil, nil); err != nil {
		t.Fatalf("Give: %v", err)
	}
	streams := newStreams(t, false)
	if exit, err := h.attach(AttachArgs{Start: true}, streams).Wait(t.Context(), nil); err != nil || exit.Code != 0 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestSlotUnused: it ends when nobody wants it any more, and leaves nothing.
func TestSlotUnused(t *testing.T) {
	s, result := aSlot(t)
	s.Close()
	if err := <-result; !errors.Is(err, io.EOF) {
		t.Errorf("Await = %v, want io.EOF", err)
	}
	<-s.Ended()
	if s.Alive() {
		t.Error("it is alive")
	}
	h := prepare(t, sh("true"), nil)
	if err := s.Give(t.Context(), h.dir, filepath.Join(h.dir, "log"), nil, nil); !errors.Is(err, ErrSlot) && !errors.Is(err, net.ErrClosed) {
		t.Errorf("Give = %v, want ErrSlot", err)
	}
}

// TestSlotDies: a slot that ends before it serves says so, whenever that is.
func TestSlotDies(t *testing.T) {
	for name, peer := range map[string]func(*control.Conn){
		"before it is warm": func(c *control.Conn) {},
		"at once after":     func(c *control.Conn) { c.Recv(nil); c.Send(answer{}) },
		"when it is given":  func(c *control.Conn) { c.Recv(nil); c.Send(answer{}); c.Recv(nil) },
		"with a reason":     func(c *control.Conn) { c.Recv(nil); c.Send(answer{}); c.Recv(nil); c.Send(answer{Error: "no reason"}) },
		"not warm":          func(c *control.Conn) { c.Recv(nil); c.Send(answer{Error: "it is cold"}) },
	} {
		t.Run(name, func(t *testing.T) {
			worker, conn := connected(t)
			go func() { peer(conn); conn.Close() }() // ends with conn
			s := NewSlot(worker, 0, &Config{Spec: &specs.Spec{Linux: &specs.Linux{}}})
			defer s.Close()
			err := s.Wait(t.Context())
			if err == nil {
				err = s.Give(t.Context(), "/dir", "/log", nil, nil)
			}
			if !errors.Is(err, ErrSlot) {
				t.Errorf("err = %v, want ErrSlot", err)
			}
			<-s.Ended()
		})
	}
}

// TestOrders: what makes no sense is refused, and descriptors are not kept.
func TestOrders(t *testing.T) {
	for _, x := range []order{
		{}, {Dir: "/a"}, {Dir: "a", Log: "/b"}, {Dir: "/a/../b", Log: "/b"}, {Dir: "/a", Log: "b"},
		{Dir: "/a", Log: "/b", Kinds: []string{"network"}},
	} {
		if a, err := (&told{order: x}).assignment(nil); err == nil {
			t.Errorf("%+v: %+v", x, a)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	o := told{order: order{Dir: "/a", Log: "/b", Kinds: []string{"network"}}}
	a, err := o.assignment([]*os.File{null})
	if err != nil || len(a.Options.Join) != 1 || a.Options.Join[0].Kind != "network" {
		t.Errorf("%+v, %v", a, err)
	}
}

// readBack is an order as a slot gets it.
func readBack(t *testing.T, o *order) *told {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	r := new(told)
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestLikewise: a profile that both have need not be told twice, and is the same afterwards.
func TestLikewise(t *testing.T) {
	profile := func(name string) *Config {
		return &Config{ID: "x", Socket: "/s", Spec: &specs.Spec{
			Process: &specs.Process{Args: []string{"/x"}},
			Linux:   &specs.Linux{Seccomp: &specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{Names: []string{name}}}}},
		}}
	}
	like := profile("read")
	b := &bundled{like: like}
	for name, want := range map[string]bool{"read": true, "write": false} {
		c := profile(name)
		var o order
		o.Config, o.Likewise = without(c, like)
		if o.Likewise != want || (o.Config.Spec.Linux.Seccomp == nil) != want || c.Spec.Linux.Seccomp == nil {
			t.Errorf("%s: %+v, %v", name, o.Config.Spec.Linux, o.Likewise)
		}
		got, err := b.configOf(readBack(t, &o))
		if err != nil || got.Spec.Linux.Seccomp.Syscalls[0].Names[0] != name {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if (got.Spec.Linux.Seccomp == like.Spec.Linux.Seccomp) != want {
			t.Errorf("%s: another profile", name)
		}
	}
	o := order{Likewise: true, Config: profile("read")}
	if c, err := new(bundled).configOf(readBack(t, &o)); err == nil {
		t.Errorf("like nothing: %+v", c)
	}
	if c, err := b.configOf(readBack(t, &order{Config: new(Config)})); err == nil {
		t.Errorf("empty: %+v", c)
	}
}

// FuzzOrder: whatever a slot is told, it is an assignment of clean paths, or an error.
func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"Dir":"/a","Log":"/b"}`))
	f.Add([]byte(`{"Dir":"/a","Log":"/b","Kinds":["network"]}`))
	f.Add([]byte(`{"Like":{"ID":"x","Socket":"/s","Spec":{"process":{"args":["/x"],"cwd":"/"}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o told
		if json.Unmarshal(b, &o) != nil {
			return
		}
		if o.Like != nil {
			like := new(Config)
			if decodeFields(o.Like, like) != nil {
				return
			}
			like.SeccompCache = ""
			_, _ = likely(like)
		}
		if c, err := new(bundled).configOf(&o); err == nil && c != nil && (c.Spec == nil || c.Spec.Process == nil) {
			t.Errorf("%s: %+v", b, c)
		}
		a, err := o.assignment(nil)
		if err == nil && (!filepath.IsAbs(a.Dir) || strings.Contains(a.Dir, "/../") || len(a.Options.Join) > 0) {
			t.Errorf("%s: %+v", b, a)
		}
	})
}
