package peers

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// small is built in a moment, and is of a module that snapfs itself needs.
var small = Peer{Name: "small", Module: "github.com/cespare/xxhash/v2", Version: "v2.3.0", Programs: []string{"xxhsum"}}

// TestFind: several who look at once get one build, and who comes later none.
func TestFind(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	cache := t.TempDir()
	var wg sync.WaitGroup
	var log lockedBuffer
	for range 4 {
		wg.Go(func() {
			dir, err := small.Find(t.Context(), cache, &log)
			if err != nil {
				t.Error(err)
				return
			}
			cmd := exec.Command(filepath.Join(dir, "xxhsum"))
			cmd.Stdin = strings.NewReader("peers")
			if out, err := cmd.Output(); err != nil || len(bytes.Fields(out)[0]) != 16 {
				t.Errorf("xxhsum: %q, %v", out, err)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(log.String(), "building small@v2.3.0"); n != 1 {
		t.Errorf("built %d times, want 1", n)
	}
	left, err := filepath.Glob(filepath.Join(cache, "small@v2.3.0", "build-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestFindNothing: what cannot be built says why, and leaves nothing that could
// be taken for a program.
func TestFindNothing(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	for name, p := range map[string]Peer{
		"no such package": {Name: "p", Module: small.Module, Version: small.Version, Programs: []string{"nothing"}},
		"no such version": {Name: "p", Module: small.Module, Version: "v2.99.0", Programs: small.Programs},
	} {
		cache := t.TempDir()
		_, err := p.Find(t.Context(), cache, &lockedBuffer{})
		if _, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.Contains(err.Error(), p.String()) {
			t.Errorf("%s: %v", name, err)
		}
		left, _ := os.ReadDir(filepath.Join(cache, p.String()))
		if len(left) != 1 { // the lock
			t.Errorf("%s: left: %v", name, left)
		}
	}
}

func TestNames(t *testing.T) {
	p := Peer{Programs: []string{"cmd/a"}, Tests: []string{"cmd/b"}}
	if got := p.Names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("Names() = %v", got)
	}
}

func TestCache(t *testing.T) {
	t.Setenv("SNAPFS_PEERS", "/some/where")
	if dir, err := Cache(); err != nil || dir != "/some/where" {
		t.Errorf("Cache() = %q, %v", dir, err)
	}
	t.Setenv("SNAPFS_PEERS", "")
	t.Setenv("XDG_CACHE_HOME", "/c")
	if dir, err := Cache(); err != nil || dir != "/c/snapfs-peers" {
		t.Errorf("Cache() = %q, %v", dir, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
