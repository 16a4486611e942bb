package objectfs

import (
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// lockThread ties the goroutine to its thread, which ends with it, and returns the thread's ID.
func lockThread() int {
	goruntime.LockOSThread()
	return unix.Gettid()
}
