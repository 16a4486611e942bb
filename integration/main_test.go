package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// TestMain lets this program stand in for snapctl where the daemon runs it: no
// test here starts a container, so the keeper is all that it needs.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "keeper" {
		if err := keeper.Keep(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "keeper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	flag.Set("test.parallel", "32") // they wait for timeouts, not for a CPU
	code := m.Run()
	if binaries != "" {
		os.RemoveAll(binaries)
	}
	os.Exit(code)
}

// binaries is where snapd was built.
var binaries string

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "snapfs-bin-")
	if err != nil {
		return "", err
	}
	binaries = dir
	snapd := filepath.Join(dir, "snapd")
	out, err := exec.Command("go", "build", "-o", snapd, "github.com/snapfs/snapfs/cmd/snapd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return snapd, nil
})

// needs skips the test on a machine that cannot run the daemon, and returns
// the path of its program.
func needs(t *testing.T) (snapd string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the daemon mounts file systems")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	kernel, err := mounts.Probe(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.Backend(""); err != nil {
		t.Skip(err)
	}
	if snapd, err = build(); err != nil {
		t.Fatal(err)
	}
	return snapd
}
