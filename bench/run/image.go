package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/registry"
)

// A member is one entry of a layer's tar. Directories end with a slash.
type member struct {
	name string
	mode int64
	data []byte
}

// sleeping is a body of main that never ends.
const sleeping = `syscall.Select(0, nil, nil, nil, nil)`

// program builds a static program of a body of main; an empty one does nothing.
func program(ctx context.Context, work, name, body string) ([]byte, error) {
	src, exe := filepath.Join(work, name+".go"), filepath.Join(work, name)
	text := "package main\n\nfunc main() {}\n"
	if body != "" {
		text = "package main\n\nimport \"syscall\"\n\nfunc main() { " + body + " }\n"
	}
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	return os.ReadFile(exe)
}

// base is the least that a container wants of an image.
func base(exe []byte) []member {
	list := []member{{"etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")}, {"bin/true", 0o755, exe}}
	for _, d := range []string{"bin/", "dev/", "etc/", "proc/", "root/", "sys/", "tmp/"} {
		list = append([]member{{d, 0o755, nil}}, list...)
	}
	return list
}

// many are n small files that no image with another seed has.
func many(seed, n int) []member {
	var list []member
	for i := range n {
		dir := fmt.Sprintf("usr/lib/package%d/", i/20)
		if i%20 == 0 {
			list = append(list, member{dir, 0o755, nil})
		}
		list = append(list, member{fmt.Sprintf("%ssome_module_name_%d.py", dir, i), 0o644, fmt.Appendf(nil, "image %d, file %d\n", seed, i)})
	}
	return list
}

// makeImage makes a lazily readable image of one layer in the OCI layout dir.
func makeImage(ctx context.Context, dir, tag string, members []member) (string, error) {
	name := "oci:" + dir + ":" + tag
	ref, err := registry.ParseRef(name)
	if err != nil {
		return "", err
	}
	m, config, err := documents(tag)
	if err != nil {
		return "", err
	}
	var blob bytes.Buffer
	made, err := convert.ImageOf(ctx, convert.Source{
		Manifest: m, Config: config,
		Open: func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			var b bytes.Buffer
			err := writeTar(&b, members)
			return io.NopCloser(&b), err
		},
		Create: func(int, ocispec.Descriptor) (io.WriteCloser, error) { return nopCloser{&blob}, nil },
	}, convert.Options{Level: 1})
	if err != nil {
		return "", err
	}
	var out ocispec.Manifest
	if err := json.Unmarshal(made.Manifest, &out); err != nil {
		return "", err
	}
	reg := registry.New(registry.Options{})
	defer reg.Close()
	_, err = reg.Push(ctx, ref, &registry.Source{
		Root:  registry.Document{Desc: made.Desc, Raw: made.Manifest},
		Blobs: []registry.SourceBlob{registry.BytesBlob(out.Config, made.Config), registry.BytesBlob(made.Layers[0].Desc, blob.Bytes())},
	}, nil)
	return name, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// documents are those of the image before its layer is made.
func documents(tag string) (m ocispec.Manifest, config []byte, err error) {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	c.Config.Cmd = []string{"true"}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []digest.Digest{digest.FromString(tag)}
	m = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(tag)}}
	config, err = json.Marshal(c)
	return m, config, err
}

func writeTar(w io.Writer, members []member) error {
	t := tar.NewWriter(w)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: m.mode, Size: int64(len(m.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(1_700_000_000, 0)}
		if m.name[len(m.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(m.data); err != nil {
			return err
		}
	}
	return t.Close()
}
