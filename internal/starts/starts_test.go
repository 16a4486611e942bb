package starts

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
)

// A shelf is a book with what it is made of.
type shelf struct {
	*Book
	counters control.Counters
	done     []control.Start
	dir      string
}

func newBook(t testing.TB) *shelf {
	t.Helper()
	s := &shelf{dir: t.TempDir()}
	b, err := Open(Options{
		Dir:          filepath.Join(s.dir, "starts"),
		ContainerDir: func(id string) string { return filepath.Join(s.dir, id) },
		Counters:     func() control.Counters { return s.counters },
		Done:         func(r control.Start) { s.done = append(s.done, r) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Book = b
	return s
}

func (s *shelf) container(t *testing.T, id string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.dir, id), 0o700); err != nil {
		t.Fatal(err)
	}
}

func digestOf(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func sum(n int) layers.Sum { return layers.SumOf([]byte{byte(n), byte(n >> 8)}) }

const ms = time.Millisecond

// TestStart is the whole story of one.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		b.container(t, "cafe")
		b.counters = control.Counters{Misses: 100, Fetched: 1000}
		began := time.Now()
		s := b.Begin(Run, "debian")
		var heard []string
		progress := s.Watch(func(p control.Progress) { heard = append(heard, p.Action) })
		pull := s.Phase("pull image")
		progress(control.Progress{Action: "resolving"})
		time.Sleep(40 * ms)
		progress(control.Progress{Action: "resolving", Done: true})
		for _, id := range []string{"aaaa", "bbbb"} {
			progress(control.Progress{ID: id, Action: "indexing", Size: 10})
			time.Sleep(10 * ms)
		}
		progress(control.Progress{ID: "aaaa", Action: "indexing", Off: 10, Size: 10, Done: true})
		progress(control.Progress{ID: "bbbb", Action: "indexing", Off: 7, Size: 10, Done: true})
		progress(control.Progress{ID: "cccc", Action: "exists", Done: true})
		progress(control.Progress{Action: "dancing"})
		pull()
		b.Waited(fetch.Wait{Object: sum(9), Layers: []string{"l1"}, Began: time.Now(), Took: ms}) // not known to be ours yet
		s.Image("debian:latest", digestOf(1), []string{"l1", "l2"})
		s.Container("cafe", "web")
		mount := s.Phase("mount")
		time.Sleep(2 * ms)
		mount()
		b.Started("cafe", digestOf(1), time.Now())

		wait := func(object int, layer string, took time.Duration, n int, err error) {
			at := time.Now()
			time.Sleep(took)
			b.Waited(fetch.Wait{Object: sum(object), Layers: []string{layer, "elsewhere"}, Began: at, Took: took, N: n, Err: err})
		}
		wait(1, "l1", 20*ms, 100, nil)
		wait(2, "l2", 30*ms, 50, nil)
		wait(1, "l1", 40*ms, 100, nil)
		wait(3, "other", 50*ms, 1, nil) // of another image
		wait(2, "l2", 10*ms, 0, errors.New("gone"))
		b.Waited(fetch.Wait{Object: sum(4), Layers: []string{"l1"}, Began: time.Now().Add(-5 * ms), Took: 5 * ms}) // while another waited
		b.counters = control.Counters{Misses: 105, Fetched: 4000}

		if now, ok := b.Image(digestOf(1)); !ok || now.Ready != 0 || now.Running != 62*ms {
			t.Errorf("while it starts: %+v, %v", now, ok)
		}
		b.Ready("cafe", "port", time.Now())
		b.Waited(fetch.Wait{Object: sum(5), Layers: []string{"l1"}, Began: time.Now(), Took: ms})
		b.Ready("cafe", "quiet", time.Now()) // there is nothing any more

		want := control.Start{
			Kind: Run, Ref: "debian:latest", Digest: digestOf(1), Container: "cafe", Name: "web", Began: began.UTC(),
			Phases: []control.Phase{
				{Name: "pull image", Begin: 0, End: 60 * ms}, {Name: "resolve", Begin: 0, End: 40 * ms},
				{Name: "index", ID: "aaaa", Begin: 40 * ms, End: 60 * ms, Bytes: 10}, {Name: "index", ID: "bbbb", Begin: 50 * ms, End: 60 * ms, Bytes: 7},
				{Name: "dancing", Begin: 60 * ms, End: 60 * ms}, {Name: "mount", Begin: 60 * ms, End: 62 * ms},
			},
			Running: 62 * ms, Ready: 212 * ms, ReadyBy: "port",
			Counters: control.Counters{Misses: 5, Fetched: 3000}, Waiting: 100 * ms, Missed: 5,
			Waits: []control.FileWait{
				{Object: sum(1).String(), N: 2, First: 62 * ms, Took: 60 * ms, Longest: 40 * ms, Bytes: 200},
				{Object: sum(2).String(), N: 2, First: 82 * ms, Took: 40 * ms, Longest: 30 * ms, Bytes: 50, Failed: 1},
				{Object: sum(4).String(), N: 1, First: 207 * ms, Took: 5 * ms, Longest: 5 * ms},
			},
		}
		for name, get := range map[string]func() (control.Start, bool){
			"image":     func() (control.Start, bool) { return b.Image(digestOf(1)) },
			"container": func() (control.Start, bool) { return b.Container("cafe") },
			"done":      func() (control.Start, bool) { return b.done[0], len(b.done) == 1 },
		} {
			got, ok := get()
			if d := cmp.Diff(want, got); !ok || d != "" {
				t.Errorf("%s: %v (-want +got)\n%s", name, ok, d)
			}
		}
		if got := strings.Join(heard, " "); got != "resolving resolving indexing indexing indexing indexing exists dancing" {
			t.Errorf("the next heard %q", got)
		}
		if _, ok := b.Pulled(digestOf(1)); ok {
			t.Error("a start was taken for a pull")
		}
		if n := b.recording.Load(); n != 0 {
			t.Errorf("%d are being recorded", n)
		}
	})
}

func TestFailedStart(t *testing.T) {
	b := newBook(t)
	s := b.Begin(Run, "nothing")
	s.Failed(nil)
	s.Failed(errors.New("no such image"))
	s.Failed(errors.New("again"))
	s.Phase("after the end")()
	if len(b.done) != 1 || b.done[0].Error != "no such image" {
		t.Errorf("%+v", b.done)
	}
	if entries, err := os.ReadDir(b.o.Dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	s = b.Begin(Run, "debian")
	s.Image("", digestOf(2), nil)
	s.Phase("mount") // it ends there
	time.Sleep(time.Microsecond)
	s.Failed(errors.New("mount: no room"))
	if r, ok := b.Image(digestOf(2)); !ok || r.Error != "mount: no room" || r.Ref != "debian" || r.Phases[0].End == r.Phases[0].Begin {
		t.Errorf("%+v, %v", r, ok)
	}
}

func TestPulled(t *testing.T) {
	b := newBook(t)
	s := b.Begin(Pull, "debian:1")
	s.Image("", digestOf(3), nil)
	s.Phase("resolve")()
	s.Pulled()
	again := b.Begin(Pull, "debian:1")
	again.Image("", digestOf(3), nil)
	again.Pulled() // it was there
	if n := b.recording.Load(); n != 0 {
		t.Errorf("%d are being recorded", n)
	}
	r, ok := b.Pulled(digestOf(3))
	if !ok || r.Ready == 0 || r.Kind != Pull || len(r.Phases) != 1 {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, ok := b.Image(digestOf(3)); ok {
		t.Error("a pull was taken for a start")
	}
}

// Another worker saw the beginning.
func TestStartedBeforeUs(t *testing.T) {
	b := newBook(t)
	b.container(t, "cafe")
	b.Started("cafe", digestOf(4), time.Now().Add(-3*time.Second))
	b.Ready("cafe", "line", time.Now())
	if r, ok := b.Container("cafe"); !ok || !r.Partial || r.Ready < 3*time.Second || r.Digest != digestOf(4) {
		t.Errorf("%+v, %v", r, ok)
	}
	b.Ready("unknown", "line", time.Now())
}

// A container that is made now and started later begins anew then.
func TestStartedAgain(t *testing.T) {
	b := newBook(t)
	b.container(t, "cafe")
	s := b.Begin(Run, "debian")
	s.Container("cafe", "web")
	s = b.Begin(Again, "debian")
	s.Container("cafe", "web")
	if n := b.recording.Load(); n != 1 {
		t.Errorf("%d are being recorded", n)
	}
	b.Started("cafe", digestOf(1), time.Now())
	b.Ready("cafe", "", time.Now())
	if r, ok := b.Container("cafe"); !ok || r.Kind != Again || r.ReadyBy != "" || r.Ready == 0 {
		t.Errorf("%+v, %v", r, ok)
	}
}

// What is prepared and not started does not take others' waits for ever.
func TestPreparingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		s := b.Begin(Run, "debian")
		s.Image("", digestOf(1), []string{"l"})
		b.Waited(fetch.Wait{Object: sum(1), Layers: []string{"l"}})
		time.Sleep(2 * preparing)
		b.Waited(fetch.Wait{Object: sum(1), Layers: []string{"l"}})
		if r, _ := b.Image(digestOf(1)); r.Missed != 1 {
			t.Errorf("%d waits, want 1", r.Missed)
		}
		time.Sleep(2 * longest)
		b.Begin(Run, "other")
		if n := b.recording.Load(); n != 1 {
			t.Errorf("%d are being recorded, want the new one", n)
		}
	})
}

func TestNilBook(t *testing.T) {
	var b *Book
	b.Waited(fetch.Wait{})
	b.Ready("x", "", time.Now())
	b.Started("x", "", time.Now())
	s := b.Begin(Run, "x")
	s.Phase("p")()
	s.Image("", "", nil)
	s.Container("", "")
	s.Failed(errors.New("x"))
	s.Pulled()
	called := false
	s.Watch(func(control.Progress) { called = true })(control.Progress{})
	if !called {
		t.Error("progress is lost")
	}
}

func TestRecordsAreBounded(t *testing.T) {
	b := newBook(t)
	b.container(t, "cafe")
	s := b.Begin(Run, "debian")
	s.Image("", digestOf(1), []string{"l"})
	s.Container("cafe", "")
	p := s.Watch(nil)
	for i := range 3 * maxPhases {
		p(control.Progress{ID: fmt.Sprint(i), Action: "indexing"})
	}
	b.Started("cafe", "", time.Now())
	at := time.Now()
	for i := range 2 * maxObjects {
		at = at.Add(10 * ms)
		b.Waited(fetch.Wait{Object: layers.SumOf(fmt.Append(nil, i)), Layers: []string{"l"}, Began: at, Took: ms})
	}
	if len(s.waits) > maxObjects || len(s.spans) > maxSpans {
		t.Errorf("%d objects, %d spans", len(s.waits), len(s.spans))
	}
	b.Ready("cafe", "quiet", at)
	r, ok := b.Container("cafe")
	if !ok || len(r.Phases) != maxPhases || len(r.Waits) != maxWaits || r.More != 2*maxObjects-maxWaits {
		t.Errorf("%v: %d phases, %d waits, %d more", ok, len(r.Phases), len(r.Waits), r.More)
	}
	raw, _ := json.Marshal(r)
	if len(raw) > maxRecord/4 {
		t.Errorf("%d bytes", len(raw))
	}
	for range 2 * maxActive {
		b.Begin(Run, "x")
	}
	if n := b.recording.Load(); n > maxActive {
		t.Errorf("%d are being recorded", n)
	}
}

// Spans are the union of the waits.
func TestSpans(t *testing.T) {
	for range 200 {
		s := &Start{}
		var ticks [400]bool
		for range rand.IntN(30) {
			from := rand.IntN(350)
			to := from + 1 + rand.IntN(40)
			s.span(span{time.Duration(from), time.Duration(to)})
			for i := from; i < to; i++ {
				ticks[i] = true
			}
		}
		want, got := 0, time.Duration(0)
		for _, on := range ticks {
			if on {
				want++
			}
		}
		for i, sp := range s.spans {
			got += sp.to - sp.from
			if sp.from >= sp.to || i > 0 && s.spans[i-1].to >= sp.from {
				t.Fatalf("spans %v", s.spans)
			}
		}
		if int(got) != want {
			t.Fatalf("spans %v cover %d, want %d", s.spans, got, want)
		}
	}
}

func TestOldRecordsGo(t *testing.T) {
	b := newBook(t)
	half := filepath.Join(b.o.Dir, ".start-1")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	os.Chtimes(half, old, old)
	for i := range maxRecords + 2*pruneEvery {
		s := b.Begin(Pull, "x")
		s.Image("", digestOf(i), nil)
		s.Phase("resolve")()
		s.Pulled()
		at := time.Now().Add(time.Duration(i-2000) * time.Second)
		os.Chtimes(b.imageFile(digestOf(i), Pull), at, at)
	}
	entries, err := os.ReadDir(b.o.Dir)
	if err != nil || len(entries) > maxRecords+pruneEvery || len(entries) < maxRecords {
		t.Errorf("%d records, %v", len(entries), err)
	}
	if _, ok := b.Pulled(digestOf(0)); ok {
		t.Error("the oldest is still there")
	}
	if _, ok := b.Pulled(digestOf(maxRecords + 2*pruneEvery - 1)); !ok {
		t.Error("the newest is gone")
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("what was half-written is still there")
	}
}

func TestDamagedRecords(t *testing.T) {
	b := newBook(t)
	file := b.imageFile(digestOf(1), Run)
	for name, text := range map[string]string{"torn": `{"Kind":"ru`, "empty": "", "huge": strings.Repeat(" ", maxRecord+10)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := b.Image(digestOf(1)); ok {
			t.Errorf("%s: a record", name)
		}
	}
	for _, digest := range []string{"", "../../etc/passwd", "sha256:../x", "sha256:" + strings.Repeat("A", 64)} {
		if f := b.imageFile(digest, Run); f != "" {
			t.Errorf("%q is kept at %s", digest, f)
		}
	}
}

func TestAtOnce(t *testing.T) {
	b := newBook(t)
	b.o.Done = nil
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			id := fmt.Sprint(i)
			s := b.Begin(Run, "x")
			p := s.Watch(nil)
			s.Image("", digestOf(1), []string{"l"})
			s.Container(id, "")
			for k := range 100 {
				p(control.Progress{ID: fmt.Sprint(k % 3), Action: "indexing", Off: int64(k)})
				b.Waited(fetch.Wait{Object: sum(k), Layers: []string{"l"}, Began: time.Now()})
				b.Image(digestOf(1))
			}
			s.Failed(errors.New("enough"))
		})
	}
	all.Wait()
}

// Whoever asks while a record is being finished finds it all the same.
func TestRecordIsNeverGone(t *testing.T) {
	b := newBook(t)
	b.container(t, "cafe")
	b.o.Done = nil
	s := b.Begin(Run, "x")
	s.Image("", digestOf(1), nil)
	s.Container("cafe", "")
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		<-begun
		b.Ready("cafe", "quiet", time.Now())
	}()
	close(begun)
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		default:
		}
		if _, ok := b.Container("cafe"); !ok {
			t.Fatal("no record")
		}
	}
	if r, ok := b.Container("cafe"); !ok || r.ReadyBy != "quiet" {
		t.Errorf("%+v, %v", r, ok)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"Kind":"run","Phases":[{"Name":"x","Begin":1,"End":2}],"Waits":[{"Object":"00"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := decode(raw); err == nil {
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		}
	})
}

func BenchmarkWaitedWhileNothingStarts(b *testing.B) {
	s := newBook(b)
	w := fetch.Wait{Object: sum(1), Layers: []string{"l"}}
	for b.Loop() {
		s.Waited(w)
	}
}
