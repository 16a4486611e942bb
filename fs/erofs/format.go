package erofs

// The on-disk format, as much of it as is written here (Linux 6.18,
// fs/erofs/erofs_fs.h). All numbers are little-endian.
const (
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	blockBits = 12
	blockSize = 1 << blockBits

	slotSize  = 32 // an inode is at metadata start + nid × 32
	inodeSize = 64 // of an extended inode, which has its own time
	direntLen = 12

	compatMtime       = 0x2 // inodes hold their modification time
	incompatChunked   = 0x4
	formatExtended    = 1
	layoutPlain       = 0 << 1
	layoutInline      = 2 << 1
	layoutChunked     = 4 << 1
	maxChunkBits      = 31 // log2 of blocks in a chunk
	nullBlock         = 0xFFFFFFFF
	xattrHeader       = 12
	xattrEntryHeader  = 4
	maxXattrIbodySize = 1 << 16 // what i_xattr_icount can say, and more than the kernel's tools write
)

// xattrPrefixes are the beginnings of names that have an index (erofs_fs.h, EROFS_XATTR_INDEX_*).
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"user.", 1},
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"trusted.", 4},
	{"security.", 6},
}

// File types of directory entries (EROFS_FT_*, the same as ext4's).
const (
	typeReg = iota + 1
	typeDir
	typeChar
	typeBlock
	typeFifo
	typeSock
	typeSymlink
)
