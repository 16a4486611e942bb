package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// stat returns a counter of the daemon.
func (m *machine) stat(name string) int64 {
	m.Helper()
	var all map[string]int64
	m.must(control.OpStat, nil, &all)
	n, ok := all[name]
	if !ok {
		m.Fatalf("no counter %s", name)
	}
	return n
}

// eventually waits until ok says so.
func (m *machine) eventually(what string, ok func() bool) {
	m.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestBootProfile: a node that publishes records the first start of an image,
// and the next node has what that read before anybody asks.
func TestBootProfile(t *testing.T) {
	t.Parallel()
	for _, format := range []string{gzipTar, eStargz} {
		t.Run(format, func(t *testing.T) {
			hub := newHub(t)
			im := newImage(t, format, append(someFiles(10, "a", 60), inside(t)), someFiles(11, "b", 200))
			ref := hub.put(t, "boot", im)
			run := []string{"run", "--rm", "-q", "--network", "none", ref, "/inside", "sums", "/a"}

			a := startMachine(t, "index.publish = true")
			im.checkSums(t, "a", a.ok(run...))
			var list []control.IndexInfo
			a.eventually("an index with a bundle is published", func() bool {
				a.must(control.OpIndexes, control.IndexListArgs{Ref: ref}, &list)
				return len(list) > 0 && list[0].Bundle > 0
			})
			var d control.ImageDetail
			a.must(control.OpInspect, control.RefArgs{Ref: ref}, &d)
			if p := d.Profile; p.Starts != 1 || p.Chunks < 60 {
				t.Errorf("recorded: %+v, want one start and all of 60 files", p)
			}

			b := startMachine(t, "pull.complete = false\nindex.trust = 'any'")
			hub.sent()
			im.checkSums(t, "a", b.ok(run...))
			b.eventually("all of the bundle has come", func() bool { return b.stat("fetch.kept") >= d.Profile.Bytes })
			if n := b.stat("fetch.misses"); n > 4 { // what is read before the bundle is known
				t.Errorf("%d reads missed", n)
			}
			if got, limit := hub.sent(), im.size()/2; got > limit {
				t.Errorf("%d of %d bytes were sent, want at most %d", got, im.size(), limit)
			}
			im.check(t, b.mount(ref, false))
		})
	}
}

// TestKin: an image without a profile begins with that of another of its repository.
func TestKin(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	program, shared := inside(t), someFiles(20, "a", 40)
	first := newImage(t, eStargz, append(shared, program), someFiles(21, "b", 50))
	ref := hub.put(t, "kin", first)
	m := startMachine(t, "pull.complete = false")
	first.checkSums(t, "a", m.ok("run", "--rm", "-q", "--network", "none", ref, "/inside", "sums", "/a"))
	m.stop()
	for _, dir := range []string{"objects", "fresh", "partial", "packs"} {
		if err := os.RemoveAll(filepath.Join(m.root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	second := newImage(t, eStargz, append(shared, program), someFiles(22, "c", 50))
	hub.put(t, "kin", second)
	if row := m.pull(ref, false); row.Complete {
		t.Errorf("pulled: %+v", row)
	}
	var want int64
	for _, f := range shared {
		want += f.Size
	}
	m.eventually("what the first image's start read is fetched for the second", func() bool { return m.stat("fetch.kept") >= want })
	if n := m.stat("fetch.misses"); n > 0 {
		t.Errorf("%d reads missed, though nobody read", n)
	}
	second.check(t, m.mount(ref, false))
}
