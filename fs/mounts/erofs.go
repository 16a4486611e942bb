package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountErofs mounts the metadata image file at dir, read-only and without a loop
// device (Linux 6.12). Overlay mounts above it keep it in use after an Unmount
// with detach. Device nodes and set-uid programs in it take effect only where an
// overlay above it lets them: it is itself nodev and nosuid, below a directory
// that only root may enter.
func MountErofs(file, dir string) error {
	source := file
	if len(file) >= maxSetting {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		source = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	m, err := detached("erofs",
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOATIME,
		setting{key: "source", value: source},
		setting{key: "ro", flag: true})
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", file, dir, err)
	}
	defer m.Close()
	return Attach(m, dir)
}

// maxSetting is the length, with its NUL, of the longest string that fsconfig
// takes (fs/fsopen.c).
const maxSetting = 256
