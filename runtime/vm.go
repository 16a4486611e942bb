//go:build amd64 || arm64

package runtime

import (
	"syscall"
	"unsafe"
	_ "unsafe" // go:linkname
)

const supported = true

// vmclone calls clone3 and, in the child, walks n ops. See vm_*.s.
//
//go:noescape
func vmclone(args *cloneArgs, ops *op, n int, out *outcome) (pid int)

// While the child runs on the parent's memory its thread sleeps in the kernel,
// possibly long: execve may read from a network file system. Telling the
// scheduler lets the rest of the process, and its garbage collector, go on.
// Both are open to linkname (runtime/proc.go of Go 1.23 and newer).
//
//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// clone is vmclone outside of the scheduler. Nothing here may grow the stack.
//
//go:nosplit
//go:norace
func clone(args *cloneArgs, ops *op, n int, out *outcome) int {
	entersyscall()
	pid := vmclone(args, ops, n, out)
	exitsyscall()
	return pid
}

// setMask sets the calling thread's signal mask and stores the old one.
func setMask(set, old *uint64) {
	const setmask = 2
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, setmask, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}

// initAddr is where the code of a container's init lies. See init_*.s.
func initAddr() unsafe.Pointer
