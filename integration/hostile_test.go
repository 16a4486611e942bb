package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// TestLayersDoNotSpeakToOverlayfs mounts a layer with attributes and names by
// which it would reach outside of itself.
func TestLayersDoNotSpeakToOverlayfs(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	for name, format := range map[string]string{"tar": gzipTar, "stargz": eStargz, "chunked": zstdChunked} {
		t.Run(name, func(t *testing.T) {
			evil := map[string]string{}
			for _, space := range []string{"trusted", "user"} {
				evil["SCHILY.xattr."+space+".overlay.redirect"] = "/etc"
				evil["SCHILY.xattr."+space+".overlay.metacopy"] = ""
				evil["SCHILY.xattr."+space+".overlay.opaque"] = "y"
				evil["SCHILY.xattr."+space+".overlay.whiteout"] = "y"
				evil["SCHILY.xattr."+space+".overlay.overlay.opaque"] = "y"
			}
			secret, sub := reg("secret", []byte("of the layer, not of the host")), dir("sub")
			secret.PAXRecords, sub.PAXRecords = evil, evil
			im := newImage(t, format,
				[]file{dir("etc"), dir("sub"), reg("sub/below", noise(1, 5000))},
				[]file{secret, sub, reg("sub/above", noise(2, 5000)),
					{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/etc", ModTime: epoch}},
					{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "up", Linkname: "../../../../etc", ModTime: epoch}},
					reg("link/through", []byte("a link that leads out of nothing")), reg("up/upwards", []byte("another")),
				})
			for from, to := range map[string]string{"link/through": "etc/through", "up/upwards": "etc/upwards"} {
				im.want[to] = im.want[from]
				delete(im.want, from)
			}
			m := m.on(t)
			top := m.mount(hub.put(t, name, im), false)
			defer m.unmount(top)
			im.check(t, top)
			filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
				if err != nil {
					t.Error(err)
				}
				list := make([]byte, 4096)
				n, err := unix.Llistxattr(p, list)
				if err != nil || strings.Contains(string(list[:max(n, 0)]), "overlay") {
					t.Errorf("%s has the attributes %q, %v", p, list[:max(n, 0)], err)
				}
				return nil
			})
		})
	}
	for _, p := range []string{"/etc/through", "/etc/upwards"} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s exists on the host", p)
		}
	}
}

// readFile reads a file, and fails the test if that takes longer than a read may stand still.
func readFile(t testing.TB, path string) ([]byte, error) {
	t.Helper()
	type answer struct {
		b   []byte
		err error
	}
	c := make(chan answer, 1)
	go func() {
		b, err := os.ReadFile(path)
		c <- answer{b, err}
	}()
	select {
	case a := <-c:
		return a.b, a.err
	case <-time.After(patience + 5*time.Second):
		t.Fatalf("reading %s hangs", path)
		return nil, nil
	}
}

// TestReadsOfBadBytes reads, from a mounted image, what the registry sends wrong.
// Either the bytes are right or there is an error, and it ends with its cause.
func TestReadsOfBadBytes(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	chunks := func(r *http.Request) bool { return isBlob(r, "") }
	for i, row := range []struct {
		name  string
		fault fault
		works bool
		lie   bool
	}{
		{"flipped", change(chunks, func(_ *http.Request, _ *httptest.ResponseRecorder, b []byte) []byte {
			for i := range b {
				b[i] ^= 1
			}
			return b
		}), false, true},
		{"403", status(chunks, 403), false, false},
		{"404", status(chunks, 404), false, false},
		{"another range", claims(chunks, later), false, false},
		{"silence", silent(chunks), false, false},
		{"503 twice", fewTimes(2, status(chunks, 503, "Retry-After", "0")), true, false},
		{"connection broken twice", fewTimes(2, func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) bool {
			panic(http.ErrAbortHandler)
		}), true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			m := startMachine(t, "pull.complete = false")
			im := newImage(t, eStargz, someFiles(uint64(400+i), "d", 30))
			name := "reads" + string(rune('a'+i))
			top := m.mount(hub.put(t, name, im), false)
			defer m.unmount(top)
			hub.misbehave(name, row.fault)
			defer hub.misbehave(name, nil)
			b, err := readFile(t, filepath.Join(top, "d/f017")) // of several chunks
			switch {
			case err == nil && sha256.Sum256(b) != im.want["d/f017"]:
				t.Errorf("wrong bytes")
			case row.works && err != nil:
				t.Errorf("read: %v; the daemon said:\n%s", err, m.d.log.String())
			case !row.works && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ETIMEDOUT):
				t.Errorf("read: %v, want %v", err, unix.EIO)
			}
			hub.misbehave(name, nil)
			if row.lie { // a layer that had wrong bytes is not asked again by the same worker
				s, err := m.status()
				if err != nil {
					t.Fatal(err)
				}
				kill9(t, s.Worker)
				m.waitReady(s.Supervisor)
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
				if _, err := readFile(t, filepath.Join(top, "d/f017")); err == nil || time.Now().After(deadline) {
					break // an outage is remembered for a moment
				}
			}
			im.check(t, top)
		})
	}
}

// fewTimes is a fault that goes away.
func fewTimes(n int64, f fault) fault {
	var done atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
		return done.Add(1) <= n && f(w, r, good)
	}
}

// TestLieInTOC reads an image whose table of contents is in order and wrong:
// what it lies about cannot be read, everything else can.
func TestLieInTOC(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "pull.complete = false")
	im := lie(t, ordinary(500), func(c *toc) { c.find("etc/f002")["offset"] = c.find("etc/f001")["offset"].(float64) + 1 })
	ref := hub.put(t, "lie", im)
	top := m.mount(ref, false)
	for name, sum := range im.want {
		b, err := readFile(t, filepath.Join(top, name))
		if lied := name == "etc/f001" || name == "etc/f002"; lied != errors.Is(err, unix.EIO) || !lied && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && sha256.Sum256(b) != sum {
			t.Errorf("%s: wrong bytes", name)
		}
	}
	checkError(t, m.call(control.OpPull, control.PullArgs{Ref: ref, Wait: true}, nil), control.CodeInvalid, "lie", "layer")
}
