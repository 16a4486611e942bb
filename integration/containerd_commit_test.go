package integration

import (
	"compress/gzip"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/peers"
)

// diffID is of the layer that containerd makes of a container's changes.
func (c *ctrd) diffID(container string) digest.Digest {
	c.Helper()
	out := c.ctr("snapshots", "--snapshotter", c.snapshotter, "diff", container)
	r, err := gzip.NewReader(strings.NewReader(out))
	if err != nil {
		c.Fatal(err)
	}
	d, err := digest.FromReader(r)
	if err != nil {
		c.Fatal(err)
	}
	return d
}

// TestContainerdDiff: what a container has changed is the same layer, bit for
// bit, as on overlayfs.
func TestContainerdDiff(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	theirs := m.containerd("o", kind{peer: peers.Containerd24, overlayfs: true})
	ours := m.containerd("c", kind{peer: peers.Containerd24})
	for _, format := range []string{eStargz, gzipTar} {
		t.Run(format, func(t *testing.T) {
			ref := hub.put(t, "diff-"+format, newImage(t, format, changes(t)...))
			var want digest.Digest
			for _, c := range []*ctrd{theirs.on(t), ours.on(t)} {
				c.pull(ref)
				name := c.unique("changed")
				c.ctr(c.runArgs(nil, ref, name, "/inside", "change", "/")...)
				got := c.diffID(name)
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s: the changes have diff ID %s, want %s", c.snapshotter, got, want)
				}
				c.ctr("containers", "rm", name)
			}
		})
	}
	ours.empty()
	m.nothingLeftSoon()
	theirs.empty()
}

// blob returns what the hub has.
func (h *hub) blob(t testing.TB, name string, d digest.Digest) []byte {
	t.Helper()
	resp, err := h.Client().Get(h.URL + "/v2/test/" + name + "/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNerdctlCommit: so does nerdctl commit, and the image that it makes runs.
func TestNerdctlCommit(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	nerdctl := filepath.Join(needPeer(t, peers.Nerdctl), "nerdctl")
	list := changes(t)
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} { // nerdctl mounts over them
		list[0] = append(list[0], reg("etc/"+name, nil))
	}
	ref := hub.put(t, "commit", newImage(t, gzipTar, list...))
	var want []digest.Digest
	for _, k := range []kind{{peer: peers.Containerd24, overlayfs: true}, {peer: peers.Containerd24}} {
		c := m.containerd(map[bool]string{true: "o", false: "c"}[k.overlayfs], k)
		run := func(args ...string) string {
			t.Helper()
			out, err := c.command(t.Context(), nerdctl, append([]string{"--address", c.socket(), "--namespace", "default", "--snapshotter", c.snapshotter,
				"--data-root", filepath.Join(c.home, "n"), "--cgroup-manager", "cgroupfs", "--insecure-registry", "--cni-netconfpath", filepath.Join(c.home, "cni")}, args...)...)
			if err != nil {
				t.Fatalf("%v\ncontainerd said:\n%s", err, c.said())
			}
			return strings.TrimSpace(out)
		}
		run("pull", "-q", ref)
		run("run", "--name", "changed", "--net", "none", "--cgroup-parent", c.cgroup, ref, "/inside", "change", "/")
		run("commit", "changed", "committed")
		var config struct {
			RootFS struct{ Layers []digest.Digest }
		}
		unmarshal(t, []byte(run("image", "inspect", "--format", "{{json .}}", "committed")), &config)
		if want == nil {
			want = config.RootFS.Layers
		}
		if got := config.RootFS.Layers; len(got) != 5 || !slices.Equal(got, want) {
			t.Errorf("%s: the image has diff IDs %v, want %v", c.snapshotter, got, want)
		}
		run("run", "--rm", "--net", "none", "--cgroup-parent", c.cgroup, "committed", "/inside", "sums", "/new")
		run("rm", "-f", "changed")
		run("rmi", "-f", "committed", ref)
		c.empty()
	}
	m.nothingLeftSoon()
}
