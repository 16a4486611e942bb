// Package soci shows an image that SOCI's own program has indexed as a container
// sees it: EROFS, overlayfs, FUSE, fetcher and all.
package soci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/fs/objectfs"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/soci"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// A layout is the OCI layout in layers/soci/testdata, by names.
type layout map[string][]byte

func load(t *testing.T) layout {
	t.Helper()
	f, err := os.Open("../../layers/soci/testdata/image.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<28))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	l := layout{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return l
		}
		if err == nil {
			l[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (l layout) blob(d digest.Digest) []byte { return l["blobs/sha256/"+d.Encoded()] }

func (l layout) read(t *testing.T, raw []byte, doc any) {
	t.Helper()
	if err := json.Unmarshal(raw, doc); err != nil {
		t.Fatal(err)
	}
}

// A blob counts what is read of it.
type blob struct {
	*bytes.Reader
	n *atomic.Int64
}

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := b.Reader.ReadAt(p, off)
	b.n.Add(int64(n))
	return n, err
}

// A machine has what a daemon has.
type machine struct {
	t       *testing.T
	store   *objects.Store
	fetcher *fetch.Fetcher
	files   *soci.Files
	fetched atomic.Int64
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t}
	var err error
	if m.store, err = objects.Open(t.TempDir(), objects.Options{}); err != nil {
		t.Fatal(err)
	}
	m.fetcher = fetch.New(fetch.Options{Store: m.store})
	m.files = soci.NewFiles(m.fetcher, 0)
	t.Cleanup(func() {
		m.files.Close()
		m.fetcher.Close()
		if err := m.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// add makes a layer readable and returns its entries.
func (m *machine) add(stored, ztoc []byte, z digest.Digest, desc ocispec.Descriptor) *layers.Index {
	m.t.Helper()
	l, err := soci.Open(ztoc, z, desc)
	if err != nil {
		m.t.Fatal(err)
	}
	path := filepath.Join(m.t.TempDir(), "spans")
	if err := indexfile.Write(path, l.Spans); err != nil {
		m.t.Fatal(err)
	}
	spans, err := indexfile.Open(path)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { spans.Close() })
	key := string(desc.Digest)
	m.fetcher.Add(key, fetch.Layer{Blob: blob{bytes.NewReader(stored), &m.fetched}, Index: spans})
	m.files.Add(key, l)
	return l.Index
}

// mount shows a tree as a container has it.
func (m *machine) mount(tree *fs.Tree) string {
	m.t.Helper()
	image, err := os.Create(filepath.Join(m.t.TempDir(), "image"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer image.Close()
	if _, err := erofs.Write(image, tree, erofs.Options{}); err != nil {
		m.t.Fatal(err)
	}
	meta := m.t.TempDir()
	if err := mounts.MountErofs(image.Name(), meta); err != nil {
		m.t.Fatal(err)
	}
	m.clear(meta)
	o, err := mounts.Overlay(mounts.Rootfs{Lower: []string{meta}, Data: append(m.store.DataDirs(), m.serve())})
	if err != nil {
		m.t.Fatal(err)
	}
	defer o.Close()
	dir := m.t.TempDir()
	if err := mounts.Attach(o, dir); err != nil {
		m.t.Fatal(err)
	}
	m.clear(dir)
	return dir
}

func (m *machine) clear(dir string) {
	m.t.Cleanup(func() {
		if err := mounts.Clear(dir); err != nil {
			m.t.Error(err)
		}
	})
}

// serve mounts the FUSE of objects and serves it.
func (m *machine) serve() string {
	m.t.Helper()
	dir := m.t.TempDir()
	fd, err := mounts.OpenFuse()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { fd.Close() })
	if err := mounts.MountFuse(dir, fd); err != nil {
		m.t.Fatal(err)
	}
	m.clear(dir)
	init, err := objectfs.Handshake(fd)
	if err != nil {
		m.t.Fatal(err)
	}
	nodes, err := objectfs.OpenNodes(filepath.Join(m.t.TempDir(), "nodes"))
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := objectfs.Serve(ctx, fd, init, false, objectfs.New(m.files, nodes, objectfs.Options{})); err != nil && !errors.Is(err, objectfs.ErrGone) {
			m.t.Errorf("Serve: %v", err)
		}
	})
	m.t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := nodes.Close(); err != nil {
			m.t.Error(err)
		}
	})
	return dir
}

// sums reads every file below dir. It is another process that does: one that
// serves FUSE must not read from it.
func sums(t *testing.T, dir string) map[string]layers.Sum {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	all := map[string]layers.Sum{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		sum, name, _ := strings.Cut(s.Text(), "  ./")
		var h layers.Sum
		if _, err := hex.Decode(h[:], []byte(sum)); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		all[name] = h
	}
	return all
}

// TestImage: an image that SOCI has indexed is mounted at once, read lazily, and
// is what it would be if it were unpacked.
func TestImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	l := load(t)
	var top, list ocispec.Index
	var manifest ocispec.Manifest
	var config ocispec.Image
	l.read(t, l["index.json"], &top)
	l.read(t, l.blob(top.Manifests[0].Digest), &list)
	l.read(t, l.blob(list.Manifests[0].Digest), &manifest)
	l.read(t, l.blob(manifest.Config.Digest), &config)
	bound, _ := soci.Bound(manifest.Annotations)
	index, err := soci.ParseIndex(l.blob(bound), bound)
	if err != nil {
		t.Fatal(err)
	}

	m := newMachine(t)
	unpacked, err := objects.Open(t.TempDir(), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer unpacked.Close()
	var tree, want *fs.Tree
	var claimed, real []*layers.Index
	for i, desc := range manifest.Layers {
		z, ok := index.ZTOC(desc.Digest)
		if !ok {
			t.Fatalf("layer %d has no ztoc", i)
		}
		claimed = append(claimed, m.add(l.blob(desc.Digest), l.blob(z.Digest), z.Digest, desc))
		u, err := tarindex.Unpack(t.Context(), bytes.NewReader(l.blob(desc.Digest)), desc, config.RootFS.DiffIDs[i], unpacked, tarindex.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		real = append(real, u.Index)
		if tree, err = fs.Merge(tree, claimed[i]); err != nil {
			t.Fatal(err)
		}
		if want, err = fs.Merge(want, real[i]); err != nil {
			t.Fatal(err)
		}
	}
	dir := m.mount(tree)
	if n := m.fetched.Load(); n > 0 {
		t.Errorf("%d bytes were fetched for the mount", n)
	}
	got := sums(t, dir)
	for name, n := range want.Walk() {
		if n.Kind != layers.Reg {
			continue
		}
		if sum := n.Object; n.Size > 0 && got[name] != sum || n.Size == 0 && got[name] != layers.SumOf(nil) {
			t.Errorf("%s is %s, want %s", name, got[name], sum)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("there is more: %v", got)
	}
	for i := range claimed {
		for j := range claimed[i].Entries {
			if e := &claimed[i].Entries[j]; e.Size > 0 && m.store.Has(e.Object) {
				t.Errorf("the alias of %s is in the store", e.Name)
			}
		}
		if err := m.files.Prove(t.Context(), string(manifest.Layers[i].Digest), claimed[i], real[i]); err != nil {
			t.Errorf("layer %d: Prove: %v", i, err)
		}
	}
}
