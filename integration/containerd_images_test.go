package integration

import (
	"archive/tar"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/peers"
)

// kinds are what the issue names: both contracts of remote snapshots, and every
// branch of containerd that is maintained.
var kinds = []kind{
	{peer: peers.Containerd24},
	{peer: peers.Containerd24, serial: true},
	{peer: peers.Containerd23, serial: true},
	{peer: peers.Containerd22, serial: true},
	// These were told that the snapshotter can rebase, and do not know what a staged
	// layer is: they unpack what is there, and everything has to work all the same.
	{peer: peers.Containerd23},
	{peer: peers.Containerd22},
}

// base returns the directories that a runtime mounts over, and the program that
// containers run.
func base(t *testing.T) []file {
	return []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("etc"), dir("run"), inside(t)}
}

func typed(name string, kind byte, target string) file {
	return file{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o644, ModTime: epoch}, nil}
}

func (f file) owner(uid, gid int, mode int64) file {
	f.Uid, f.Gid, f.Mode = uid, gid, mode
	return f
}

func (f file) attribute(name, value string) file {
	f.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
	return f
}

// changes are layers that do to those below what layers can: hide, replace,
// empty, link, and change modes and owners.
func changes(t *testing.T) [][]file {
	return [][]file{
		base(t),
		{
			dir("keep"), reg("keep/a", noise(1, 3000)), reg("keep/b", noise(2, 100_000)), typed("keep/c", tar.TypeLink, "keep/a"),
			dir("gone"), reg("gone/x", noise(3, 10)), dir("opaque"), reg("opaque/old", noise(4, 20)), dir("opaque/deep"), reg("opaque/deep/old", noise(5, 70_000)),
			reg("file-then-dir", noise(6, 5)), dir("dir-then-file"), reg("dir-then-file/x", nil),
			typed("link", tar.TypeSymlink, "keep/a"), typed("fifo", tar.TypeFifo, ""),
			reg("suid", noise(7, 40)).owner(0, 0, 0o4755), reg("owned", noise(8, 40)).owner(1000, 100_000, 0o640),
			reg("capable", noise(9, 40)).attribute("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		},
		{
			reg(".wh.gone", nil), reg("keep/.wh.b", nil), dir("opaque"), reg("opaque/.wh..wh..opq", nil), reg("opaque/new", noise(10, 30)),
			dir("file-then-dir"), reg("file-then-dir/y", noise(11, 6)), reg("dir-then-file", noise(12, 7)),
			reg("owned", noise(8, 40)).owner(5, 6, 0o400), dir("keep").owner(3, 4, 0o711),
		},
		{dir("gone"), reg("gone/y", noise(13, 90_000)), typed("gone/z", tar.TypeLink, "gone/y"), reg("empty", nil)},
	}
}

// many are n layers, each with a file of its own and one of the layer below hidden.
func many(t *testing.T, n int) [][]file {
	list := [][]file{base(t)}
	for i := 1; i < n; i++ {
		l := []file{dir("many"), reg(fmt.Sprintf("many/%03d", i), noise(uint64(2000+i), 100+i)), reg("many/last", noise(uint64(2000+i), 10))}
		if i%10 == 0 {
			l = append(l, reg(fmt.Sprintf("many/.wh.%03d", i-1), nil))
		}
		list = append(list, l)
	}
	return list
}

// mixed puts the layers of several images above each other, each as it is stored.
func mixed(t *testing.T, list ...*image) *image {
	t.Helper()
	im := newImage(t, plainTar)
	var c ocispec.Image
	c.Platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	c.RootFS.Type = "layers"
	for _, one := range list {
		im.manifest.Layers = append(im.manifest.Layers, one.manifest.Layers...)
		for d, b := range one.blobs {
			im.blobs[d] = b
		}
		delete(im.blobs, one.manifest.Config.Digest)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, one.diffIDs(t)...)
	}
	im.setConfig(t, c)
	return im
}

func (im *image) diffIDs(t testing.TB) []digest.Digest {
	t.Helper()
	var c ocispec.Image
	unmarshal(t, im.config, &c)
	return c.RootFS.DiffIDs
}

// TestContainerdImages pulls and runs images of every form under every kind of
// containerd, compares what containers see with overlayfs, and finds the disk
// empty when all are removed.
func TestContainerdImages(t *testing.T) {
	t.Parallel()
	needs(t)
	hub := newHub(t)
	var refs []string
	add := func(name string, im *image) { refs = append(refs, hub.put(t, name, im)) }
	for _, format := range []string{eStargz, zstdChunked, gzipTar, zstdTar, plainTar} {
		add("changes-"+strings.ReplaceAll(format, ":", "-"), newImage(t, format, changes(t)...))
	}
	add("many", newImage(t, gzipTar, many(t, 128)...))
	add("one", newImage(t, gzipTar, append(base(t), reg("x", noise(20, 300_000)))))
	add("mixed", mixed(t, newImage(t, eStargz, base(t), someFiles(21, "data", 20)), newImage(t, zstdTar, someFiles(22, "data2", 20)), newImage(t, gzipTar, someFiles(23, "data", 10))))

	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			m := startServed(t, "")
			unpacked := time.Now() // images share layers
			theirs := m.containerd("o", kind{peer: peers.Containerd24, overlayfs: true})
			ours := m.containerd("c", k)
			for _, ref := range refs {
				name := ref[strings.LastIndexByte(ref, '/')+1:]
				t.Run(name, func(t *testing.T) {
					theirs, ours := theirs.on(t), ours.on(t)
					var wg sync.WaitGroup
					wg.Go(func() { theirs.pull(ref) })
					ours.pull(ref)
					first := ours.run(ref, "/inside", "sums", "/")
					wg.Wait()
					sameView(t, theirs, ours, ref, unpacked)
					if second := ours.run(ref, "/inside", "sums", "/"); first != second {
						t.Errorf("the second container reads\n%s\nthe first read\n%s", second, first)
					}
				})
			}
			ours.empty()
			if !k.serial && k.peer.Version < peers.Containerd24.Version {
				m.kill() // it waits a minute for who may ask for an image's other layers
				m.start()
			}
			ours.on(t).nothingLeftSoon()
			theirs.empty()
		})
	}
}

// TestContainerdUsers: a container's user and groups are those of the image's own
// files, which containerd looks up before anything is mounted.
func TestContainerdUsers(t *testing.T) {
	t.Parallel()
	needs(t)
	hub := newHub(t)
	im := newImage(t, eStargz, base(t), []file{
		reg("etc/passwd", []byte("root:x:0:0::/:/inside\napp:x:1234:77::/:/inside\n")),
		reg("etc/group", []byte("root:x:0:\napps:x:77:\nmore:x:88:app\n")),
	})
	var c ocispec.Image
	unmarshal(t, im.config, &c)
	c.Config.User = "app"
	im.setConfig(t, c)
	ref := hub.put(t, "users", im)
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			m := startServed(t, "")
			c := m.containerd("c", k)
			c.pull(ref)
			if got, want := c.run(ref, "/inside", "id"), "1234 77 [77 88]\n"; got != want {
				t.Errorf("the container is %q, want %q", got, want)
			}
			c.empty()
			m.nothingLeftSoon()
		})
	}
}
