package images

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/plain"
	"github.com/snapfs/snapfs/internal/control"
)

// On a kernel that cannot mount metadata images, an image is an ordinary
// directory: ROOT/directories/<tree>. It is whole before anybody sees it, so it
// is there or not, and nothing is read by way of the daemon.

// noFiles is an empty directory, since an overlay has two layers at least.
const noFiles = "none"

func (s *Service) directoryPath(tree string) string {
	return filepath.Join(s.Root, "directories", tree)
}

// directory fetches all of an image and writes it as a directory, if that is not
// there, and says how to mount it.
func (s *Service) directory(ctx context.Context, k *Known) (control.Rootfs, error) {
	if err := s.CompleteNow(ctx, k, nil); err != nil {
		return control.Rootfs{}, fmt.Errorf("image %s: it has to be local as a whole on this kernel: %w", k.Ref, err)
	}
	k = s.current(k)
	_, err := s.trees.do(ctx, s.base, k.Tree+" directory", nil, func(context.Context, func(control.Progress)) (*treeRow, error) {
		s.live.RLock()
		defer s.live.RUnlock()
		return nil, s.writeDirectory(k)
	})
	if err != nil {
		return control.Rootfs{}, fmt.Errorf("image %s: as a directory: %w", k.Ref, err)
	}
	return control.Rootfs{Image: k.Tree, Lower: []string{s.directoryPath(k.Tree), s.directoryPath(noFiles)}}, nil
}

func (s *Service) writeDirectory(k *Known) error {
	at := s.directoryPath(k.Tree)
	if _, err := os.Stat(at); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(s.directoryPath(noFiles), 0o700); err != nil {
		return err
	}
	t, err := s.merge(k.Layers, nil)
	if err != nil {
		return err
	}
	tmp := s.directoryPath("." + k.Tree)
	if err := os.RemoveAll(tmp); err != nil { // of a worker that was killed
		return err
	}
	err = plain.Write(tmp, t, s.Store.ReadAt)
	if err == nil {
		err = syncFS(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, at)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

// syncFS writes what the file system of dir has not written yet: a directory
// that has its name is believed after a power cut.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// sweepDirectories removes the directories of images that are not to be kept,
// and what was left of one. Nobody writes one meanwhile.
func (s *Service) sweepDirectories(keep map[string]bool) error {
	list, err := os.ReadDir(s.directoryPath(""))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	for _, e := range list {
		if name := e.Name(); name != noFiles && !keep[name] {
			err = errors.Join(err, os.RemoveAll(s.directoryPath(name)))
		}
	}
	return err
}
