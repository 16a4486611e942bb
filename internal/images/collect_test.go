package images

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images/imagestest"
)

// TestHeldMeanwhile: a layer whose snapshot is made when a collection has asked
// what is held, and whose pin goes then, stays.
func TestHeldMeanwhile(t *testing.T) {
	b := newBook(t)
	var meanwhile atomic.Pointer[func()]
	held := b.Options.Held
	b.Options.Held = func(ctx context.Context) (Held, error) {
		h, err := held(ctx)
		if b.live.TryRLock() { // it is asked without the lock, too
			b.live.RUnlock()
		} else if f := meanwhile.Load(); f != nil {
			(*f)()
		}
		return h, err
	}
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10))
	l, release, err := b.layer(im, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.waitFor(func() bool { // the arrival is over
		b.pins.mu.Lock()
		defer b.pins.mu.Unlock()
		return b.pins.n[l.Key] == 1
	})
	commit := sync.OnceFunc(func() {
		b.hold(l)
		release()
	})
	meanwhile.Store(&commit)
	for range 2 {
		if err := b.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(b.indexPath(l.Key)); err != nil {
			t.Errorf("a layer that is held: %v", err)
		}
		if _, err := b.Find(im.Ref); err != nil {
			t.Errorf("its image: %v", err)
		}
	}
}

// TestUsedMeanwhile: an image is not removed when who holds it becomes a user
// between the looks at those and at these.
func TestUsedMeanwhile(t *testing.T) {
	b := newBook(t)
	var meanwhile atomic.Pointer[func()]
	b.Options.Users = func() map[digest.Digest][]User {
		if f := meanwhile.Load(); f != nil {
			(*f)()
		}
		return nil // as it was before that
	}
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10))
	_, release, err := b.Use(t.Context(), control.PullArgs{Ref: im.Ref}, untold)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(release)
	meanwhile.Store(&release)
	if _, err := b.Remove(t.Context(), []string{im.Ref}, false); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove: %v, want %v", err, ErrInUse)
	}
	if _, err := b.Remove(t.Context(), []string{im.Ref}, false); err != nil {
		t.Errorf("when nobody uses it: %v", err)
	}
}
