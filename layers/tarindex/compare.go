package tarindex

import (
	"fmt"
	"slices"

	"github.com/snapfs/snapfs/layers"
)

// Compare returns nil if an index that was believed, and its map, are those of
// the layer that was found: the same entries in the same order, with the same
// sums, cut in the same way, at the same places of the tar. Otherwise the error
// wraps layers.ErrLied and says of which entry what is wrong.
//
// Points and marks may be others: what is read by them has to have the sums that
// are compared here. A layer that was found to have too many chunks to be mapped
// is layers.ErrTooLarge: such an index is not to be believed.
func Compare(claim *layers.Index, m *layers.Map, found *Unpacked) error {
	if found.Map == nil {
		return fmt.Errorf("layer of more than %d chunks: %w", maxChunks, layers.ErrTooLarge)
	}
	if claim.Compression != layers.None {
		return lie("compression of chunks %d, of a mapped layer %d", claim.Compression, layers.None)
	}
	if a, b := m, found.Map; a.Compression != b.Compression || a.Plain != b.Plain || a.Stored != b.Stored {
		return lie("compression %d, %d bytes stored in %d; the layer has %d, %d in %d",
			a.Compression, a.Plain, a.Stored, b.Compression, b.Plain, b.Stored)
	}
	return compareEntries(claim.Entries, found.Index.Entries)
}

func compareEntries(claim, found []layers.Entry) error {
	for i := range max(len(claim), len(found)) {
		if i >= len(claim) || i >= len(found) || claim[i].Name != found[i].Name {
			return misplaced(claim, found, i)
		}
		if err := compareEntry(&claim[i], &found[i]); err != nil {
			return err
		}
	}
	return nil
}

// misplaced says why the names at i are not the same.
func misplaced(claim, found []layers.Entry, i int) error {
	has := func(list []layers.Entry, name string) bool {
		return slices.ContainsFunc(list, func(e layers.Entry) bool { return e.Name == name })
	}
	switch {
	case i < len(claim) && !has(found, claim[i].Name):
		return lie("%s: the layer has no such entry", quote(claim[i].Name))
	case i < len(found) && !has(claim, found[i].Name):
		return lie("%s: an entry of the layer that is left out", quote(found[i].Name))
	case i < len(claim) && i < len(found):
		return lie("%s: entry %d, which is %s in the layer", quote(claim[i].Name), i, quote(found[i].Name))
	}
	return lie("%d entries, the layer has %d", len(claim), len(found)) // one of them twice
}

// facts are what of an entry is compared at once.
type facts struct {
	kind                         layers.Kind
	mode                         uint16
	uid, gid, major, minor, nsec uint32
	sec, size                    int64
	link                         string
	object                       layers.Sum
	chunks                       int
}

func factsOf(e *layers.Entry) facts {
	return facts{e.Kind, e.Mode, e.UID, e.GID, e.Major, e.Minor, e.Nsec, e.Sec, e.Size, e.Link, e.Object, len(e.Chunks)}
}

// differ says which of the facts are not the same.
func (c facts) differ(f facts) string {
	for _, v := range [...]struct {
		what string
		c, f any
	}{
		{"kind", c.kind, f.kind}, {"mode", fmt.Sprintf("%#o", c.mode), fmt.Sprintf("%#o", f.mode)}, {"uid", c.uid, f.uid}, {"gid", c.gid, f.gid},
		{"time", fmt.Sprintf("%d.%09d", c.sec, c.nsec), fmt.Sprintf("%d.%09d", f.sec, f.nsec)},
		{"size", c.size, f.size}, {"link to", quote(c.link), quote(f.link)},
		{"device major", c.major, f.major}, {"device minor", c.minor, f.minor},
		{"object", c.object, f.object}, {"number of chunks", c.chunks, f.chunks},
	} {
		if v.c != v.f {
			return fmt.Sprintf("%s %v, in the layer %v", v.what, v.c, v.f)
		}
	}
	panic("facts that differ in nothing")
}

func compareEntry(c, f *layers.Entry) error {
	if a, b := factsOf(c), factsOf(f); a != b {
		return lie("%s: %s", quote(c.Name), a.differ(b))
	}
	if !slices.Equal(c.Xattrs, f.Xattrs) {
		return lie("%s: extended attributes %.200q, in the layer %.200q", quote(c.Name), c.Xattrs, f.Xattrs)
	}
	for i := range c.Chunks {
		if c.Chunks[i] != f.Chunks[i] {
			return lie("%s: chunk %d %v, in the layer %v", quote(c.Name), i, place(c.Chunks[i]), place(f.Chunks[i]))
		}
	}
	return nil
}

// place says which chunk one is.
func place(ck layers.Chunk) string {
	return fmt.Sprintf("of %d bytes at %d, from %d bytes at %d+%d of the tar, %s", ck.Size, ck.Off, ck.BlobLen, ck.BlobOff, ck.Inner, ck.Sum)
}

// quote bounds what gets into a message.
func quote(s string) string { return fmt.Sprintf("%.200q", s) }

func lie(format string, args ...any) error {
	return fmt.Errorf("%w: %s", layers.ErrLied, fmt.Sprintf(format, args...))
}
