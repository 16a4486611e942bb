package blobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
)

// labelFiles keep the labels of those who use the store without containerd's
// metadata store in front, which keeps labels itself.
type labelFiles struct {
	dir string
	mu  sync.Mutex // held while files are read or written
}

var _ local.LabelStore = (*labelFiles)(nil)

func (l *labelFiles) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", err
	}
	return filepath.Join(l.dir, fileName(d)), nil
}

// tidy removes what a crash has left of files that were being written.
func (l *labelFiles) tidy() error {
	files, err := os.ReadDir(l.dir)
	for _, f := range files {
		if strings.HasPrefix(f.Name(), tmpPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(l.dir, f.Name())))
		}
	}
	return err
}

// Get returns the labels of a blob.
func (l *labelFiles) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.get(d)
}

func (l *labelFiles) get(d digest.Digest) (m map[string]string, err error) {
	path, err := l.path(d)
	if err != nil {
		return nil, nil //nolint:nilerr // local.Walk asks of stray files, too: they have no labels
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		if err = json.Unmarshal(raw, &m); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}
	return m, err
}

// Set replaces the labels of a blob.
func (l *labelFiles) Set(d digest.Digest, m map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set(d, m)
}

func (l *labelFiles) set(d digest.Digest, m map[string]string) error {
	path, err := l.path(d)
	if err != nil {
		return err
	}
	if len(m) == 0 {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeFile(path, raw, true)
}

// Update changes some labels of a blob; "" removes one.
func (l *labelFiles) Update(d digest.Digest, changes map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := l.get(d)
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = map[string]string{}
	}
	for k, v := range changes {
		if m[k] = v; v == "" {
			delete(m, k)
		}
	}
	return m, l.set(d, m)
}
