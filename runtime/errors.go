package runtime

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A StepError says which step of a start failed.
type StepError struct {
	Step string // "mount proc on /proc"
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// An ExecError says that all was ready but the program could not be executed.
type ExecError struct {
	Name string // as it was asked for
	Err  error
}

func (e *ExecError) Error() string {
	switch {
	case errors.Is(e.Err, unix.ENOENT):
		return fmt.Sprintf("exec %s: not found in the container, or its interpreter is not", e.Name)
	case errors.Is(e.Err, unix.E2BIG):
		return fmt.Sprintf("exec %s: %v: it and its environment are longer than the kernel takes", e.Name, e.Err)
	}
	return fmt.Sprintf("exec %s: %v", e.Name, e.Err)
}

func (e *ExecError) Unwrap() error { return e.Err }

// ExitCode is what a shell would make of it: 127 not found, 126 found but not executable.
func (e *ExecError) ExitCode() int {
	if errors.Is(e.Err, unix.ENOENT) || errors.Is(e.Err, unix.ENOTDIR) {
		return 127
	}
	return 126
}

// explain adds to an error of the kernel what it usually means.
func explain(step string, err unix.Errno) error {
	for _, h := range []struct {
		prefix string
		err    unix.Errno // 0 is any
		hint   string
	}{
		{"RLIMIT_NOFILE", unix.EPERM, "raising a limit needs CAP_SYS_RESOURCE, and none is above the sysctl fs.nr_open"},
		{"RLIMIT_", 0, "raising a limit needs CAP_SYS_RESOURCE"},
		{"oom_score_adj", 0, "lowering it needs CAP_SYS_RESOURCE"},
		{"chdir", 0, "it must be a directory inside of the container"},
		{"pivot_root", 0, "is the root of the host a mount point of its own, and no initramfs?"},
		{"clone3", unix.EAGAIN, "the container's limit of processes is reached, or the machine's: pids.max, ulimit -u, the sysctl kernel.pid_max"},
		{"clone3", unix.ENOSPC, "the limit of namespaces is reached: the sysctls user.max_*_namespaces"},
		{"clone3", unix.ENOMEM, "there is no memory left, or the pid namespace has ended"},
		{"clone3", unix.EBUSY, "the cgroup hands controllers on, or is frozen"},
		{"clone3", unix.ENODEV, "the cgroup has been removed"},
		{"join the cgroup", unix.ENODEV, "the cgroup has been removed"},
		{"sysctl", unix.ENOENT, "this kernel has none of that name, or not for each container"},
		{"sysctl", unix.EINVAL, "it does not take that value"},
		{"mount", unix.ENOSPC, "the limit of mounts is reached: the sysctl fs.mount-max"},
	} {
		if strings.HasPrefix(step, h.prefix) && (h.err == 0 || h.err == err) {
			return &StepError{step, fmt.Errorf("%w (%s)", err, h.hint)}
		}
	}
	return &StepError{step, err}
}
