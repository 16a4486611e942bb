package erofs

import "github.com/snapfs/snapfs/layers"

// The on-disk format, as much of it as is written here (Linux 6.18,
// fs/erofs/erofs_fs.h). All numbers are little-endian. What is written is
// understood by Linux 5.4 and later.
//
// The superblock, at 1024:
//
//	 0 magic 4 │ checksum 4 │ compatible features 4 │ log2(block) 1 │ 0 1 │ root nid 2
//	16 inodes 8 │ time 8 │ its nanoseconds 4 │ blocks 4 │ inodes' block 4 │ shared attributes' block 4
//	48 UUID 16 │ label 16 │ incompatible features 4 │ 0 …
//
// An inode: compact, with the superblock's time, or extended:
//
//	0 format 2 │ attributes 2 │ mode 2 │ links 2 │ size 4 │ 0 4 │ u 4 │ ino 4 │ uid 2 │ gid 2 │ 0 4
//	0 format 2 │ attributes 2 │ mode 2 │ 0 2 │ size 8 │ u 4 │ ino 4 │ uid 4 │ gid 4 │ time 8 │ nsec 4 │ links 4 │ 0 16
//
// where u is the first block of the data, or a device number.
const (
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	blockBits = 12
	blockSize = 1 << blockBits

	metaBlock    = 1  // of the inodes
	slotSize     = 32 // an inode is at metaBlock + nid × 32
	compactSize  = 32
	extendedSize = 64
	direntLen    = 12

	compatChecksum = 0x1
	compatMtime    = 0x2 // the times of inodes are modification times

	formatExtended = 1
	layoutPlain    = 0 << 1 // the data is full blocks
	layoutInline   = 2 << 1 // its last bytes are behind the inode

	// nullBlock is beyond any image. (-1 itself means a hole to some kernels.)
	nullBlock = 1<<32 - 2

	xattrHeader      = 12
	xattrEntryHeader = 4
	maxXattrs        = xattrHeader + 4*(1<<16-2) // bytes behind an inode; their number in words and one has 16 bits
	maxShared        = 255                       // shared attributes of an inode
)

// The types of files, in an inode's mode and in a directory entry (EROFS_FT_*,
// the same as ext4's).
func fileType(k layers.Kind) (mode uint16, dirent byte) {
	switch k {
	case layers.Dir:
		return 0o040000, 2
	case layers.Symlink:
		return 0o120000, 7
	case layers.Char:
		return 0o020000, 3
	case layers.Block:
		return 0o060000, 4
	case layers.Fifo:
		return 0o010000, 5
	}
	return 0o100000, 1
}

// xattrPrefixes are the beginnings of names that have an index (EROFS_XATTR_INDEX_*).
// Those of access control lists are whole names.
var xattrPrefixes = []struct {
	prefix string
	index  byte
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// rdev is the kernel's new_encode_dev (include/linux/kdev_t.h).
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}
