package tarindex

import (
	"archive/tar"
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

func TestCompare(t *testing.T) {
	plain := archive(t, append(sizes(), file{Header: tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755,
		PAXRecords: map[string]string{"SCHILY.xattr.user.x": "1"}}})...)
	stored := gzipped(t, plain)
	u := unpacked(t, stored, plain)
	find := func(ix *layers.Index, name string) *layers.Entry {
		return &ix.Entries[slices.IndexFunc(ix.Entries, func(e layers.Entry) bool { return e.Name == name })]
	}
	other := layers.SumOf([]byte("other"))
	for _, tt := range []struct {
		want   string // in the error; "": none
		change func(ix *layers.Index, m *layers.Map)
	}{
		{"", func(*layers.Index, *layers.Map) {}},
		{"", func(_ *layers.Index, m *layers.Map) { m.Points, m.Marks = m.Points[:1], nil }},
		{`"f": mode 0755, in the layer 0644`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Mode = 0o755 }},
		{`"f": kind`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Kind = layers.Symlink }},
		{`"f": uid 7`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").UID = 7 }},
		{`"f": gid 7`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").GID = 7 }},
		{`"f": time 0.000000007`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Nsec = 7 }},
		{`"f": time 7.0`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Sec = 7 }},
		{`"f": size 7`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Size = 7 }},
		{`"f": link to "x"`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Link = "x" }},
		{`"f": device major 7`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Major = 7 }},
		{`"f": device minor 7`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Minor = 7 }},
		{`"f": object ` + other.String(), func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Object = other }},
		{`"again": number of chunks 3, in the layer 7`, func(ix *layers.Index, _ *layers.Map) { e := find(ix, "again"); e.Chunks = e.Chunks[:3] }},
		{`"again": chunk 2 of 65536 bytes at 131072, from`, func(ix *layers.Index, _ *layers.Map) { find(ix, "again").Chunks[2].Sum = other }},
		{`"again": chunk 1`, func(ix *layers.Index, _ *layers.Map) { find(ix, "again").Chunks[1].BlobOff++ }},
		{`"dir": extended attributes`, func(ix *layers.Index, _ *layers.Map) { find(ix, "dir").Xattrs = nil }},
		{`"new": the layer has no such entry`, func(ix *layers.Index, _ *layers.Map) { find(ix, "f").Name = "new" }},
		{`"new": the layer has no such entry`, func(ix *layers.Index, _ *layers.Map) {
			ix.Entries = append(ix.Entries, layers.Entry{Name: "new", Kind: layers.Dir})
		}},
		{`"f": an entry of the layer that is left out`, func(ix *layers.Index, _ *layers.Map) { ix.Entries = ix.Entries[1:] }},
		{`"dir": an entry of the layer that is left out`, func(ix *layers.Index, _ *layers.Map) { ix.Entries = ix.Entries[:len(ix.Entries)-1] }},
		{`"fx": entry 0, which is "f" in the layer`, func(ix *layers.Index, _ *layers.Map) {
			ix.Entries[0], ix.Entries[1] = ix.Entries[1], ix.Entries[0]
		}},
		{`entries, the layer has`, func(ix *layers.Index, _ *layers.Map) { ix.Entries = append(ix.Entries, ix.Entries[0]) }},
		{"compression of chunks 1", func(ix *layers.Index, _ *layers.Map) { ix.Compression = layers.Gzip }},
		{"compression 2", func(_ *layers.Index, m *layers.Map) { m.Compression = layers.Zstd }},
		{"bytes stored in", func(_ *layers.Index, m *layers.Map) { m.Plain++ }},
		{"bytes stored in", func(_ *layers.Index, m *layers.Map) { m.Stored-- }},
	} {
		ix := &layers.Index{Entries: slices.Clone(u.Index.Entries)}
		for i := range ix.Entries {
			ix.Entries[i].Chunks = slices.Clone(ix.Entries[i].Chunks)
		}
		m := *u.Map
		tt.change(ix, &m)
		err := Compare(ix, &m, u)
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, layers.ErrLied) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Compare = %v, want %q", err, tt.want)
		}
	}
	// What nothing is known of proves nothing.
	if err := Compare(u.Index, u.Map, &Unpacked{Index: u.Index}); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Compare without a map: %v", err)
	}
}

// Two passes over a layer find the same, however it comes.
func TestCompareAgain(t *testing.T) {
	for name, p := range testArchives(t) {
		u, err := Unpack(t.Context(), bytes.NewReader(p), describe(p), digest.FromBytes(p), testStore, Options{MaxPlain: 64 << 20})
		if err != nil {
			continue // a broken one
		}
		again := unpacked(t, p, p)
		if err := Compare(u.Index, u.Map, again); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
}
