package images

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/registry"
)

// found is what was found beside an image, for layers that have no table of
// contents: an index in our format or, if there is none, one of SOCI.
type found struct {
	source *source    // nil if there is none
	soci   *sociIndex // nil if there is none, or source
}

// resolve finds the image, and at the same time the index that was published
// for it. With exact, a manifest that ref names may be of any platform.
func (s *Service) resolve(ctx context.Context, ref registry.Ref, platform string, exact bool, progress func(control.Progress)) (img *registry.Image, by found, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	var lookups []*lookup
	defer func() {
		cancel()
		all.Wait()
		for _, l := range lookups {
			if l.source != by.source {
				l.source.close()
			}
		}
	}()
	img, err = s.Registry.ResolveWith(ctx, ref, registry.ResolveOptions{
		Platform: platform, Exact: exact, Locate: true,
		OnManifest: func(desc ocispec.Descriptor) {
			l := &lookup{manifest: desc.Digest, fetched: make(chan *ocispec.Manifest, 1), done: make(chan struct{})}
			lookups = append(lookups, l)
			all.Go(func() {
				defer close(l.done)
				progress(control.Progress{Action: "searching"})
				defer progress(control.Progress{Action: "searching", Done: true})
				s.search(ctx, ref, l)
			})
		},
		OnFetched: func(m *ocispec.Manifest) { lookups[len(lookups)-1].fetched <- m },
	})
	if err != nil || len(lookups) == 0 {
		return img, by, err
	}
	result, err := lookups[len(lookups)-1].result(img)
	if err != nil { // the image can be had without
		s.Log.Warn("a published index is not used", "ref", ref, "err", err)
	}
	return img, result, context.Cause(ctx)
}

// A lookup is a search for an index that goes on while its image is resolved.
type lookup struct {
	manifest digest.Digest
	fetched  chan *ocispec.Manifest // has room for the one
	done     chan struct{}
	found          // may be read when done is closed
	err      error // says why something was not found
}

// search looks for both kinds of indexes at the same time.
func (s *Service) search(ctx context.Context, ref registry.Ref, l *lookup) {
	ctx, cancel := context.WithCancel(ctx)
	var x *sociIndex
	var err error
	var other sync.WaitGroup
	other.Go(func() { x, err = s.lookSOCI(ctx, ref, l) })
	l.source, l.err = s.look(ctx, ref, l.manifest)
	if l.source != nil {
		cancel()
	}
	other.Wait()
	cancel()
	if l.source == nil {
		l.soci, l.err = x, errors.Join(l.err, err)
	}
}

// lookupGrace is how much longer the search may take than the image's own
// documents: a registry that is slow with its referrers must not hold up a pull.
const lookupGrace = 5 * time.Second

// result waits for the index of an image.
func (l *lookup) result(img *registry.Image) (found, error) {
	if l.manifest != img.Desc.Digest {
		return found{}, nil
	}
	select {
	case <-l.done:
	case <-time.After(lookupGrace):
		return found{}, fmt.Errorf("no answer about its index within %v", lookupGrace)
	}
	if l.source != nil {
		if err := l.source.fits(img); err != nil {
			return found{}, err
		}
	}
	return l.found, l.err
}
