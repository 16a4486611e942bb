// Package equal holds the proof that an image mounted by snapfs is what
// containerd's overlayfs snapshotter makes of it. Its tests take layers, on the
// one side unpack them with containerd's pkg/archive into a stack of overlayfs
// directories, on the other index them, merge them (package fs) and write a
// metadata image (fs/erofs) that overlayfs shows over a directory of objects; and
// compare the two mounts name by name: type, mode, owner, size, time, device,
// attributes, link count, which names are one inode, link target, and every byte.
//
// The layers are hand-made ones, thousands of small random ones, and, where
// SNAPFS_CORPUS names an OCI layout, those of its image "zoo".
package equal
