// Package toc decodes the table of contents that eStargz and zstd:chunked blobs
// carry: one JSON document that lists the members of the layer's tar.
//
//	{"version":1,"entries":[
//	  {"name":"bin/","type":"dir","mode":493,"modtime":"2024-05-01T00:00:00Z"},
//	  {"name":"bin/sh","type":"reg","size":5000000,"digest":"sha256:…",
//	   "offset":512,"chunkSize":4194304,"chunkDigest":"sha256:…"},
//	  {"name":"bin/sh","type":"chunk","offset":1903412,"chunkOffset":4194304,"chunkDigest":"sha256:…"}]}
//
// Decode reads it as a stream, so a document of hundreds of megabytes costs the
// Index it becomes and one entry of text. It believes nothing: what it returns
// holds every invariant of package layers. Whether the document is the one that
// the manifest vouches for is its caller's to check (see Verify).
//
// Formats: https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
// and containers/storage pkg/chunked/internal/minimal/compression.go.
package toc

import (
	"fmt"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// Options tell Decode about the blob around the document.
type Options struct {
	Compression layers.Compression // of the blob's chunks
	End         int64              // where the stored chunks end in the blob: the TOC's own place
	Size        int64              // bytes of the document, to size the Index; 0 if unknown
}

// Decode reads one document from r. Its errors wrap layers.ErrBadTOC,
// layers.ErrTooLarge, or layers.ErrNoTOC if the document is in order but cannot
// tell what the layer holds; other errors are r's.
func Decode(r io.Reader, o Options) (*layers.Index, error) {
	s := newScanner(r)
	b := builder{o: o, scan: s}
	if err := document(s, &b); err != nil {
		return nil, err
	}
	return b.index()
}

// document reads the outermost object. Writers put the version first, but the
// order is free.
func document(s *scanner, b *builder) error {
	if err := s.open('{'); err != nil {
		return err
	}
	seen := false
	for first := true; ; first = false {
		key, err := s.key(first)
		if err != nil {
			return err
		}
		switch string(key) {
		case "": // the object's end
			return s.end()
		case "version":
			err = s.atom(version)
		case "entries":
			if seen {
				return fmt.Errorf("%w: entries twice", layers.ErrBadTOC)
			}
			seen = true
			err = entries(s, b)
		default:
			err = s.atom((*cursor).skip)
		}
		if err != nil {
			return err
		}
	}
}

// version accepts the only version there is. A later one is not wrong, but its
// entries may mean something else.
func version(c *cursor) error {
	n, err := c.integer()
	if err == nil && n != 1 {
		err = fmt.Errorf("%w of a known version: it is %d", layers.ErrNoTOC, n)
	}
	return err
}

func entries(s *scanner, b *builder) error {
	null, err := s.null() // Go writes an empty list so
	if null || err != nil {
		return err
	}
	if err := s.open('['); err != nil {
		return err
	}
	var e entry
	read := func(c *cursor) error { return e.read(c) }
	for first := true; ; first = false {
		more, err := s.element(first)
		if err != nil || !more {
			return err
		}
		if err := s.atom(read); err != nil {
			return err
		}
		if err := b.add(&e); err != nil {
			return err
		}
	}
}
