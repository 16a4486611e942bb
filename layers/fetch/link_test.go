package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/link"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// Benchmarks over a slow link: 100 Mbit/s, 20 ms, with a registry behind it.
// What they report are ratios within one run: -benchtime 3x is enough.
const (
	linkRate = 100e6
	linkRTT  = 20 * time.Millisecond
)

// goFiles are the different files of this machine's Go standard library.
func goFiles(b *testing.B) (files [][]byte) {
	b.Helper()
	seen := make(map[string]bool)
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), "src"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(path)
		if len(p) > 0 && !seen[string(p)] {
			seen[string(p)] = true
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		b.Skip("needs the sources of the standard library: ", err)
	}
	return files
}

// A goLayer is the Go standard library as a layer, with a table of contents and
// without one.
type goLayer struct {
	files  [][]byte
	tocs   *fixture
	mapped *mappedFixture
	desc   ocispec.Descriptor // of mapped
	diffID digest.Digest
}

var goLayers struct {
	once sync.Once
	goLayer
}

func newGoLayer(b *testing.B) *goLayer {
	b.Helper()
	g := &goLayers.goLayer
	goLayers.once.Do(func() {
		g.files = goFiles(b)
		g.tocs = build(b, g.files, 4<<20, 0)
		g.tar(b)
	})
	return g
}

// tar makes the mapped layer, as a first pull does.
func (g *goLayer) tar(b *testing.B) {
	var plain, stored bytes.Buffer
	w := tar.NewWriter(&plain)
	for i, p := range g.files {
		err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("src/%d", i), Mode: 0o644, Size: int64(len(p)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write(p)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	w.Close()
	z := gzip.NewWriter(&stored)
	z.Write(plain.Bytes())
	z.Close()
	g.diffID = digest.FromBytes(plain.Bytes())
	g.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(stored.Bytes()), Size: int64(stored.Len())}
	u, err := tarindex.Unpack(b.Context(), bytes.NewReader(stored.Bytes()), g.desc, g.diffID, newStore(b), tarindex.Options{})
	if err != nil {
		b.Fatal(err)
	}
	g.mapped = &mappedFixture{fixture: &fixture{blob: &blob{data: stored.Bytes()}, entries: u.Index.Entries}, m: u.Map, w: &windowStore{w: make(map[int][]byte)}}
	for i, p := range u.Map.Points {
		if p.Window > 0 {
			window, err := u.Windows.Window(b.Context(), i)
			if err != nil {
				b.Fatal(err)
			}
			g.mapped.w.w[i] = bytes.Clone(window)
		}
	}
	if err := u.Close(); err != nil {
		b.Fatal(err)
	}
}

// index makes a layer's index anew: that of a fixture goes with its benchmark.
func (fx *fixture) reindex(b *testing.B) *indexfile.File {
	b.Helper()
	fx.write(b)
	return fx.index
}

// serve serves blobs behind the link, and returns them as a registry's client sees them.
func serve(b *testing.B, k *link.Link, blobs ...[]byte) (got []layers.Blob) {
	b.Helper()
	data := make(map[string][]byte)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/x/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data[r.PathValue("digest")]))
	})
	var all sync.WaitGroup
	b.Cleanup(all.Wait)
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		return l
	}
	near, far := listen(), listen()
	s := &http.Server{Handler: mux}
	all.Go(func() { s.Serve(far) })
	b.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	all.Go(func() { k.Serve(ctx, near, far.Addr().String()) })
	reg := registry.New(registry.Options{})
	b.Cleanup(func() { reg.Close() })
	ref, err := registry.ParseRef(near.Addr().String() + "/x:latest")
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range blobs {
		d := digest.FromBytes(p)
		data[string(d)] = p
		blob, err := reg.Blob(ref, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(p))})
		if err != nil {
			b.Fatal(err)
		}
		got = append(got, blob)
	}
	return got
}

// download is a plain parallel download: three connections, a megabyte each time.
func downloadAll(b *testing.B, blob layers.Blob) time.Duration {
	b.Helper()
	began := time.Now()
	var wg sync.WaitGroup
	offs := make(chan int64)
	for range 3 {
		wg.Go(func() {
			p := make([]byte, 1<<20)
			for off := range offs {
				if _, err := blob.ReadAt(b.Context(), p[:min(1<<20, blob.Size()-off)], off); err != nil && err != io.EOF {
					b.Error(err)
				}
			}
		})
	}
	for off := int64(0); off < blob.Size(); off += 1 << 20 {
		offs <- off
	}
	close(offs)
	wg.Wait()
	return time.Since(began)
}

// unpack completes a layer by its stream.
func (g *goLayer) unpack(ctx context.Context, f *Fetcher) error {
	r, err := f.Stream(ctx, "a")
	if err != nil {
		return err
	}
	defer r.Close()
	u, err := tarindex.Unpack(ctx, r, g.desc, g.diffID, f.store.Store, tarindex.Options{})
	if err != nil {
		return err
	}
	defer u.Close()
	if err := f.Done("a"); err != nil {
		return err
	}
	return f.store.Barrier(ctx)
}

// How long it takes until all of a layer is there, against a plain parallel
// download of it over the same link.
func BenchmarkLinkComplete(b *testing.B) {
	g := newGoLayer(b)
	b.Run("toc", func(b *testing.B) {
		fx := g.tocs
		fx.reindex(b)
		benchComplete(b, fx.data, fx.layer(), func(f *Fetcher) error { return f.Complete(b.Context(), []string{"a"}, nil) })
	})
	b.Run("mapped", func(b *testing.B) {
		fx := g.mapped
		fx.reindex(b)
		benchComplete(b, fx.data, fx.layer(), func(f *Fetcher) error { return g.unpack(b.Context(), f) })
	})
}

func benchComplete(b *testing.B, data []byte, l Layer, complete func(*Fetcher) error) {
	k := &link.Link{BitsPerSecond: linkRate, RTT: linkRTT}
	l.Blob = serve(b, k, data)[0]
	var plain, whole, used time.Duration
	for b.Loop() {
		plain += downloadAll(b, l.Blob)
		f := newFetcher(b, Options{})
		f.Add("a", l)
		began, before := time.Now(), processor()
		if err := complete(f); err != nil {
			b.Fatal(err)
		}
		whole += time.Since(began)
		used += processor() - before
		f.Close()
	}
	ideal := time.Duration(float64(len(data)) * 8e9 / linkRate)
	b.ReportMetric(float64(whole)/float64(plain), "x-download")
	b.ReportMetric(float64(whole)/float64(b.N)/float64(ideal), "x-link")
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op") // with the registry and the link
}

// processor is the processor time that this process has used.
func processor() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What a miss costs while the layer completes, against one on an idle link. The
// files are those that come last.
func BenchmarkLinkMiss(b *testing.B) {
	g := newGoLayer(b)
	b.Run("toc", func(b *testing.B) {
		fx := g.tocs
		fx.reindex(b)
		benchMiss(b, fx.fixtureOf(), func(ctx context.Context, f *Fetcher) error { return f.Complete(ctx, []string{"a"}, nil) })
	})
	b.Run("mapped", func(b *testing.B) {
		fx := g.mapped
		fx.reindex(b)
		benchMiss(b, fx, g.unpack)
	})
}

// fixtureOf is fx with the methods of a mapped one.
func (fx *fixture) fixtureOf() *mappedFixture { return &mappedFixture{fixture: fx} }

const misses = 24

func benchMiss(b *testing.B, fx *mappedFixture, complete func(context.Context, *Fetcher) error) {
	k := &link.Link{BitsPerSecond: linkRate, RTT: linkRTT}
	blob := serve(b, k, fx.data)[0]
	var idle, during []time.Duration
	for b.Loop() {
		// The same misses twice, each time with nothing of the layer there.
		last := rand.Perm(len(fx.entries) / 2)[:misses]
		for i := range last {
			last[i] += len(fx.entries) / 2
		}
		for _, completing := range []bool{false, true} {
			f := newFetcher(b, Options{})
			l := Layer{Blob: blob, Index: fx.index, Compression: fx.comp, Map: fx.m}
			if fx.w != nil {
				l.Windows = fx.w
			}
			f.Add("a", l)
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			if completing {
				wg.Go(func() { complete(ctx, f) }) // it is not waited for
				time.Sleep(300 * time.Millisecond)
			}
			for _, i := range last {
				took, missed := miss(b, f, &fx.entries[i])
				if missed && completing {
					during = append(during, took)
				} else if missed {
					idle = append(idle, took)
				}
				time.Sleep(50 * time.Millisecond)
			}
			cancel()
			wg.Wait()
			f.Close()
		}
	}
	mean := func(d []time.Duration) (sum time.Duration) {
		for _, x := range d {
			sum += x
		}
		return sum / time.Duration(max(1, len(d)))
	}
	p95 := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)*95/100]
	}
	b.ReportMetric(float64(mean(during))/float64(mean(idle)), "x-idle")
	b.ReportMetric(float64(p95(during))/float64(p95(idle)), "x-idle-p95")
	b.ReportMetric(mean(idle).Seconds()*1e3, "ms-idle")
	b.ReportMetric(mean(during).Seconds()*1e3, "ms-during")
}

// miss reads a file, and says whether that was one.
func miss(b *testing.B, f *Fetcher, e *layers.Entry) (time.Duration, bool) {
	before := f.stats.Misses.Load()
	began := time.Now()
	p := make([]byte, min(e.Size, layers.ChunkSize))
	if _, err := f.ReadAt(b.Context(), e.Object, p, 0); err != nil && err != io.EOF {
		b.Fatal(err)
	}
	return time.Since(began), f.stats.Misses.Load() > before
}
