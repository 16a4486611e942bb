package monitor

import (
	"os"
	goruntime "runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenShm: a /dev/shm that another container has mounted with no flags comes with those of --ipc host.
func TestOpenShm(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a mount namespace")
	}
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		goruntime.LockOSThread() // it ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("none", "/dev/shm", "tmpfs", 0, "size=64k")
		}
		if err != nil {
			made <- result{nil, err}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/mnt")
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.ns.Close()
	f, err := openShm(r.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 64<<10 || st.Flags&want != want {
		t.Errorf("%d bytes of a file system %#x with flags %#x, want 65536 of a tmpfs with %#x", st.Blocks*uint64(st.Bsize), st.Type, st.Flags, want)
	}
}
