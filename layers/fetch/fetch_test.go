package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
)

// A blob is a layer's stored bytes in memory, with what can go wrong.
type blob struct {
	data []byte
	// hook may be nil. It runs before every read, and may wait or fail it.
	hook  func(ctx context.Context, off, n int64) error
	reads atomic.Int64
	bytes atomic.Int64
}

func (b *blob) Size() int64 { return int64(len(b.data)) }

func (b *blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	b.reads.Add(1)
	b.bytes.Add(int64(len(p)))
	if b.hook != nil {
		if err := b.hook(ctx, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := copy(p, b.data[min(off, b.Size()):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// A fixture is a layer that is made of files.
type fixture struct {
	*blob
	entries []layers.Entry
	index   *indexfile.File
	comp    layers.Compression
}

// build stores files as gzip members, cut into chunks of size bytes. Files of
// at most share bytes share members by fours.
func build(t testing.TB, files [][]byte, size, share int) *fixture {
	t.Helper()
	fx := &fixture{blob: new(blob), comp: layers.Gzip}
	var out bytes.Buffer
	for i := 0; i < len(files); {
		n := 1
		for n < 4 && i+n < len(files) && len(files[i]) <= share && len(files[i+n]) <= share {
			n++
		}
		if n > 1 {
			fx.shared(&out, files[i:i+n])
		} else {
			fx.chunked(&out, files[i], size)
		}
		fmt.Fprintf(&out, "header %d", i) // what lies between files
		i += n
	}
	fx.data = out.Bytes()
	fx.write(t)
	return fx
}

func (fx *fixture) write(t testing.TB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	if err := indexfile.Write(path, &layers.Index{Entries: fx.entries, Compression: fx.comp}); err != nil {
		t.Fatal(err)
	}
	var err error
	if fx.index, err = indexfile.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fx.index.Close() })
}

func (fx *fixture) member(out *bytes.Buffer, p []byte) (off, n int64) {
	off = int64(out.Len())
	z := gzip.NewWriter(out)
	z.Write(p)
	z.Close()
	return off, int64(out.Len()) - off
}

func (fx *fixture) chunked(out *bytes.Buffer, p []byte, size int) {
	e := fx.entry(p)
	for off := 0; off < len(p); off += size {
		c := p[off:min(off+size, len(p))]
		ck := layers.Chunk{Sum: layers.SumOf(c), Off: int64(off), Size: int64(len(c))}
		if len(bytes.Trim(c, "\x00")) > 0 {
			ck.BlobOff, ck.BlobLen = fx.member(out, c)
		}
		e.Chunks = append(e.Chunks, ck)
	}
	fx.entries = append(fx.entries, e)
}

func (fx *fixture) shared(out *bytes.Buffer, files [][]byte) {
	off, n := fx.member(out, bytes.Join(files, []byte("gap")))
	inner := int64(0)
	for _, p := range files {
		e := fx.entry(p)
		e.Chunks = []layers.Chunk{{Sum: layers.SumOf(p), Size: int64(len(p)), BlobOff: off, BlobLen: n, Inner: inner}}
		inner += int64(len(p)) + 3
		fx.entries = append(fx.entries, e)
	}
}

func (fx *fixture) entry(p []byte) layers.Entry {
	return layers.Entry{Name: fmt.Sprint("f", len(fx.entries)), Kind: layers.Reg, Size: int64(len(p)), Object: layers.SumOf(p)}
}

func (fx *fixture) layer() Layer { return Layer{Blob: fx, Index: fx.index, Compression: fx.comp} }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func newStore(t testing.TB) *objects.Store {
	t.Helper()
	s, err := objects.Open(t.TempDir(), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newFetcher(t testing.TB, o Options) *Fetcher {
	t.Helper()
	if o.Store == nil {
		o.Store = newStore(t)
	}
	f := New(o)
	t.Cleanup(f.Close)
	return f
}

// check reads all of data through f, n bytes at a time.
func check(t testing.TB, f *Fetcher, data []byte, n int) {
	t.Helper()
	sum := layers.SumOf(data)
	if size, ok := f.Size(sum); !ok || size != int64(len(data)) {
		t.Fatalf("Size(%s) = %d, %v, want %d", sum, size, ok, len(data))
	}
	buf := make([]byte, n)
	for off := 0; off < len(data); off += n {
		got, err := f.ReadAt(t.Context(), sum, buf, int64(off))
		want := data[off:min(off+n, len(data))]
		if err != nil && err != io.EOF || !bytes.Equal(buf[:got], want) {
			t.Fatalf("ReadAt(%d) = %d bytes, %v, want %d", off, got, err, len(want))
		}
	}
	if got, err := f.ReadAt(t.Context(), sum, buf, int64(len(data))); got != 0 || err != io.EOF {
		t.Fatalf("ReadAt at the end = %d, %v, want EOF", got, err)
	}
}

func someFiles() [][]byte {
	files := [][]byte{random(1), random(100), random(4096), random(70_000), random(1 << 20), random(5), random(300_001)}
	sparse := random(400_000)
	clear(sparse[64<<10 : 256<<10])
	files = append(files, sparse, make([]byte, 200_000), random(12), random(13), random(14), random(15), random(16))
	return files
}

func TestReadAt(t *testing.T) {
	for _, n := range []int{1 << 21, 128 << 10, 10_000} {
		f := newFetcher(t, Options{})
		files := someFiles()
		fx := build(t, files, 64<<10, 32)
		f.Add("a", fx.layer())
		for _, p := range files {
			check(t, f, p, n)
		}
		for _, p := range files { // a reader has its bytes before the object is promoted
			for end := time.Now().Add(20 * time.Second); !f.store.Has(layers.SumOf(p)); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("object of %d bytes does not become complete", len(p))
				}
			}
		}
		before := fx.reads.Load()
		for _, p := range files {
			check(t, f, p, n)
		}
		if n := fx.reads.Load() - before; n != 0 {
			t.Errorf("%d requests for what is there", n)
		}
	}
}

func TestUnknownObject(t *testing.T) {
	f := newFetcher(t, Options{})
	sum := layers.SumOf([]byte("x"))
	if _, ok := f.Size(sum); ok {
		t.Error("Size of an unknown object")
	}
	if _, err := f.ReadAt(t.Context(), sum, make([]byte, 1), 0); !errors.Is(err, objects.ErrNotCached) {
		t.Errorf("ReadAt = %v, want ErrNotCached", err)
	}
}

func TestOneFlight(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(200_000)
	fx := build(t, [][]byte{data}, 1<<20, 0)
	begin, goOn := make(chan struct{}), make(chan struct{})
	fx.hook = func(context.Context, int64, int64) error { close(begin); <-goOn; return nil }
	f.Add("a", fx.layer())
	var wg sync.WaitGroup
	wg.Go(func() { check(t, f, data, 1<<20) })
	<-begin
	for range 20 {
		wg.Go(func() { check(t, f, data, 50_000) })
	}
	for f.stats.Waits.Load() < 20 {
		if t.Context().Err() != nil {
			t.Fatal("readers do not wait")
		}
		runtime.Gosched()
	}
	close(goOn)
	wg.Wait()
	if n := fx.reads.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestWaiterLeaves(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(1000)
	fx := build(t, [][]byte{data}, 1<<20, 0)
	begin, goOn := make(chan struct{}), make(chan struct{})
	fx.hook = func(context.Context, int64, int64) error { close(begin); <-goOn; return nil }
	f.Add("a", fx.layer())
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begin; cancel() }()
	if _, err := f.ReadAt(ctx, layers.SumOf(data), make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("ReadAt = %v, want Canceled", err)
	}
	close(goOn)
	check(t, f, data, 1000)
	if n := fx.reads.Load(); n != 1 {
		t.Errorf("%d requests, want 1: the flight went on", n)
	}
}

func TestFlippedBytes(t *testing.T) {
	for _, size := range []int{1000, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := newFetcher(t, Options{Whole: -1})
			data := random(size)
			fx := build(t, [][]byte{data}, 64<<10, 0)
			good := bytes.Clone(fx.data)
			fx.comp = layers.None // so that a flipped byte decodes
			fx.data = bytes.Clone(data)
			for i := range fx.entries[0].Chunks {
				c := &fx.entries[0].Chunks[i]
				c.BlobOff, c.BlobLen = c.Off, c.Size
			}
			fx.write(t)
			fx.data[10] ^= 1
			f.Add("bad", fx.layer())
			_, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 100), 0)
			if _, ok := errors.AsType[*layers.DigestError](err); !ok {
				t.Fatalf("ReadAt = %v, want *DigestError", err)
			}
			if n := fx.reads.Load(); n != 1 {
				t.Errorf("%d requests: wrong bytes were asked for again", n)
			}
			// The same object in another layer is fine.
			other := build(t, [][]byte{data}, 64<<10, 0)
			if !bytes.Equal(other.data, good) {
				t.Fatal("fixture differs")
			}
			f.Add("good", other.layer())
			check(t, f, data, 1<<20)
			if f.stats.Lies.Load() != 1 {
				t.Errorf("%d lies, want 1", f.stats.Lies.Load())
			}
		})
	}
}

func TestDamagedStream(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(5000)
	fx := build(t, [][]byte{data}, 64<<10, 0)
	fx.data[3] = 0xff
	clear(fx.data[200:400])
	f.Add("bad", fx.layer())
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 100), 0); err == nil {
		t.Fatal("damaged gzip was served")
	}
	fx.data = fx.data[:1000]
	f.Add("bad", fx.layer()) // now it is short, too
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 100), 0); err == nil {
		t.Fatal("short blob was served")
	}
}

func TestFailOver(t *testing.T) {
	f := newFetcher(t, Options{})
	files := someFiles()
	bad, good := build(t, files, 64<<10, 32), build(t, files, 64<<10, 32)
	bad.hook = func(context.Context, int64, int64) error { return errors.New("503") }
	f.Add("a", bad.layer())
	f.Add("b", good.layer())
	for _, p := range files {
		check(t, f, p, 100_000)
	}
}

func TestNetworkError(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(5000)
	fx := build(t, [][]byte{data}, 64<<10, 0)
	want := errors.New("connection reset")
	var n atomic.Int64
	fx.hook = func(context.Context, int64, int64) error { n.Add(1); return want }
	f.Add("a", fx.layer())
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 100), 0); !errors.Is(err, want) {
		t.Fatalf("ReadAt = %v, want %v", err, want)
	}
	if n.Load() != 2 {
		t.Errorf("%d tries, want 2", n.Load())
	}
	fx.hook = nil // the network is back
	check(t, f, data, 100)
}

func TestRemoveEndsWaits(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(5000)
	fx := build(t, [][]byte{data}, 64<<10, 0)
	begin := make(chan struct{}, 9)
	fx.hook = func(ctx context.Context, _, _ int64) error { begin <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	f.Add("a", fx.layer())
	go func() { <-begin; f.Remove("a") }()
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 100), 0); err == nil {
		t.Error("ReadAt from a removed layer = nil")
	}
}

func TestComplete(t *testing.T) {
	f := newFetcher(t, Options{})
	var files [][]byte
	for range 10 {
		files = append(files, someFiles()...)
	}
	a, b := build(t, files[:70], 64<<10, 32), build(t, files[60:], 64<<10, 32)
	f.Add("a", a.layer())
	f.Add("b", b.layer())
	check(t, f, files[4], 1<<20)
	var last, total int64
	if err := f.Complete(t.Context(), []string{"a", "b"}, func(have, all int64) {
		if have < last || have > all {
			t.Errorf("progress went from %d to %d of %d", last, have, all)
		}
		last, total = have, all
	}); err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ends at %d of %d", last, total)
	}
	n := a.reads.Load() + b.reads.Load()
	for _, p := range files {
		if !f.store.Has(layers.SumOf(p)) {
			t.Fatalf("object of %d bytes is missing", len(p))
		}
		check(t, f, p, 1<<20)
	}
	if got := a.reads.Load() + b.reads.Load(); got != n {
		t.Errorf("%d requests after Complete", got-n)
	}
	if err := f.Complete(t.Context(), []string{"a", "b"}, nil); err != nil || a.reads.Load()+b.reads.Load() != n {
		t.Errorf("second Complete = %v, with %d requests", err, a.reads.Load()+b.reads.Load()-n)
	}
	if sums, err := f.store.Partials(); err != nil || len(sums) > 0 {
		t.Errorf("Partials = %d, %v, want none", len(sums), err)
	}
}

func TestCompleteGoesOn(t *testing.T) {
	f := newFetcher(t, Options{})
	var files [][]byte
	for range 30 {
		files = append(files, random(200_000))
	}
	fx := build(t, files, 64<<10, 0)
	var n atomic.Int64
	fx.hook = func(context.Context, int64, int64) error {
		if n.Add(1) == 3 {
			return errors.New("reset")
		}
		return nil
	}
	f.Add("a", fx.layer())
	if err := f.Complete(t.Context(), []string{"a"}, nil); err != nil {
		t.Fatalf("Complete over one failed request = %v", err)
	}
	for _, p := range files {
		if !f.store.Has(layers.SumOf(p)) {
			t.Fatal("an object is missing")
		}
	}
}

func TestCompleteFails(t *testing.T) {
	f := newFetcher(t, Options{})
	files := someFiles()
	fx := build(t, files, 64<<10, 32)
	f.Add("a", fx.layer())
	ctx, cancel := context.WithCancel(t.Context())
	fx.hook = func(context.Context, int64, int64) error { cancel(); return errors.New("down") }
	if err := f.Complete(ctx, []string{"a"}, nil); err == nil {
		t.Error("Complete without a network = nil")
	}
	if err := f.Complete(t.Context(), []string{"no such"}, nil); err == nil {
		t.Error("Complete of an unknown layer = nil")
	}
	fx.hook = nil
	fx.data[len(fx.data)/2] ^= 1
	err := f.Complete(t.Context(), []string{"a"}, nil)
	if !isBad(err) {
		t.Errorf("Complete of a damaged layer = %v", err)
	}
}

// A layer that lies about an object's chunks must not change what another image reads.
func TestDisputed(t *testing.T) {
	good, evil := random(300_000), random(300_000)
	for _, evilFirst := range []bool{true, false} {
		for _, touched := range []bool{true, false} {
			t.Run(fmt.Sprint(evilFirst, touched), func(t *testing.T) {
				var told []layers.Sum
				f := newFetcher(t, Options{Whole: -1, Disputed: func(s layers.Sum) { told = append(told, s) }})
				a, b := build(t, [][]byte{good}, 64<<10, 0), build(t, [][]byte{evil}, 64<<10, 0)
				b.entries[0].Object = layers.SumOf(good)
				b.write(t)
				if evilFirst {
					a, b = b, a
				}
				f.Add("1", a.layer())
				if touched {
					if _, err := f.ReadAt(t.Context(), layers.SumOf(good), make([]byte, 10), 0); err != nil {
						t.Fatal(err)
					}
				}
				f.Add("2", b.layer())
				if touched != (len(told) == 1) {
					t.Errorf("Disputed was told %v", told)
				}
				check(t, f, good, 50_000)
				if f.stats.Lies.Load() > 1 {
					t.Errorf("%d lies", f.stats.Lies.Load())
				}
			})
		}
	}
}

func TestDisputedSize(t *testing.T) {
	f := newFetcher(t, Options{})
	good := random(300_000)
	a, b := build(t, [][]byte{good}, 64<<10, 0), build(t, [][]byte{good[:200_000]}, 64<<10, 0)
	b.entries[0].Object = layers.SumOf(good)
	b.write(t)
	f.Add("liar", b.layer())
	f.Add("honest", a.layer())
	check(t, f, good, 50_000)
}

func TestLyingTOC(t *testing.T) {
	f := newFetcher(t, Options{})
	fx := build(t, [][]byte{random(300_000)}, 64<<10, 0)
	claimed := layers.SumOf([]byte("what it should be"))
	fx.entries[0].Object = claimed
	fx.write(t)
	f.Add("liar", fx.layer())
	err := f.Complete(t.Context(), []string{"liar"}, nil)
	if _, ok := errors.AsType[*layers.DigestError](err); !ok {
		t.Errorf("Complete = %v, want *DigestError", err)
	}
	if f.store.Has(claimed) {
		t.Error("wrong bytes became an object")
	}
	if sums, _ := f.store.Partials(); len(sums) > 0 {
		t.Error("wrong bytes were kept")
	}
}

func TestBackgroundYields(t *testing.T) {
	f := newFetcher(t, Options{})
	var files [][]byte
	for range 40 {
		files = append(files, random(100_000))
	}
	bg, fg := build(t, files, 64<<10, 0), build(t, [][]byte{random(100_000)}, 1<<20, 0)
	inDemand, goOn := make(chan struct{}), make(chan struct{})
	fg.hook = func(context.Context, int64, int64) error { close(inDemand); <-goOn; return nil }
	var demanding atomic.Bool
	var sent atomic.Int64
	bg.hook = func(context.Context, int64, int64) error {
		if demanding.Load() {
			t.Error("the background began a request while a reader waited")
		}
		sent.Add(1)
		return nil
	}
	f.Add("bg", bg.layer())
	f.Add("fg", fg.layer())
	ctx := t.Context()
	var wg sync.WaitGroup
	wg.Go(func() { f.ReadAt(ctx, fg.entries[0].Object, make([]byte, 10), 0) })
	<-inDemand
	demanding.Store(true)
	wg.Go(func() {
		if err := f.Complete(ctx, []string{"bg"}, nil); err != nil {
			t.Error(err)
		}
	})
	for f.gate.waiting(background) == 0 { // until it has come to the gate
		runtime.Gosched()
	}
	demanding.Store(false)
	close(goOn)
	wg.Wait()
	if sent.Load() == 0 {
		t.Error("the background never came")
	}
}

// What completes a layer is marked for who limits the bandwidth, until a reader
// waits for it.
func TestBackgroundIsMarked(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(1000) // one chunk, so one request
	fx := build(t, [][]byte{data}, 64<<10, 0)
	begun := make(chan struct{})
	fx.hook = func(ctx context.Context, _, _ int64) error {
		is, hurry := layers.IsBackground(ctx)
		if !is {
			t.Error("the background is not marked")
		}
		close(begun)
		select {
		case <-hurry:
		case <-ctx.Done():
			t.Error("it was not told of the reader")
		}
		return nil
	}
	f.Add("a", fx.layer())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Complete(t.Context(), []string{"a"}, nil); err != nil {
			t.Error(err)
		}
	})
	<-begun
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	wg.Wait()
	other := build(t, [][]byte{random(1000)}, 64<<10, 0)
	other.hook = func(ctx context.Context, _, _ int64) error {
		if is, _ := layers.IsBackground(ctx); is {
			t.Error("a reader is marked as background")
		}
		return nil
	}
	f.Add("b", other.layer())
	if _, err := f.ReadAt(t.Context(), other.entries[0].Object, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// waiting is how many wait at the gate.
func (g *gate) waiting(c class) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue[c])
}

func TestClose(t *testing.T) {
	f := New(Options{Store: newStore(t)})
	fx := build(t, [][]byte{random(1000)}, 1<<20, 0)
	begin := make(chan struct{}, 9)
	fx.hook = func(ctx context.Context, _, _ int64) error { begin <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	f.Add("a", fx.layer())
	go func() { <-begin; f.Close() }()
	if _, err := f.ReadAt(t.Context(), fx.entries[0].Object, make([]byte, 10), 0); err == nil {
		t.Error("ReadAt ended by Close = nil")
	}
	if _, err := f.ReadAt(t.Context(), fx.entries[0].Object, make([]byte, 10), 0); err == nil {
		t.Error("ReadAt after Close = nil")
	}
}
