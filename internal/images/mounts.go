package images

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
)

// MountMarks is the directory of RUN that has a file for every recorded mount:
// the supervisor, which has no database, leaves FUSE alive while there is one.
// A reboot empties it, as it ends the mounts.
const MountMarks = "mounts"

func (s *Service) mark(target string) string {
	sum := sha256.Sum256([]byte(target))
	return filepath.Join(s.Run, MountMarks, hex.EncodeToString(sum[:16]))
}

// RecordMount notes that somebody has mounted an image, so that the image stays.
func (s *Service) RecordMount(m control.Mount) error {
	s.live.RLock() // whoever removes images looks at the mounts with it
	defer s.live.RUnlock()
	if s.knownTree(strings.TrimSuffix(m.Rootfs.Image, sealedSuffix)) == nil {
		return fmt.Errorf("image %s: it was removed meanwhile: %w", m.Ref, fs.ErrNotExist)
	}
	if err := os.MkdirAll(filepath.Join(s.Run, MountMarks), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(s.mark(m.Target), []byte(m.Target+"\n"), 0o600); err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return put(tx, "mounts", m.Target, m) }); err != nil {
		return err
	}
	s.uses.settle(m.Target)
	s.event(events.Mount, m.Ref, "target", m.Target)
	return nil
}

// ForgetMount undoes RecordMount, or Prepared.
func (s *Service) ForgetMount(target string) error {
	s.uses.settle(target)
	if err := os.Remove(s.mark(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var m control.Mount
	if err := s.db.Update(func(tx *bolt.Tx) error {
		if err := get(tx, "mounts", target, &m); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no image is mounted at %s: %w", target, fs.ErrNotExist)
		}
		return del(tx, "mounts", target)
	}); err != nil {
		return err
	}
	s.event(events.Unmount, m.Ref, "target", target)
	return nil
}

// Mounts lists the recorded mounts.
func (s *Service) Mounts() (all []control.Mount, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "mounts", func(_ string, m *control.Mount) error {
			all = append(all, *m)
			return nil
		})
	})
	return all, err
}

// dropDeadMounts forgets mounts that ended with the boot they were made in.
func (s *Service) dropDeadMounts() error {
	all, err := s.Mounts()
	if err != nil {
		return err
	}
	for _, m := range all {
		if _, err := os.Lstat(s.mark(m.Target)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := s.ForgetMount(m.Target); err != nil {
			return err
		}
	}
	return nil
}
