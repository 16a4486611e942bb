package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/estargz"
	"github.com/snapfs/snapfs/layers/indexfile"
)

// builds is the making of one metadata image: medians, in milliseconds.
type builds struct {
	Files                           int
	Open, Keep, Merge, Write, Total float64
	PeakMB                          float64 // the most of all
}

const tocLayers = 5

// images measures what it costs to make and mount metadata images.
func (s *stand) images(ctx context.Context, c *config, r *result) error {
	for _, n := range []int{30_000, 300_000} {
		step("metadata of %d files", n)
		var args []string
		for i := range tocLayers {
			path := s.path(fmt.Sprintf("toc-%d-%d", n, i))
			d, err := writeTOC(path, i, n/tocLayers)
			if err != nil {
				return err
			}
			args = append(args, path, d.String())
		}
		b, err := s.builds(ctx, min(c.Rounds, 5), args)
		if err != nil {
			return err
		}
		b.Files = n
		r.Builds = append(r.Builds, b)
		if n == 30_000 {
			if r.Mounts, err = s.mounts(c.Rounds); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeTOC writes a layer of n files in directories of 20 that consists of a hole
// and its table of contents.
func writeTOC(path string, layer, n int) (_ digest.Digest, err error) {
	doc := &stargz.JTOC{Version: 1}
	off := int64(512)
	const at = "2024-05-01T10:20:30Z"
	for i := range n {
		dir := fmt.Sprintf("usr/lib/layer%d/package%d/", layer, i/20)
		if i%20 == 0 {
			doc.Entries = append(doc.Entries, &stargz.TOCEntry{Name: dir, Type: "dir", Mode: 0o755, ModTime3339: at})
		}
		sum := layers.SumOf(fmt.Append(nil, layer, i)).String()
		doc.Entries = append(doc.Entries, &stargz.TOCEntry{
			Name: fmt.Sprintf("%ssome_module_name_%d.py", dir, i), Type: "reg", Mode: 0o644, Size: 5000,
			ModTime3339: at, Digest: sum, ChunkDigest: sum, Offset: off,
		})
		off += 2000
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return "", err
	}
	return stargz.NewGzipCompressorWithLevel(6).WriteTOCAndFooter(f, off, doc, nil)
}

// builds makes the image of the layers some times, each in a process of its own.
func (s *stand) builds(ctx context.Context, rounds int, args []string) (b builds, err error) {
	var open, keep, merge, write, total []float64
	for range rounds {
		if err := ctx.Err(); err != nil {
			return b, err
		}
		cmd, err := self(append([]string{verbBuild, s.path("built.erofs")}, args...)...)
		if err != nil {
			return b, err
		}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return b, fmt.Errorf("build: %w", err)
		}
		var one builds
		if err := json.Unmarshal(out, &one); err != nil {
			return b, err
		}
		open, keep, merge = append(open, one.Open), append(keep, one.Keep), append(merge, one.Merge)
		write, total = append(write, one.Write), append(total, one.Total)
		b.PeakMB = max(b.PeakMB, one.PeakMB)
	}
	b.Open, b.Keep, b.Merge, b.Write, b.Total = median(open), median(keep), median(merge), median(write), median(total)
	return b, nil
}

// build is that process: what internal/images does with an image that it sees first.
func build(ctx context.Context, path string, layerArgs []string, out io.Writer) error {
	debug.SetMemoryLimit(128 << 20) // cmd/snapd's
	debug.SetGCPercent(50)
	var b builds
	last := time.Now()
	lap := func(d *float64) {
		now := time.Now()
		*d += now.Sub(last).Seconds() * 1e3
		b.Total += now.Sub(last).Seconds() * 1e3
		last = now
	}
	var list []*layers.Index
	for i := 0; i < len(layerArgs); i += 2 {
		ix, err := openTOC(ctx, layerArgs[i], digest.Digest(layerArgs[i+1]))
		if err != nil {
			return err
		}
		lap(&b.Open)
		if err := indexfile.Write(layerArgs[i]+".idx", ix); err != nil {
			return err
		}
		lap(&b.Keep)
		list = append(list, ix)
	}
	var t *fs.Tree
	for _, ix := range list {
		var err error
		if t, err = fs.Merge(t, ix); err != nil {
			return err
		}
	}
	lap(&b.Merge)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = erofs.Write(f, t, erofs.Options{})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	lap(&b.Write)
	if b.PeakMB, err = peak(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(b)
}

func openTOC(ctx context.Context, path string, want digest.Digest) (*layers.Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return estargz.Open(ctx, blob{f, st.Size()}, want)
}

// blob is a layer in a file.
type blob struct {
	f    *os.File
	size int64
}

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }
func (b blob) Size() int64                                                { return b.size }

// peak is the most memory that this process had resident, MB. getrusage would
// count the parent's, of before the exec (fs/exec.c exec_mmap).
func peak() (float64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(v, "kB")))
			return float64(kib) * 1024 / 1e6, err
		}
	}
	return 0, errors.New("/proc/self/status: no VmHWM")
}

// mounts times mounting the image that builds made last, and overlay.
func (s *stand) mounts(rounds int) ([]row, error) {
	image := s.path("known")
	if err := os.Mkdir(image, 0o700); err != nil {
		return nil, err
	}
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	var times [2][]spent
	for round := range rounds {
		for i := range 2 {
			i = (i + round) % 2
			dir := s.path(fmt.Sprintf("mount-%d-%d", round, i))
			for _, d := range []string{dir, dir + ".upper", dir + ".work"} {
				if err := os.Mkdir(d, 0o755); err != nil {
					return nil, err
				}
			}
			t, err := s.time(op{do: func(*system, *treeInfo) error { return s.mountOne(i == 1, image, dir) }}, nil)
			times[i] = append(times[i], t)
			if err := errors.Join(err, mounts.Clear(dir), mounts.Clear(image)); err != nil {
				return nil, err
			}
		}
	}
	const name = "mount 30,000 files"
	return []row{newRow(name, "overlay", times[0], times[0]), newRow(name, "ours", times[1], times[0])}, nil
}

func (s *stand) mountOne(ours bool, image, dir string) error {
	if !ours {
		return attach(s.path("plain"), nil, dir)
	}
	if err := mounts.MountErofs(s.path("built.erofs"), image); err != nil {
		return err
	}
	return attach(image, s.data, filepath.Clean(dir))
}
