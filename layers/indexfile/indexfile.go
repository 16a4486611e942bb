// Package indexfile keeps a layers.Index in a flat file that is mapped, not read:
// an open File costs no heap, and finding an object touches a few pages.
//
// All numbers are little-endian; sections follow one another without gaps.
//
//	header   96 bytes
//	   0  8  magic "snapfsix"        40  8  bytes of strings
//	   8  4  version, 1              48  8  bytes of the file
//	  12  4  compression             56 32  zeros
//	  16  8  number of entries       88  4  CRC-32C of all behind the header
//	  24  8  number of objects       92  4  CRC-32C of the header before this
//	  32  8  number of chunks
//	entries  104 bytes each, in the order of the layer's tar
//	   0  8  name, in strings        60  4  gid
//	   8  8  link target             64  4  nanoseconds
//	  16  8  xattrs                  68  4  major
//	  24  8  seconds                 72  4  minor
//	  32  8  size                    76  4  bytes of the name
//	  40  4  first chunk             80  4  bytes of the link target
//	  44  4  number of chunks        84  4  number of xattrs
//	  48  4  object, or -1           88  4  bytes of the xattrs
//	  52  2  mode                    92 12  zeros
//	  54  1  kind
//	  56  4  uid
//	objects  48 bytes each, ordered by sum
//	   0 32  sum                     40  4  first chunk
//	  32  8  size                    44  4  number of chunks
//	blob order  4 bytes each: the objects as they lie in the blob
//	chunks   72 bytes each
//	   0 32  sum                     48  8  offset in the blob
//	  32  8  offset in the file      56  8  stored bytes
//	  40  8  plain bytes             64  8  where it begins in its run
//	strings  names, targets, and xattrs as: 2 bytes length of the name, 4 bytes
//	         length of the value, name, value
//
// An object that several entries have is listed once, with the chunks of the
// first. Open checks the sums and every reference, so that nothing read later can
// point outside. The file is trusted as far as its directory is: it is a cache of
// what was verified when it was written, not something to take from others.
package indexfile

import (
	"errors"
	"hash/crc32"

	"github.com/snapfs/snapfs/layers"
)

const (
	magic   = "snapfsix"
	version = 1

	headerSize = 96
	entrySize  = 104
	objectSize = 48
	orderSize  = 4
	chunkSize  = 72

	noObject = 1<<32 - 1
)

// ErrCorrupt says that a file is not an index, or not a whole one. ErrVersion
// says that another version of the program wrote it. Either way the index can be
// made again from the layer.
var (
	ErrCorrupt = errors.New("corrupt index file")
	ErrVersion = errors.New("index file of another version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Ref is an object of a File. It is valid for that File only.
type Ref struct {
	Size  int64 // plain bytes of the whole object
	first uint32
	count uint32
}

// NumChunks is the number of chunks of the object; 0 if the layer has no stored
// form of it.
func (r Ref) NumChunks() int { return int(r.count) }

// shape is where the sections of a file are.
type shape struct {
	compression                       layers.Compression
	entries, objects, chunks, strings int64 // numbers, and bytes of strings
}

func (s shape) objectsAt() int64 { return headerSize + s.entries*entrySize }
func (s shape) orderAt() int64   { return s.objectsAt() + s.objects*objectSize }
func (s shape) chunksAt() int64  { return s.orderAt() + s.objects*orderSize }
func (s shape) stringsAt() int64 { return s.chunksAt() + s.chunks*chunkSize }
func (s shape) size() int64      { return s.stringsAt() + s.strings }
