package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/registry"
)

const hello = `package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		l, err := net.Listen("tcp", "127.0.0.1:80")
		if err != nil {
			panic(err)
		}
		defer l.Close()
	}
	fmt.Println("it is up")
	time.Sleep(time.Hour)
}
`

// makeCorpus makes two images of a static program: one prints a line, one listens.
func makeCorpus(t *testing.T, dir string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "hello.go")
	if err := os.WriteFile(src, []byte(hello), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "hello")
	goBuild(t, program, src)
	code, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var plain, stored bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, d := range []string{"proc/", "sys/", "dev/", "etc/", "tmp/"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755})
	}
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hello", Mode: 0o755, Size: int64(len(code))})
	w.Write(code)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&stored)
	z.Write(plain.Bytes())
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: ocispec.ImageConfig{Cmd: []string{"/hello"}}}
	c.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain.Bytes())}}
	document := func(v any, mediaType string) (ocispec.Descriptor, []byte) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b
	}
	config, configText := document(c, ocispec.MediaTypeImageConfig)
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(stored.Bytes()), Size: int64(stored.Len())}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
	m.SchemaVersion = 2
	root, rootText := document(m, ocispec.MediaTypeImageManifest)
	reg := registry.New(registry.Options{})
	defer reg.Close()
	for _, tag := range []string{"line", "port"} {
		ref, err := registry.ParseRef("oci:" + filepath.Join(dir, "oci") + ":" + tag)
		if err != nil {
			t.Fatal(err)
		}
		_, err = reg.Push(t.Context(), ref, &registry.Source{Root: registry.Document{Desc: root, Raw: rootText}, Blobs: []registry.SourceBlob{
			registry.BytesBlob(config, configText),
			{Desc: layer, Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(stored.Bytes())), nil
			}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	const table = "image\tready\ttask\nline\tline:is up\t-\nport\ttcp:80\t[\"/hello\",\"listen\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "images.tsv"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
}

func goBuild(t *testing.T, out string, packages ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", out}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, text)
	}
}

// TestMeasureAll is a whole session of our own system.
func TestMeasureAll(t *testing.T) {
	switch _, err := os.Stat("/dev/fuse"); {
	case os.Geteuid() != 0:
		t.Skip("needs root, to mount and to start containers")
	case err != nil:
		t.Skip("needs /dev/fuse")
	}
	for _, p := range []string{"mkfs.ext4", "losetup"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs " + p)
		}
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("corpus"), 0o700); err != nil {
		t.Fatal(err)
	}
	makeCorpus(t, at("corpus"))
	goBuild(t, at("bin")+"/", "github.com/snapfs/snapfs/cmd/snapd", "github.com/snapfs/snapfs/cmd/snapctl")
	c, err := flags([]string{"-corpus", at("corpus"), "-snapfs", at("bin"), "-work", at("w"), "-cache", at("cache"), "-out", at("out.jsonl"),
		"-html", at("page.html"), "-md", at("summary.md"), "-rounds", "1", "-again", "1", "-links", "0/0", "-timeout", "1m", "-systems", "snapfs-nothing,snapfs-index,snapfs-warm"})
	if err != nil {
		t.Fatal(err)
	}
	c.cgroup = testCgroup
	if err := measureAll(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	list, err := loadFacts([]string{at("out.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	for _, f := range list {
		r := f.Run
		if r == nil {
			continue
		}
		runs++
		if r.Error != "" || r.Total <= 0 || len(r.Again) != 1 {
			t.Errorf("%s on %s: %+v", r.Image, r.System, r)
		}
		if r.System != "snapfs-warm" && (r.Down == 0 || r.Requests == 0 || r.CPU <= 0 || r.Peak == 0 || len(r.Line.Bytes) == 0) {
			t.Errorf("%s on %s: not everything was counted: %+v", r.Image, r.System, r)
		}
	}
	if runs != 6 {
		t.Errorf("%d runs, want two images on three systems", runs)
	}
	if b, err := os.ReadFile(at("page.html")); err != nil || !strings.Contains(string(b), "snapfs-index") {
		t.Errorf("the page: %d bytes, %v", len(b), err)
	}
	if _, err := os.Stat(at("w")); !os.IsNotExist(err) {
		t.Errorf("state is left behind: %v", err)
	}
	if all, _, _, err := hierarchies(); err == nil {
		for _, h := range all {
			for _, name := range []string{testCgroup, containersOf(testCgroup)} {
				if _, err := os.Stat(h + name); err == nil {
					t.Errorf("%s is left behind", h+name)
				}
			}
		}
	}
}
