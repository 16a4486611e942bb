package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/snapfs/snapfs/fs/mounts"
)

// TestMain runs the tests, all at once, and removes the programs they have
// built. For root they run in a network namespace of their own, so that the
// machine's links, tables and switches stay as they are.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() == 0 && os.Getenv(privateEnv) == "" {
		os.Exit(inPrivateNetwork())
	}
	if os.Getenv(privateEnv) != "" {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, "lo:", err)
			os.Exit(1)
		}
	}
	flag.Set("test.parallel", "32") // they wait for timeouts, not for a CPU
	code := m.Run()
	if binaries != "" {
		os.RemoveAll(binaries)
	}
	os.Exit(code)
}

const privateEnv = "SNAPFS_TEST_NETWORK"

// inPrivateNetwork runs this program again in a network namespace where there is
// nothing but lo, and returns its exit status.
func inPrivateNetwork() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "a network namespace for the tests:", err)
		return 1
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// loopback makes 127.0.0.1 work in a new network namespace.
func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// binaries is where snapd was built.
var binaries string

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "snapfs-bin-")
	if err != nil {
		return "", err
	}
	binaries = dir
	out, err := exec.Command("go", "build", "-o", dir, "github.com/snapfs/snapfs/cmd/snapd", "github.com/snapfs/snapfs/cmd/snapctl").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return filepath.Join(dir, "snapd"), nil // it finds snapctl beside it
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
