package main

import (
	"compress/gzip"
	"context"
	"crypto/sha256" // also for digest.SHA256
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A builder makes images in dir.
type builder struct {
	dir, suite string
}

// made is a layer that is there: dir/layers/ID has the tree that it adds, and
// this as a document.
type made struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
}

func (b *builder) oci(name ...string) string {
	return filepath.Join(append([]string{b.dir, "oci"}, name...)...)
}

// layerDir is a layer's directory. A layer is known by all that made it: the
// chain of recipes up to it.
func (b *builder) layerDir(chain []string) string {
	h := sha256.New()
	fmt.Fprintln(h, b.suite)
	for _, name := range chain {
		r := layerRecipes[name]
		fmt.Fprintf(h, "%q %q %q\n", name, r.packages, r.script)
	}
	return filepath.Join(b.dir, "layers", chain[len(chain)-1]+"-"+hex.EncodeToString(h.Sum(nil))[:12])
}

// image makes an image, with those of its layers that are not there.
func (b *builder) image(ctx context.Context, r *recipe) error {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: r.config}
	config.Config.Env = append([]string{searchPath}, r.config.Env...)
	config.RootFS.Type = "layers"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i := range r.layers {
		l, err := b.layer(ctx, r.layers[:i+1])
		if err != nil {
			return fmt.Errorf("layer %s: %w", r.layers[i], err)
		}
		m.Layers = append(m.Layers, l.Desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		config.History = append(config.History, ocispec.History{CreatedBy: "bench/corpus: " + r.layers[i]})
	}
	var err error
	if m.Config, err = b.put(config, ocispec.MediaTypeImageConfig); err != nil {
		return err
	}
	desc, err := b.put(m, ocispec.MediaTypeImageManifest)
	if err != nil {
		return err
	}
	desc.Platform = &config.Platform
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: r.name}
	return b.tag(desc)
}

// put adds a document to the layout.
func (b *builder) put(v any, mediaType string) (desc ocispec.Descriptor, err error) {
	text, err := json.Marshal(v)
	if err != nil {
		return desc, err
	}
	desc = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	return desc, writeFile(b.oci("blobs", "sha256", desc.Digest.Encoded()), text)
}

func writeFile(name string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func (b *builder) index() (ix ocispec.Index, err error) {
	ix.SchemaVersion, ix.MediaType = 2, ocispec.MediaTypeImageIndex
	text, err := os.ReadFile(b.oci(ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	}
	if err != nil {
		return ix, err
	}
	return ix, json.Unmarshal(text, &ix)
}

func tags(ix ocispec.Index) (list []string) {
	for _, m := range ix.Manifests {
		list = append(list, m.Annotations[ocispec.AnnotationRefName])
	}
	return list
}

// tag puts an image into the layout's index in the place of the one of the same name.
func (b *builder) tag(desc ocispec.Descriptor) error {
	ix, err := b.index()
	if err != nil {
		return err
	}
	ix.Manifests = slices.DeleteFunc(ix.Manifests, func(m ocispec.Descriptor) bool {
		return m.Annotations[ocispec.AnnotationRefName] == desc.Annotations[ocispec.AnnotationRefName]
	})
	ix.Manifests = append(ix.Manifests, desc)
	text, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return errors.Join(writeFile(b.oci(ocispec.ImageLayoutFile), layout), writeFile(b.oci(ocispec.ImageIndexFile), text))
}

// layer makes the last layer of a chain unless it is there.
func (b *builder) layer(ctx context.Context, chain []string) (l made, err error) {
	dir := b.layerDir(chain)
	document := filepath.Join(dir, "layer.json")
	if text, err := os.ReadFile(document); err == nil {
		return l, json.Unmarshal(text, &l)
	}
	fmt.Fprintln(os.Stderr, "· layer", strings.Join(chain, " > "))
	if err := os.RemoveAll(dir); err != nil {
		return l, err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return l, err
	}
	if len(chain) == 1 {
		err = b.base(ctx, tree)
	} else {
		err = b.over(ctx, dir, chain)
	}
	if err != nil {
		return l, err
	}
	if l, err = b.pack(tree); err != nil {
		return l, err
	}
	text, err := json.Marshal(l)
	if err != nil {
		return l, err
	}
	return l, writeFile(document, text)
}

// base makes a minimal Debian.
func (b *builder) base(ctx context.Context, tree string) error {
	if err := command(ctx, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
		"--include=usr-is-merged", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--aptopt=Acquire::Languages \"none\"", b.suite, tree); err != nil {
		return err
	}
	// Packages must not start services.
	if err := os.WriteFile(filepath.Join(tree, "usr/sbin/policy-rc.d"), []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	return clean(tree)
}

// over makes a layer over an overlay of those below it.
func (b *builder) over(ctx context.Context, dir string, chain []string) (err error) {
	var lower []string // topmost first
	for i := len(chain) - 1; i > 0; i-- {
		lower = append(lower, filepath.Join(filepath.Base(b.layerDir(chain[:i])), "tree"))
	}
	root, work := filepath.Join(dir, "root"), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	// Names relative to the layers' directory: all in full may be more than a mount takes.
	if err := os.Chdir(filepath.Dir(dir)); err != nil {
		return err
	}
	name := filepath.Base(dir)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/tree,workdir=%s/work,index=off,metacopy=off,redirect_dir=off", strings.Join(lower, ":"), name, name)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", options, err)
	}
	defer func() {
		err = errors.Join(err, unix.Unmount(root, 0), os.RemoveAll(work), os.Remove(root))
	}()
	r := layerRecipes[chain[len(chain)-1]]
	if len(r.packages) > 0 {
		if err := b.install(ctx, root, r.packages); err != nil {
			return err
		}
	}
	if r.script != "" {
		if err := inRoot(ctx, root, "set -e\n"+r.script); err != nil {
			return err
		}
	}
	return clean(root)
}

func (b *builder) install(ctx context.Context, root string, packages []string) error {
	return inRoot(ctx, root, `set -e
apt-get -qq update
apt-get -qq -y -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root --no-install-recommends install `+strings.Join(packages, " "))
}

// inRoot runs a script in a root file system, with /proc, /dev and the names of
// this machine's hosts, in namespaces of its own.
func inRoot(ctx context.Context, root, script string) error {
	const outer = `set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
for f in resolv.conf hosts; do [ ! -e "$1/etc/$f" ] && [ ! -L "$1/etc/$f" ] || mount --bind "/etc/$f" "$1/etc/$f"; done
exec chroot "$1" /usr/bin/env -i HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive ` + searchPath + ` /bin/sh -c "$2"`
	return command(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outer, "sh", root, script)
}

// clean removes what an image should not have.
func clean(root string) error {
	for _, pattern := range []string{"var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/log/*.log", "var/log/apt",
		"var/cache/debconf/*-old", "var/lib/dpkg/*-old", "var/cache/ldconfig/aux-cache"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := os.RemoveAll(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func command(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("%s: %w: %s", argv[0], err, text[max(0, len(text)-1000):])
	}
	return nil
}

// pack writes a tree as a blob of the layout.
func (b *builder) pack(tree string) (l made, err error) {
	blobs := b.oci("blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return l, err
	}
	f, err := os.CreateTemp(blobs, ".new-")
	if err != nil {
		return l, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	stored, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, stored.Hash()), 6)
	if err != nil {
		return l, err
	}
	if err := errors.Join(writeTar(io.MultiWriter(z, plain.Hash()), tree), z.Close()); err != nil {
		return l, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return l, err
	}
	l = made{ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: stored.Digest(), Size: size}, plain.Digest()}
	return l, errors.Join(f.Chmod(0o644), os.Rename(f.Name(), filepath.Join(blobs, l.Desc.Digest.Encoded())))
}
