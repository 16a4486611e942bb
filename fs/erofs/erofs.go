// Package erofs writes a Tree as an EROFS image that the kernel mounts: names,
// attributes and links, but not the bytes of files. A regular file that is not
// empty has two attributes instead, which make overlayfs look for its bytes in
// its data-only layers (Documentation/filesystems/overlayfs.rst, "Data-only
// lower layers"):
//
//	trusted.overlay.metacopy  (empty)
//	trusted.overlay.redirect  /ab/cdef…   the name of its object
//
// Whoever reads such a file past overlayfs gets EIO, not zeros. Small files whose
// bytes are at hand can be in the image itself; if all are, it is called sealed.
//
// Layout of an image, blocks of 4 KiB:
//
//	superblock │ inodes, each directory's beside each other, with their │ shared     │ blocks of directories,
//	           │ attributes and the last bytes of their data             │ attributes │ small files and long links
//
// The module github.com/erofs/go-erofs writes such images too, but has no hard
// links and no access control lists; its reader proves ours in the tests.
package erofs

import (
	"io"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// Options of Write. The zero value puts no bytes of files into the image.
type Options struct {
	// InlineMax is the size, in bytes, of the largest file whose bytes go into
	// the image, if Has says that they are at hand.
	InlineMax int64
	Has       func(layers.Sum) bool
	// Read fills p with the bytes of an object that Has has said yes to.
	Read func(s layers.Sum, p []byte) error
}

// Summary tells what was written.
type Summary struct {
	Names  int64 // directory entries, the root among them
	Size   int64 // bytes of the image
	Sealed bool  // every file of 1 to InlineMax bytes is in it
}

// A File is what an image is written to; an *os.File is one.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Write writes t as an EROFS image to f from its beginning. The image is the
// same for the same tree. It is not synced. An error leaves f in an unknown
// state; it wraps layers.ErrTooLarge for what the format cannot hold.
func Write(f File, t *fs.Tree, o Options) (Summary, error) {
	w := &writer{
		o:     o,
		sum:   Summary{Names: int64(t.Len()) + 1, Sealed: true},
		items: make([]item, 0, t.Len()+1),
		links: make(map[*fs.Node]int),
	}
	if err := w.plan(t.Root()); err != nil {
		return w.sum, err
	}
	if err := f.Truncate(0); err != nil {
		return w.sum, err
	}
	if err := w.write(f); err != nil {
		return w.sum, err
	}
	w.sum.Size = int64(w.dataStart+w.dataBlocks) << blockBits
	return w.sum, f.Truncate(w.sum.Size)
}

// writer is one Write: a plan of where every inode goes, then two sequential
// streams, one of inodes and one of data blocks.
type writer struct {
	o      Options
	sum    Summary
	items  []item           // in the order of their places
	links  map[*fs.Node]int // item of an inode that may have several names
	shared shared
	time   vote // of compact inodes

	metaSize    int64 // bytes of inodes
	sharedStart int64 // block
	dataStart   int64 // block
	dataBlocks  int64

	buf   []byte // scratch: of a directory's or file's data
	head  []byte // scratch: an inode and its attributes
	block []dirent
}
