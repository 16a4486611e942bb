package equal

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"

	"github.com/snapfs/snapfs/fs/mounts"
)

// theirs is a stack of layers as containerd's overlayfs snapshotter has it.
type theirs struct {
	dirs []string // unpacked layers, highest first
}

// unpack adds a layer like core/diff/apply does with the mounts of an overlayfs
// snapshot.
func (s *theirs) unpack(ctx context.Context, base string, r io.Reader) error {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	upper, err := os.MkdirTemp(base, "layer-")
	if err != nil {
		return err
	}
	if err := os.Chmod(upper, 0o755); err != nil {
		return err
	}
	opts := []archive.ApplyOpt{archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)}
	if len(s.dirs) > 0 {
		opts = append(opts, archive.WithParents(s.dirs))
	}
	if _, err := archive.Apply(ctx, upper, plain, opts...); err != nil {
		return err
	}
	s.dirs = append([]string{upper}, s.dirs...)
	return nil
}

// unpackThrough adds a layer by unpacking it through an overlay of those below,
// as containerd does where it cannot write into the upper directory itself. So
// links lead to lower layers, too, and overlayfs copies up what they lead to.
func (s *theirs) unpackThrough(t *testing.T, base string, b []byte) error {
	upper, err := os.MkdirTemp(base, "layer-")
	if err != nil {
		return err
	}
	if err := os.Chmod(upper, 0o755); err != nil {
		return err
	}
	merged := upper
	if len(s.dirs) > 0 {
		m, unmount := overlay(t, mounts.Rootfs{Lower: s.dirs, Upper: upper, Work: t.TempDir()})
		defer unmount()
		merged = m
	}
	if _, err := archive.Apply(t.Context(), merged, bytes.NewReader(b)); err != nil {
		return err
	}
	s.dirs = append([]string{upper}, s.dirs...)
	return nil
}

// mount shows the stack as a container sees it.
func (s *theirs) mount(t *testing.T, writable bool) (dir string, unmount func()) {
	dirs := s.dirs
	if len(dirs) == 0 {
		dirs = []string{t.TempDir()}
		if err := os.Chmod(dirs[0], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return overlay(t, rootfs(t, slices.Clone(dirs), nil, writable))
}

func rootfs(t *testing.T, lower, data []string, writable bool) mounts.Rootfs {
	r := mounts.Rootfs{Lower: lower, Data: data}
	if writable {
		r.Upper, r.Work = uppers(t), t.TempDir()
	}
	return r
}

// uppers makes an upper directory like the one a container gets.
func uppers(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// overlay mounts r until unmount is called.
func overlay(t *testing.T, r mounts.Rootfs) (dir string, unmount func()) {
	t.Helper()
	m, err := mounts.Overlay(r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir = t.TempDir()
	if err := mounts.Attach(m, dir); err != nil {
		t.Fatal(err)
	}
	return dir, func() {
		if err := mounts.Unmount(dir, false); err != nil {
			t.Error(err)
		}
	}
}
