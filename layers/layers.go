// Package layers is the vocabulary of everything that reads image layers: a
// [Blob] holds the stored bytes of one layer, an [Index] says which files they
// hold and how each file's bytes are cut into [Chunk]s, and a [Sum] names bytes
// by their content.
//
// Nothing here does I/O. Packages below layers turn stored bytes into an Index
// (estargz, zstdchunked, tarindex), keep plain bytes (objects) and bring them in
// (registry, fetch).
//
// Invariants: an Index is never changed once built, and the only functions that
// build one check it against a digest first. Every chunk that has bytes has the
// sum of those bytes.
package layers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// A Blob is random access to the stored (compressed) bytes of one layer.
// Implementations do not cache, verify or retry: wrap them.
type Blob interface {
	// ReadAt fills p from off like [io.ReaderAt]: it returns n < len(p) only
	// with an error, io.EOF at the end. It may be called from several
	// goroutines at once, and returns when ctx ends.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// Size is the number of stored bytes.
	Size() int64
}

// A Sum is the SHA-256 of some plain bytes. Objects and chunks are keyed by it.
type Sum [sha256.Size]byte

// SumOf returns the Sum of p.
func SumOf(p []byte) Sum { return sha256.Sum256(p) }

// ParseSum returns the Sum that d names. It is ErrBadSum-wrapped if d is not a
// well-formed sha256 digest: no other algorithm keys objects.
func ParseSum(d digest.Digest) (Sum, error) {
	var s Sum
	if len(d) != len("sha256:")+2*len(s) || d[:7] != "sha256:" {
		return s, fmt.Errorf("%w: %q", ErrBadSum, d)
	}
	for i := 7; i < len(d); i++ {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return s, fmt.Errorf("%w: %q", ErrBadSum, d)
		}
	}
	_, err := hex.Decode(s[:], []byte(d[7:]))
	return s, err
}

// Digest returns s in its usual written form, sha256:….
func (s Sum) Digest() digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, s[:]) }

// String returns the same text as Digest.
func (s Sum) String() string { return string(s.Digest()) }

// MarshalText returns the same text as String.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSum.
func (s *Sum) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSum(digest.Digest(text))
	return err
}

// Path returns the name of the object s below a store: "ab/cdef…", 65 bytes.
// Overlay redirects in metadata images name objects by it.
func (s Sum) Path() string {
	var b [2*len(s) + 1]byte
	hex.Encode(b[:2], s[:1])
	b[2] = '/'
	hex.Encode(b[3:], s[1:])
	return string(b[:])
}

// Kind is the type of a directory entry.
type Kind uint8

// The kinds a layer can hold.
const (
	Dir Kind = iota + 1
	Reg
	Symlink
	Hardlink // another name of the regular file, symlink or device Link in the same layer or below
	Char
	Block
	Fifo
)

// An Xattr is one extended attribute, by its full name ("user.x", "security.capability").
type Xattr struct{ Name, Value string }

// An Entry is one member of a layer's tar: a name and what it stands for.
// Whiteouts (".wh.name") and opaque markers (".wh..wh..opq") are kept as the
// regular files they are in the tar; package fs gives them their meaning.
type Entry struct {
	// Name is relative, slash-separated and clean: no leading or trailing
	// slash, no empty, "." or ".." element, no NUL; at most 4095 bytes, each
	// element at most 255. It is "" for the root directory. It need not be UTF-8.
	Name   string
	Kind   Kind
	Mode   uint16 // permission, setuid, setgid and sticky bits: 07777
	UID    uint32
	GID    uint32
	Sec    int64 // modification time, seconds since 1970
	Nsec   uint32
	Size   int64  // plain bytes; of regular files only
	Link   string // target of a Symlink (any bytes) or name of a Hardlink's target (as Name)
	Major  uint32 // of Char and Block
	Minor  uint32
	Xattrs []Xattr // sorted by name
	Object Sum     // sum of the whole file; of regular files with Size > 0 only
	// Chunks are the file's bytes in order, without gaps or overlaps. Empty
	// where the layer has no stored form to read from (it was unpacked, could
	// not be mapped, and all objects are in the store).
	Chunks []Chunk
}

// A Chunk is a run of one file's bytes that is fetched, verified and stored as a unit.
type Chunk struct {
	Sum     Sum   // of the plain bytes
	Off     int64 // in the file, bytes
	Size    int64 // plain bytes
	BlobOff int64 // in the blob, bytes
	BlobLen int64 // stored bytes; neighbours may share them. 0: the chunk is all zeros and is not stored
	Inner   int64 // where the chunk begins in the plain bytes of the stored run at BlobOff
}

// Compression says how the stored bytes of a chunk become plain.
type Compression uint8

// The compressions of stored chunks.
const (
	None Compression = iota
	Gzip             // BlobOff is the start of a gzip member
	Zstd             // BlobOff is the start of a zstd frame
)

// An Index lists what one layer holds. It is immutable.
type Index struct {
	Entries     []Entry // in the order of the layer's tar
	Compression Compression
}

// Limits that every parser of outside bytes keeps, so that a hostile layer costs
// bounded memory. A layer beyond one of them is refused with ErrTooLarge.
const (
	MaxEntries    = 4 << 20   // entries of a layer
	MaxTOC        = 512 << 20 // bytes of a decoded TOC
	MaxXattrs     = 512 << 10 // bytes of one entry's extended attributes, names and values
	MaxChunk      = 64 << 20  // plain or stored bytes of a chunk
	MaxName       = 4095      // bytes of a name or link target, PATH_MAX without its NUL
	MaxNameElem   = 255       // bytes of one element, NAME_MAX
	MaxManifest   = 8 << 20   // bytes of a manifest, index or config document
	MaxFile       = 1 << 50   // plain bytes of one file
	MaxImageFiles = 16 << 20  // entries of a whole image
)

// Sentinels of all layer formats.
var (
	ErrBadSum   = fmt.Errorf("not a sha256 digest: %w", fs.ErrInvalid)
	ErrBadTOC   = fmt.Errorf("malformed table of contents: %w", fs.ErrInvalid)
	ErrBadLayer = fmt.Errorf("malformed layer: %w", fs.ErrInvalid)
	ErrTooLarge = fmt.Errorf("beyond a limit: %w", fs.ErrInvalid)
	// ErrNoTOC says that a layer cannot start lazily: it has no TOC that its manifest vouches for.
	ErrNoTOC = errors.New("no table of contents")
	// ErrLied says that an index that was believed is not that of its layer.
	ErrLied = errors.New("the index lies")
)

// A DigestError says that bytes are not what their digest promised. The same
// bytes are never tried again, and never kept.
type DigestError struct {
	Want, Got digest.Digest
	From      string // what was read: a file, chunk or blob, for the message
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s: digest is %s, want %s", e.From, e.Got, e.Want)
}
