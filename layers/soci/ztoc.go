package soci

import (
	"fmt"
	"strings"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// Fields of the tables, by the order of ztoc/fbs/ztoc.fbs (soci-snapshotter v0.16.1).
const (
	ztocVersion     = 0
	ztocStored      = 2 // int64
	ztocPlain       = 3 // int64
	ztocTOC         = 4
	ztocCompression = 5

	tocMetadata = 0

	fileName    = 0
	fileType    = 1
	fileOff     = 2 // int64, in the tar
	fileSize    = 3 // int64
	fileLink    = 4
	fileMode    = 5  // int64
	fileUID     = 6  // uint32
	fileGID     = 7  // uint32
	fileTime    = 10 // RFC 3339
	fileMajor   = 11 // int64
	fileMinor   = 12 // int64
	fileRecords = 13 // called xattrs there: all records of the PAX header

	recordKey   = 0
	recordValue = 1

	compAlgorithm   = 0 // byte: 1 gzip, 2 uncompressed
	compMaxSpan     = 1 // int32
	compDigests     = 2
	compCheckpoints = 3 // bytes
)

// version is the only one that SOCI (v0.16.1) writes.
const version = "0.9"

// A ztoc is one whose entries were not looked at yet.
type ztoc struct {
	f             *flat
	files         table
	stored, plain int64
	compression   layers.Compression
	maxSpan       int64
	digests       []string
	checkpoints   []byte
	at            int // of checkpoints, in the ztoc
}

func parse(p []byte) (*ztoc, error) {
	z := &ztoc{f: &flat{p: p, left: len(p)}}
	root := z.f.root()
	if v := root.string(ztocVersion); z.f.err == nil && v != version {
		return nil, fmt.Errorf("%w: ztoc of version %.20q", layers.ErrNoTOC, v)
	}
	z.stored, z.plain = root.int64(ztocStored), root.int64(ztocPlain)
	z.files = root.table(ztocTOC)
	c := root.table(ztocCompression)
	switch a := c.byte(compAlgorithm, 1); a {
	case 1:
		z.compression = layers.Gzip
	case 2:
		z.compression = layers.None
	default:
		return nil, fmt.Errorf("%w: ztoc of compression %d", layers.ErrNoTOC, a)
	}
	z.maxSpan = int64(int32(c.uint32(compMaxSpan)))
	c.strings(compDigests, func(s string) { z.digests = append(z.digests, s) })
	z.at, z.checkpoints = c.run(compCheckpoints, 1)
	return z, z.f.err
}

const (
	block   = 512 // of a tar
	typeReg = '0'
)

// members calls do with each member of the tar and where its bytes are, until it
// says false or something is wrong. Members are read into again.
func (z *ztoc) members(do func(m *tarindex.Member, off int64) bool) {
	var m tarindex.Member
	on := true
	z.files.tables(tocMetadata, func(t table) {
		if on {
			off := z.member(&m, t)
			on = do(&m, off)
		}
	})
}

// types are SOCI's words for POSIX's type flags.
var types = map[string]byte{"reg": typeReg, "hardlink": '1', "symlink": '2', "char": '3', "block": '4', "dir": '5', "fifo": '6'}

func (z *ztoc) member(m *tarindex.Member, t table) (off int64) {
	*m = tarindex.Member{
		Type: types[t.string(fileType)],
		Name: t.string(fileName), Link: t.string(fileLink),
		Mode: t.int64(fileMode), UID: int64(t.uint32(fileUID)), GID: int64(t.uint32(fileGID)),
		Size: t.int64(fileSize), Major: t.int64(fileMajor), Minor: t.int64(fileMinor), Records: m.Records[:0],
	}
	t.tables(fileRecords, func(r table) {
		m.Records = append(m.Records, tarindex.Record{Key: r.string(recordKey), Value: r.string(recordValue)})
	})
	for _, r := range m.Records {
		// Their size is not that of the bytes in the tar, and where the holes are is not said.
		if strings.HasPrefix(r.Key, "GNU.sparse.") && z.f.err == nil {
			z.f.err = fmt.Errorf("%w: %.80q is sparse, which a ztoc cannot tell", layers.ErrNoTOC, m.Name)
		}
	}
	// A time that RFC 3339 cannot tell is left out by the writer, and so lost.
	when, err := time.Parse(time.RFC3339Nano, t.string(fileTime))
	if err != nil && z.f.err == nil {
		z.f.err = fmt.Errorf("%w: %.80q has no time that could be told", layers.ErrNoTOC, m.Name)
	}
	m.Sec, m.Nsec = when.Unix(), uint32(when.Nanosecond())
	return t.int64(fileOff)
}
