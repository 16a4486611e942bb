package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
)

// TestOrdinaryDirectories has containers on what kernels before 6.16 can show: images that were
// fetched and unpacked as a whole. Limits are the kernel's to keep, whatever it has.
func TestOrdinaryDirectories(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "backend = 'directories'")
	odd := reg("data/odd", []byte("set-uid\n"))
	odd.Mode, odd.Uid, odd.Gid = 0o4750, 1000, 1001
	odd.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	link := file{odd.Header, nil}
	link.Typeflag, link.Name, link.Linkname, link.Size = tar.TypeLink, "data/hard", "data/odd", 0
	soft := file{tar.Header{Typeflag: tar.TypeSymlink, Name: "data/soft", Linkname: "odd", ModTime: epoch}, nil}
	fifo := file{tar.Header{Typeflag: tar.TypeFifo, Name: "data/fifo", Mode: 0o622, ModTime: epoch}, nil}
	im := newImage(t, gzipTar, append([]file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("data"), inside(t), odd, link, soft, fifo}, someFiles(1300, "old", 3)...),
		append(someFiles(1301, "files", 40), reg("old/.wh..wh..opq", nil), reg("old/new", []byte("new\n"))))
	ref := hub.put(t, "directories", im)

	var info control.Info
	m.must(control.OpInfo, nil, &info)
	if info.Backend != "directories" {
		t.Errorf("the backend is %q", info.Backend)
	}
	im.checkSums(t, "files/", m.ok("run", "--rm", ref, "/inside", "sums", "/files"))
	if out := m.ok("run", "--rm", ref, "/inside", "sums", "/old"); strings.Count(out, "\n") != 1 || !strings.HasSuffix(out, " /old/new\n") {
		t.Errorf("an opaque directory holds\n%s", out)
	}
	for _, row := range []struct {
		args []string
		code int
	}{
		{[]string{ref, "/inside", "exit", "7"}, 7},
		{[]string{ref, "/nothing"}, 127},
		{[]string{ref, "/old"}, 126},
		{[]string{hub.ref("unknown"), "/inside"}, 125},
	} {
		if _, code := m.snapctl(append([]string{"run", "--rm"}, row.args...)...); code != row.code {
			t.Errorf("run %v: exit status %d, want %d", row.args, code, row.code)
		}
	}

	m.ok("run", "-d", "--name", "stays", "--memory", "128m", "--pids-limit", "50", ref, "/inside", "wait")
	hub.CloseClientConnections()
	hub.Close()
	s, err := m.status()
	must(t, err)
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	im.checkSums(t, "files/", m.ok("exec", "stays", "/inside", "sums", "/files"))
	m.stop()
	m.start()
	im.checkSums(t, "files/", m.ok("exec", "stays", "/inside", "sums", "/files"))
	if _, code := m.snapctl("rmi", ref); code != 1 {
		t.Errorf("rmi of an image in use: exit status %d, want 1", code)
	}

	target := filepath.Join(m.dir, "mnt")
	must(t, os.Mkdir(target, 0o755))
	m.ok("mount", ref, target)
	fi, err := os.Stat(filepath.Join(target, "data/odd"))
	must(t, err)
	hard, err := os.Stat(filepath.Join(target, "data/hard"))
	must(t, err)
	if want := fmt.Sprint(os.ModeSetuid | 0o750); fmt.Sprint(fi.Mode()) != want || !os.SameFile(fi, hard) || !fi.ModTime().Equal(epoch) || owner(fi) != "1000:1001" {
		t.Errorf("a set-uid file is %v, of %v, %v; want mode %v, two names and %v", fi.Mode(), owner(fi), fi.ModTime(), want, epoch)
	}
	if got, err := os.Readlink(filepath.Join(target, "data/soft")); err != nil || got != "odd" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); err == nil {
		t.Error("the image can be written to")
	}
	m.ok("umount", target)

	m.ok("rm", "-f", "stays")
	m.ok("rmi", ref)
	left, err := os.ReadDir(filepath.Join(m.root, "directories"))
	if err != nil || len(left) != 1 || left[0].Name() != "none" {
		t.Errorf("directories are left: %v, %v", left, err)
	}
	m.nothingLeft()
}

func owner(fi os.FileInfo) string {
	st := fi.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestContainerLimits: those that the kernel can keep bite, and it is told.
func TestContainerLimits(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), startMachine(t, "")
	ref := netImage(t, hub, "limits")
	m.ok("run", "-d", "--name", "eats", "--memory", "64m", "--memory-swap", "64m", ref, "/inside", "eat", "300")
	if out := m.ok("wait", "eats"); out != "137\n" {
		t.Errorf("a container that wants more memory than it may ended with %q, want 137", out)
	}
	if out := m.ok("inspect", "eats"); !strings.Contains(strings.ReplaceAll(out, " ", ""), `"OOMKilled":true`) {
		t.Errorf("inspect does not tell that it was killed for its memory: %s", out)
	}
	m.ok("rm", "eats")
	if out := m.ok("run", "--rm", "--pids-limit", "20", ref, "/inside", "forks", "100"); strings.TrimSpace(out) == "100" {
		t.Errorf("a container of 20 processes started %s", out)
	}
	m.ok("rmi", ref)
	m.nothingLeft()
}
