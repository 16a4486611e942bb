package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/containerd"

	"github.com/snapfs/snapfs/layers"
)

// chunkSize is layers.ChunkSize: what is fetched and verified as a unit.
const chunkSize = layers.ChunkSize

// touched is what a start reads of its image: the least that has to come.
//
// It is found without our own code: the image is unpacked by containerd on a new
// file system, the page cache is dropped, the kernel's read-ahead is turned off,
// the task is started, and when it is ready mincore(2) tells which pages of the
// image's files are in the page cache.
type touched struct {
	Image  string `json:"image"`
	Files  int    `json:"files"`  // with a page that was read
	Pages  int64  `json:"pages"`  // bytes of these pages
	Chunks int    `json:"chunks"` // of 64 KiB of a file, the last one shorter, with such a page; equal ones once
	Plain  int64  `json:"plain"`  // bytes of these chunks
	Gzip   int64  `json:"gzip"`   // each compressed by itself, gzip -6
	Zstd   int64  `json:"zstd"`   // all in one zstd stream, of the best level there is
}

// touch measures it.
func (b *bench) touch(ctx context.Context, t task) (f *touched, err error) {
	err = undisturbed(func() error {
		f, err = b.touchOnce(ctx, t)
		return err
	})
	return f, err
}

// errDisturbed: what was measured is not what was meant.
var errDisturbed = errors.New("another program drops the page cache all the time")

// undisturbed does something until nobody else drops the page cache meanwhile,
// a few times at most. f itself must drop it once.
func undisturbed(f func() error) error {
	for range 4 {
		before, err := drops()
		if err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		after, err := drops()
		if err != nil || after <= before+1 {
			return err
		}
	}
	return errDisturbed
}

// drops is how often the page cache has been dropped since the machine started.
func drops() (n int64, err error) {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "drop_pagecache "); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, errors.New("/proc/vmstat: no drop_pagecache")
}

func (b *bench) touchOnce(ctx context.Context, t task) (f *touched, err error) {
	up := func(ctx context.Context, _ *bench, n *node, _ string) (client, error) {
		return startContainerd(ctx, n, "overlayfs", containerd.Settings["overlayfs-par"])
	}
	err = b.onNode(ctx, up, func(ctx context.Context, c client) error {
		n := c.(*ctrClient).n
		name := ref(b.host, formPlain, t.Image)
		if err := c.pull(ctx, name); err != nil {
			return err
		}
		if err := errors.Join(n.disk.ReadAhead(0), dropCaches()); err != nil {
			return err
		}
		began := time.Now()
		s, err := c.start("touch", name, t)
		if err != nil {
			return err
		}
		_, err = s.untilReady(ctx, t.Ready, func() (int, error) { return c.pid(ctx, "touch") })
		if err == nil {
			layers := filepath.Join(n.dir, "root/io.containerd.snapshotter.v1.overlayfs/snapshots")
			f, err = countTouched(layers, began)
		}
		return errors.Join(err, c.stop(context.WithoutCancel(ctx), "touch", s))
	})
	if f != nil {
		f.Image = t.Image
	}
	return f, err
}

// countTouched counts what of the files below dir is in the page cache. Files
// made or changed after began are the container's own.
func countTouched(dir string, began time.Time) (*touched, error) {
	f := new(touched)
	seen := make(map[[32]byte]bool)
	var size counting
	z, err := zstd.NewWriter(&size, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return nil, err
	}
	g, err := gzip.NewWriterLevel(nil, 6)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the container's own, which may have ended
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		if st.Size == 0 || time.Unix(st.Ctim.Unix()).After(began) {
			return nil
		}
		return f.addFile(p, st.Size, func(chunk []byte) error {
			sum := sha256.Sum256(chunk)
			if seen[sum] {
				return nil
			}
			seen[sum] = true
			f.Chunks++
			f.Plain += int64(len(chunk))
			var one counting
			g.Reset(&one)
			_, err := g.Write(chunk)
			_, zerr := z.Write(chunk)
			err = errors.Join(err, g.Close(), zerr)
			f.Gzip += int64(one)
			return err
		})
	})
	err = errors.Join(err, z.Close())
	f.Zstd = int64(size)
	return f, err
}

// addFile calls each with the chunks of a file that have a page in the page cache.
func (f *touched) addFile(name string, size int64, each func([]byte) error) (err error) {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	m, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap %s: %w", name, err)
	}
	defer unix.Munmap(m)
	page := os.Getpagesize()
	in := make([]byte, (int(size)+page-1)/page)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&in[0]))); e != 0 {
		return fmt.Errorf("mincore %s: %w", name, e)
	}
	read := false
	for off := 0; off < int(size); off += chunkSize {
		end := min(off+chunkSize, int(size))
		pages := bytes.Count(clearRest(in[off/page:(end+page-1)/page]), []byte{1})
		if pages == 0 {
			continue
		}
		read = true
		f.Pages += int64(pages * page)
		if err := each(m[off:end]); err != nil {
			return err
		}
	}
	if read {
		f.Files++
	}
	return nil
}

// clearRest leaves the one bit of each byte that mincore(2) gives a meaning.
func clearRest(in []byte) []byte {
	for i := range in {
		in[i] &= 1
	}
	return in
}

// counting counts the bytes written to it.
type counting int64

func (c *counting) Write(p []byte) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}

// dropCaches makes everything on disk cold. It is felt by the whole machine.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}
