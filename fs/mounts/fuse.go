package mounts

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenFuse opens /dev/fuse in the way that objectfs needs: non-blocking, so that
// whoever serves it can stop.
func OpenFuse() (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// MountFuse mounts the file system that fd, from OpenFuse, speaks for at dir.
// The kernel's INIT request is then waiting at fd. It is mounted read-only, and
// shows device nodes and set-uid programs as plain files: it has none.
func MountFuse(dir string, fd *os.File) error {
	m, err := detached("fuse", unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_RDONLY,
		setting{key: "source", value: "snapfs"},
		setting{key: "subtype", value: "snapfs"},
		setting{key: "fd", value: strconv.Itoa(int(fd.Fd()))},
		setting{key: "rootmode", value: "40000"},
		setting{key: "user_id", value: "0"},
		setting{key: "group_id", value: "0"},
		setting{key: "default_permissions", flag: true},
		// The directory above is 0700. Overlay reads with the rights of who
		// mounted it, and that may be root of another user namespace.
		setting{key: "allow_other", flag: true},
		setting{key: "ro", flag: true},
	)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	defer m.Close()
	return Attach(m, dir)
}

// SetReadAhead sets how much the kernel reads beyond what is asked of the file
// system mounted at dir, KiB. More makes long reads faster, and makes a page
// fault in a library that is not there yet fetch so much more of it. It has to
// follow the FUSE handshake, which sets it too.
func SetReadAhead(dir string, kib int) error {
	ms, err := List(dir)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.Dir == dir {
			return os.WriteFile("/sys/class/bdi/"+m.Dev+"/read_ahead_kb", []byte(strconv.Itoa(kib)), 0)
		}
	}
	return &os.PathError{Op: "set read-ahead", Path: dir, Err: unix.EINVAL}
}

// Dead says whether the FUSE file system at dir has lost everybody who could
// answer for it. One that is merely slow, or whose worker is being replaced, is
// not dead: Dead then waits for ctx, and leaves a goroutine behind until the
// answer comes.
func Dead(ctx context.Context, dir string) (bool, error) {
	result := make(chan error, 1)
	go func() { // owned by the kernel's answer; there is no other way to end statfs
		var st unix.Statfs_t
		result <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-result:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED), nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// resend says whether the kernel offers FUSE_HAS_RESEND: it mounts a file system
// nowhere and reads the INIT request.
//
//	fuse_in_header[40], major, minor, max_readahead, flags, flags2 (uint32 each)
func resend() error {
	const flags2, hasResend = 40 + 16, 1 << (39 - 32)
	fd, err := OpenFuse()
	if err != nil {
		return err
	}
	m, err := detached("fuse", 0,
		setting{key: "fd", value: strconv.Itoa(int(fd.Fd()))},
		setting{key: "rootmode", value: "40000"},
		setting{key: "user_id", value: "0"},
		setting{key: "group_id", value: "0"})
	if err != nil {
		return errors.Join(err, fd.Close())
	}
	defer m.Close()
	defer fd.Close() // first, which ends the connection: nobody will answer it
	buf := make([]byte, 1<<21)
	n, err := unix.Read(int(fd.Fd()), buf)
	if err != nil {
		return fmt.Errorf("read INIT: %w", err)
	}
	if n < flags2+4 || binary.NativeEndian.Uint32(buf[flags2:])&hasResend == 0 {
		return errors.New("not offered by the kernel (Linux 6.9)")
	}
	return nil
}
