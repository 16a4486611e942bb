package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Blob returns the descriptor of a blob of any image or layer in the book, and
// the references that it can be had by. Of manifests and configs data is all
// bytes. It does not touch the network. The error is fs.ErrNotExist if the blob
// is not known.
func (s *Service) Blob(dgst digest.Digest) (desc ocispec.Descriptor, sources []string, data []byte, err error) {
	if err := dgst.Validate(); err != nil {
		return desc, nil, nil, err
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		prefix := []byte(dgst.Encoded()) // see layerKey
		c := tx.Bucket([]byte("layers")).Cursor()
		for k, raw := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, raw = c.Next() {
			var l layerRow
			if err := json.Unmarshal(raw, &l); err != nil {
				return fmt.Errorf("database: layers %s: %w", k, err)
			}
			if l.Desc.Digest == dgst && !slices.Contains(sources, l.Source) {
				desc, sources = l.Desc, append(sources, l.Source)
			}
		}
		if len(sources) > 0 {
			return nil
		}
		var m manifestRow
		switch err := get(tx, "manifests", dgst.String(), &m); {
		case err == nil:
			desc, data = m.Desc, m.Manifest
		case !errors.Is(err, fs.ErrNotExist):
			return err
		default:
			of, err := s.configs.find(tx, dgst)
			if err != nil {
				return err
			}
			if err := get(tx, "manifests", of, &m); err != nil {
				return err
			}
			desc, data = ocispec.Descriptor{Digest: dgst, Size: int64(len(m.Config))}, m.Config
		}
		sources = []string{m.Source}
		return nil
	})
	if err == nil && data != nil && dgst.Algorithm().FromBytes(data) != dgst {
		err = fmt.Errorf("database: document %s has other bytes", dgst)
	}
	return desc, sources, data, err
}

// configs remembers which manifest has which config, since rows are by manifest
// and take long to decode. The zero value is ready.
type configs struct {
	mu sync.Mutex
	of map[string]digest.Digest // manifest → its config, "" if that cannot be told
}

// find returns the manifest that has a config.
func (c *configs) find(tx *bolt.Tx, config digest.Digest) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := make(map[string]digest.Digest, len(c.of))
	manifest := ""
	err := tx.Bucket([]byte("manifests")).ForEach(func(k, raw []byte) error {
		d, known := c.of[string(k)]
		if !known {
			var row struct{ Manifest []byte }
			var m ocispec.Manifest
			if err := json.Unmarshal(raw, &row); err != nil {
				return fmt.Errorf("database: manifests %s: %w", k, err)
			}
			if json.Unmarshal(row.Manifest, &m) == nil {
				d = m.Config.Digest
			}
		}
		if have[string(k)] = d; d == config {
			manifest = string(k)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if c.of = have; manifest == "" {
		return "", fmt.Errorf("blob %s: %w", config, fs.ErrNotExist)
	}
	return manifest, nil
}
