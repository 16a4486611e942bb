package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/peers"
)

// newConfigured makes a containerd that snapd itself has configured, and a
// daemon that knows its socket. Neither is started.
func newConfigured(t *testing.T, k kind, flags ...string) *ctrd {
	t.Helper()
	k.overlayfs = true // without what it is that is to be configured
	m := newMachine(t, "")
	m.config = fmt.Sprintf("[[containerd]]\naddress = %q\n", filepath.Join(m.dir, "c", "c.sock"))
	m.start() // whoever makes a containerd wants to see a socket
	c := m.newContainerd("c", k)
	c.snapshotter = "snapfs"
	file := filepath.Join(c.home, "config.toml")
	if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.configure(flags...)
	return c
}

// configure has snapd change the configuration.
func (c *ctrd) configure(flags ...string) {
	c.Helper()
	c.node(0, append([]string{"config", "--write"}, flags...)...)
	text, err := os.ReadFile(filepath.Join(c.home, "config.toml"))
	if err != nil {
		c.Fatal(err)
	}
	c.text = string(text)
}

// node is snapd containerd, about c.
func (c *ctrd) node(status int, args ...string) string {
	c.Helper()
	args = append([]string{"containerd"}, args...)
	args = append(args, "--config", filepath.Join(c.home, "config.toml"), "--containerd", filepath.Join(c.bin, "containerd"),
		"--snapd-config", filepath.Join(c.dir, "snapd.toml"), "--root", c.root, "--run", c.machine.run)
	cmd := exec.CommandContext(context.Background(), c.snapd, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != status {
		c.Fatalf("%v: %v, want status %d\n%s", args, err, status, out)
	}
	return string(out)
}

// eventually waits for what another process does in its own time.
func (c *ctrd) eventually(what string, ok func() bool) {
	c.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.Fatalf("not in %v: %s\nsnapd said:\n%s", patience, what, c.machine.d.log.String())
		}
	}
}

// has says whether containerd has an entry for each layer of im.
func (c *ctrd) has(im *image) bool {
	c.Helper()
	list := c.ctr("content", "ls", "-q")
	for _, l := range im.manifest.Layers {
		if !strings.Contains(list, l.Digest.String()) {
			return false
		}
	}
	return true
}

// kept are the files of the content store.
func (c *ctrd) kept() (files []string) {
	for _, pattern := range []string{"blobs/sha256/*", "promised/*", "ingest/*", "labels/*"} {
		found, err := filepath.Glob(filepath.Join(c.root, "content", "default", pattern))
		if err != nil {
			c.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

// TestContainerdContent: with snapd's content store, an image that was pulled
// lazily can be exported, pushed and unpacked for another snapshotter. Its layers
// have their entries without a byte of them, come when somebody reads, and go
// with the image. And what is configured passes its own check.
func TestContainerdContent(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	for _, p := range []peers.Peer{peers.Containerd24, peers.Containerd23, peers.Containerd22} {
		t.Run(p.Version, func(t *testing.T) {
			c := newConfigured(t, kind{peer: p}, "--content")
			c.start()
			im := newImage(t, zstdChunked, base(t), someFiles(1800+uint64(len(p.Version)), "data", 30))
			name := "content-" + p.Version
			ref := hub.put(t, name, im)
			c.node(0, "check", "--content")
			c.pull(ref)
			if out := c.run(ref, "/inside", "sums", "/data"); out == "" {
				t.Error("the container printed nothing")
			}
			c.eventually("entries for all layers", func() bool { return c.has(im) })
			for _, l := range im.manifest.Layers {
				if exists(filepath.Join(c.root, "content", "default", "blobs", "sha256", l.Digest.Encoded())) {
					t.Errorf("layer %s is in the content store, and nobody has read it", l.Digest)
				}
			}
			if out := c.node(0, "check", "--content"); !strings.Contains(out, "has the layers of all 1 images") || strings.Contains(out, "warn") {
				t.Errorf("check:\n%s", out)
			}

			file := filepath.Join(c.dir, "export.tar")
			c.ctr("images", "export", file, ref)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range im.manifest.Layers {
				if !bytes.Contains(b, im.blobs[l.Digest]) {
					t.Errorf("the archive lacks layer %s", l.Digest)
				}
			}
			c.ctr("images", "push", "--plain-http", hub.ref(name+"-pushed"), ref)
			for _, l := range im.manifest.Layers {
				if got := hub.blob(t, name+"-pushed", l.Digest); !bytes.Equal(got, im.blobs[l.Digest]) {
					t.Errorf("layer %s was pushed with other bytes", l.Digest)
				}
			}
			o := *c
			o.snapshotter = "overlayfs"
			o.pull(ref)
			target, unmount := o.mountImage(ref)
			im.check(t, target)
			unmount()
			c.empty()
			c.eventually("an empty content store", func() bool { return len(c.kept()) == 0 })
			c.machine.nothingLeftSoon()
		})
	}
}

// TestContainerdContentCrashes: entries that a worker owed when it died are made
// by the next; a registry that is gone is said to be unavailable and tried again
// when somebody asks; and images from before the content store was snapd's are
// made up for.
func TestContainerdContentCrashes(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	c := newConfigured(t, kind{peer: peers.Containerd24})
	// Each has a base of its own: an image of which a layer was there already stays
	// a minute (internal/images, linger), and the test would have to wait for that.
	newImage := func(seed uint64) *image {
		return newImage(t, eStargz, append(base(t), reg("id", noise(seed, 100))), someFiles(seed, "data", 30))
	}
	im := newImage(1900)
	ref := hub.put(t, "content-crash", im)
	c.start()
	c.pull(ref)
	if c.has(im) {
		t.Fatal("layers are in containerd's own content store")
	}
	if out := c.node(0, "check"); !strings.Contains(out, "lacks layers of 1 images") {
		t.Errorf("check without --content:\n%s", out)
	}
	if _, err := c.command(t.Context(), "ctr", "images", "export", "/dev/null", ref); err == nil {
		t.Error("an image without its layers was exported")
	}

	// In a content store that is empty there is yet what snapd knows. Of another
	// image not even the manifest is, and check says where that is.
	o := *c
	o.snapshotter = "overlayfs"
	theirs := hub.put(t, "content-theirs", newImage(1899))
	o.pull(theirs)
	c.configure("--content")
	if out := c.node(0, "check", "--content"); !strings.Contains(out, "the content store of the containerd that runs is not the configured one\n      → restart containerd") {
		t.Errorf("check before a restart:\n%s", out)
	}
	c.stop()
	c.start()
	if out := c.node(1, "check"); !strings.Contains(out, "lacks the manifests of 1 images ("+theirs) || !strings.Contains(out, filepath.Join(c.home, "root", "io.containerd.content.v1.content")) {
		t.Errorf("check with another content store:\n%s", out)
	}
	c.eventually("entries of what snapd knows, which saw that it is asked", func() bool { return c.has(im) })
	c.ctr("images", "export", "/dev/null", ref)

	// Its own content store is taken over, with all that is in it.
	c.stop()
	c.machine.stop()
	own := filepath.Join(c.home, "root", "io.containerd.content.v1.content")
	c.machine.config += fmt.Sprintf("content = %q\n", own)
	c.machine.start()
	c.start()
	c.eventually("entries of an image from before", func() bool { return c.has(im) })
	c.ctr("images", "export", "/dev/null", theirs)
	c.ctr("images", "rm", "--sync", theirs)

	// Nothing is lost by deaths in the middle of a pull.
	other := newImage(1901)
	otherRef := hub.put(t, "content-killed", other)
	c.pull(otherRef)
	s, err := c.machine.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	c.eventually("entries after the worker's death", func() bool { return c.has(other) })

	gone := func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) bool {
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	hub.misbehave("content-killed", gone)
	if out, err := c.command(t.Context(), "ctr", "images", "export", "/dev/null", otherRef); err == nil || !strings.Contains(err.Error(), "not local") {
		t.Errorf("export without the registry: %v, %s", err, out)
	}
	hub.misbehave("content-killed", nil)
	c.ctr("images", "export", "/dev/null", otherRef)
	c.ctr("images", "export", "/dev/null", ref)

	// Bytes that are not those of the layer never come out.
	lied := newImage(1902)
	liedRef := hub.put(t, "content-lies", lied)
	c.pull(liedRef)
	c.eventually("entries", func() bool { return c.has(lied) })
	layer := lied.manifest.Layers[1].Digest
	hub.misbehave("content-lies", spoil(layer))
	if out, err := c.command(t.Context(), "ctr", "content", "get", layer.String()); err == nil || len(out) > 0 {
		t.Errorf("of a layer with other bytes %d are given, %v", len(out), err)
	}
	hub.misbehave("content-lies", nil)
	if out := c.ctr("content", "get", layer.String()); digest.FromString(out) != layer {
		t.Error("later, the layer has other bytes")
	}
	c.empty()
	c.machine.nothingLeftSoon()
}

// TestContainerdCheckPause: a pause image that was pulled before CRI's snapshotter
// was ours keeps every pod from starting, and check says so.
func TestContainerdCheckPause(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	ref := hub.put(t, "pause", newImage(t, gzipTar, base(t)))
	for _, p := range []peers.Peer{peers.Containerd24, peers.Containerd22} {
		t.Run(p.Version, func(t *testing.T) {
			c := newConfigured(t, kind{peer: p, cri: true}, "--cri")
			c.text += fmt.Sprintf("[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = %q\n", ref)
			c.start()
			k := c.within("k8s.io")
			says := func(status int, want string) {
				t.Helper()
				if out := c.node(status, "check", "--cri"); !strings.Contains(out, want) {
					t.Errorf("check:\n%s\nwant %q", out, want)
				}
			}
			says(0, "is not pulled yet")
			k.snapshotter = "overlayfs"
			k.pull(ref)
			says(1, "was pulled for another snapshotter: no pod starts")
			k.ctr("images", "rm", "--sync", ref)
			k.snapshotter = "snapfs"
			k.pull(ref)
			says(0, "the pause image is unpacked on snapfs")
			k.empty()
			c.machine.nothingLeftSoon()
		})
	}
}

// spoil changes the last byte of a blob, however it is asked for.
func spoil(d digest.Digest) fault {
	return func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
		if !isBlob(r, d) || r.Method != http.MethodGet {
			return false
		}
		rec := good()
		b := rec.Body.Bytes()
		if len(b) > 0 {
			b[len(b)-1] ^= 1
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(b)
		return true
	}
}
