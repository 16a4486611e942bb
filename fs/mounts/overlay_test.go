package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverlayNamed: the way of older kernels works on all of them.
func TestOverlayNamed(t *testing.T) {
	needRoot(t)
	d := dirs(t, "top:with,odd\\name", "bottom", "upper", "work")
	write(t, filepath.Join(d[0], "both"), "top")
	write(t, filepath.Join(d[1], "both"), "bottom")
	write(t, filepath.Join(d[1], "below"), "text")
	target := attach(t, Rootfs{Lower: d[:2], Upper: d[2], Work: d[3], Volatile: true, named: true})
	for name, want := range map[string]string{"both": "top", "below": "text"} {
		if got, err := os.ReadFile(filepath.Join(target, name)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	write(t, filepath.Join(target, "new"), "x")
	if _, err := os.Stat(filepath.Join(d[2], "new")); err != nil {
		t.Error(err)
	}
	// Data-only layers have no such way.
	if m, err := Overlay(Rootfs{Lower: d[:1], Data: []string{filepath.Join(d[1], "missing")}}); !errors.Is(err, unix.ENOENT) {
		if err == nil {
			m.Close()
		}
		t.Errorf("a layer that is not there: %v", err)
	}
}
