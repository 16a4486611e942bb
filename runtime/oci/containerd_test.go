package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/peers"
)

// daemon is a containerd of the test's own, whose tasks run on snaprun.
type daemon struct {
	t    testing.TB
	dir  string // of its programs
	work string
}

const containerdConfig = `version = 3
root = "{work}/root"
state = "{work}/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{work}/c.sock"
[ttrpc]
  address = "{work}/c.sock.ttrpc"
`

func startContainerd(t *testing.T, p peers.Peer) *daemon {
	t.Helper()
	cache, err := peers.Cache()
	must(t, err)
	d := &daemon{t: t}
	if d.dir, err = p.Find(t.Context(), cache, t.Output()); err != nil {
		t.Skipf("needs %s: %v", p, err)
	}
	d.work, err = os.MkdirTemp("/var/tmp", "so") // short, for sockets
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(d.work) })
	conf := filepath.Join(d.work, "config.toml")
	must(t, os.WriteFile(conf, []byte(strings.ReplaceAll(containerdConfig, "{work}", d.work)), 0o600))
	log, err := os.Create(filepath.Join(d.work, "log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(filepath.Join(d.dir, "containerd"), "-c", conf)
	cmd.Env = append(os.Environ(), "PATH="+d.dir+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := d.ctr("version")
		if err == nil {
			return d
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("containerd does not answer: %v: %s\n%s", err, out, text)
		}
	}
}

func (d *daemon) ctr(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(d.dir, "ctr"), append([]string{"-a", d.work + "/c.sock", "-n", "oci-test"}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

func (d *daemon) ok(args ...string) string {
	d.t.Helper()
	out, err := d.ctr(args...)
	if err != nil {
		d.t.Fatalf("ctr %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// TestContainerd: containerd's shim with snaprun as its BinaryName.
func TestContainerd(t *testing.T) {
	for _, p := range []peers.Peer{peers.Containerd24, peers.Containerd22} {
		t.Run(p.Version, func(t *testing.T) { testContainerd(t, p) })
	}
}

func testContainerd(t *testing.T, p peers.Peer) {
	b := newBench(t)
	d := startContainerd(t, p)
	rootfs := filepath.Join(b.bundle, "rootfs")
	// The rootfs is a directory that the shim bind-mounts nowhere: root.path is it.
	flags := []string{"--runc-root", filepath.Join(d.work, "runc"), "--runc-binary", b.bin, "--rootfs"}
	id := b.id
	out, err := d.ctr(append(append([]string{"run", "--rm"}, flags...), rootfs, id, "/inside", "echo", "from inside", ";", "pid", ";", "exit", "5")...)
	var e *exec.ExitError
	if !errors.As(err, &e) || e.ExitCode() != 5 || !strings.HasPrefix(out, "from inside\n1 0\n") {
		t.Errorf("run: %q, %v, want status 5", out, err)
	}
	d.ok(append(append([]string{"run", "-d"}, flags...), rootfs, id, "/inside", "sleep")...)
	if out := d.ok("task", "ls"); !strings.Contains(out, "RUNNING") {
		t.Errorf("task ls: %s", out)
	}
	out, err = d.ctr("task", "exec", "--exec-id", "a", id, "/inside", "echo", "exec", ";", "exit", "6")
	if !errors.As(err, &e) || e.ExitCode() != 6 || out != "exec\n" {
		t.Errorf("exec: %q, %v, want status 6", out, err)
	}
	if _, err := d.ctr("task", "exec", "--exec-id", "b", id, "/nothing"); err == nil || !strings.Contains(err.Error(), "exec /nothing: not found") {
		t.Errorf("exec of nothing: %v, want our words", err)
	}
	d.ok("task", "pause", id)
	if out := d.ok("task", "ls"); !strings.Contains(out, "PAUSED") {
		t.Errorf("task ls: %s", out)
	}
	d.ok("task", "resume", id)
	d.ok("task", "metrics", id)
	if out := d.ok("task", "ps", id); strings.Count(out, "\n") != 2 {
		t.Errorf("task ps: %s", out)
	}
	d.ok("task", "kill", "--signal", "KILL", id)
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err = d.ctr("task", "rm", id); err == nil || strings.Contains(err.Error(), "exit status 137") || time.Now().After(end) {
			break
		}
	}
	if out := d.ok("task", "ls"); strings.Contains(out, id) {
		t.Errorf("task ls after rm: %s, %v", out, err)
	}
	d.ok("container", "rm", id)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/oci-test/" + id); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(d.work, "runc/oci-test/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, dir := range []string{"/sys/fs/cgroup/*/oci-test"} {
		list, _ := filepath.Glob(dir)
		for _, at := range list {
			_ = os.Remove(at)
		}
	}
}
