package integration

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
)

// TestLazy follows an image from its first byte to a life without its registry.
func TestLazy(t *testing.T) {
	t.Parallel()
	for _, format := range []string{eStargz, zstdChunked} {
		t.Run(format, func(t *testing.T) { lazyLife(t, format) })
	}
}

func lazyLife(t *testing.T, format string) {
	hub := newHub(t)
	im := newImage(t, format, someFiles(1, "a", 120), someFiles(2, "b", 120))
	lifeOf(t, hub, im, hub.put(t, "lazy", im), startMachine(t, "pull.complete = false"), im.size()/8)
}

// lifeOf pulls the image on the machine and leads it to its end. one is how many
// bytes reading a small file may cost.
func lifeOf(t *testing.T, hub *hub, im *image, ref string, m *machine, one int64) {
	row := m.pull(ref, false)
	if !row.Lazy || row.Complete {
		t.Errorf("pulled: %+v, want lazy and not complete", row)
	}
	top := m.mount(ref, true)
	if got, limit := hub.sent(), im.size()/4; got > limit {
		t.Errorf("pull and mount fetched %d of %d bytes, want at most %d", got, im.size(), limit)
	}
	if b, err := os.ReadFile(filepath.Join(top, "a/f001")); err != nil || len(b) == 0 {
		t.Fatalf("read: %d bytes, %v", len(b), err)
	}
	if got := hub.sent(); got == 0 || got > one {
		t.Errorf("reading one file fetched %d of %d bytes, want more than 0 and at most %d", got, im.size(), one)
	}
	im.check(t, top)
	if err := os.WriteFile(filepath.Join(top, "a/f002"), []byte("written"), 0o644); err != nil {
		t.Fatal(err)
	}
	if row := m.pull(ref, true); !row.Complete || row.Local != row.Size {
		t.Errorf("pulled with Wait: %+v, want complete", row)
	}

	hub.CloseClientConnections()
	hub.Close()
	written := filepath.Join(top, "a/f002")
	again := func() {
		t.Helper()
		if b, err := os.ReadFile(written); err != nil || string(b) != "written" {
			t.Errorf("what was written before reads %q, %v", b, err)
		}
		forget(t)
		for name, sum := range sums(t, top) {
			if name != "a/f002" && sum != im.want[name] {
				t.Errorf("%s has SHA-256 %x, want %x", name, sum, im.want[name])
			}
		}
		second := m.mount(ref, false)
		im.check(t, second)
		m.unmount(second)
	}
	again()
	m.stop()
	m.start()
	again()
	m.kill()
	m.start()
	again()
	if row := m.images(); len(row) != 1 || !row[0].Complete {
		t.Errorf("images: %+v, want one, complete", row)
	}
	var list []control.Mount
	if m.must(control.OpMounts, nil, &list); len(list) != 1 || list[0].Target != top {
		t.Errorf("mounts: %+v, want %s alone", list, top)
	}
}

// TestRestartWhileMissing stops and kills the daemon under a mount whose files
// are not local, and expects the next one to go on.
func TestRestartWhileMissing(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, eStargz, someFiles(3, "a", 60))
	ref := hub.put(t, "missing", im)
	m := startMachine(t, "pull.complete = false")
	top := m.mount(ref, false)
	names := []string{"a/f001", "a/f002", "a/f003"}
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			t.Fatalf("after %d restarts: %v; the daemon said:\n%s", i, err, m.d.log.String())
		}
		if got := sha256.Sum256(b); got != im.want[name] {
			t.Errorf("%s has SHA-256 %x, want %x", name, got, im.want[name])
		}
		if i == 0 {
			m.stop()
		} else {
			m.kill()
		}
		m.start()
	}
	im.check(t, top)
}
