// Package disk makes a new ext4 for every measurement.
package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// size is that of a file system; its file is sparse.
const size = 24 << 30

// A Disk is a new ext4 in a file, mounted.
//
// Each measurement gets its own, because a file system remembers the one before: ext4
// does not reuse an inode within minutes of its deletion (fs/ext4/ialloc.c,
// recently_deleted) and searches past all of them for every new file. On one
// file system for all rounds a system with many files pays for that 0.2 to
// 0.5 ms a file, for its own past and for that of the others.
type Disk struct{ file, loop, at string }

// New makes a file system in file and mounts it at the directory at.
func New(file, at string) (d *Disk, err error) {
	d = &Disk{file: file}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Remove())
		}
	}()
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	if _, err := output("mkfs.ext4", "-q", "-F", "-m", "0", file); err != nil {
		return nil, err
	}
	if d.loop, err = output("losetup", "--find", "--show", "--direct-io=on", file); err != nil {
		return nil, err
	}
	if err := syscall.Mount(d.loop, at, "ext4", syscall.MS_NOATIME, "init_itable=0"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", d.loop, err)
	}
	d.at = at
	// The kernel takes the device apart once it is unmounted, even if we are killed.
	if _, err := output("losetup", "--detach", d.loop); err != nil {
		return nil, err
	}
	return d, nil
}

// ReadAhead sets how many kB the kernel reads past what was asked for.
func (d *Disk) ReadAhead(kb int) error {
	file := filepath.Join("/sys/block", filepath.Base(d.loop), "queue/read_ahead_kb")
	return os.WriteFile(file, []byte(strconv.Itoa(kb)), 0)
}

// Remove takes apart what New made.
func (d *Disk) Remove() (err error) {
	if d.at != "" {
		err = syscall.Unmount(d.at, 0)
		for n := 0; err == syscall.EBUSY && n < 100; n++ { // the daemon's last process may be ending
			time.Sleep(50 * time.Millisecond)
			err = syscall.Unmount(d.at, 0)
		}
	}
	if d.loop != "" && d.at == "" {
		_, lerr := output("losetup", "--detach", d.loop)
		err = errors.Join(err, lerr)
	}
	return errors.Join(err, os.Remove(d.file))
}

func output(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
