package images

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/index"
)

// profilePath is where the boot profile of an image is kept, as JSON: for people
// to look at, too.
func (s *Service) profilePath(manifest digest.Digest) string {
	return filepath.Join(s.Root, "profiles", manifest.Encoded()+".json")
}

// maxProfile bounds the file: index.MaxItems with room for their JSON.
const maxProfile = 16 << 20

// profile is what is known of an image's starts; nil: nothing. One that is torn
// is none: the next start makes another.
func (s *Service) profile(manifest digest.Digest) *index.Profile {
	path := s.profilePath(manifest)
	if fi, err := os.Stat(path); err != nil || fi.Size() > maxProfile {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		s.Log.Warn("boot profile", "manifest", manifest, "err", err)
		return nil
	}
	p := new(index.Profile)
	if err := errors.Join(json.Unmarshal(b, p), p.Check()); err != nil {
		s.Log.Warn("boot profile dropped", "manifest", manifest, "err", err)
		return nil
	}
	return p
}

// keepProfile replaces the profile of an image.
func (s *Service) keepProfile(manifest digest.Digest, p *index.Profile) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := s.profilePath(manifest)
	f, err := os.CreateTemp(filepath.Dir(path), ".profile-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func profileInfo(p *index.Profile) control.ProfileInfo {
	if p == nil {
		return control.ProfileInfo{}
	}
	return control.ProfileInfo{Starts: p.Starts, Chunks: len(p.Items), Bytes: p.Bytes()}
}

// sweepProfiles removes those of images that are gone.
func (s *Service) sweepProfiles() error {
	names, err := os.ReadDir(filepath.Join(s.Root, "profiles"))
	if err != nil {
		return err
	}
	for _, e := range names {
		hex := strings.TrimSuffix(e.Name(), ".json")
		if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", "sha256:"+hex, new(manifestRow)) }) != nil {
			err = errors.Join(err, os.Remove(filepath.Join(s.Root, "profiles", e.Name())))
		}
	}
	return err
}
