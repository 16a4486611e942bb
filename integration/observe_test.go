package integration

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

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
