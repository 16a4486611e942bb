// Package integration holds the tests of the whole stack: the real snapd, an
// image registry that can be told to misbehave, and the kernel's own file
// systems. Each test has an oracle that knows nothing of snapfs: the bytes the
// image was made of.
//
// The tests need root, /dev/fuse, and a kernel that package fs/mounts can use;
// they say so where they are skipped. Those with containerd and others want
// their programs, which package peers builds. SNAPFS_KILLS sets how many workers
// TestWorkerKilled kills, SNAPFS_CONTAINERS how many TestManyShortContainers runs.
package integration
