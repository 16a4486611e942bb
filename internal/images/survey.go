package images

import (
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A Survey is what all images together are like. An image is counted once
// however many names it has, and so is a layer that several images share.
type Survey struct {
	Names, Images               int
	Lazy, Complete, Quarantined int   // of Images; one may be all three
	Size, Local                 int64 // stored bytes of the layers, and those of them that are local
}

// survey remembers the last Survey, for who asks often.
type survey struct {
	mu   sync.Mutex
	last Survey
	next time.Time // not again before
}

// Times between two surveys: at least leastSurvey, and so long that surveying
// takes at most a fiftieth of a processor. Every object of every layer that is
// not complete is looked for.
const (
	leastSurvey = 5 * time.Second
	surveyPart  = 50
)

// Survey counts the images. It may be some seconds old.
func (s *Service) Survey() (Survey, error) {
	s.surveyed.mu.Lock()
	defer s.surveyed.mu.Unlock()
	began := time.Now()
	if began.Before(s.surveyed.next) {
		return s.surveyed.last, nil
	}
	v, err := s.survey()
	if err != nil {
		return v, err
	}
	s.surveyed.last = v
	s.surveyed.next = time.Now().Add(max(leastSurvey, surveyPart*time.Since(began)))
	return v, nil
}

func (s *Service) survey() (v Survey, err error) {
	rows := map[string]*layerRow{}
	err = s.db.View(func(tx *bolt.Tx) error {
		v.Names = tx.Bucket([]byte("names")).Stats().KeyN
		if err := each(tx, "layers", func(key string, l *layerRow) error { rows[key] = l; return nil }); err != nil {
			return err
		}
		return each(tx, "manifests", func(_ string, m *manifestRow) error {
			v.count(m, rows)
			return nil
		})
	})
	for key, l := range rows { // outside of the transaction: it reads directories
		v.Size += l.Desc.Size
		v.Local += s.local(key, l)
	}
	return v, err
}

// count adds an image.
func (v *Survey) count(m *manifestRow, rows map[string]*layerRow) {
	v.Images++
	lazy, complete := len(m.Layers) > 0, true
	for _, key := range m.Layers {
		l := rows[key]
		lazy = lazy && l != nil && l.lazy()
		complete = complete && l != nil && l.Complete
	}
	if lazy {
		v.Lazy++
	}
	if complete {
		v.Complete++
	}
	if m.Quarantine != nil {
		v.Quarantined++
	}
}
