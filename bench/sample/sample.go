// Package sample makes an image of this machine's Go toolchain: four layers,
// 17,000 names, 76 MB compressed, without any network.
package sample

import (
	"archive/tar"
	"compress/gzip"
	"context"
	_ "crypto/sha256" // for digest.SHA256
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/registry"
)

// A layer of the sample image: what it is called and which files of GOROOT are in it.
type layer struct {
	name string
	has  func(rel string) bool
}

var goLayers = []layer{
	{"base", nil},
	{"toolchain", func(rel string) bool { return under(rel, "bin", "pkg", "VERSION", "go.env") }},
	{"standard library", func(rel string) bool { return under(rel, "src", "lib") }},
	{"tests and documents", func(rel string) bool {
		return !under(rel, "bin", "pkg", "VERSION", "go.env", "src", "lib", ".git")
	}},
}

func under(rel string, tops ...string) bool {
	top, _, _ := strings.Cut(rel, "/")
	for _, t := range tops {
		if top == t {
			return true
		}
	}
	return false
}

const hello = `package main

import "fmt"

func main() { fmt.Println("hello from a container that was never downloaded") }
`

// Make makes the image as a tag of the OCI layout dir, unless it is there. Its
// layers are eStargz, or what most images have, gzip -6.
func Make(ctx context.Context, dir, tag string, estargz bool) (registry.Ref, error) {
	ref, err := registry.ParseRef("oci:" + dir + ":" + tag)
	if err != nil {
		return ref, err
	}
	reg := registry.New(registry.Options{})
	defer reg.Close()
	if _, err := reg.Resolve(ctx, ref, ""); err == nil {
		return ref, nil
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return ref, fmt.Errorf("go env GOROOT: %w", err)
	}
	blobs, err := os.MkdirTemp("", "snapfs-sample-")
	if err != nil {
		return ref, err
	}
	defer os.RemoveAll(blobs)
	w := writer{blobs: blobs, goroot: strings.TrimSpace(string(out))}
	src, err := w.gzip()
	if estargz {
		src, err = w.estargz(ctx)
	}
	if err != nil {
		return ref, err
	}
	_, err = reg.Push(ctx, ref, src, nil)
	return ref, err
}

// A writer writes blobs, by their layer's number, into a directory.
type writer struct{ blobs, goroot string }

func (w *writer) blob(i int) string { return filepath.Join(w.blobs, fmt.Sprint(i)) }

func (w *writer) open(i int) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return os.Open(w.blob(i)) }
}

func (w *writer) estargz(ctx context.Context) (*registry.Source, error) {
	m, config := plainImage()
	next := 0
	made, err := convert.ImageOf(ctx, convert.Source{
		Manifest: m, Config: config,
		Open: func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			l := goLayers[next]
			next++
			r, pipe := io.Pipe()
			go func() { pipe.CloseWithError(writeLayer(pipe, l, w.goroot)) }() // ends with its reader
			return r, nil
		},
		Create: func(i int, _ ocispec.Descriptor) (io.WriteCloser, error) { return os.Create(w.blob(i)) },
	}, convert.Options{})
	if err != nil {
		return nil, err
	}
	var out ocispec.Manifest
	if err := json.Unmarshal(made.Manifest, &out); err != nil {
		return nil, err
	}
	src := &registry.Source{Root: registry.Document{Desc: made.Desc, Raw: made.Manifest}}
	src.Blobs = append(src.Blobs, registry.BytesBlob(out.Config, made.Config))
	for i, l := range made.Layers {
		src.Blobs = append(src.Blobs, registry.SourceBlob{Desc: l.Desc, Open: w.open(i)})
	}
	return src, nil
}

func (w *writer) gzip() (*registry.Source, error) {
	m, config := plainImage()
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	src := new(registry.Source)
	for i, l := range goLayers {
		desc, diffID, err := w.gzipLayer(i, l)
		if err != nil {
			return nil, err
		}
		m.Layers[i], c.RootFS.DiffIDs[i] = desc, diffID
		src.Blobs = append(src.Blobs, registry.SourceBlob{Desc: desc, Open: w.open(i)})
	}
	document := func(v any, mediaType string) (ocispec.Descriptor, []byte) {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // plain structs have a JSON form
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b
	}
	m.Config, config = document(c, ocispec.MediaTypeImageConfig)
	src.Blobs = append(src.Blobs, registry.BytesBlob(m.Config, config))
	src.Root.Desc, src.Root.Raw = document(m, ocispec.MediaTypeImageManifest)
	return src, nil
}

func (w *writer) gzipLayer(i int, l layer) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	f, err := os.Create(w.blob(i))
	if err != nil {
		return desc, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	stored, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, stored.Hash()), 6)
	if err != nil {
		return desc, "", err
	}
	if err := errors.Join(writeLayer(io.MultiWriter(z, plain.Hash()), l, w.goroot), z.Close()); err != nil {
		return desc, "", err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: stored.Digest(), Size: size}, plain.Digest(), err
}

// plainImage is the image before its layers are made: they get their digests
// by being converted.
func plainImage() (ocispec.Manifest, []byte) {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	c.Config.Env = []string{
		"PATH=/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin", "HOME=/root", "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOTELEMETRY=off", "GO111MODULE=off",
	}
	c.Config.WorkingDir, c.Config.Cmd = "/work", []string{"go", "version"}
	c.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range goLayers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(l.name))
		c.History = append(c.History, ocispec.History{CreatedBy: "make run: " + l.name})
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(l.name)})
	}
	config, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain structs have a JSON form
	}
	return m, config
}

// writeLayer writes the tar of one layer.
func writeLayer(w io.Writer, l layer, goroot string) error {
	t := tar.NewWriter(w)
	var err error
	if l.has == nil {
		err = writeBase(t)
	} else {
		err = writeTree(t, l, goroot)
	}
	if err != nil {
		return err
	}
	return t.Close()
}

// epoch is the time of what has none of its own.
var epoch = time.Unix(1_700_000_000, 0)

func writeBase(t *tar.Writer) error {
	for _, d := range []string{"etc/", "proc/", "sys/", "dev/", "root/", "usr/", "usr/local/", "work/"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: epoch}); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: epoch}); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "work/hello.go": hello,
	} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: epoch}); err != nil {
			return err
		}
		if _, err := io.WriteString(t, text); err != nil {
			return err
		}
	}
	return nil
}

func writeTree(t *tar.Writer, l layer, goroot string) error {
	return filepath.WalkDir(goroot, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(goroot, p)
		if err != nil || rel == "." || !l.has(filepath.ToSlash(rel)) {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = path.Join("usr/local/go", filepath.ToSlash(rel))
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if fi.IsDir() {
			h.Name += "/"
		}
		if err := t.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(t, f)
		return err
	})
}
