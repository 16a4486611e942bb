// Package entries makes blobs of held layers exist in containerd's namespaces.
//
// A content store is behind all namespaces of a containerd, and what is in one
// of them is an entry in its metadata. A layer that snapd holds is never
// downloaded by containerd, so it gets no entry, and whoever exports or pushes the
// image is told "content not found", though package blobs would have the blob.
// So for every layer that was prepared in a namespace this package does what
// the download would have done at its end: it opens a writer with the expected
// digest, is told by containerd, which asks package blobs, that all is there, and
// commits. No bytes move.
//
// An entry stays as long as something refers to it. A pull labels the manifest
// with the digests of its layers (containerd.io/gc.ref.content.l.N,
// core/images/handlers.go, SetChildrenMappedLabels) before it prepares the first
// snapshot, and its lease and then the image keep the manifest. So the entry
// needs no lease of its own, and where nobody labels, as in a build, the garbage
// collector takes it again.
//
// It does nothing with a containerd that has another content store, or that
// isolates namespaces (content_sharing_policy), where only bytes prove a blob.
package entries

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Options of Entries.
type Options struct {
	Address string // containerd's socket
	Socket  string // where containerd's content plugin must find us
	// Info describes a blob, as the content store at Socket does.
	Info func(context.Context, digest.Digest) (content.Info, error)
	Log  *slog.Logger // nil: discard
}

// Entries makes entries, in the background. It is safe for concurrent use.
type Entries struct {
	o     Options
	swept atomic.Bool // containerd's content is known to be here, and nothing is missed
	wg    sync.WaitGroup
	end   context.CancelFunc
	wake  chan struct{} // has room for one

	mu      sync.Mutex
	queue   []*entry
	queued  map[key]bool // what is in queue or being made
	dropped bool         // for want of room, since queue was last empty
}

// A key with nothing in it stands for what was missed.
type key struct {
	ns   string
	blob digest.Digest
}

type entry struct {
	key
	tries int
}

const (
	maxQueue     = 8192                  // entries that wait: 64 images with 128 layers each
	maxTries     = 12                    // of one entry: four minutes, if it is alone
	firstPause   = time.Second           // before something is tried again, doubled each time
	maxPause     = 30 * time.Second      // the longest
	settleAfter  = 50 * time.Millisecond // without a further layer; a pull asks for one every ten
	settleAtMost = time.Second
	askTimeout   = 20 * time.Second // for one entry, or for what containerd is
	sweepTimeout = 5 * time.Minute
	askAgain     = time.Minute // how long it is believed what containerd is
)

// New returns Entries that end with base or with Close. First they make what is
// missing: see sweep.
func New(base context.Context, o Options) *Entries {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Entries{o: o, wake: make(chan struct{}, 1), queued: map[key]bool{{}: true}, queue: []*entry{{}}}
	base, e.end = context.WithCancel(base)
	e.wg.Go(func() { e.serve(base) })
	return e
}

// Close drops what waits.
func (e *Entries) Close() {
	e.end()
	e.wg.Wait()
}

// Prepared says that the layer with this blob was prepared, or asked for again,
// in a namespace. It returns at once.
func (e *Entries) Prepared(ns string, blob digest.Digest) {
	if ns == "" || blob == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	k := key{ns, blob}
	if e.queued[k] {
		return
	}
	if len(e.queued) >= maxQueue {
		if !e.dropped {
			e.o.Log.Warn("too many layers wait for their entry in containerd's content store", "address", e.o.Address)
		}
		e.dropped = true
		return
	}
	e.queued[k] = true
	e.queue = append(e.queue, &entry{key: k})
	e.signal()
}

// Used says that containerd was seen to use the content store. If it was not
// known to, what is missing is made up for. It returns at once.
func (e *Entries) Used() {
	if e.swept.Load() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.queued[key{}] {
		e.queued[key{}] = true
		e.queue = append(e.queue, &entry{})
		e.signal()
	}
}

func (e *Entries) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// next takes the entry that has waited longest, nil if there is none.
func (e *Entries) next() *entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		e.queue = nil
		if !e.dropped {
			return nil
		}
		e.dropped = false
		e.swept.Store(false) // a sweep finds what there was no room for
		e.queued[key{}] = true
		return &entry{}
	}
	en := e.queue[0]
	e.queue = e.queue[1:]
	return en
}

// done lets an entry be asked for again.
func (e *Entries) done(en *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.queued, en.key)
}

// again puts an entry at the end.
func (e *Entries) again(en *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = append(e.queue, en)
}

func (e *Entries) serve(base context.Context) {
	// The error is of a bad address or option, of which there is none.
	conn, err := grpc.NewClient("unix:"+e.o.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.o.Log.Error("containerd's socket", "address", e.o.Address, "err", err)
		return
	}
	defer conn.Close()
	c := &client{Options: e.o, conn: conn, store: proxy.NewContentStore(conn), swept: &e.swept}
	e.run(base, c.make)
}

// run makes one entry after the other: containerd's database would anyway.
func (e *Entries) run(base context.Context, one func(context.Context, key) error) {
	pause := firstPause
	for {
		en := e.next()
		if en == nil {
			select {
			case <-e.wake:
				e.settle(base)
				continue
			case <-base.Done():
				return
			}
		}
		err := one(base, en.key)
		en.tries++
		switch {
		case base.Err() != nil:
			return
		case err == nil:
			pause = firstPause
			e.done(en)
			continue
		case en.key == (key{}) && en.tries >= maxTries: // no containerd, as it seems; whoever prepares something in one asks again
			e.done(en)
			continue
		case !temporary(err) || en.tries >= maxTries:
			e.o.Log.Warn("no entry in containerd's content store", "layer", en.blob, "namespace", en.ns, "err", err)
			e.done(en)
			continue
		}
		e.o.Log.Debug("containerd is asked again", "address", e.o.Address, "dur", pause, "err", err)
		e.again(en)
		select {
		case <-time.After(pause):
		case <-base.Done():
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// settle waits until a pull has asked for its last layer, as it seems. Each entry is
// two transactions of containerd's database, which a pull waits for, too.
func (e *Entries) settle(base context.Context) {
	late := time.After(settleAtMost)
	for {
		select {
		case <-e.wake:
		case <-time.After(settleAfter):
			return
		case <-late:
			return
		case <-base.Done():
			return
		}
	}
}

// temporary tells whether the same may succeed later.
func temporary(err error) bool {
	return errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) || errdefs.IsAborted(err)
}

// A client is a connection to containerd, and what is known of it.
type client struct {
	Options
	conn  *grpc.ClientConn
	store content.Store
	is    Backing
	asked time.Time
	told  Backing // what the log says
	swept *atomic.Bool
}

// make makes an entry, if there can be one.
func (c *client) make(base context.Context, k key) error {
	ctx, cancel := context.WithTimeout(base, askTimeout)
	defer cancel()
	if c.asked.IsZero() || time.Since(c.asked) > askAgain || k == (key{}) {
		is, err := Ask(ctx, c.conn, c.Socket)
		if err != nil {
			return err
		}
		c.is, c.asked = is, time.Now()
		c.tell()
	}
	if c.is != Shared {
		c.swept.Store(false)
		return nil
	}
	if !c.swept.Load() {
		if err := c.sweepOnce(base); err != nil {
			return err
		}
	}
	if k == (key{}) {
		return nil
	}
	info, err := c.Info(ctx, k.blob)
	if errdefs.IsNotFound(err) {
		return nil // the layer is gone again
	}
	if err != nil {
		return err
	}
	err = c.enter(namespaces.WithNamespace(ctx, k.ns), info)
	if err != nil {
		c.asked = time.Time{} // perhaps it is another one now
	}
	return err
}

// sweepOnce sweeps, with time for many images. What cannot be made up for
// now is left: nobody can do anything about it but ask for the image.
func (c *client) sweepOnce(base context.Context) error {
	ctx, cancel := context.WithTimeout(base, sweepTimeout)
	defer cancel()
	err := c.sweep(ctx)
	if err != nil && temporary(err) {
		return err
	}
	if err != nil && base.Err() == nil {
		c.Log.Warn("layers of images may have no entry in containerd's content store", "address", c.Address, "err", err)
	}
	c.swept.Store(true)
	return nil
}

// tell says once what is different for users.
func (c *client) tell() {
	if c.is == c.told {
		return
	}
	c.told = c.is
	c.Log.Info("containerd's content store is "+c.is.String(), "address", c.Address)
}

// enter makes the entry of a blob in the namespace of ctx.
func (c *client) enter(ctx context.Context, info content.Info) (err error) {
	ref := "snapfs-" + info.Digest.String()
	w, err := c.store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Digest: info.Digest, Size: info.Size}))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := w.Status()
	if err == nil && st.Offset != info.Size {
		err = fmt.Errorf("containerd has %d bytes of %d, and asks for the others: %w", st.Offset, info.Size, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return errors.Join(err, w.Close(), c.store.Abort(ctx, ref))
	}
	if err := w.Commit(ctx, info.Size, info.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
