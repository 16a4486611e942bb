package mounts

import (
	"encoding/binary"
	"hash/crc32"
)

// emptyErofs returns the smallest image that mounts: one block that holds the
// superblock and an empty root directory (fs/erofs/erofs_fs.h).
//
//	   0  1024 unused bytes
//	1024  superblock, 128 bytes; offsets below
//	1152  root: compact inode, 32 bytes; node number 1152/32 = 36
//	1184  its directory block, inline: 2 entries of 12 bytes, "." ".."
func emptyErofs() []byte {
	const (
		super, root  = 1024, 1152
		nid          = root / 32
		flatInline   = 2 << 1 // i_format: EROFS_INODE_FLAT_INLINE, compact
		dirType      = 2      // EROFS_FT_DIR
		dirSize      = 2*12 + 3
		blockBits    = 12
		blockSize    = 1 << blockBits
		sbChecksum   = 1
		superTailEnd = blockSize
	)
	b := make([]byte, blockSize)
	le := binary.LittleEndian
	le.PutUint32(b[super:], 0xE0F5E1E2)   // magic
	le.PutUint32(b[super+8:], sbChecksum) // feature_compat
	b[super+12] = blockBits
	le.PutUint16(b[super+14:], nid) // root_nid
	le.PutUint64(b[super+16:], 1)   // inos
	le.PutUint32(b[super+36:], 1)   // blocks

	le.PutUint16(b[root:], flatInline)
	le.PutUint16(b[root+4:], 0o040755) // mode
	le.PutUint16(b[root+6:], 2)        // nlink
	le.PutUint32(b[root+8:], dirSize)
	le.PutUint32(b[root+20:], 1) // ino

	dir := b[root+32:]
	for i, name := range []int{2 * 12, 2*12 + 1} {
		le.PutUint64(dir[12*i:], nid)
		le.PutUint16(dir[12*i+8:], uint16(name))
		dir[12*i+10] = dirType
	}
	copy(dir[2*12:], "...")

	// The checksum covers the block from the superblock on (fs/erofs/super.c erofs_superblock_csum_verify).
	sum := ^crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), b[super:superTailEnd])
	le.PutUint32(b[super+4:], sum)
	return b
}
