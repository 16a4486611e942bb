package images

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
)

// ErrQuarantined says that an image's index has lied: nothing new is started on
// it until it was pulled again, without that index.
var ErrQuarantined = errors.New("image is quarantined")

// A Quarantine says how an index was found to lie.
type Quarantine struct {
	Layer  string // digest of the blob
	Object string // digest of the file with other bytes than promised; "" if it is about names or the whole layer
	Why    string // names the chunk
	At     time.Time
}

func (q *Quarantine) String() string {
	if q.Object == "" {
		return fmt.Sprintf("layer %s: %s", q.Layer, q.Why)
	}
	return fmt.Sprintf("layer %s: object %s: %s", q.Layer, q.Object, q.Why)
}

// Lied notes that the bytes of a layer are not what its index promised, and
// quarantines every image that believes that index. A layer whose table of
// contents its manifest vouches for is not distrusted: its bytes may be better
// the next time, and fail until then. It returns at once.
func (s *Service) Lied(key string, object layers.Sum, cause error) {
	if s.base.Err() == nil {
		s.background.Go(func() { s.lied(key, object, cause) })
	}
}

func (s *Service) lied(key string, object layers.Sum, cause error) {
	q := &Quarantine{Why: cause.Error(), At: time.Now().UTC()}
	if object != (layers.Sum{}) {
		q.Object = object.String()
	}
	var refs []string
	err := s.db.Update(func(tx *bolt.Tx) error {
		var l layerRow
		if err := get(tx, "layers", key, &l); err != nil || l.Lied || l.Settled || !l.distrustable() && object != (layers.Sum{}) {
			return ignoreMissing(err)
		}
		q.Layer = string(l.Desc.Digest)
		l.Lied = true
		if err := put(tx, "layers", key, &l); err != nil {
			return err
		}
		if l.Root != "" {
			if err := put(tx, "distrusted", l.Root, q); err != nil {
				return err
			}
		}
		if l.ZTOC != "" { // another index may name it, too
			if err := put(tx, "distrusted", string(l.ZTOC), q); err != nil {
				return err
			}
		}
		var err error
		refs, err = isolate(tx, key, q)
		return err
	})
	if err != nil {
		s.Log.Error("quarantine", "layer", key, "err", err)
	}
	for _, ref := range refs {
		s.Log.Error("image quarantined: its index lies", "ref", ref, "layer", q.Layer, "object", q.Object, "err", cause)
		s.event(events.Quarantine, ref, "layer", q.Layer, "object", q.Object, "error", cause)
	}
}

// distrustable says whether the layer is known by what somebody has published.
func (l *layerRow) distrustable() bool {
	return l.origin() == OriginPublished || l.origin() == OriginSOCI
}

// isolate marks the images that have a layer, and returns what they are called.
func isolate(tx *bolt.Tx, key string, q *Quarantine) (refs []string, err error) {
	marked := map[string]*manifestRow{}
	err = each(tx, "manifests", func(id string, m *manifestRow) error {
		for _, k := range m.Layers {
			if k == key && m.Quarantine == nil {
				m.Quarantine = q
				marked[id] = m
			}
		}
		return nil
	})
	for id, m := range marked {
		err = errors.Join(err, put(tx, "manifests", id, m))
		refs = append(refs, m.Source)
	}
	return refs, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// startable is nil if a container may be started on the image.
func (k *Known) startable() error {
	if k.Quarantine == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %s; pull it again to have it without that index", ErrQuarantined, familiar(k.Ref), k.Quarantine)
}
