package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// diskSize is that of the file system made for each pull; its file is sparse.
const diskSize = 24 << 30

// A disk is a new ext4 in a file, mounted.
//
// Each pull gets its own, because a file system remembers the one before: ext4
// does not reuse an inode within minutes of its deletion (fs/ext4/ialloc.c,
// recently_deleted) and searches past all of them for every new file. On one
// file system for all rounds a system with many files pays for that 0.2 to
// 0.5 ms a file, for its own past and for that of the others.
type disk struct{ file, loop, at string }

// newDisk makes a file system in file and mounts it at the directory at.
func newDisk(file, at string) (d *disk, err error) {
	d = &disk{file: file}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.remove())
		}
	}()
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
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
	return d, nil
}

// remove takes apart what newDisk made.
func (d *disk) remove() (err error) {
	if d.at != "" {
		err = syscall.Unmount(d.at, 0)
		for n := 0; err == syscall.EBUSY && n < 100; n++ { // the daemon's last process may be ending
			time.Sleep(50 * time.Millisecond)
			err = syscall.Unmount(d.at, 0)
		}
	}
	if d.loop != "" {
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
