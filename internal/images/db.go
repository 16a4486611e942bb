package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/layers/lazy"
)

// The database's buckets. Values are JSON.
//
//	names      reference                    → nameRow
//	manifests  manifest digest              → manifestRow
//	layers     layer key (see layerKey)     → layerRow
//	trees      tree ID                      → treeRow
//	mounts     target directory             → control.Mount
//	distrusted root of a published index, digest of a SOCI index or ztoc → Quarantine
//	left       image as a snapshotter asked for it → leftRow
//	meta       "format", "boot"
var buckets = []string{"names", "manifests", "layers", "trees", "mounts", "distrusted", "left", "meta"}

// format is the version of the database. It grows when an older daemon could
// misread what a newer one wrote.
const format = 2 // 2: mapped layers, SOCI's, quarantine

// nameRow is what a reference stands for.
type nameRow struct {
	Manifest digest.Digest
	Pulled   time.Time
}

// manifestRow is an image that is known, whole: with every layer usable.
type manifestRow struct {
	Desc     ocispec.Descriptor
	Source   string // reference its blobs are fetched by
	Manifest []byte
	Config   []byte
	Layers   []string // layer keys, lowest first
	Tree     string
	Platform string
	Aliased  *aliased `json:",omitempty"`
	// Asked is what snapshotters call the image, the newest last; see unnamed.go.
	Asked   []string  `json:",omitempty"`
	AskedAt time.Time `json:",omitzero"` // the last time
	// Quarantine is not nil if nothing may be started on the image.
	Quarantine *Quarantine `json:",omitempty"`
}

// The origins of a layer's index.
const (
	OriginTOC       = "toc"       // a table of contents in the layer, which its manifest vouches for
	OriginOwn       = "own"       // this node made it from all of the layer's bytes
	OriginSOCI      = "soci"      // SOCI's program made it, and its manifest vouches for it or this node's configuration believes anybody
	OriginPublished = "published" // somebody published it, and this node's configuration believes them
)

// layerRow is a layer whose index is on disk.
type layerRow struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
	Source string // reference its blob is fetched by
	Format string // "estargz", "zstd:chunked", "gzip", "zstd" or "tar"
	Why    string // why it is not lazy
	Origin string // of its index
	// Mapped layers are read by a map of their stored bytes.
	Mapped   bool
	Root     string        // of the published index that it is from, or the digest of SOCI's
	ZTOC     digest.Digest `json:",omitempty"` // of SOCI; "": none
	Settled  bool          // what the ztoc says was proven, and aliases are known by their sums: see soci.go
	Signer   string        // ID of the key that signed that; "": nobody
	Lied     bool          // the index was found to promise other bytes than the layer has
	Complete bool          // every object has been seen in the store
	// Durable: what cannot be fetched piecewise again (an unpacked layer's
	// index and objects) has passed a barrier.
	Durable bool
}

// lazy says whether what is missing of the layer can be fetched piecewise.
func (l *layerRow) lazy() bool {
	return l.Mapped || l.Origin == OriginSOCI || l.Format == lazy.EStargz || l.Format == lazy.ZstdChunked
}

// origin is where the layer's index came from. Rows of before do not say.
func (l *layerRow) origin() string {
	switch {
	case l.Origin != "":
		return l.Origin
	case l.lazy():
		return OriginTOC
	}
	return OriginOwn
}

// treeRow is a metadata image on disk.
type treeRow struct {
	Layers  []string
	Sealed  bool
	Durable bool
	Files   int64
	Bytes   int64
}

// bootRow tells whether what was written before is still to be believed.
type bootRow struct {
	ID    string // /proc/sys/kernel/random/boot_id
	Clean bool   // the daemon was stopped after a barrier
}

type db struct{ *bolt.DB }

// openDB opens or makes the database. It waits a while for another process
// that is about to let go of it.
func openDB(path string) (*db, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 10 * time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d := &db{b}
	err = d.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		var have int
		switch err := get(tx, "meta", "format", &have); {
		case errors.Is(err, fs.ErrNotExist):
			return put(tx, "meta", "format", format)
		case err != nil:
			return err
		case have > format:
			return fmt.Errorf("%w: format %d, this version knows %d", ErrNewer, have, format)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), b.Close())
	}
	return d, nil
}

// ErrNewer says that a later version of snapfs wrote the state.
var ErrNewer = errors.New("state of a newer version of snapfs")

// get decodes the value of key; fs.ErrNotExist if there is none.
func get(tx *bolt.Tx, bucket, key string, v any) error {
	raw := tx.Bucket([]byte(bucket)).Get([]byte(key))
	if raw == nil {
		return fmt.Errorf("%s %s: %w", bucket, key, fs.ErrNotExist)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("database: %s %s: %w", bucket, key, err)
	}
	return nil
}

func put(tx *bolt.Tx, bucket, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(bucket)).Put([]byte(key), raw)
}

func del(tx *bolt.Tx, bucket, key string) error {
	return tx.Bucket([]byte(bucket)).Delete([]byte(key))
}

// each calls f with every row of a bucket, decoded as a T.
func each[T any](tx *bolt.Tx, bucket string, f func(key string, row *T) error) error {
	return tx.Bucket([]byte(bucket)).ForEach(func(k, raw []byte) error {
		row := new(T)
		if err := json.Unmarshal(raw, row); err != nil {
			return fmt.Errorf("database: %s %s: %w", bucket, k, err)
		}
		return f(string(k), row)
	})
}
