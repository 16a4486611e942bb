package toc

import (
	"bytes"
	"fmt"

	"github.com/snapfs/snapfs/layers"
)

// Clean turns the name of a tar member, as archives write it ("./a//b/", "/a/b"),
// into the form of layers.Entry.Name. It refuses what could leave the root (a
// ".." element) or could not be a name on Linux; it does not resolve "..", so no
// two readers can differ about it. dst is appended to and returned.
func Clean(dst, name []byte) ([]byte, error) {
	if len(name) > 2*layers.MaxName {
		return nil, fmt.Errorf("%w: name of %d bytes", layers.ErrBadTOC, len(name))
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("%w: name %q has a NUL", layers.ErrBadTOC, name)
	}
	start := len(dst)
	for rest, more := name, true; more; {
		var elem []byte
		elem, rest, more = bytes.Cut(rest, slash)
		switch {
		case len(elem) == 0 || len(elem) == 1 && elem[0] == '.':
			continue
		case len(elem) == 2 && elem[0] == '.' && elem[1] == '.':
			return nil, fmt.Errorf("%w: name %q leaves its directory", layers.ErrBadTOC, name)
		case len(elem) > layers.MaxNameElem:
			return nil, fmt.Errorf("%w: name with an element of %d bytes", layers.ErrBadTOC, len(elem))
		}
		if len(dst) > start {
			dst = append(dst, '/')
		}
		dst = append(dst, elem...)
	}
	if n := len(dst) - start; n > layers.MaxName {
		return nil, fmt.Errorf("%w: name of %d bytes", layers.ErrBadTOC, n)
	}
	return dst, nil
}

var slash = []byte{'/'}

// hidden names are parts of the formats, not files of the image.
func hidden(name []byte) bool {
	switch string(name) {
	case "stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark":
		return true
	}
	return false
}
