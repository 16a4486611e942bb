package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/fs/objectfs"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/objects"
)

// A stand is the tree, shown in all ways.
type stand struct {
	dir     string
	info    treeInfo
	systems []*system
	data    []string // data-only layers of a complete image
	server  *server
}

// A system is one way to show the tree.
type system struct {
	name string
	fd   int // the root of its overlay
}

func (s *stand) path(name string) string { return filepath.Join(s.dir, name) }

// prepare makes the tree in all its forms and mounts them.
func prepare(ctx context.Context, c *config) (_ *stand, err error) {
	s := &stand{dir: c.Work}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	store, err := objects.Open(s.path("store"), objects.Options{})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	t, err := s.fill(ctx, c, store)
	if err != nil {
		return s, err
	}
	step("%d names, %d files, %d MB", s.info.Names, s.info.Regular, s.info.Bytes/1e6)
	if err := s.write(t, store); err != nil {
		return s, err
	}
	if err := store.Barrier(ctx); err != nil {
		return s, err
	}
	if s.server, err = startServer(s.path("lazy"), s.path("store"), s.path("nodes")); err != nil {
		return s, err
	}
	return s, s.mountAll(store.DataDirs())
}

// fill puts the objects of the tree into the store.
func (s *stand) fill(ctx context.Context, c *config, store *objects.Store) (t *fs.Tree, err error) {
	source, list := c.Tree, []*layers.Index{nil}
	if c.Image != "" {
		source = c.Image
		step("unpacking %s", source)
		list, err = fromImage(ctx, c.Image, s.path("scratch"), c.LargeMiB, store)
	} else {
		step("reading %s", source)
		list[0], err = fromDir(c.Tree, c.LargeMiB, store)
	}
	if err != nil {
		return nil, err
	}
	for _, ix := range list {
		if t, err = fs.Merge(t, ix); err != nil {
			return nil, err
		}
	}
	s.info = listTree(source, t)
	return t, nil
}

// write makes the plain directory and both metadata images.
func (s *stand) write(t *fs.Tree, store *objects.Store) error {
	if err := os.Mkdir(s.path("plain"), 0o755); err != nil {
		return err
	}
	if err := writePlain(t, s.path("plain"), store); err != nil {
		return err
	}
	read := func(sum layers.Sum, p []byte) error {
		_, err := io.ReadFull(io.NewSectionReader(reader{store, sum}, 0, int64(len(p))), p)
		return err
	}
	for name, o := range map[string]erofs.Options{
		"open.erofs":   {},
		"sealed.erofs": {InlineMax: objects.MaxPacked, Has: store.Has, Read: read},
	} {
		f, err := os.Create(s.path(name))
		if err != nil {
			return err
		}
		_, err = erofs.Write(f, t, o)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// mountAll mounts the four systems, overlay first.
func (s *stand) mountAll(local []string) error {
	none := []string{s.path("none/objects"), s.path("none/fresh")}
	for i, dir := range none { // a store that lacks what is asked for has the directories nevertheless
		for b := range 256 {
			if err := os.MkdirAll(filepath.Join(none[i], fmt.Sprintf("%02x", b)), 0o700); err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
		}
	}
	lazy := s.path("lazy")
	s.data = append(local, lazy)
	for _, img := range []string{"open", "sealed"} {
		if err := os.Mkdir(s.path(img), 0o700); err != nil {
			return err
		}
		if err := mounts.MountErofs(s.path(img+".erofs"), s.path(img)); err != nil {
			return err
		}
	}
	for _, sys := range []struct {
		name, lower string
		data        []string
	}{
		{"overlay", "plain", nil},
		{"objects", "open", s.data},
		{"fuse", "open", append(none, lazy)},
		{"sealed", "sealed", s.data},
	} {
		dir, err := s.overlay("on-"+sys.name, s.path(sys.lower), sys.data)
		if err != nil {
			return fmt.Errorf("%s: %w", sys.name, err)
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.systems = append(s.systems, &system{name: sys.name, fd: fd})
	}
	return nil
}

// overlay mounts a writable overlay at a new directory.
func (s *stand) overlay(name, lower string, data []string) (dir string, err error) {
	dir = s.path(name)
	for _, d := range []string{dir, dir + ".upper", dir + ".work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	return dir, attach(lower, data, dir)
}

// attach mounts the overlay of a directory that overlay made.
func attach(lower string, data []string, dir string) error {
	f, err := mounts.Overlay(mounts.Rootfs{Lower: []string{lower}, Data: data, Upper: dir + ".upper", Work: dir + ".work"})
	if err != nil {
		return err
	}
	return errors.Join(mounts.Attach(f, dir), f.Close())
}

// close takes everything apart but the files.
func (s *stand) close() (err error) {
	for _, sys := range s.systems {
		err = errors.Join(err, unix.Close(sys.fd), mounts.Clear(s.path("on-"+sys.name)))
	}
	for _, name := range []string{"open", "sealed", "lazy"} {
		if _, serr := os.Lstat(s.path(name)); serr == nil {
			err = errors.Join(err, mounts.Clear(s.path(name)))
		}
	}
	if s.server != nil {
		err = errors.Join(err, s.server.stop())
	}
	return err
}

// A server is the process that serves FUSE.
type server struct {
	cmd *exec.Cmd
	in  io.Closer // ends it
}

// startServer mounts the objects of a store at dir, as the daemon does.
func startServer(dir, store, nodes string) (*server, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	cmd, err := self(verbServe, dir, store, nodes)
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd, in}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("FUSE server: %w", err), s.stop())
	}
	return s, mounts.SetReadAhead(dir, 128) // internal/supervisor's
}

func (s *server) stop() error { return errors.Join(s.in.Close(), s.cmd.Wait()) }

// serve is the process: it ends with its input.
func serve(ctx context.Context, dir, storeDir, table string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store, err := objects.Open(storeDir, objects.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	nodes, err := objectfs.OpenNodes(table)
	if err != nil {
		return err
	}
	defer nodes.Close()
	fd, err := mounts.OpenFuse()
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := mounts.MountFuse(dir, fd); err != nil {
		return err
	}
	init, err := objectfs.Handshake(fd)
	if err != nil {
		return err
	}
	fetcher := fetch.New(fetch.Options{Store: store})
	defer fetcher.Close()
	go func() { // ends with the process
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if _, err := os.Stdout.Write([]byte{1}); err != nil {
		return err
	}
	err = objectfs.Serve(ctx, fd, init, false, objectfs.New(fetcher, nodes, objectfs.Options{}))
	if errors.Is(err, objectfs.ErrGone) {
		return nil
	}
	return err
}
