package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
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

// makeImage makes the sample image, eStargz, from this machine's Go toolchain
// in the OCI layout dir, unless it is there.
func makeImage(ctx context.Context, dir, goroot string) (registry.Ref, error) {
	ref, err := registry.ParseRef("oci:" + dir + ":demo")
	if err != nil {
		return ref, err
	}
	reg := registry.New(registry.Options{})
	defer reg.Close()
	if _, err := reg.Resolve(ctx, ref, ""); err == nil {
		return ref, nil
	}
	blobs, err := os.MkdirTemp("", "snapfs-demo-blobs-")
	if err != nil {
		return ref, err
	}
	defer os.RemoveAll(blobs)
	m, config := plainImage()
	next := 0
	blob := func(i int) string { return filepath.Join(blobs, fmt.Sprint(i)) }
	made, err := convert.ImageOf(ctx, convert.Source{
		Manifest: m, Config: config,
		Open: func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			l := goLayers[next]
			next++
			r, w := io.Pipe()
			go func() { w.CloseWithError(writeLayer(w, l, goroot)) }() // ends with its reader
			return r, nil
		},
		Create: func(i int, _ ocispec.Descriptor) (io.WriteCloser, error) { return os.Create(blob(i)) },
	}, convert.Options{})
	if err != nil {
		return ref, err
	}
	src := &registry.Source{Root: registry.Document{Desc: made.Desc, Raw: made.Manifest}}
	var out ocispec.Manifest
	if err := json.Unmarshal(made.Manifest, &out); err != nil {
		return ref, err
	}
	src.Blobs = append(src.Blobs, registry.BytesBlob(out.Config, made.Config))
	for i, l := range made.Layers {
		src.Blobs = append(src.Blobs, registry.SourceBlob{Desc: l.Desc,
			Open: func(context.Context) (io.ReadCloser, error) { return os.Open(blob(i)) }})
	}
	_, err = reg.Push(ctx, ref, src, nil)
	return ref, err
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
