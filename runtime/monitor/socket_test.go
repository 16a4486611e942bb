package monitor

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSocketIsPrivate: a monitor is reached by a path that only root can connect to,
// never by an abstract name, which has no mode (CVE-2020-15257).
func TestSocketIsPrivate(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	name := filepath.Join(t.TempDir(), "run", "monitor.sock")
	l, err := listen(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Addr().String(); got != name {
		t.Errorf("it listens at %q, want %q", got, name)
	}
	for at, want := range map[string]os.FileMode{name: os.ModeSocket | 0o600, filepath.Dir(name): os.ModeDir | 0o700} {
		fi, err := os.Stat(at)
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", at, fi, err, want)
		}
	}
}
