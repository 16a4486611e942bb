package integration

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/network/networktest"
)

// TestMain runs the tests, all at once, and removes the programs they have
// built. For root they run in a network namespace of their own, so that the
// machine's links, tables and switches stay as they are.
func TestMain(m *testing.M) {
	flag.Parse()
	if onlyPrograms == "" {
		flag.Set("test.parallel", "12") // most wait for timeouts, not for a CPU
	}
	os.Exit(networktest.Main(func() int {
		had := peersCgroups()
		code := m.Run()
		for _, d := range peersCgroups() { // empty, or its test has failed
			if !slices.Contains(had, d) {
				os.Remove(d)
			}
		}
		if binaries != "" {
			os.RemoveAll(binaries)
		}
		return code
	}))
}

// peersCgroups are those that containerd and buildkitd make for all containers of a kind, and leave.
func peersCgroups() (dirs []string) {
	for _, name := range []string{"buildkit", "default", "k8s.io"} {
		for _, top := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, _ := filepath.Glob(top + name)
			dirs = append(dirs, found...)
		}
	}
	return dirs
}

// binaries is where snapd was built.
var binaries string

var build = sync.OnceValues(func() (string, error) { return buildIn("plain") })

// buildRacing builds a daemon that the race detector watches.
var buildRacing = sync.OnceValues(func() (string, error) { return buildIn("race", "-race") })

var makeBinaries = sync.OnceValue(func() (err error) {
	binaries, err = os.MkdirTemp("", "snapfs-bin-")
	return err
})

func buildIn(folder string, flags ...string) (string, error) {
	if onlyPrograms != "" {
		return filepath.Join(onlyPrograms, "snapd"), nil
	}
	if err := makeBinaries(); err != nil {
		return "", err
	}
	dir := filepath.Join(binaries, folder)
	args := append(append([]string{"build", "-o", dir + "/"}, flags...), "github.com/snapfs/snapfs/cmd/snapd", "github.com/snapfs/snapfs/cmd/snapctl")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return filepath.Join(dir, "snapd"), nil // it finds snapctl beside it
}

// onlyPrograms is a directory with the programs of the tests, on a machine without Go; see TestKernel61.
var onlyPrograms = os.Getenv("SNAPFS_TEST_PROGRAMS")

// backend is how daemons show images, if a test does not say it; see TestKernel61.
var backend = cmp.Or(os.Getenv("SNAPFS_TEST_BACKEND"), mounts.BackendErofs)

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
	if _, err := kernel.Backend(backend); err != nil {
		t.Skip(err)
	}
	if snapd, err = build(); err != nil {
		t.Fatal(err)
	}
	return snapd
}
