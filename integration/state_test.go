package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// refuses wants the daemon d to end by itself with status 1 and one line that
// says all of says, besides its log.
func (m *machine) refuses(d *daemon, says ...string) {
	m.Helper()
	if !m.ends(d, patience) {
		d.cmd.Process.Kill()
		m.Fatalf("the daemon goes on; it said:\n%s", d.log.String())
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 1 {
		m.Errorf("exit status %d, want 1", code)
	}
	var lines []string
	for line := range strings.Lines(d.log.String()) {
		if strings.HasPrefix(line, "snapd: ") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		m.Fatalf("the daemon said %q, want one line; all:\n%s", lines, d.log.String())
	}
	m.Logf("%s", lines[0])
	for _, s := range says {
		if !strings.Contains(lines[0], s) {
			m.Errorf("the daemon said %q, want %q in it", lines[0], s)
		}
	}
}

func TestTwoDaemonsOfOneRoot(t *testing.T) {
	t.Parallel()
	m := startMachine(t, "")
	m.refuses(m.launch(), "another daemon", m.root, fmt.Sprint(m.d.cmd.Process.Pid))
	m.refuses(m.launch("--run", filepath.Join(m.dir, "r2")), "another daemon", m.root)
	m.images()
}

func TestNewerState(t *testing.T) {
	t.Parallel()
	m := startMachine(t, "")
	m.stop()
	setMeta(t, m, "format", 99)
	m.refuses(m.launch(), "newer version", m.root, "99")
	setMeta(t, m, "format", 1)
	version := filepath.Join(m.root, "version")
	if err := os.WriteFile(version, []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.refuses(m.launch(), "newer version", version, "99")
	if err := os.WriteFile(version, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.images()
}

func TestBrokenDatabase(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	if err := os.Mkdir(m.root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.root, "snapfs.db"), noise(1, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	m.refuses(m.launch(), filepath.Join(m.root, "snapfs.db"))
}

// setMeta changes the database of a daemon that is not running. v is JSON when printed.
func setMeta(t *testing.T, m *machine, key string, v any) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(m.root, "snapfs.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte(key), marshal(t, v)) }); err != nil {
		t.Fatal(err)
	}
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	for dir := filepath.Dir(m.snapd); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, err := m.anybody()
	if err == nil || !strings.Contains(out, "root") || strings.Count(out, "\n") != 1 {
		t.Errorf("as nobody: %v, said %q, want one line about root", err, out)
	}
}

// anybody runs the daemon as a user without rights.
func (m *machine) anybody() (string, error) {
	c := exec.Command(m.snapd, "--root", m.root, "--run", m.run)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	return string(out), err
}

// TestNoFuse hides /dev/fuse from the daemon.
func TestNoFuse(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	d := &daemon{}
	d.cmd = exec.Command("/bin/sh", "-c", `mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"`, "sh",
		m.snapd, "--root", m.root, "--run", m.run)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.wait = d.cmd.Wait
	m.refuses(d, "/dev/fuse")
}

// TestDiskFull pulls more than the disk of the root has room for.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	smallDisk(t, m)
	m.start()
	hub := newHub(t)
	big := newImage(t, gzipTar, someBig(300))
	ref := hub.put(t, "big", big)
	checkError(t, m.call(control.OpPull, control.PullArgs{Ref: ref}, nil), control.CodeInternal, "big", "no space left on device")
	m.nothingLeft()

	lazily := newImage(t, eStargz, someBig(301))
	ref = hub.put(t, "lazily", lazily)
	top := m.mount(ref, false)
	lazily.check(t, top) // what has no room is read all the same
	err := m.call(control.OpPull, control.PullArgs{Ref: ref, Wait: true}, nil)
	checkError(t, err, control.CodeInternal, "lazily", "no space left on device")
	m.unmount(top)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
	m.nothingLeft()

	good := newImage(t, gzipTar, someFiles(302, "good", 10))
	top = m.mount(hub.put(t, "good", good), false)
	good.check(t, top)
}

// someBig returns 42 MB of files.
func someBig(seed uint64) (files []file) {
	for i := range 10 {
		files = append(files, reg(fmt.Sprintf("big%d", i), noise(seed<<16+uint64(i), 4<<20)))
	}
	return files
}

// smallDisk makes the root of m a file system of 32 MiB.
func smallDisk(t *testing.T, m *machine) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	img := filepath.Join(m.dir, "disk")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 32<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.root, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*exec.Cmd{exec.Command("mkfs.ext4", "-q", "-m", "0", img), exec.Command("mount", "-o", "loop", img, m.root)} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	m.disk = true
}
