package runtime

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitid reads how the child of a pidfd ended into a siginfo_t, without waiting,
// and reaps it unless flags have WNOWAIT. The siginfo of x/sys does not name its fields.
func waitid[T any](pidfd int, info *T, flags uintptr) error {
	_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(pidfd), uintptr(unsafe.Pointer(info)), unix.WEXITED|unix.WNOHANG|flags, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
