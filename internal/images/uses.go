package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
)

// uses knows of the images that somebody is about to use, before a container
// or a recorded mount says that they are in use.
type uses struct {
	mu       sync.Mutex
	n        map[digest.Digest]int // by manifest
	prepared map[string]*prepared  // by target of a mount that is not recorded yet
}

// prepared holds an image for a mount.
type prepared struct {
	timer   *time.Timer
	release func()
}

func (u *uses) hold(d digest.Digest) (release func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n == nil {
		u.n = map[digest.Digest]int{}
	}
	u.n[d]++
	return sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.n[d]--; u.n[d] == 0 {
			delete(u.n, d)
		}
	})
}

func (u *uses) held(d digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n[d] > 0
}

// preparedFor is how long an image is held for who has asked how to mount it. A
// client records the mount before it makes it, which takes milliseconds.
const preparedFor = time.Minute

// until hands a release over to the mount at target: it comes when that is
// recorded or given up, or after preparedFor.
func (u *uses) until(target string, release func()) {
	u.settle(target)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.prepared == nil {
		u.prepared = map[string]*prepared{}
	}
	p := &prepared{release: release}
	u.prepared[target] = p
	p.timer = time.AfterFunc(preparedFor, func() { u.end(target, p) })
}

// settle releases what is held for the mount at target.
func (u *uses) settle(target string) {
	u.mu.Lock()
	p := u.prepared[target]
	u.mu.Unlock()
	if p != nil {
		p.timer.Stop()
		u.end(target, p)
	}
}

func (u *uses) end(target string, p *prepared) {
	p.release()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.prepared[target] == p { // and not another one's, who has asked since
		delete(u.prepared, target)
	}
}

// Use is Pull for somebody who goes on to use the image: until release it
// cannot be removed. By then a container that [Options.Users] knows, or a
// recorded mount, has to say that it is in use.
func (s *Service) Use(ctx context.Context, a control.PullArgs, progress func(control.Progress)) (k *Known, release func(), err error) {
	for range maxRemoved {
		if k, err = s.Pull(ctx, a, progress); err != nil {
			return nil, nil, err
		}
		if release, err = s.Hold(k); !errors.Is(err, fs.ErrNotExist) {
			return k, release, err
		}
	}
	return nil, nil, err
}

// maxRemoved is how often an image may be removed between its pull and its use.
const maxRemoved = 3

// Hold keeps a known image from being removed until release; fs.ErrNotExist if
// it has been removed.
func (s *Service) Hold(k *Known) (release func(), err error) {
	s.live.RLock() // removeOne looks and removes with it
	defer s.live.RUnlock()
	err = s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(k.Desc.Digest), new(manifestRow)) })
	if err != nil {
		return nil, fmt.Errorf("image %s: it was removed meanwhile: %w", familiar(k.Ref), err)
	}
	return s.uses.hold(k.Desc.Digest), nil
}

// Prepared hands release, of Use, over to the mount that a client is about to make at target.
func (s *Service) Prepared(target string, release func()) { s.uses.until(target, release) }
