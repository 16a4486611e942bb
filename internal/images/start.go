package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/registry"
)

// boot brings in what earlier starts of an image have read, in the background:
// from the boot bundle if there is one, else from the layers. It returns at
// once, when readers already wait for what is coming instead of fetching it. src
// is nil if no index was published.
func (s *Service) boot(src *source, row *manifestRow) {
	k := &Known{manifestRow: *row}
	if len(s.incomplete(k.Layers)) == 0 || s.base.Err() != nil {
		return
	}
	p := s.profile(row.Desc.Digest)
	var bundle *ahead
	if src != nil {
		published, err := src.header.Profile(src.prefix)
		switch {
		case err != nil:
			s.Log.Warn("boot profile", "ref", src.ref, "err", err)
		case published != nil:
			if p == nil {
				s.keep(k, published)
			}
			p, bundle, src.bundle = published, src.bundle, nil
		}
	}
	if p == nil {
		p = s.kin(row)
	}
	s.prefetch(k, p, bundle)
}

func (s *Service) prefetch(k *Known, p *index.Profile, bundle *ahead) {
	var items []fetch.Item
	if p != nil {
		items = s.items(k, p)
	}
	if len(items) == 0 {
		if bundle != nil {
			bundle.Close()
		}
		return
	}
	ctx, end := s.booting.begin(s.base, k.Desc.Digest)
	arrived := func() {}
	if bundle != nil {
		arrived = s.Fetcher.Expect(items)
	}
	s.background.Go(func() {
		defer end()
		if bundle != nil {
			err := s.bundle(k, bundle, p)
			arrived()
			if err == nil {
				return
			}
			s.Log.Warn("boot bundle", "ref", k.Source, "err", err)
		}
		if err := s.Fetcher.Prefetch(ctx, items); err != nil && ctx.Err() == nil {
			s.Log.Warn("boot profile", "ref", k.Source, "err", err)
		}
	})
}

// bundle stores the chunks of a boot bundle as they come. Each was compared
// with the profile's sum, and is with the index's by the store. What the image
// does not have is passed over.
func (s *Service) bundle(k *Known, r *ahead, p *index.Profile) error {
	defer r.Close()
	b, err := index.NewBundleReader(r, p)
	if err != nil {
		return err
	}
	defer b.Close()
	for {
		it, plain, err := b.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !s.has(k.Layers, it.Object) {
			continue
		}
		if _, err := s.Fetcher.Insert(it.Object, it.Off, plain); err != nil {
			return fmt.Errorf("chunk at %d of %s: %w", it.Off, it.Object, err)
		}
	}
}

// items are the chunks of a profile that the image has.
func (s *Service) items(k *Known, p *index.Profile) []fetch.Item {
	items := make([]fetch.Item, 0, len(p.Items))
	for _, it := range p.Items {
		if s.has(k.Layers, it.Object) {
			items = append(items, fetch.Item{Object: it.Object, Off: it.Off, Size: it.Size})
		}
	}
	return items
}

// kin is the profile of an image of which none is known: what starts of other
// images of the same repository have read. Items go by content, so of those
// what has changed since is passed over.
func (s *Service) kin(row *manifestRow) (p *index.Profile) {
	ref, err := registry.ParseRef(row.Source)
	if err != nil {
		return nil
	}
	var others []digest.Digest
	s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "manifests", func(_ string, m *manifestRow) error {
			if r, err := registry.ParseRef(m.Source); err == nil && r.Name() == ref.Name() && m.Desc.Digest != row.Desc.Digest {
				others = append(others, m.Desc.Digest)
			}
			return nil
		})
	})
	for _, d := range others {
		if q := s.profile(d); q != nil {
			p = index.Merge(p, q)
		}
	}
	return p
}

// booting knows of which images the boot profile is coming in.
type booting struct {
	mu sync.Mutex
	on map[digest.Digest]chan struct{} // closed at the end
}

func (b *booting) begin(base context.Context, manifest digest.Digest) (context.Context, func()) {
	ctx, cancel := context.WithCancel(base)
	done := make(chan struct{})
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on == nil {
		b.on = map[digest.Digest]chan struct{}{}
	}
	b.on[manifest] = done
	return ctx, func() {
		cancel()
		close(done)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.on[manifest] == done {
			delete(b.on, manifest)
		}
	}
}

// wait returns when no profile of the image is coming in.
func (b *booting) wait(ctx context.Context, manifest digest.Digest) {
	b.mu.Lock()
	done := b.on[manifest]
	b.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// starts are those that are being recorded: what is read until the container is
// ready becomes the image's boot profile.
type starts struct {
	mu    sync.Mutex
	on    map[string]*start // by container
	order []string

	nameless int // starts on what a snapshotter has mounted
}

// another counts in a start that no container's name stands for, if there may be one more.
func (st *starts) another() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.nameless >= maxStarts {
		return false
	}
	st.nameless++
	return true
}

func (st *starts) over() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.nameless--
}

type start struct {
	k   *Known
	rec *fetch.Recording
}

// maxStarts bounds how many starts are recorded at once: containers that were
// created may never be started. The oldest is given up.
const maxStarts = 64

// Prepare records what is read of an image from now on, for the start of a
// container. Ready ends it.
func (s *Service) Prepare(container string, k *Known) {
	st := &start{k: k, rec: s.Fetcher.Record()}
	s.starts.mu.Lock()
	defer s.starts.mu.Unlock()
	if s.starts.on == nil {
		s.starts.on = map[string]*start{}
	}
	if old := s.starts.on[container]; old != nil {
		old.rec.Stop()
	} else {
		s.starts.order = append(s.starts.order, container)
	}
	s.starts.on[container] = st
	if len(s.starts.order) > maxStarts {
		s.starts.drop(s.starts.order[0])
	}
}

// drop ends a recording that is of no use. The lock is held.
func (st *starts) drop(container string) {
	if x := st.on[container]; x != nil {
		x.rec.Stop()
		delete(st.on, container)
	}
	st.order = slices.DeleteFunc(st.order, func(id string) bool { return id == container })
}

// Ready hears that a start is over. If the container became ready, what it has
// read is kept, and published if it is the first of its image. The rest of the
// image follows.
func (s *Service) Ready(container string, ready bool) {
	s.starts.mu.Lock()
	st := s.starts.on[container]
	delete(s.starts.on, container)
	s.starts.drop(container)
	s.starts.mu.Unlock()
	if st == nil { // it started before this worker did
		return
	}
	touched, _ := st.rec.Stop()
	if ready {
		s.learn(st.k, touched)
	}
	s.Complete(st.k)
}

// learn adds a start to the boot profile of an image.
func (s *Service) learn(k *Known, touched []fetch.Touch) {
	p := s.profileOf(k, touched)
	if len(p.Items) == 0 { // everything was local
		return
	}
	old := s.profile(k.Desc.Digest)
	if s.keep(k, index.Merge(old, p)) && old == nil {
		s.publishSoon(&k.manifestRow)
	}
}

// keep is keepProfile for those who can do without.
func (s *Service) keep(k *Known, p *index.Profile) bool {
	err := s.keepProfile(k.Desc.Digest, p)
	if err != nil {
		s.Log.Warn("boot profile", "ref", k.Source, "err", err)
	}
	return err == nil
}

// profileOf makes a profile of one start out of what was read of the image.
func (s *Service) profileOf(k *Known, touched []fetch.Touch) *index.Profile {
	p := &index.Profile{Starts: 1}
	for _, t := range touched {
		if t.Sum == (layers.Sum{}) || !s.has(k.Layers, t.Object) {
			continue
		}
		p.Items = append(p.Items, index.Item{
			Object: t.Object, Off: t.Off, Size: t.Size, Sum: t.Sum,
			At: t.At.Truncate(time.Millisecond), Weight: index.FullWeight,
		})
	}
	p.Trim()
	return p
}

// has says whether one of the layers has an object.
func (s *Service) has(keys []string, object layers.Sum) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if h := s.open[key]; h != nil {
			if _, ok := h.index.Lookup(object); ok {
				return true
			}
		}
	}
	return false
}

// Recordable says whether the first start on an image is to be recorded by way
// of the daemon: its index is published, and there is no profile yet.
func (s *Service) Recordable(k *Known) bool {
	return s.Indexes.Publish && k.Desc.Digest != "" && s.profile(k.Desc.Digest) == nil
}
