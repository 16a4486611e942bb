package mounts

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func TestProbe(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	k, err := Probe(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range k.Facts {
		t.Logf("%s: %v", f.Name, f)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("Probe left %v, %v", left, err)
	}
	b, err := k.Backend("")
	if err != nil && !errors.Is(err, ErrNoBackend) {
		t.Errorf("Backend: %v", err)
	}
	t.Logf("backend %q, %v", b.Name, err)
}

func TestBackend(t *testing.T) {
	old := &Kernel{Release: "6.1.0", Facts: []Fact{{FactMountAPI, nil}, {FactErofsFile, errors.New("only from block devices")}, {FactResend, unix.EINVAL}, {FactPlain, unix.EPERM}}}
	_, err := old.Backend("")
	if !errors.Is(err, ErrNoBackend) || !strings.Contains(err.Error(), "6.1.0") || !strings.Contains(err.Error(), "only from block devices") {
		t.Errorf("Backend on an old kernel: %v", err)
	}
	old.Facts[3].Err = nil
	if b, err := old.Backend(""); b.Name != BackendDirectories || err != nil {
		t.Errorf("Backend on an old kernel with overlayfs = %v, %v", b, err)
	}
	if _, err := old.Backend(BackendErofs); !errors.Is(err, ErrNoBackend) || strings.Contains(err.Error(), BackendDirectories) {
		t.Errorf("Backend(erofs) on an old kernel: %v", err)
	}
	if b, err := (&Kernel{Facts: []Fact{{FactMountAPI, nil}}}).Backend("erofs"); b.Name != "erofs" || err != nil {
		t.Errorf("Backend(erofs) = %v, %v", b, err)
	}
	if _, err := old.Backend("floppy"); !errors.Is(err, ErrNoBackend) || !strings.Contains(err.Error(), "floppy") {
		t.Errorf("Backend(floppy): %v", err)
	}
}

func TestFactString(t *testing.T) {
	if got := (Fact{"x", nil}).String(); got != "yes" {
		t.Errorf("String() = %q", got)
	}
	if got := (Fact{"x", errors.New("too old")}).String(); got != "no: too old" {
		t.Errorf("String() = %q", got)
	}
}
