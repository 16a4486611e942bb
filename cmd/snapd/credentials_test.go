package main

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoCore: this process cannot be dumped, and what it executes can.
func TestNoCore(t *testing.T) {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(was), 0, 0, 0)
	if os.Getenv("SNAPFS_TEST_CHILD") != "" {
		if was == 0 {
			os.Exit(9)
		}
		return
	}
	if err := withoutCore(); err != nil {
		t.Fatal(err)
	}
	if now, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); now != 0 || err != nil {
		t.Errorf("dumpable: %d, %v", now, err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestNoCore$")
	cmd.Env = append(os.Environ(), "SNAPFS_TEST_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a program that is executed: %v\n%s", err, out)
	}
}
