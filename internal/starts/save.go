package starts

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

const (
	// recordFile is a container's record, in its directory.
	recordFile = "start.json"
	// maxRecord bounds a file. 64 waits and 256 phases take a tenth of it.
	maxRecord = 1 << 20
	// maxRecords is how many records of images are kept, the newest.
	maxRecords = 512
	// pruneEvery is how many records are saved before old ones are looked for.
	pruneEvery = 32
)

func mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

var digestOK = regexp.MustCompile(`^[a-z0-9]+:[0-9a-f]{32,128}$`)

// imageFile is where the record of an image is; "" for what is no digest.
func (b *Book) imageFile(digest, kind string) string {
	if !digestOK.MatchString(digest) {
		return ""
	}
	name := strings.ReplaceAll(digest, ":", "-")
	if kind == Pull {
		name += "-pull"
	}
	return filepath.Join(b.o.Dir, name+".json")
}

// save keeps a record. One that cannot be kept is no reason for anything to fail.
func (b *Book) save(r control.Start) {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // a struct of plain fields has a JSON form
	}
	// A container removed meanwhile has no directory any more.
	if r.Container != "" {
		if err := write(filepath.Join(b.o.ContainerDir(r.Container), recordFile), raw); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.o.Log.Warn("record of a start", "container", r.Container, "err", err)
		}
	}
	file := b.imageFile(r.Digest, r.Kind)
	if file == "" { // it failed before it was known what it is
		return
	}
	if err := write(file, raw); err != nil {
		b.o.Log.Warn("record of a start", "ref", r.Ref, "err", err)
	}
	b.mu.Lock()
	b.saves++
	prune := b.saves%pruneEvery == 0
	b.mu.Unlock()
	if prune {
		b.prune()
	}
}

// write replaces a file. It is not synced: what a power cut costs is a story.
func write(name string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".start-")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// load reads a record. A torn one is an error, as after a power cut.
func load(name string) (r control.Start, err error) {
	if name == "" {
		return r, fs.ErrNotExist
	}
	f, err := os.Open(name)
	if err != nil {
		return r, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return r, err
	}
	return decode(raw)
}

func decode(raw []byte) (r control.Start, err error) {
	if len(raw) > maxRecord {
		return r, fmt.Errorf("record of a start: more than %d bytes", maxRecord)
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return control.Start{}, fmt.Errorf("record of a start: %w", err)
	}
	return r, nil
}

// prune removes the oldest records, and what a killed worker left half-written.
func (b *Book) prune() {
	entries, err := os.ReadDir(b.o.Dir)
	if err != nil {
		b.o.Log.Warn("records of starts", "err", err)
		return
	}
	type record struct {
		name string
		at   time.Time
	}
	var all []record
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // another prune has removed it
		}
		if strings.HasPrefix(e.Name(), ".start-") {
			if time.Since(info.ModTime()) > time.Minute {
				os.Remove(filepath.Join(b.o.Dir, e.Name()))
			}
			continue
		}
		all = append(all, record{e.Name(), info.ModTime()})
	}
	slices.SortFunc(all, func(x, y record) int { return cmp.Or(y.at.Compare(x.at), cmp.Compare(x.name, y.name)) })
	for _, r := range all[min(len(all), maxRecords):] {
		os.Remove(filepath.Join(b.o.Dir, r.name))
	}
}
