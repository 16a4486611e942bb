package runtime

import (
	"errors"
	"fmt"

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
	if errors.Is(e.Err, unix.ENOENT) {
		return fmt.Sprintf("exec %s: not found in the container, or its interpreter is not", e.Name)
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
	for _, h := range []struct{ prefix, hint string }{
		{"RLIMIT_", "raising a limit needs CAP_SYS_RESOURCE"},
		{"oom_score_adj", "lowering it needs CAP_SYS_RESOURCE"},
		{"chdir", "it must be a directory inside of the container"},
		{"pivot_root", "is the root of the host a mount point of its own, and no initramfs?"},
	} {
		if len(step) >= len(h.prefix) && step[:len(h.prefix)] == h.prefix {
			return &StepError{step, fmt.Errorf("%w (%s)", err, h.hint)}
		}
	}
	return &StepError{step, err}
}
