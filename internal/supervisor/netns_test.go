package supervisor

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network/networktest"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestNetns: namespaces with names are new, with lo, outlive a worker, and go with their names.
func TestNetns(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	var path, again, other string
	if err := d.call("netns", &path, "a"); err != nil {
		t.Fatal(err)
	}
	if err := d.call("netns", &other, "b"); err != nil {
		t.Fatal(err)
	}
	first := inode(t, path)
	if home := inode(t, "/proc/self/ns/net"); first == home || inode(t, other) == first || inode(t, other) == home {
		t.Error("a namespace is not new")
	}
	if threads, _ := filepath.Glob("/proc/" + pidText(d.cmd.Process.Pid) + "/task/*/ns/net"); len(threads) == 0 {
		t.Error("the supervisor has no threads")
	} else {
		for _, n := range threads {
			if i := inode(t, n); i == first || i == inode(t, other) {
				t.Errorf("%s stays in a namespace that it has made", n)
			}
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	networktest.In(int(f.Fd()), func() {
		if links, err := net.Interfaces(); err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 || links[0].Flags&net.FlagLoopback == 0 {
			t.Errorf("links %+v, %v; want lo, and that it is up", links, err)
		}
	})
	if err := d.call("netns", &again, "a"); err != nil || again != path || inode(t, path) == first {
		t.Errorf("a second of that name: %s, %v; want another namespace", again, err)
	}
	b.kill9(d.worker(0))
	if err := d.call("no netns", nil, "a"); err != nil {
		t.Error(err)
	}
	if err := d.call("no netns", nil, "a"); err != nil {
		t.Errorf("for the second time: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("its name is there")
	}
	for _, name := range []string{"", "..", "a/b", "../images/x"} {
		if err := d.call("netns", nil, name); !isCode(err, control.CodeInvalid) {
			t.Errorf("name %q: %v, want invalid", name, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(b.run, "containers")); err != nil {
		t.Fatal(err)
	}
	d.shut()
	if all, err := mounts.List(netnsDir(b.run)); err != nil || len(all) > 0 {
		t.Errorf("left mounted: %v, %v", all, err)
	}
}

// TestProgramsAlone: programs with the same word run one after the other, also if
// the worker that wanted the first was killed, and end with the supervisor.
func TestProgramsAlone(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	file := filepath.Join(b.dir, "log")
	var out string
	if err := d.call("alone", &out, "x", "/bin/sh", "-c", "echo out; echo err >&2"); err != nil || out != "out\n/err\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := d.call("alone", nil, "x", "/bin/sh", "-c", "echo why >&2; exit 4"); err == nil || !strings.Contains(err.Error(), "exit status 4: why") {
		t.Errorf("what fails: %v", err)
	}
	if err := d.call("alone", &out, "x", "/bin/sh", "-c", "head -c 1000000 /dev/zero >&2; echo done"); err != nil || len(out) != 5+1+maxComplaint {
		t.Errorf("who complains without end: %d bytes, %v", len(out), err)
	}
	begin := func() int { // a program that hangs
		t.Helper()
		go d.call("alone", nil, "x", "/bin/sh", "-c", "echo $$ >"+file+".new; mv "+file+".new "+file+"; exec sleep 1000")
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if pid := readPid(file); pid > 0 {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				return pid
			}
			if time.Now().After(deadline) {
				t.Fatal("it was not started")
			}
		}
	}
	pid, worker := begin(), d.worker(0)
	if err := d.call("alone", &out, "y", "/bin/sh", "-c", "echo other"); err != nil {
		t.Errorf("with another word: %v", err)
	}
	b.kill9(worker)
	d.worker(worker)
	// It is dead by the time that this one runs; as a zombie it may still be there.
	if err := d.call("alone", &out, "x", "/bin/sh", "-c", "cat /proc/"+pidText(pid)+"/cmdline 2>/dev/null || true"); err != nil || strings.Contains(out, "sleep") {
		t.Errorf("beside one that was given up: %q, %v", out, err)
	}
	pid = begin()
	s, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Process.Kill()
	d.wait()
	if err := waitPid(t.Context(), pid, 10*time.Second); err != nil {
		t.Errorf("a program outlives the supervisor: %v", err)
	}
	b.kill9(s.Worker)
	b.start().shut()
}

func pidText(pid int) string { return strconv.Itoa(pid) }

// readPid reads one from a file; 0 if there is none.
func readPid(name string) int {
	b, _ := os.ReadFile(name)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}
