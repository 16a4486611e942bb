package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/registry"
)

// noBook knows nothing.
type noBook struct{}

func (noBook) Blob(digest.Digest) (ocispec.Descriptor, []string, []byte, error) {
	return ocispec.Descriptor{}, nil, nil, fs.ErrNotExist
}

// world is a book, and registries that have what it says.
type world struct {
	mu       sync.Mutex
	blobs    map[digest.Digest][]byte
	sources  []string
	document bool // blobs are documents, at hand

	streams, ranges atomic.Int64
	stats           Stats
	// stream, if set, stands in front of the bytes of a stream.
	stream func(ctx context.Context, ref string, r io.Reader) (io.Reader, error)
}

func newWorld() *world {
	return &world{blobs: map[digest.Digest][]byte{}, sources: []string{"r.example/app:1"}}
}

// add makes a blob known.
func (w *world) add(b []byte) ocispec.Descriptor {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := digest.FromBytes(b)
	w.blobs[d] = b
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
}

func (w *world) forget(d digest.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.blobs, d)
}

func (w *world) Blob(d digest.Digest) (ocispec.Descriptor, []string, []byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := w.blobs[d]
	if !ok {
		return ocispec.Descriptor{}, nil, nil, fs.ErrNotExist
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
	if w.document {
		return desc, w.sources, b, nil
	}
	return desc, w.sources, nil, nil
}

// away is the registries' side of a world. They forget nothing.
type away struct {
	*world
	all map[digest.Digest][]byte
}

func (a away) Stream(ctx context.Context, ref registry.Ref, desc ocispec.Descriptor) (io.ReadCloser, error) {
	a.streams.Add(1)
	var r io.Reader = bytes.NewReader(a.all[desc.Digest])
	if a.stream != nil {
		var err error
		if r, err = a.stream(ctx, ref.String(), r); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(r), nil
}

func (a away) Blob(ref registry.Ref, desc ocispec.Descriptor) (layers.Blob, error) {
	return awayBlob{a, a.all[desc.Digest]}, nil
}

type awayBlob struct {
	a away
	b []byte
}

func (b awayBlob) Size() int64 { return int64(len(b.b)) }

func (b awayBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	b.a.ranges.Add(1)
	return bytes.NewReader(b.b).ReadAt(p, off)
}

func (w *world) open(t *testing.T, root string) *Store {
	t.Helper()
	w.mu.Lock()
	all := map[digest.Digest][]byte{}
	for d, b := range w.blobs {
		all[d] = b
	}
	w.mu.Unlock()
	s, err := Open(context.Background(), Options{Root: root, Book: w, Blobs: away{w, all}, Stats: &w.stats})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	r.Read(b)
	return b
}

// enter makes containerd's entry for a blob as a pull does, and says whether the
// bytes were believed to be there.
func enter(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (bool, error) {
	w, err := content.OpenWriter(ctx, cs, content.WithRef("pull-"+desc.Digest.String()), content.WithDescriptor(desc))
	if err != nil {
		return false, err
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil || st.Offset != desc.Size {
		return false, err
	}
	return true, w.Commit(ctx, desc.Size, desc.Digest)
}

// TestBehindContainerd: an entry appears without the network, the blob is
// fetched by its first reader, once, and goes with its last entry.
func TestBehindContainerd(t *testing.T) {
	w := newWorld()
	data := randomBytes(5 << 20)
	desc, other := w.add(data), w.add([]byte("known, but nobody asks for it"))
	root := t.TempDir()
	s := w.open(t, root)
	db, _ := meta(t, proxied(t, s))
	cs := db.ContentStore()
	ctx := namespaces.WithNamespace(t.Context(), "one")

	if _, err := cs.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
		t.Fatalf("Info before there is an entry: %v, want not found", err)
	}
	if ok, err := enter(ctx, cs, desc); err != nil || !ok {
		t.Fatalf("entry of a known blob: %t, %v, want that it is there", ok, err)
	}
	if n := w.streams.Load(); n != 0 {
		t.Fatalf("%d streams before anybody has read", n)
	}
	if _, err := db.GarbageCollect(ctx); err != nil { // the entry is no one's, but its lease of use is the test's: none
		t.Fatal(err)
	}
	if _, err := cs.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
		t.Fatalf("Info after a collection: %v, want not found", err)
	}
	if files, _ := os.ReadDir(filepath.Join(root, "promised")); len(files) != 0 {
		t.Fatalf("after a collection %d promises are left", len(files))
	}

	// Now with a reference that keeps it.
	if ok, err := enter(ctx, cs, desc); err != nil || !ok {
		t.Fatalf("second entry: %t, %v", ok, err)
	}
	keep := map[string]string{"containerd.io/gc.root": "2026-11-26T00:00:00Z"}
	if _, err := cs.Update(ctx, content.Info{Digest: desc.Digest, Labels: keep}, "labels"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			got := make([]byte, 1000)
			ra, err := cs.ReaderAt(ctx, desc)
			if err != nil {
				t.Error(err)
				return
			}
			defer ra.Close()
			off := int64(i * 100_000)
			if _, err := ra.ReadAt(got, off); err != nil || !bytes.Equal(got, data[off:off+1000]) {
				t.Errorf("ReadAt(%d): %v, or other bytes", off, err)
			}
		})
	}
	all.Wait()
	if n := w.streams.Load(); n != 1 {
		t.Errorf("8 readers made %d streams, want 1", n)
	}
	if b, err := content.ReadBlob(ctx, cs, desc); err != nil || !bytes.Equal(b, data) {
		t.Errorf("ReadBlob: %v, or other bytes", err)
	}

	// Another namespace gets its entry, too; when both are gone so is the blob.
	ctx2 := namespaces.WithNamespace(t.Context(), "two")
	if ok, err := enter(ctx2, cs, desc); err != nil || !ok {
		t.Fatalf("entry in another namespace: %t, %v", ok, err)
	}
	for _, c := range []context.Context{ctx, ctx2} {
		if err := cs.Delete(c, desc.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	var left []digest.Digest
	s.Walk(ctx, func(i content.Info) error { left = append(left, i.Digest); return nil })
	if len(left) != 0 {
		t.Errorf("after all entries are gone the store has %v", left)
	}
	if info, err := s.Info(ctx, other.Digest); err != nil || info.Size != other.Size {
		t.Errorf("Info of what the book knows: %v, %v", info, err)
	}
}

// TestForgotten: what was promised is kept though the book has forgotten it and
// the daemon was restarted.
func TestForgotten(t *testing.T) {
	w := newWorld()
	desc := w.add([]byte("layer"))
	root := t.TempDir()
	s := w.open(t, root)
	if _, err := s.Info(t.Context(), desc.Digest); err != nil {
		t.Fatal(err)
	}
	all := away{w, map[digest.Digest][]byte{desc.Digest: []byte("layer")}}
	s.Close()
	w.forget(desc.Digest)
	s, err := Open(t.Context(), Options{Root: root, Book: w, Blobs: all})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if b, err := content.ReadBlob(t.Context(), s, desc); err != nil || string(b) != "layer" {
		t.Errorf("ReadBlob = %q, %v", b, err)
	}
}

// TestFailures: each failure has its kind, over gRPC, and leaves nothing that is believed.
func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	fail := func(err error) func(context.Context, string, io.Reader) (io.Reader, error) {
		return func(context.Context, string, io.Reader) (io.Reader, error) { return nil, err }
	}
	for name, c := range map[string]struct {
		stream func(context.Context, string, io.Reader) (io.Reader, error)
		is     func(error) bool
	}{
		"gone":    {fail(fmt.Errorf("GET https://r.example/: %w: %w", registry.ErrUnavailable, boom)), errdefs.IsUnavailable},
		"denied":  {fail(&registry.StatusError{Code: 403}), errdefs.IsPermissionDenied},
		"deleted": {fail(&registry.StatusError{Code: 404}), errdefs.IsNotFound},
		"unknown": {fail(boom), errdefs.IsUnavailable},
		"other bytes": {func(_ context.Context, _ string, r io.Reader) (io.Reader, error) {
			b, err := io.ReadAll(r)
			b[len(b)-1] ^= 1
			return bytes.NewReader(b), err
		}, errdefs.IsDataLoss},
		"too many": {func(_ context.Context, _ string, r io.Reader) (io.Reader, error) {
			return io.MultiReader(r, bytes.NewReader([]byte("x"))), nil
		}, errdefs.IsDataLoss},
		"too few": {func(_ context.Context, _ string, r io.Reader) (io.Reader, error) {
			return io.LimitReader(r, 4), nil
		}, errdefs.IsDataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.stream = c.stream
			desc := w.add([]byte("the layer"))
			s := w.open(t, t.TempDir())
			_, err := content.ReadBlob(t.Context(), proxied(t, s), desc)
			if !c.is(err) {
				t.Errorf("ReadBlob: %v", err)
			}
			if _, err := s.local.Info(t.Context(), desc.Digest); !errdefs.IsNotFound(err) {
				t.Errorf("the blob is in the store: %v", err)
			}
			w.stream = nil
			if b, err := content.ReadBlob(t.Context(), s, desc); err != nil || string(b) != "the layer" {
				t.Errorf("ReadBlob later = %q, %v", b, err)
			}
		})
	}
	if err := disk(fmt.Errorf("write: %w", syscall.ENOSPC)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("disk(ENOSPC) = %v", err)
	}
}

// TestOtherSource: what the first source begins the second continues; what it
// spoils begins anew.
func TestOtherSource(t *testing.T) {
	data := randomBytes(6 << 20)
	for name, spoil := range map[string]bool{"cut off": false, "spoilt": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.sources = []string{"a.example/app:1", "b.example/app:1"}
			w.stream = func(_ context.Context, ref string, r io.Reader) (io.Reader, error) {
				if ref != "a.example/app:1" {
					return r, nil
				}
				begin, err := io.ReadAll(io.LimitReader(r, 1<<20))
				if spoil {
					begin[5] ^= 1
				}
				return io.MultiReader(bytes.NewReader(begin), errReader{registry.ErrUnavailable}), err
			}
			desc := w.add(data)
			s := w.open(t, t.TempDir())
			b, err := content.ReadBlob(t.Context(), s, desc)
			if err != nil || !bytes.Equal(b, data) {
				t.Fatalf("ReadBlob: %v, or other bytes", err)
			}
			if n := w.ranges.Load(); n != 2 { // 5 MiB in parts of 4
				t.Errorf("%d ranges, want 2", n)
			}
			if n, want := w.streams.Load(), map[bool]int64{false: 1, true: 2}[spoil]; n != want {
				t.Errorf("%d streams, want %d", n, want)
			}
		})
	}
}

type errReader struct{ error }

func (e errReader) Read([]byte) (int, error) { return 0, e.error }

// TestAllLeave: a fetch ends with its last reader, is not to be seen, nor to be
// aborted, and is continued by the next.
func TestAllLeave(t *testing.T) {
	w := newWorld()
	data := randomBytes(6 << 20)
	started := make(chan struct{}, 1)
	w.stream = func(ctx context.Context, _ string, r io.Reader) (io.Reader, error) {
		return io.MultiReader(io.LimitReader(r, 2<<20), blocked{ctx, started}), nil
	}
	desc := w.add(data)
	s := w.open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := content.ReadBlob(ctx, s, desc)
			done <- err
		}()
	}
	<-started
	if list, err := s.ListStatuses(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("ListStatuses = %v, %v; want none", list, err)
	}
	ref := ours + desc.Digest.String()
	if err := s.Abort(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Errorf("Abort: %v, want not found", err)
	}
	if _, err := s.Status(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Errorf("Status: %v, want not found", err)
	}
	if _, err := s.Writer(t.Context(), content.WithRef(ref)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Writer: %v, want invalid argument", err)
	}
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("a reader that has left: %v", err)
		}
	}
	b, err := content.ReadBlob(t.Context(), s, desc) // waits for the end of the first
	if err != nil || !bytes.Equal(b, data) {
		t.Errorf("ReadBlob: %v, or other bytes", err)
	}
	if s, r := w.streams.Load(), w.ranges.Load(); s != 1 || r != 1 {
		t.Errorf("%d streams and %d ranges, want 1 and 1", s, r)
	}
	st := &w.stats
	if p, f, n, r, failed := st.Promised.Load(), st.Fetched.Load(), st.Bytes.Load(), st.Resumed.Load(), st.Failed.Load(); p != 1 || f != 1 || n != desc.Size || r != 1 || failed != 0 {
		t.Errorf("promised %d, fetched %d, %d bytes, resumed %d, failed %d; want 1, 1, %d, 1, 0", p, f, n, r, failed, desc.Size)
	}
}

// TestNothingStays: what a fetch has left goes with the promise, whether that is
// withdrawn or lost.
func TestNothingStays(t *testing.T) {
	w := newWorld()
	started := make(chan struct{}, 1)
	w.stream = func(ctx context.Context, _ string, r io.Reader) (io.Reader, error) {
		return io.MultiReader(io.LimitReader(r, 2<<20), blocked{ctx, started}), nil
	}
	one, two := w.add(randomBytes(3<<20)), w.add(randomBytes(3<<20+1))
	root := t.TempDir()
	s := w.open(t, root)
	left := func(want int) {
		t.Helper()
		if files, err := os.ReadDir(filepath.Join(root, "ingest")); err != nil || len(files) != want {
			t.Errorf("%d ingests, %v; want %d", len(files), err, want)
		}
	}
	for _, d := range []ocispec.Descriptor{one, two} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := content.ReadBlob(ctx, s, d)
			done <- err
		}()
		<-started
		cancel()
		<-done
	}
	s.flights.wg.Wait()
	left(2)
	if err := s.Delete(t.Context(), one.Digest); err != nil {
		t.Fatal(err)
	}
	left(1)
	s.Close()
	if err := os.Remove(filepath.Join(root, "promised", fileName(two.Digest))); err != nil {
		t.Fatal(err)
	}
	w.open(t, root)
	left(0)
}

// blocked says that it is read, and ends with ctx.
type blocked struct {
	ctx     context.Context
	started chan<- struct{}
}

func (b blocked) Read([]byte) (int, error) {
	b.started <- struct{}{}
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

// TestClose: those who wait are told that another time is better.
func TestClose(t *testing.T) {
	w := newWorld()
	started := make(chan struct{}, 1)
	w.stream = func(ctx context.Context, _ string, _ io.Reader) (io.Reader, error) { return blocked{ctx, started}, nil }
	desc := w.add([]byte("layer"))
	s := w.open(t, t.TempDir())
	done := make(chan error, 1)
	go func() {
		_, err := content.ReadBlob(t.Context(), s, desc)
		done <- err
	}()
	<-started
	s.Close()
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Errorf("ReadBlob during Close: %v, want unavailable", err)
	}
	if _, err := content.ReadBlob(t.Context(), s, desc); !errdefs.IsUnavailable(err) {
		t.Errorf("ReadBlob after Close: %v, want unavailable", err)
	}
}

// TestDocument: what is at hand goes into the store at once.
func TestDocument(t *testing.T) {
	w := newWorld()
	w.document = true
	desc := w.add([]byte(`{"config": true}`))
	s := w.open(t, t.TempDir())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if info, err := s.Info(t.Context(), desc.Digest); err != nil || info.Size != desc.Size {
				t.Errorf("Info = %v, %v", info, err)
			}
		})
	}
	all.Wait()
	if b, err := content.ReadBlob(t.Context(), s, desc); err != nil || string(b) != `{"config": true}` {
		t.Errorf("ReadBlob = %q, %v", b, err)
	}
	if n := w.streams.Load(); n != 0 {
		t.Errorf("%d streams", n)
	}
}

// TestWrittenBytes: bytes that somebody has sent are kept though the book has
// come to know their blob meanwhile.
func TestWrittenBytes(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir())
	p := proxied(t, s)
	data := []byte("sent")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: 4}
	wr, err := p.Writer(t.Context(), content.WithRef("r"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wr.Write(data); err != nil {
		t.Fatal(err)
	}
	w.add(data)
	if err := wr.Commit(t.Context(), 4, desc.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.local.Info(t.Context(), desc.Digest); err != nil {
		t.Errorf("what was sent is not here: %v", err)
	}
	if _, err := p.Writer(t.Context(), content.WithRef("q"), content.WithDescriptor(w.add([]byte("known")))); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Writer for a known blob: %v, want that it exists", err)
	}
}

// TestLabels: of a blob that is only promised; they stay when it is fetched.
func TestLabels(t *testing.T) {
	w := newWorld()
	desc := w.add([]byte("layer"))
	s := w.open(t, t.TempDir())
	set := func(l map[string]string, paths ...string) content.Info {
		t.Helper()
		info, err := s.Update(t.Context(), content.Info{Digest: desc.Digest, Labels: l}, paths...)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	set(map[string]string{"a": "1", "b": "2"})
	if got := set(map[string]string{"b": "", "c": "3"}, "labels.b", "labels.c").Labels; fmt.Sprint(got) != "map[a:1 c:3]" {
		t.Errorf("labels = %v", got)
	}
	if _, err := s.Update(t.Context(), content.Info{Digest: desc.Digest}, "size"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Update of the size: %v, want invalid argument", err)
	}
	if _, err := s.Update(t.Context(), content.Info{Digest: desc.Digest, Labels: map[string]string{"a": string(make([]byte, 5000))}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Update with a long label: %v, want invalid argument", err)
	}
	if _, err := s.Update(t.Context(), content.Info{Digest: digest.FromString("no")}); !errdefs.IsNotFound(err) {
		t.Errorf("Update of an unknown blob: %v, want not found", err)
	}
	walk := func(filter string) (n int) {
		if err := s.Walk(t.Context(), func(content.Info) error { n++; return nil }, filter); err != nil {
			t.Error(err)
		}
		return n
	}
	for range 2 { // promised, then here
		if yes, no := walk(`labels.c==3`), walk(`labels.c==4`); yes != 1 || no != 0 {
			t.Errorf("Walk by label found %d and %d, want 1 and 0", yes, no)
		}
		if _, err := content.ReadBlob(t.Context(), s, desc); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), desc.Digest); err != nil {
		t.Fatal(err)
	}
	if info, err := s.Info(t.Context(), desc.Digest); err != nil || len(info.Labels) != 0 {
		t.Errorf("Info after Delete = %v, %v; want it promised anew, without labels", info, err)
	}
}

// TestTornLabels: what a crash left of a file of labels goes, and labels stay.
func TestTornLabels(t *testing.T) {
	w, root := newWorld(), t.TempDir()
	desc := w.add([]byte("1"))
	s := w.open(t, root)
	if _, err := s.Update(t.Context(), content.Info{Digest: desc.Digest, Labels: map[string]string{"a": "b"}}, "labels"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	torn := filepath.Join(root, "labels", tmpPrefix+"1")
	if err := os.WriteFile(torn, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = w.open(t, root)
	if _, err := os.Stat(torn); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a crash left: %v", err)
	}
	if info, err := s.Info(t.Context(), desc.Digest); err != nil || info.Labels["a"] != "b" {
		t.Errorf("labels %v, %v", info.Labels, err)
	}
}

// TestTornPromise: a file that is none is dropped, and the others are kept.
func TestTornPromise(t *testing.T) {
	w := newWorld()
	descs := []ocispec.Descriptor{w.add([]byte("1")), w.add([]byte("2")), w.add([]byte("3"))}
	root := t.TempDir()
	s := w.open(t, root)
	for _, d := range descs {
		if _, err := s.Info(t.Context(), d.Digest); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	name := func(i int) string { return filepath.Join(root, "promised", fileName(descs[i].Digest)) }
	if err := os.Truncate(name(0), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name(1), name(0)+"0"); err != nil { // a good one with another's name
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Root: root, Book: noBook{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var left []digest.Digest
	if err := s.Walk(t.Context(), func(i content.Info) error { left = append(left, i.Digest); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []digest.Digest{descs[2].Digest}; !slices.Equal(left, want) {
		t.Errorf("promises left: %v, want %v", left, want)
	}
}

// TestUnusable: what a book may say and nobody could use.
func TestUnusable(t *testing.T) {
	w := newWorld()
	desc := w.add([]byte("layer"))
	w.sources = nil
	s := w.open(t, t.TempDir())
	if _, err := s.Info(t.Context(), desc.Digest); err == nil {
		t.Error("a blob without a source was promised")
	}
	for _, d := range []digest.Digest{"", "sha256:x", "sha256:../../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		if _, err := s.Info(t.Context(), d); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Info(%q): %v, want invalid argument", d, err)
		}
		if _, err := s.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d}); err == nil {
			t.Errorf("ReaderAt(%q) gave a reader", d)
		}
		if err := s.Delete(t.Context(), d); err == nil {
			t.Errorf("Delete(%q) says that it was done", d)
		}
	}
}

func FuzzPromise(f *testing.F) {
	f.Add([]byte(`{"Desc":{"mediaType":"x","digest":"` + digest.FromString("x").String() + `","size":1},"Sources":["a/b"],"Made":"2026-11-26T00:00:00Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parsePromise(raw)
		if err != nil {
			return
		}
		if filepath.Base(fileName(p.Desc.Digest)) != fileName(p.Desc.Digest) {
			t.Errorf("%q leaves its directory", fileName(p.Desc.Digest))
		}
	})
}
