package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// A gate holds requests up.
type gate struct {
	came chan struct{} // closed when the first request is there
	open chan struct{} // close it to let all pass
	once sync.Once
}

func newGate() *gate { return &gate{came: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) fault(which selector) fault {
	return func(_ http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if which(r) {
			g.once.Do(func() { close(g.came) })
			select {
			case <-g.open:
			case <-r.Context().Done():
			}
		}
		return false
	}
}

func (g *gate) wait(t testing.TB) {
	t.Helper()
	select {
	case <-g.came:
	case <-time.After(patience):
		t.Fatal("nobody asked for the layer")
	}
}

// pulling pulls in the background. heard is closed at its first event.
func (m *machine) pulling(ctx context.Context, ref string) (heard chan struct{}, result chan error) {
	heard, result = make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() {
		_, err := control.Call(ctx, filepath.Join(m.run, "snapd.sock"), control.OpPull, control.PullArgs{Ref: ref, Wait: true}, nil,
			func(json.RawMessage) { once.Do(func() { close(heard) }) })
		result <- err
	}()
	return heard, result
}

func (m *machine) finish(result chan error) error {
	m.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(patience):
		m.Fatalf("pull hangs; the daemon said:\n%s", m.d.log.String())
		return nil
	}
}

// TestPullsAtOnce pulls twenty images that have layers in common.
func TestPullsAtOnce(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "log.level = 'error'")
	formats := []string{gzipTar, zstdTar, eStargz, zstdChunked}
	var ims []*image
	var results []chan error
	for i := range 20 {
		im := newImage(t, formats[i%4], someFiles(uint64(600+i%8), "a", 20), someFiles(uint64(610+i%3), "b", 20), someFiles(uint64(620+i), "c", 5))
		ims = append(ims, im)
		hub.put(t, fmt.Sprint("many", i), im)
	}
	for i := range ims {
		_, r := m.pulling(t.Context(), hub.ref(fmt.Sprint("many", i)))
		results = append(results, r)
	}
	for i, r := range results {
		if err := m.finish(r); err != nil {
			t.Errorf("pull %d: %v", i, err)
		}
	}
	for i, im := range ims {
		if f := formats[i%4]; f == gzipTar || f == zstdTar {
			for _, l := range im.manifest.Layers {
				if n := hub.got(l.Digest.String()); n != 1 {
					t.Errorf("layer %s of image %d (%s) was fetched %d times", l.Digest, i, f, n)
				}
			}
		}
	}
	for i, im := range ims {
		top := m.mount(hub.ref(fmt.Sprint("many", i)), false)
		im.check(t, top)
		m.unmount(top)
		m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{hub.ref(fmt.Sprint("many", i))}}, nil)
	}
	m.nothingLeft()
}

// TestTwoClientsOnePull has a second client ask for what the first is pulling;
// then one of the two leaves.
func TestTwoClientsOnePull(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	im := newImage(t, gzipTar, someFiles(700, "a", 20))
	ref := hub.put(t, "once", im)
	g := newGate()
	hub.misbehave("once", g.fault(firstLayer(im)))
	ctx, leave := context.WithCancel(t.Context())
	_, first := m.pulling(ctx, ref)
	g.wait(t)
	heard, second := m.pulling(t.Context(), ref)
	<-heard
	leave()
	if err := m.finish(first); err == nil {
		t.Error("the client that left got a result")
	}
	close(g.open)
	if err := m.finish(second); err != nil {
		t.Errorf("the client that stayed: %v", err)
	}
	for _, what := range []string{"latest", im.layer(0).String()} {
		if n := hub.got(what); n > 1 {
			t.Errorf("%s was fetched %d times", what, n)
		}
	}
	im.check(t, m.mount(ref, false))
}

// TestCancelledPull leaves in the middle of a pull.
func TestCancelledPull(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]string{"tar": gzipTar, "stargz": eStargz} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := newHub(t)
			m := startMachine(t, "")
			im := newImage(t, format, someFiles(800, "a", 20), someFiles(801, "b", 20))
			ref := hub.put(t, "left", im)
			g := newGate()
			hub.misbehave("left", g.fault(blob(im.layer(1))))
			ctx, leave := context.WithCancel(t.Context())
			_, r := m.pulling(ctx, ref)
			g.wait(t)
			leave()
			if err := m.finish(r); !errors.Is(err, context.Canceled) {
				t.Errorf("pull: %v, want %v", err, context.Canceled)
			}
			m.stop() // which waits for the end of the request
			m.start()
			m.nothingLeft()
			hub.misbehave("left", nil)
			top := m.mount(ref, false)
			im.check(t, top)
		})
	}
}

// TestRemoveWhilePulling removes one image while another is coming in that has
// a layer in common with it.
func TestRemoveWhilePulling(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	common, own := someFiles(900, "common", 20), someFiles(901, "own", 20)
	one, two := newImage(t, gzipTar, common), newImage(t, gzipTar, common, own)
	refOne, refTwo := hub.put(t, "one", one), hub.put(t, "two", two)
	m.pull(refOne, true)
	g := newGate()
	hub.misbehave("two", g.fault(blob(two.layer(1))))
	_, r := m.pulling(t.Context(), refTwo)
	g.wait(t)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{refOne}}, nil) // does not wait for the registry
	third := newImage(t, eStargz, someFiles(902, "third", 5))
	m.unmount(m.mount(hub.put(t, "third", third), false)) // nor does this
	close(g.open)
	if err := m.finish(r); err != nil {
		t.Fatal(err)
	}
	if n := hub.got(one.layer(0).String()); n != 1 {
		t.Errorf("the common layer was fetched %d times", n)
	}
	top := m.mount(refTwo, false)
	two.check(t, top)
	m.unmount(top)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{refTwo, hub.ref("third")}}, nil)
	m.nothingLeft()
}

// TestKilledWhilePulling kills all of the daemon in the middle of a pull. The
// next one must not keep what nobody can use.
func TestKilledWhilePulling(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	im := newImage(t, gzipTar, someFiles(950, "a", 20), someFiles(951, "b", 20))
	ref := hub.put(t, "killed", im)
	g := newGate()
	hub.misbehave("killed", g.fault(blob(im.layer(1))))
	_, r := m.pulling(t.Context(), ref)
	g.wait(t)
	m.kill()
	if err := m.finish(r); err == nil {
		t.Error("pull: no error")
	}
	converting := filepath.Join(m.root, "tmp", "convert-1") // what a conversion that is killed leaves
	if err := errors.Join(os.Mkdir(converting, 0o700), os.WriteFile(filepath.Join(converting, "0"), noise(1, 1000), 0o600)); err != nil {
		t.Fatal(err)
	}
	m.start()
	for deadline := time.Now().Add(patience); len(m.leftovers()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	m.nothingLeft()
	hub.misbehave("killed", nil)
	im.check(t, m.mount(ref, false))
}
