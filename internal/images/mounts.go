package images

import (
	"errors"
	"fmt"
	"io/fs"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
)

// RecordMount notes that somebody has mounted an image, so that the image stays.
func (s *Service) RecordMount(m control.Mount) error {
	return s.db.Update(func(tx *bolt.Tx) error { return put(tx, "mounts", m.Target, m) })
}

// ForgetMount undoes RecordMount.
func (s *Service) ForgetMount(target string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if err := get(tx, "mounts", target, new(control.Mount)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no image is mounted at %s: %w", target, fs.ErrNotExist)
		}
		return del(tx, "mounts", target)
	})
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
