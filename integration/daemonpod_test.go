package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/peers"
)

// buildImage builds packaging/container/Dockerfile from a stand-in for the Go
// image, whose make has snapd built already, and returns an archive.
func buildImage(t *testing.T, m *machine, hub *hub) string {
	t.Helper()
	static := t.TempDir() // as make has them; those of the other tests may need libraries
	build := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", static, "github.com/snapfs/snapfs/cmd/snapd", "github.com/snapfs/snapfs/cmd/snapctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	program := func(name string) file {
		b, err := os.ReadFile(filepath.Join(static, filepath.Base(name)))
		if err != nil {
			t.Fatal(err)
		}
		f := reg(name, b)
		f.Mode = 0o755
		return f
	}
	script := reg("bin/make", []byte("#!/bin/sh\nset -e\ntest \"$1\" = build\ntest -f Makefile\nmkdir bin\ncp /built/snapd /built/snapctl bin/\n"))
	script.Mode = 0o755
	ref := hub.put(t, "golang", newImage(t, gzipTar, append(tools(t), script,
		dir("built"), program("built/snapd"), program("built/snapctl"),
		dir("etc"), dir("etc/ssl"), dir("etc/ssl/certs"), reg("etc/ssl/certs/ca-certificates.crt", []byte("none\n")))))
	b := m.buildkit("b", true, hub.host())
	context := filepath.Join(b.home, "context")
	if err := errors.Join(os.Mkdir(context, 0o755), os.WriteFile(filepath.Join(context, "Makefile"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(b.home, "snapfs.tar")
	if _, err := b.buildctl("build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context="+context, "--local", "dockerfile=../packaging/container",
		"--opt", "build-arg:BUILD="+ref, "--output", "type=oci,name=localhost/snapfs:test,dest="+out); err != nil {
		t.Fatalf("%v\nbuildkitd said:\n%s", err, b.d.log.String())
	}
	b.prune()
	return out
}

// A daemonPod is snapd as a container, as docs/kubernetes has it.
type daemonPod struct {
	*machine
	node *ctrd // who runs it
	name string
}

func (p *daemonPod) start() {
	p.Helper()
	p.name = p.node.unique("snapd")
	args := []string{"run", "-d", "--privileged", "--net-host", "--rootfs-propagation", "rshared", "--with-ns", fmt.Sprintf("pid:/proc/%d/ns/pid", os.Getpid()), "--snapshotter", "overlayfs",
		"--cgroup", p.node.cgroup + "/" + p.name, "--log-uri", "file://" + filepath.Join(p.dir, "snapd.log")}
	for _, mount := range []string{p.dir + ":rshared", "/sys/fs/cgroup:rprivate", "/dev:rprivate"} {
		path, propagation, _ := strings.Cut(mount, ":")
		args = append(args, "--mount", fmt.Sprintf("type=bind,src=%s,dst=%s,options=rbind:%s:rw", path, path, propagation))
	}
	p.node.ctr(append(args, "localhost/snapfs:test", p.name, "/usr/local/bin/snapd",
		"--config", filepath.Join(p.dir, "snapd.toml"), "--root", p.root, "--run", p.run)...)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if s, err := p.status(); err == nil && s.Ready {
			return
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(filepath.Join(p.dir, "snapd.log"))
			p.Fatalf("snapd is not ready in its container; it said:\n%s\ncontainerd said:\n%s", said, p.node.said())
		}
	}
}

// end ends the container with a signal, and all processes of its cgroup with it.
func (p *daemonPod) end(signal string) {
	p.Helper()
	p.node.ctr("task", "kill", "--signal", signal, p.name)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if out := p.node.ctr("task", "ls"); !strings.Contains(out, "RUNNING") {
			break
		}
		if time.Now().After(deadline) {
			p.Fatal("snapd's container does not end")
		}
	}
	p.node.end(p.name)
}

// TestDaemonPod: snapd in the image that we ship, in a container with the mounts and
// namespaces of the DaemonSet, serves a containerd outside of it; when the
// container ends, those of that containerd wait, and go on with the next.
func TestDaemonPod(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	node := startServed(t, "")
	archive := buildImage(t, node, hub)
	m := newMachine(t, "")
	m.share()
	keeper := "/" + filepath.Base(m.dir) + "-keeper"
	t.Cleanup(func() { removeCgroup(t, keeper) }) // if it is there still
	if err := errors.Join(os.Mkdir(m.run, 0o700), os.WriteFile(filepath.Join(m.dir, "snapd.toml"), fmt.Appendf(nil,
		"keeper_cgroup = %q\npull.complete = false\n[network]\ndefault = 'none'\n[[containerd]]\naddress = %q\n", keeper, filepath.Join(m.dir, "c", "c.sock")), 0o600)); err != nil {
		t.Fatal(err)
	}
	p := &daemonPod{machine: m, node: node.containerd("o", kind{peer: peers.Containerd24, overlayfs: true})}
	p.node.ctr("images", "import", "--snapshotter", "overlayfs", archive)
	p.start()

	c := m.containerd("c", kind{peer: peers.Containerd24})
	im := newImage(t, eStargz, base(t), someFiles(1700, "data", 40))
	ref := hub.put(t, "pod", im)
	c.pull(ref)
	container := c.stays(ref)
	top, unmount := c.mountImage(ref)
	unmountOnce := sync.OnceFunc(unmount)
	t.Cleanup(unmountOnce)
	stop := im.load(t, top)
	t.Cleanup(func() { // before load's own: readers may wait for a daemon
		if _, err := m.status(); t.Failed() && err != nil {
			p.start()
		}
	})
	works := func(what string) {
		t.Helper()
		t.Logf("after %s", what)
		m.evict()
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // until containerd has connected again
			if _, err := c.command(t.Context(), "ctr", "snapshots", "--snapshotter", c.snapshotter, "ls"); err == nil || time.Now().After(deadline) {
				break
			}
		}
		im.checkSums(t, "data/", c.exec(container, "/inside", "sums", "/data"))
		im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
	}
	works("the first start")
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, signal := range []string{"SIGTERM", "SIGKILL"} {
		p.end(signal)
		if !alive(s.Keeper) {
			t.Fatalf("the keeper ended with the container, by %s", signal)
		}
		p.start()
		works(signal + " and another container")
	}
	r := stop()
	t.Logf("%d files read, %d failed, %d wrong", r.read.Load(), r.failed.Load(), r.wrong.Load())
	unmountOnce()
	c.end(container)
	c.empty()
	p.end("SIGTERM")
	if left, err := mounts.List(m.run); len(left) > 0 || err != nil {
		t.Errorf("left mounted: %+v, %v", left, err)
	}
	if alive(s.Keeper) {
		t.Error("the keeper lives, with nothing to keep")
	}
}
