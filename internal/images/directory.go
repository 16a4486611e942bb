package images

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/plain"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
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
	_, err := s.trees.do(ctx, s.base, k.Tree+" directory", nil, func(ctx context.Context, _ func(control.Progress)) (*treeRow, error) {
		return nil, s.writeDirectory(ctx, k)
	})
	if err != nil {
		return control.Rootfs{}, fmt.Errorf("image %s: as a directory: %w", k.Ref, err)
	}
	return control.Rootfs{Image: k.Tree, Lower: []string{s.directoryPath(k.Tree), s.directoryPath(noFiles)}}, nil
}

// writeDirectory may take minutes: meanwhile pins, and no lock that others wait
// for, keep what it reads and what it writes. What is left by a process that is
// killed has the next one collect. Somebody who has given up may still be at the
// same image, so each has a directory of its own until it is whole.
func (s *Service) writeDirectory(ctx context.Context, k *Known) (err error) {
	at, part := s.directoryPath(k.Tree), "."+k.Tree
	if _, err := os.Stat(at); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(s.directoryPath(noFiles), 0o700); err != nil {
		return err
	}
	defer s.pinNames(append([]string{k.Tree, part}, k.Layers...)...)()
	t, err := s.merge(k.Layers, nil)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.directoryPath(""), part+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	whole := filepath.Join(tmp, "whole")
	err = plain.Write(whole, t, func(sum layers.Sum, p []byte, off int64) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return s.Store.ReadAt(sum, p, off)
	})
	if err == nil {
		err = syncFS(tmp)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(whole, at); !errors.Is(err, iofs.ErrExist) { // else another was faster
		return err
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
// and what was left of one. Who writes one has pinned it.
func (s *Service) sweepDirectories(keep map[string]bool) error {
	list, err := os.ReadDir(s.directoryPath(""))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	for _, e := range list {
		if name, _, _ := strings.Cut(e.Name(), "-"); name != noFiles && !keep[name] {
			err = errors.Join(err, os.RemoveAll(s.directoryPath(e.Name())))
		}
	}
	return err
}
