package snapshotter

import (
	"context"
	"fmt"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
)

// container is what a start waits for on a known image.
func container(b *testing.B, s snapshots.Snapshotter, key, parent string) {
	if _, err := s.Prepare(b.Context(), key, parent); err != nil {
		b.Error(err)
	}
	if _, err := s.Mounts(b.Context(), key); err != nil {
		b.Error(err)
	}
}

// BenchmarkContainer is Prepare, Mounts and Remove of containers, one after the
// other and by fifty clients that do nothing else, on a held image of ten layers
// and, as a yardstick, on containerd's overlayfs. The milliseconds are those of
// Prepare and Mounts.
func BenchmarkContainer(b *testing.B) {
	needsRoot(b)
	cs := newContent(b)
	var all [][]member
	for i := range 10 {
		all = append(all, []member{file(fmt.Sprint("file", i), fmt.Sprint("bytes", i))})
	}
	im := newImage(b, cs, "r.example/app:1", all...)
	for _, kind := range []string{"held", "unpacked", "overlayfs"} {
		var s snapshots.Snapshotter
		switch kind {
		case "held":
			s = newSnapshotter(b, Options{Layers: newBook(b, im)})
		case "unpacked":
			s = newSnapshotter(b, Options{})
		default:
			o, err := overlay.NewSnapshotter(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer o.Close()
			s = o
		}
		if _, err := contracts[2].pull(b.Context(), s, cs, im); err != nil {
			b.Fatal(err)
		}
		for _, parallel := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/%d", kind, parallel), func(b *testing.B) {
				took := make([]time.Duration, b.N)
				var next atomic.Int64
				var wg sync.WaitGroup
				for w := range parallel {
					wg.Go(func() {
						for n := next.Add(1); int(n) <= b.N; n = next.Add(1) {
							start := time.Now()
							key := fmt.Sprint("container", w, n)
							container(b, s, key, im.top())
							took[n-1] = time.Since(start)
							if err := s.Remove(b.Context(), key); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				slices.Sort(took)
				at := func(q float64) float64 { return float64(took[int(q*float64(b.N-1))].Microseconds()) / 1000 }
				b.ReportMetric(at(0.5), "ms-p50")
				b.ReportMetric(at(0.99), "ms-p99")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
			})
		}
	}
}

// BenchmarkFind is how containerd finds a layer that was committed in Prepare,
// once for each layer of an image, among 3000 others.
func BenchmarkFind(b *testing.B) {
	s := newSnapshotter(b, Options{Layers: noLayers{}})
	labels := map[string]string{
		"containerd.io/snapshot/cri.image-ref":       "registry.example/some/where/image:latest",
		"containerd.io/snapshot/cri.manifest-digest": digest.FromString("m").String(),
		"containerd.io/snapshot/cri.layer-digest":    digest.FromString("l").String(),
		"containerd.io/snapshot/cri.image-layers":    strings.Repeat(digest.FromString("l").String()+",", 20),
	}
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			r := row{Target: digest.FromString(fmt.Sprint(i))}
			labels := maps.Clone(labels)
			labels[snapshots.LabelSnapshotRef] = r.Target.String()
			if err := s.commitHeld(b.Context(), snapshots.Info{Name: fmt.Sprint("key", i), Labels: labels}, r); !errdefs.IsAlreadyExists(err) {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	for n := 0; b.Loop(); n++ {
		found := 0
		filter := fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, digest.FromString(fmt.Sprint(n%3000)), "")
		err := s.Walk(b.Context(), func(context.Context, snapshots.Info) error { found++; return nil }, filter)
		if err != nil || found != 1 {
			b.Fatalf("%d found, %v", found, err)
		}
	}
}
