package objectfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
)

// What overlayfs, and so a program in a container, makes of an object that is
// not known: the file is there, for all that look, and cannot be opened.
func TestUnknownObjectBelowOverlay(t *testing.T) {
	m := newMemory()
	dir, _ := start(t, m)
	base := t.TempDir()
	lower, target := filepath.Join(base, "lower"), filepath.Join(base, "target")
	known, unknown := m.add([]byte("known")), layers.SumOf([]byte("unknown"))
	for _, d := range []string{lower, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]layers.Sum{"known": known, "unknown": unknown} {
		path := filepath.Join(lower, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o755), os.Truncate(path, int64(len(name))),
			unix.Setxattr(path, "trusted.overlay.metacopy", nil, 0),
			unix.Setxattr(path, "trusted.overlay.redirect", []byte("/"+s.Path()), 0)); err != nil {
			t.Fatal(err)
		}
	}
	o, err := mounts.Overlay(mounts.Rootfs{Lower: []string{lower}, Data: []string{dir}, ReadOnly: true})
	if err != nil {
		t.Skip("needs data-only layers: ", err)
	}
	defer o.Close()
	if err := mounts.Attach(o, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mounts.Clear(target); err != nil {
			t.Error(err)
		}
	})
	if b, err := os.ReadFile(filepath.Join(target, "known")); err != nil || string(b) != "known" {
		t.Fatalf("read: %q, %v", b, err)
	}
	path := filepath.Join(target, "unknown")
	if fi, err := os.Stat(path); err != nil || fi.Size() != 7 {
		t.Errorf("stat: %v, %v", fi, err)
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		t.Errorf("access: %v", err)
	}
	if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
		t.Errorf("open: %v, want EIO", err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "known")); err != nil || string(b) != "known" {
		t.Errorf("read of another: %q, %v", b, err)
	}
	m.add([]byte("unknown"))
	if b, err := os.ReadFile(path); err != nil || string(b) != "unknown" {
		t.Errorf("once it is known: %q, %v", b, err)
	}
}
