package runtime

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Seal executes this program again, from a mount that is read-only, unless its
// file is on one already: then nobody inside who gets hold of this program's
// file can write to it (CVE-2019-5736), and nobody can undo that: the mount is
// nowhere. To get hold of it takes CAP_SYS_PTRACE or, without any rights, a
// program that is a link to /proc/self/exe, or a script that names that as its
// interpreter: execve resolves it while the process is still this program.
//
// It costs another start of the program, and is to be called before anything
// else is done. A program linked with -E snapfs_entry and called snaprun has done
// it before its Go runtime started (seal_amd64.s), at a tenth of the price.
func Seal() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &st); err != nil {
		return &StepError{"statfs /proc/self/exe", err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &StepError{"open_tree /proc/self/exe", err}
	}
	defer unix.Close(fd)
	if err := setAttrs(fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
		return &StepError{"make the program read-only", err}
	}
	argv, err := syscall.SlicePtrFromStrings(os.Args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	empty := []byte{0}
	_, _, e := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
	return &StepError{"execute the program again", fmt.Errorf("%w", e)}
}
