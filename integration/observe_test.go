package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/snapfs/snapfs/internal/control"
)

// events returns what the daemon still knows of the types, as "type action".
func (m *machine) events(args control.EventsArgs) (all []control.Event) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := control.Call(ctx, filepath.Join(m.run, "snapd.sock"), control.OpEvents, args, nil, func(raw json.RawMessage) {
		var e control.Event
		if err := json.Unmarshal(raw, &e); err != nil {
			m.Error(err)
		}
		all = append(all, e)
	})
	if err != nil {
		m.Fatal(err)
	}
	return all
}

func names(all []control.Event) (s []string) {
	for _, e := range all {
		s = append(s, e.Type+" "+e.Action)
	}
	return s
}

// TestEvents follows an image, and a reader of it, by what the daemon tells.
func TestEvents(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, eStargz, someFiles(77, "a", 20))
	ref := hub.put(t, "told", im)
	m := startMachine(t, "pull.complete = false")

	// Somebody asks and never reads: it must not matter.
	dead, err := control.Dial(t.Context(), filepath.Join(m.run, "snapd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	if err := dead.Begin(control.OpEvents, control.EventsArgs{Follow: true}); err != nil {
		t.Fatal(err)
	}
	followed, seen := make(chan struct{}), make(chan control.Event, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() {
		first := sync.OnceFunc(func() { close(followed) })
		control.Call(ctx, filepath.Join(m.run, "snapd.sock"), control.OpEvents, control.EventsArgs{Follow: true}, nil, func(raw json.RawMessage) {
			var e control.Event
			if json.Unmarshal(raw, &e) == nil {
				seen <- e
			}
			first() // that the daemon began
		})
	})
	<-followed

	m.pull(ref, false)
	top := m.mount(ref, false)
	m.must(control.OpTag, control.TagArgs{Src: ref, Dst: "other:1"}, nil)
	hub.misbehave("told", status(blob(im.layer(0)), 404))
	if _, err := os.ReadFile(filepath.Join(top, "a/f003")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("read without the registry: %v, want EIO", err)
	}
	hub.misbehave("told", nil)
	m.pull(ref, true)
	m.unmount(top)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{"other:1"}}, nil)

	want := []string{"daemon start", "image index", "image pull", "image mount", "image tag", "fetch eio", "image pull", "image complete", "image seal", "image unmount", "image remove"}
	all := m.events(control.EventsArgs{})
	if got := names(all); !slices.Equal(got, want) {
		t.Errorf("events %q\n  want %q", got, want)
	}
	for i, e := range all {
		if e.Seq != uint64(i+1) || e.Time.IsZero() {
			t.Errorf("event %d: %+v", i, e)
		}
		if e.Action == "eio" && (!strings.Contains(e.Attributes["image"], ref) || !strings.Contains(e.Attributes["error"], "404")) {
			t.Errorf("EIO: %+v", e)
		}
		if got := <-seen; got.Seq != e.Seq {
			t.Errorf("the follower saw %+v, want %+v", got, e)
		}
	}
	if got := names(m.events(control.EventsArgs{Filter: map[string][]string{"event": {"tag", "remove"}}})); !slices.Equal(got, []string{"image tag", "image remove"}) {
		t.Errorf("filtered: %q", got)
	}
	if out := m.ok("events", "--filter", "type=image", "--filter", "image="+ref); strings.Count(out, "\n") != 8 || !strings.Contains(out, " image complete "+ref+" (digest=sha256:") {
		t.Errorf("snapctl events: %s", out)
	}

	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	if got := m.events(control.EventsArgs{}); len(got) != 1 || got[0].Action != "replaced" || got[0].Attributes["restarts"] != "1" {
		t.Errorf("after the worker's death: %+v", got)
	}
}

// scrape gets the metrics by HTTP at a unix socket, as Prometheus reads them:
// values by name and labels.
func scrape(socket string) (map[string]float64, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := c.Get("http://snapd/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		return nil, fmt.Errorf("%s: %w", resp.Status, err)
	}
	values := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			id := name
			for _, l := range m.Label {
				id += " " + l.GetValue()
			}
			values[id] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values, nil
}

// TestMetrics compares what is scraped with what was done.
func TestMetrics(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, eStargz, someFiles(78, "a", 20))
	ref := hub.put(t, "metrics", im)
	m := newMachine(t, "pull.complete = false")
	socket := filepath.Join(m.dir, "metrics.sock")
	m.config += "\nmetrics.address = 'unix:" + socket + "'"
	m.start()
	m.pull(ref, false)
	m.must(control.OpTag, control.TagArgs{Src: ref, Dst: "other:1"}, nil)
	top := m.mount(ref, false)
	hub.sent()
	for _, name := range []string{"a/f001", "a/f009"} {
		if _, err := os.ReadFile(filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := scrape(socket)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"snapfs_images all": 1, "snapfs_images lazy": 1, "snapfs_images complete": 0, "snapfs_images quarantined": 0,
		"snapfs_image_names": 2, "snapfs_mounts": 1, "snapfs_containers running": 0,
		"snapfs_layer_bytes": float64(im.size()), "snapfs_worker_restarts_total": 0,
		"snapfs_fetch_queue demand waiting": 0, "snapfs_fetch_errors_total": 0,
		"snapfs_fetch_received_bytes_total": float64(hub.sent()),
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v, %v, want %v", name, v, ok, want)
		}
	}
	misses := got["snapfs_fetch_misses_total"]
	if misses < 1 || got["snapfs_miss_seconds"] != misses {
		t.Errorf("%v misses, %v in the histogram", misses, got["snapfs_miss_seconds"])
	}
	for _, name := range []string{"snapfs_layer_local_bytes", "snapfs_miss_bytes_total", "snapfs_resident_memory_bytes supervisor", "snapfs_resident_memory_bytes worker",
		"process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds", "snapfs_disk_free_bytes", "snapfs_registry_requests_total", "snapfs_objectfs_reads_total"} {
		if got[name] <= 0 {
			t.Errorf("%s = %v", name, got[name])
		}
	}
	if text := m.ok("stat", "--prometheus"); !strings.Contains(text, "\nsnapfs_images{state=\"lazy\"} 1\n") {
		t.Errorf("snapctl stat --prometheus: %s", text)
	}
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker) // the next one takes the socket over
	m.waitReady(s.Supervisor)
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if got, err = scrape(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if got["snapfs_worker_restarts_total"] != 1 || got["snapfs_images lazy"] != 1 {
		t.Errorf("after the worker's death: %v restarts, %v lazy images", got["snapfs_worker_restarts_total"], got["snapfs_images lazy"])
	}
}

// A spanLog is a collector of OpenTelemetry spans.
type spanLog struct {
	*httptest.Server
	mu  sync.Mutex
	all []*tracepb.Span
}

func newSpanLog(t *testing.T) *spanLog {
	l := &spanLog{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		var data tracepb.TracesData
		if err = errors.Join(err, proto.Unmarshal(raw, &data)); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("POST %s: %v", r.URL, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, rs := range data.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				l.all = append(l.all, ss.Spans...)
			}
		}
	}))
	t.Cleanup(l.Close)
	return l
}

// children returns the names of a span's children, sorted.
func (l *spanLog) children(of *tracepb.Span) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.all {
		if bytes.Equal(s.ParentSpanId, of.SpanId) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (l *spanLog) find(name string) *tracepb.Span {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.all {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// TestExplain starts a container on an image of which nothing is local, and
// asks for its story, in words, as JSON and as spans.
func TestExplain(t *testing.T) {
	t.Parallel()
	hub, spans := newHub(t), newSpanLog(t)
	m := startMachine(t, "pull.complete = false\ntracing.endpoint = '"+spans.URL+"'")
	im := newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t)}, someFiles(1300, "data", 10))
	ref := hub.put(t, "explained", im)
	m.ok("run", "-d", "--name", "web", "--ready", "line=^waiting$", ref, "/inside", "wait")
	m.ok("wait", "--ready", "web")

	var e control.Explanation
	text := m.ok("explain", "--json", "web")
	if err := json.Unmarshal([]byte(text), &e); err != nil || e.Start == nil || e.Image == nil || e.Container == nil {
		t.Fatalf("explain: %v\n%s", err, text)
	}
	if e.Container.Name != "web" || !slices.Equal(e.Running, []string{"web"}) || len(e.Image.LayerDetails) != 2 || !e.Image.LayerDetails[0].Lazy || e.Image.LayerDetails[0].Origin != "toc" {
		t.Errorf("explain: %s", text)
	}
	s := e.Start
	if s.Kind != "run" || s.Ref != ref || s.ReadyBy != "line" || s.Ready < s.Running || s.Running <= 0 || s.Partial || s.Error != "" {
		t.Errorf("start: %+v", s)
	}
	var phases []string
	end := time.Duration(0)
	for _, p := range s.Phases {
		if !slices.Contains(phases, p.Name) {
			phases = append(phases, p.Name)
		}
		if p.Begin < 0 || p.End < p.Begin {
			t.Errorf("phase %+v", p)
		}
		end = max(end, p.End)
	}
	if want := []string{"image", "resolve", "referrers", "index", "build", "mount", "create", "monitor"}; !slices.Equal(phases, want) || end > s.Ready {
		t.Errorf("phases %q, the last ends at %v; want %q", phases, end, want)
	}
	if i := slices.IndexFunc(s.Waits, func(w control.FileWait) bool { return w.Path == "/inside" && w.N > 0 && w.Bytes > 0 }); i < 0 || s.Missed < 1 || s.Waiting <= 0 || s.Waiting > s.Ready || s.Counters.Fetched <= 0 {
		t.Errorf("the program was waited for, and is not told of: %+v", s)
	}
	words := m.ok("explain", "web")
	for _, part := range []string{"Container web (", "It starts lazily", "ready after ", "(it wrote the line that --ready asks for)", "\n  until ready ", "  /inside\n"} {
		if !strings.Contains(words, part) {
			t.Errorf("explain does not say %q:\n%s", part, words)
		}
	}
	// The image has the same story; and its own when it is pulled again, where nothing is new.
	m.pull(ref, true)
	if words := m.ok("explain", "--type", "image", ref); !strings.Contains(words, "all of it (") || !strings.Contains(words, "  /inside\n") {
		t.Errorf("explain of the image:\n%s", words)
	}
	if _, code := m.snapctl("explain", "nothing"); code != 1 {
		t.Errorf("explain of nothing: exit status %d", code)
	}

	// The record outlives the worker, and one that sees only the end says so.
	st, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, st.Worker)
	m.waitReady(st.Supervisor)
	if words := m.ok("explain", "web"); !strings.Contains(words, "ready after ") || !strings.Contains(words, "  /inside\n") {
		t.Errorf("explain after the worker's death:\n%s", words)
	}
	m.ok("rm", "-f", "web")
	m.ok("run", "--rm", ref, "/inside", "exit", "0")
	m.ok("rmi", ref)
	m.stop() // which sends the last spans

	run := spans.find("run")
	if run == nil {
		t.Fatal("no span of the start") // by the worker that was killed: its batch was sent after 5 s, or is lost
	}
	if got := spans.children(run); !slices.Contains(got, "mount") || !slices.Contains(got, "monitor") || !slices.Contains(got, "start") {
		t.Errorf("spans within run: %q", got)
	}
}

// TestTop looks on while a read waits.
func TestTop(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, eStargz, someFiles(79, "a", 20))
	ref := hub.put(t, "top", im)
	m := startMachine(t, "pull.complete = false")
	m.pull(ref, false)
	top := m.mount(ref, false)
	g := newGate()
	hub.misbehave("top", g.fault(blob(im.layer(0))))

	next, stop := m.top(t)
	defer stop()
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(top, "a/f003"))
		read <- err
	}()
	g.wait(t)
	waiting := func(now control.Top) int {
		i := slices.IndexFunc(now.Queues, func(q control.Queue) bool { return q.Class == "demand" })
		return now.Queues[i].Open + now.Queues[i].Waiting
	}
	now := next()
	for waiting(now) == 0 {
		now = next()
	}
	if len(now.Images) != 1 || now.Images[0].Ref != ref || now.Images[0].Mounts != 1 || now.Images[0].Complete || now.Images[0].Size != im.size() || now.Misses != 0 {
		t.Errorf("while a read waits: %+v", now)
	}
	close(g.open)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	now = next()
	for now.Misses == 0 {
		now = next()
	}
	if i := now.Images[0]; i.Misses != now.Misses || i.P50 <= 0 || i.Read <= 0 || i.Fetched <= 0 {
		t.Errorf("after it: %+v", now)
	}
	if out := m.ok("top", "--once"); !strings.Contains(out, ref) || !strings.Contains(out, "1 mount") {
		t.Errorf("snapctl top: %s", out)
	}
}

// top follows what the daemon is doing.
func (m *machine) top(t *testing.T) (next func() control.Top, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan control.Top, 1)
	var following sync.WaitGroup
	following.Go(func() {
		defer close(events)
		control.Call(ctx, filepath.Join(m.run, "snapd.sock"), control.OpTop, control.TopArgs{Every: 100 * time.Millisecond}, nil, func(raw json.RawMessage) {
			var now control.Top
			if err := json.Unmarshal(raw, &now); err != nil {
				t.Error(err)
			}
			select {
			case events <- now:
			case <-ctx.Done():
			}
		})
	})
	next = func() control.Top {
		select {
		case now, ok := <-events:
			if ok {
				return now
			}
			t.Fatal("it ends")
		case <-time.After(patience):
			t.Fatal("it says nothing")
		}
		panic("unreachable")
	}
	return next, func() { cancel(); following.Wait() }
}
