// Package layerstest checks, for tests, what package layers promises.
package layerstest

import (
	"slices"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// Index checks all invariants of an Index whose chunks are stored in the first
// end bytes of a blob.
func Index(tb testing.TB, ix *layers.Index, end int64) {
	tb.Helper()
	for i := range ix.Entries {
		e := &ix.Entries[i]
		if !clean(e.Name) || e.Name == "" && e.Kind != layers.Dir {
			tb.Errorf("entry %d: name %q of kind %d", i, e.Name, e.Kind)
		}
		if e.Kind < layers.Dir || e.Kind > layers.Fifo || e.Mode > 0o7777 || e.Nsec >= 1e9 {
			tb.Errorf("%q: kind %d, mode %o, %d ns", e.Name, e.Kind, e.Mode, e.Nsec)
		}
		links := e.Kind == layers.Symlink || e.Kind == layers.Hardlink
		if links != (e.Link != "") || len(e.Link) > layers.MaxName || strings.Contains(e.Link, "\x00") || e.Kind == layers.Hardlink && !clean(e.Link) {
			tb.Errorf("%q: kind %d links to %q", e.Name, e.Kind, e.Link)
		}
		if !slices.IsSortedFunc(e.Xattrs, func(a, b layers.Xattr) int { return strings.Compare(a.Name, b.Name) }) {
			tb.Errorf("%q: xattrs are out of order", e.Name)
		}
		chunks(tb, e, end)
	}
	runs(tb, ix)
}

func clean(name string) bool {
	if name == "" {
		return true
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "" || elem == "." || elem == ".." || len(elem) > layers.MaxNameElem {
			return false
		}
	}
	return len(name) <= layers.MaxName && !strings.Contains(name, "\x00")
}

// chunks checks that the chunks of e are its bytes and inside the blob.
func chunks(tb testing.TB, e *layers.Entry, end int64) {
	tb.Helper()
	full := e.Kind == layers.Reg && e.Size > 0
	if full == (e.Object == layers.Sum{}) || !full && (e.Size != 0 || len(e.Chunks) > 0) {
		tb.Errorf("%q: kind %d, %d bytes, %d chunks, object %v", e.Name, e.Kind, e.Size, len(e.Chunks), e.Object)
	}
	var off int64
	for _, ck := range e.Chunks {
		if ck.Off != off || ck.Size <= 0 || ck.Size > layers.MaxChunk || ck.Sum == (layers.Sum{}) {
			tb.Errorf("%q: chunk %+v, want one at %d", e.Name, ck, off)
		}
		if ck.BlobLen < 0 || ck.BlobLen > layers.MaxChunk || ck.Inner < 0 || ck.BlobLen > 0 && (ck.BlobOff < 0 || ck.BlobOff+ck.BlobLen > end) {
			tb.Errorf("%q: chunk %+v is stored outside the first %d bytes", e.Name, ck, end)
		}
		off += ck.Size
	}
	if len(e.Chunks) > 0 && off != e.Size {
		tb.Errorf("%q: chunks of %d bytes, file of %d", e.Name, off, e.Size)
	}
}

// runs checks that stored runs are disjoint or the same, and the plain bytes in
// each disjoint.
func runs(tb testing.TB, ix *layers.Index) {
	tb.Helper()
	var all []layers.Chunk
	for i := range ix.Entries {
		for _, ck := range ix.Entries[i].Chunks {
			if ck.BlobLen > 0 {
				all = append(all, ck)
			}
		}
	}
	slices.SortFunc(all, func(a, b layers.Chunk) int {
		if a.BlobOff != b.BlobOff {
			return int(min(max(a.BlobOff-b.BlobOff, -1), 1))
		}
		return int(min(max(a.Inner-b.Inner, -1), 1))
	})
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		same := a.BlobOff == b.BlobOff && a.BlobLen == b.BlobLen && a.Inner+a.Size <= b.Inner
		if !same && a.BlobOff+a.BlobLen > b.BlobOff {
			tb.Errorf("chunks %+v and %+v overlap", a, b)
		}
	}
}
