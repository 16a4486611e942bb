package snapshotter

import (
	"context"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A watchfulMapper maps nothing. It sees to it that no mount is made while those
// are ended that nobody was known to need.
type watchfulMapper struct {
	t            *testing.T
	s            *Snapshotter
	mapped, kept int
}

func (m *watchfulMapper) MapDir(_ context.Context, dir string, _ IDMap) (string, error) {
	m.mapped++
	if m.s.mapping.TryLock() {
		m.s.mapping.Unlock()
		m.t.Error("a sweep may be on while a directory is mapped")
	}
	if len(m.s.index.waiting()) == 0 {
		m.t.Error("a directory is mapped, and a sweep would not know for whom")
	}
	return dir, nil
}

func (m *watchfulMapper) KeepMapped(context.Context, string, []IDMap) error {
	m.kept++
	if m.s.mapping.TryRLock() {
		m.s.mapping.RUnlock()
		m.t.Error("a directory may be mapped while mappings are ended")
	}
	return nil
}

func TestMapping(t *testing.T) {
	m := &watchfulMapper{t: t}
	s := newSnapshotter(t, Options{Mapper: m})
	m.s = s
	if _, err := s.Prepare(t.Context(), "x", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "base", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(t.Context(), "view", "base", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:100000:65536",
	})); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.mapped != 1 || m.kept == 0 {
		t.Errorf("mapped %d times, kept %d times", m.mapped, m.kept)
	}
}

// TestLinkSuffix: directories that CRC-32 takes for one another have names of their own.
func TestLinkSuffix(t *testing.T) {
	const a, b = "plumless", "buckeroo"
	if crc32.ChecksumIEEE([]byte(a)) != crc32.ChecksumIEEE([]byte(b)) {
		t.Fatal("the words do not collide")
	}
	if x, y := linkSuffix(a), linkSuffix(b); x == y || len(x) != 17 || strings.ContainsAny(x, ":,\\/") {
		t.Errorf("%q and %q, want 17 bytes each that a mount's options take", x, y)
	}
}
