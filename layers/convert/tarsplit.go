package convert

import (
	"bytes"
	"errors"
	"hash"
	"hash/crc64"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/storage"
)

// A tarSplit collects what a tar has beside the bytes of its files, in the form
// of github.com/vbatts/tar-split: podman needs it to use a layer that it did not
// pull whole.
type tarSplit struct {
	buf    bytes.Buffer
	enc    *zstd.Encoder
	packer storage.Packer
	plain  int64
	sum    hash.Hash64 // of the file that is being written
	none   bool        // it cannot say what this tar has
}

func newTarSplit() (*tarSplit, error) {
	s := &tarSplit{sum: crc64.New(storage.CRCTable)}
	var err error
	s.enc, err = zstd.NewWriter(&s.buf, zstd.WithEncoderConcurrency(1))
	s.packer = storage.NewJSONPacker(s)
	return s, err
}

// Write takes what the packer writes.
func (s *tarSplit) Write(p []byte) (int, error) {
	s.plain += int64(len(p))
	return s.enc.Write(p)
}

func (s *tarSplit) segment(p []byte) error {
	return s.add(storage.Entry{Type: storage.SegmentType, Payload: p})
}

// file takes a file whose bytes went through sum.
func (s *tarSplit) file(name string, size int64) error {
	e := storage.Entry{Type: storage.FileType, Size: size}
	if size > 0 {
		e.Payload = s.sum.Sum(nil)
		s.sum.Reset()
	}
	e.SetName(name)
	return s.add(e)
}

// add leaves the format out of a blob whose tar has a name twice: it cannot tell
// them apart.
func (s *tarSplit) add(e storage.Entry) error {
	if s.none {
		return nil
	}
	_, err := s.packer.AddEntry(e)
	s.none = errors.Is(err, storage.ErrDuplicatePath)
	if s.none {
		return nil
	}
	return err
}

func (s *tarSplit) finish() (part, error) {
	if err := s.enc.Close(); err != nil || s.none {
		return part{}, err
	}
	return part{stored: s.buf.Bytes(), plain: s.plain}, nil
}
