package containers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/monitor"
)

// TestTidyWaits: the locks of a monitor that was killed are held a moment longer by the process
// that was to become its container. That is no other monitor: what is left is waited for, and removed.
func TestTidyWaits(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := &monitor.Config{ID: strings.Repeat("a", 64), Remove: true, Spec: &specs.Spec{}}
	trash := monitor.Trash(s.dir(c.ID))
	var locks []*os.File
	for _, name := range []string{s.dir(c.ID) + "/lock", s.dir(c.ID) + "/busy", trash + "/file"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, f)
	}
	s.followed[c.ID] = 1
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.tidy(c, 1, true)
	}()
	select {
	case <-done:
		t.Error("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	for _, f := range locks {
		f.Close()
	}
	<-done
	if _, err := os.Stat(trash); !os.IsNotExist(err) {
		t.Errorf("what the monitor has left is there: %v", err)
	}

	// Another monitor's are another follower's business.
	s.spawning[c.ID] = true
	f, err := os.Open(s.dir(c.ID) + "/busy")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.tidy(c, 1, true)
}
