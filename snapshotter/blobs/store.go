package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/registry"
)

// A Book knows the blobs of images.
type Book interface {
	// Blob returns the descriptor of a blob, the references of images that it is
	// a part of, and all of its bytes if it is a document that is at hand. It does
	// not touch the network. The error is fs.ErrNotExist if the blob is not known.
	Blob(dgst digest.Digest) (desc ocispec.Descriptor, sources []string, data []byte, err error)
}

// Blobs gives stored bytes of blobs. It is a *registry.Registry.
type Blobs interface {
	Stream(ctx context.Context, ref registry.Ref, desc ocispec.Descriptor) (io.ReadCloser, error)
	Blob(ref registry.Ref, desc ocispec.Descriptor) (layers.Blob, error)
}

// Options of a Store.
type Options struct {
	Root  string // of this store alone; made if it does not exist
	Book  Book
	Blobs Blobs
	// Parallel is how many blobs are fetched at the same time. Default 3, as
	// containerd's max_concurrent_downloads.
	Parallel int
	Log      *slog.Logger // nil: discard
	Stats    *Stats       // nil: counted nowhere
}

// Stats counts what Stores do.
type Stats struct {
	Promised atomic.Int64 // blobs said to be here that are in a registry
	Fetched  atomic.Int64 // of them, those that came because somebody read
	Bytes    atomic.Int64 // stored bytes that came for that
	Resumed  atomic.Int64 // fetches that went on where an earlier one had ended
	Failed   atomic.Int64 // fetches that came to nothing; not those that nobody waited for any more
}

// A Store is a content.Store. It is safe for concurrent use.
type Store struct {
	o        Options
	local    content.Store
	labels   *labelFiles
	promised *promises
	flights  flights
	fetching chan struct{} // has room for as many blobs as are fetched at once
}

var _ content.Store = (*Store)(nil)

// Open opens the store at o.Root. Fetches end with base; Close waits for them.
func Open(base context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Parallel <= 0 {
		o.Parallel = 3
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	for _, dir := range []string{"blobs", "promised", "labels"} { // local.Store's Walk wants blobs to exist
		if err := os.MkdirAll(filepath.Join(o.Root, dir), 0o700); err != nil {
			return nil, err
		}
	}
	s := &Store{o: o, labels: &labelFiles{dir: filepath.Join(o.Root, "labels")}, fetching: make(chan struct{}, o.Parallel)}
	err := s.labels.tidy()
	if err != nil {
		return nil, err
	}
	if s.promised, err = openPromises(filepath.Join(o.Root, "promised"), o.Log); err != nil {
		return nil, err
	}
	if s.local, err = local.NewLabeledStore(o.Root, s.labels); err != nil {
		return nil, err
	}
	s.flights.open(base)
	return s, s.forget(base)
}

// forget drops what fetches have left of blobs that are not promised any more.
func (s *Store) forget(ctx context.Context) error {
	all, err := s.local.ListStatuses(ctx)
	for _, st := range all {
		d, mine := strings.CutPrefix(st.Ref, ours)
		if mine && s.promised.get(digest.Digest(d)) == nil {
			err = errors.Join(err, s.local.Abort(ctx, st.Ref))
		}
	}
	return err
}

// Close ends what is being fetched. What has come of it is kept.
func (s *Store) Close() error {
	s.flights.close()
	return nil
}

// Info describes a blob that is here or promised.
func (s *Store) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	if inWrite(ctx) {
		return s.local.Info(ctx, dgst)
	}
	return s.info(ctx, dgst)
}

func (s *Store) info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	info, err := s.local.Info(ctx, dgst)
	if !errdefs.IsNotFound(err) {
		return info, err
	}
	p, perr := s.promise(ctx, dgst)
	switch {
	case errors.Is(perr, fs.ErrNotExist):
		return content.Info{}, err
	case perr != nil:
		return content.Info{}, disk(perr)
	case p == nil: // its bytes were at hand
		return s.local.Info(ctx, dgst)
	}
	return s.promisedInfo(p)
}

func (s *Store) promisedInfo(p *promise) (content.Info, error) {
	l, err := s.labels.Get(p.Desc.Digest)
	return content.Info{Digest: p.Desc.Digest, Size: p.Desc.Size, CreatedAt: p.Made, UpdatedAt: p.Made, Labels: l}, err
}

// promise returns the promise of a blob that is not here, and makes it if the
// book knows the blob. A document goes into the store instead; then it returns
// nil. The error is fs.ErrNotExist if nothing is known.
func (s *Store) promise(ctx context.Context, dgst digest.Digest) (*promise, error) {
	if p := s.promised.get(dgst); p != nil {
		return p, nil
	}
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	desc, sources, data, err := s.o.Book.Blob(dgst)
	if err != nil {
		return nil, err
	}
	if data != nil {
		desc = ocispec.Descriptor{Digest: dgst, Size: int64(len(data))}
		return nil, content.WriteBlob(ctx, s.local, ours+dgst.String(), bytes.NewReader(data), desc)
	}
	p, added, err := s.promised.add(desc, sources)
	if added {
		s.o.Stats.Promised.Add(1)
	}
	return p, err
}

// ReaderAt opens a blob. One that is only promised is fetched first, all of it.
func (s *Store) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := s.local.ReaderAt(ctx, desc)
	if !errdefs.IsNotFound(err) {
		return r, err
	}
	p, perr := s.promise(ctx, desc.Digest)
	switch {
	case errors.Is(perr, fs.ErrNotExist):
		return nil, err
	case perr != nil:
		return nil, disk(perr)
	case p != nil:
		if err := s.fetch(ctx, p); err != nil {
			return nil, err
		}
	}
	return s.local.ReaderAt(ctx, desc)
}

// Walk calls fn with what is here and with what was promised.
func (s *Store) Walk(ctx context.Context, fn content.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	here := map[digest.Digest]bool{}
	// The filters come later, so that here has all. They do not fail: ParseAll has seen them.
	if err := s.local.Walk(ctx, func(info content.Info) error {
		here[info.Digest] = true
		if !filter.Match(content.AdaptInfo(info)) {
			return nil
		}
		return fn(info)
	}); err != nil {
		return err
	}
	for _, p := range s.promised.all() {
		if here[p.Desc.Digest] {
			continue
		}
		info, err := s.promisedInfo(p)
		if err != nil {
			return err
		}
		if filter.Match(content.AdaptInfo(info)) {
			if err := fn(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes a blob and withdraws its promise. A blob that snapd still knows
// is promised again to whoever asks next.
func (s *Store) Delete(ctx context.Context, dgst digest.Digest) error {
	if err := s.local.Delete(ctx, dgst); err != nil { // nil if there is no such file
		return err
	}
	// A fetch that is under way is of what nobody has any more, and fails.
	if err := s.local.Abort(ctx, ours+dgst.String()); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return errors.Join(s.promised.remove(dgst), s.labels.Set(dgst, nil))
}

// Update changes labels.
func (s *Store) Update(ctx context.Context, info content.Info, paths ...string) (content.Info, error) {
	for k, v := range info.Labels {
		if err := labels.Validate(k, v); err != nil {
			return content.Info{}, err
		}
	}
	old, err := s.Info(ctx, info.Digest)
	if err != nil {
		return content.Info{}, err
	}
	updated, err := s.local.Update(ctx, info, paths...)
	if !errdefs.IsNotFound(err) {
		return updated, err
	}
	l, err := updateLabels(old.Labels, info.Labels, paths)
	if err != nil {
		return content.Info{}, err
	}
	if err := s.labels.Set(info.Digest, l); err != nil {
		return content.Info{}, err
	}
	return s.Info(ctx, info.Digest)
}

// updateLabels does what local.Update does to labels.
func updateLabels(old, given map[string]string, paths []string) (map[string]string, error) {
	if len(paths) == 0 {
		return given, nil
	}
	l := maps.Clone(old)
	if l == nil {
		l = map[string]string{}
	}
	for _, path := range paths {
		key, one := strings.CutPrefix(path, "labels.")
		switch {
		case path == "labels":
			return given, nil
		case !one:
			return nil, fmt.Errorf("field %q of content cannot be changed: %w", path, errdefs.ErrInvalidArgument)
		case given[key] == "":
			delete(l, key)
		default:
			l[key] = given[key]
		}
	}
	return l, nil
}

// Writer begins or resumes an ingest. It is ErrAlreadyExists if the blob that is
// expected is here or promised.
func (s *Store) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(o.Ref, ours) {
		return nil, fmt.Errorf("ref %q: %q is reserved: %w", o.Ref, ours, errdefs.ErrInvalidArgument)
	}
	if d := o.Desc.Digest; d != "" && o.Ref != "" {
		info, err := s.info(ctx, d)
		switch {
		case err == nil && (o.Desc.Size == 0 || o.Desc.Size == info.Size):
			return nil, fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
		case err != nil && !errdefs.IsNotFound(err):
			return nil, err
		}
	}
	return s.local.Writer(ctx, opts...)
}

// ours begins the refs of the store's own ingests. Nobody else sees them: what
// containerd does not know it aborts.
const ours = "snapfs.fetch/"

// hidden says that there is no ingest for others.
func hidden(ref string) error {
	return fmt.Errorf("ingest ref %q: %w", ref, errdefs.ErrNotFound)
}

// Status tells how far an ingest has come.
func (s *Store) Status(ctx context.Context, ref string) (content.Status, error) {
	if strings.HasPrefix(ref, ours) {
		return content.Status{}, hidden(ref)
	}
	return s.local.Status(ctx, ref)
}

// ListStatuses lists ingests.
func (s *Store) ListStatuses(ctx context.Context, fs ...string) ([]content.Status, error) {
	all, err := s.local.ListStatuses(ctx, fs...)
	var theirs []content.Status
	for _, st := range all {
		if !strings.HasPrefix(st.Ref, ours) {
			theirs = append(theirs, st)
		}
	}
	return theirs, err
}

// Abort ends an ingest.
func (s *Store) Abort(ctx context.Context, ref string) error {
	if strings.HasPrefix(ref, ours) {
		return hidden(ref)
	}
	return s.local.Abort(ctx, ref)
}
