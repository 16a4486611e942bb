package runtime

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplain: an error of the kernel stays what it is, and says what to look at.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		step string
		err  unix.Errno
		want string // "" is no hint
	}{
		{"clone3", unix.EAGAIN, "pids.max"}, {"clone3", unix.ENOSPC, "max_*_namespaces"}, {"clone3", unix.EINVAL, ""},
		{"RLIMIT_NOFILE", unix.EPERM, "fs.nr_open"}, {"RLIMIT_CORE", unix.EPERM, "CAP_SYS_RESOURCE"},
		{"sysctl net/x", unix.ENOENT, "none of that name"}, {"mount tmpfs on /x", unix.ENOSPC, "fs.mount-max"}, {"mount tmpfs on /x", unix.EINVAL, ""},
	} {
		err := explain(c.step, c.err)
		if !errors.Is(err, c.err) || !strings.HasPrefix(err.Error(), c.step) || !strings.Contains(err.Error(), c.want) || c.want == "" && strings.Contains(err.Error(), "(") {
			t.Errorf("explain(%q, %v) = %v, want %q", c.step, c.err, err, c.want)
		}
	}
	long := &ExecError{"/x", unix.E2BIG}
	if !strings.Contains(long.Error(), "environment") || long.ExitCode() != 126 {
		t.Errorf("%v, exit code %d", long, long.ExitCode())
	}
}
