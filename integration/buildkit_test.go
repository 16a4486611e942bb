package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/peers"
)

// A builder is a buildkitd of its own, on a machine.
type builder struct {
	*machine
	bin, home, cgroup string
	d                 *daemon
}

// buildkit starts a buildkitd whose snapshots are snapfs's, or overlayfs's.
func (m *machine) buildkit(name string, overlayfs bool, registry string) *builder {
	m.Helper()
	needProgram(m, "runc")
	b := &builder{machine: m, bin: needPeer(m, peers.BuildKit), home: filepath.Join(m.dir, name), cgroup: "/" + filepath.Base(m.dir) + "-" + name}
	file := filepath.Join(b.home, "config.toml")
	config := fmt.Sprintf(`
root = %q
[grpc]
  address = [%q]
[registry.%q]
  http = true
[worker.containerd]
  enabled = false
[worker.oci]
  enabled = true
  binary = "runc"
  networkMode = "host"
[cdi]
  disabled = true
  defaultCgroupParent = %q
`, b.home+"/root", b.address(), registry, b.cgroup)
	snapshotter := []string{"--oci-worker-snapshotter", "overlayfs"}
	if !overlayfs {
		snapshotter = []string{"--oci-worker-snapshotter", "snapfs", "--oci-worker-proxy-snapshotter-path", m.run + "/containerd.sock"}
	}
	if err := errors.Join(os.Mkdir(b.home, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
		m.Fatal(err)
	}
	b.d = &daemon{cmd: exec.Command(filepath.Join(b.bin, "buildkitd"), append([]string{"--config", file}, snapshotter...)...)}
	b.d.cmd.Stdout, b.d.cmd.Stderr = &b.d.log, &b.d.log
	b.d.cmd.WaitDelay = time.Second
	if err := b.d.cmd.Start(); err != nil {
		m.Fatal(err)
	}
	b.d.wait = sync.OnceValue(b.d.cmd.Wait)
	m.TB.Cleanup(b.cleanUp)
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, err := b.buildctl("debug", "workers")
		if err == nil {
			return b
		}
		if time.Now().After(deadline) {
			m.Fatalf("%v\nbuildkitd said:\n%s", err, b.d.log.String())
		}
	}
}

func (b *builder) address() string { return "unix://" + b.home + "/b.sock" }

func (b *builder) buildctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "buildctl"), append([]string{"--addr", b.address()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("buildctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// build builds a Dockerfile and returns the layers of the image.
func (b *builder) build(dockerfile string) []builtLayer {
	b.Helper()
	dir := filepath.Join(b.home, "context")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)); err != nil {
		b.Fatal(err)
	}
	out := filepath.Join(b.home, "image.tar")
	_, err := b.buildctl("build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir,
		"--opt", fmt.Sprintf("build-arg:SOURCE_DATE_EPOCH=%d", epoch.Unix()+1000), "--output", "type=oci,rewrite-timestamp=true,dest="+out)
	if err != nil {
		b.Fatalf("%v\nbuildkitd said:\n%s", err, b.d.log.String())
	}
	return readArchive(b, out)
}

// prune removes what builds have left.
func (b *builder) prune() {
	b.Helper()
	if _, err := b.buildctl("prune", "--all"); err != nil {
		b.Error(err)
	}
}

func (b *builder) cleanUp() {
	b.d.cmd.Process.Signal(unix.SIGTERM)
	if !b.ends(b.d, patience) {
		b.Errorf("buildkitd does not stop")
		b.d.cmd.Process.Kill()
	}
	if b.Failed() {
		b.Logf("buildkitd said:\n%s", b.d.log.String())
	}
	removeCgroup(b, b.cgroup)
}

// A builtLayer is one of an image that was built.
type builtLayer struct {
	diffID  digest.Digest
	entries []string // of its tar, as text
}

// readArchive reads an image from an OCI archive.
func readArchive(t testing.TB, file string) (list []builtLayer) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d digest.Digest) []byte { return files["blobs/sha256/"+d.Encoded()] }
	var index ocispec.Index
	unmarshal(t, files["index.json"], &index)
	var manifest ocispec.Manifest
	unmarshal(t, blob(index.Manifests[0].Digest), &manifest)
	for _, l := range manifest.Layers {
		list = append(list, readLayer(t, blob(l.Digest)))
	}
	return list
}

func readLayer(t testing.TB, gz []byte) (l builtLayer) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	l.diffID = digest.FromBytes(plain)
	r := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return l
		}
		if err != nil {
			t.Fatal(err)
		}
		d, err := digest.FromReader(r)
		if err != nil {
			t.Fatal(err)
		}
		l.entries = append(l.entries, fmt.Sprintf("%c %o %d:%d %s %s -> %q %v %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime, h.Name, h.Linkname, h.PAXRecords, d))
	}
}

// tools is the layer of a shell and what it calls.
func tools(t *testing.T) []file {
	t.Helper()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	exe := reg("bin/busybox", b)
	exe.Mode = 0o755
	files := []file{dir("bin"), exe}
	for _, name := range []string{"sh", "cat", "chmod", "chown", "cp", "ln", "ls", "mkdir", "mv", "rm", "touch", "test"} {
		files = append(files, typed("bin/"+name, tar.TypeSymlink, "busybox"))
	}
	return files
}

const dockerfile = `
FROM {ref} AS first
RUN --mount=type=cache,target=/cache mkdir /a && echo 1 > /a/x && ln /a/x /a/y && echo cached > /cache/f
RUN chmod 600 /keep/a
RUN chown 5:6 /suid
RUN ln /data/f001 /data/linked && mv /data/f002 /data/moved && echo more >> /data/f003
RUN rm -r /gone /opaque && mkdir /opaque && echo new > /opaque/z && rm /data/f004
RUN touch /data/f005

FROM {other} AS second
COPY --from=first /a /copied
COPY --from=first --chown=3:4 /keep /kept
RUN --mount=type=cache,target=/cache cat /cache/f > /fromcache

FROM first
COPY --from=second /copied /kept /fromcache /out/
RUN --mount=type=bind,from=second,source=/more,target=/mnt cp /mnt/f000 /out/bound
RUN chmod -R u+x /out && rm -r /data
`

// TestBuildKit: what BuildKit builds on snapfs is what it builds on overlayfs,
// layer by layer.
func TestBuildKit(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	list := append(changes(t), tools(t), someFiles(1900, "data", 20))
	for _, format := range []string{eStargz, gzipTar} {
		t.Run(format, func(t *testing.T) {
			m := m.on(t)
			text := strings.NewReplacer("{ref}", hub.put(t, "first-"+format, newImage(t, format, list...)),
				"{other}", hub.put(t, "other-"+format, newImage(t, format, base(t), tools(t), someFiles(1901, "more", 3)))).Replace(dockerfile)
			want := m.buildkit("bo"+format, true, hub.host()).build(text)
			ours := m.buildkit("bc"+format, false, hub.host())
			got := ours.build(text)
			if len(got) != len(want) {
				t.Fatalf("the image has %d layers, want %d", len(got), len(want))
			}
			for i := range want {
				if got[i].diffID == want[i].diffID {
					continue
				}
				t.Errorf("layer %d differs", i)
				for _, e := range want[i].entries {
					if !slices.Contains(got[i].entries, e) {
						t.Errorf("  missing: %s", e)
					}
				}
				for _, e := range got[i].entries {
					if !slices.Contains(want[i].entries, e) {
						t.Errorf("  should not be: %s", e)
					}
				}
			}
			ours.prune()
			m.nothingLeftSoon()
		})
	}
}
