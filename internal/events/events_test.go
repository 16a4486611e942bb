package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func emit(l *Log, n int) {
	for i := range n {
		l.Emit(control.Event{Type: Image, Action: Pull, ID: fmt.Sprint(i)})
	}
}

func ids(batch []control.Event) (s []string) {
	for _, e := range batch {
		s = append(s, e.ID)
	}
	return s
}

func TestReaderSeesEachEventOnce(t *testing.T) {
	l := New(8)
	emit(l, 3)
	r := l.Read(0)
	if batch, lost := r.Kept(); lost != 0 || !slices.Equal(ids(batch), []string{"0", "1", "2"}) || batch[2].Seq != 3 {
		t.Errorf("Kept = %+v, %d lost", batch, lost)
	}
	if batch, _ := r.Kept(); len(batch) != 0 {
		t.Errorf("again: %v", ids(batch))
	}
	if batch, _ := l.Read(2).Kept(); !slices.Equal(ids(batch), []string{"2"}) {
		t.Errorf("after 2: %v", ids(batch))
	}
	now := l.Now()
	emit(l, 1)
	if batch, lost, err := now.Next(t.Context()); err != nil || lost != 0 || len(batch) != 1 {
		t.Errorf("Next = %v, %d, %v", ids(batch), lost, err)
	}
}

func TestOverflowIsTold(t *testing.T) {
	l := New(4)
	r := l.Read(0)
	emit(l, 10)
	batch, lost := r.Kept()
	if lost != 6 || !slices.Equal(ids(batch), []string{"6", "7", "8", "9"}) {
		t.Errorf("Kept = %v, %d lost, want the newest 4 of 10", ids(batch), lost)
	}
	emit(l, 1)
	if batch, lost := r.Kept(); lost != 0 || len(batch) != 1 {
		t.Errorf("afterwards: %v, %d lost", ids(batch), lost)
	}
}

// A place in the log of a worker that has died means nothing in its successor's.
func TestReaderFromAnotherLog(t *testing.T) {
	l := New(4)
	emit(l, 2)
	if batch, lost := l.Read(5000).Kept(); len(batch) != 2 || lost != 0 {
		t.Errorf("Kept = %v, %d lost, want all 2", ids(batch), lost)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(4)
		var all sync.WaitGroup
		for range 3 {
			r := l.Read(0)
			all.Go(func() {
				if batch, _, err := r.Next(t.Context()); err != nil || len(batch) != 1 {
					t.Errorf("Next = %v, %v", ids(batch), err)
				}
			})
		}
		synctest.Wait() // they all wait
		emit(l, 1)
		all.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := l.Now().Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Next after the end: %v", err)
		}
	})
}

// Whatever readers do, emitting goes on, and nothing is kept for them.
func TestDeadReaderCostsNothing(t *testing.T) {
	l := New(16)
	dead := l.Read(0)
	blocked := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		l.Serve(t.Context(), control.EventsArgs{Follow: true}, func(control.Event) error { <-blocked; return errors.New("gone") })
	})
	emit(l, 100_000)
	if _, lost := dead.Kept(); lost != 100_000-16 {
		t.Errorf("%d lost", lost)
	}
	if n := testing.AllocsPerRun(100, func() { l.Emit(control.Event{Type: Image}) }); n > 1 {
		t.Errorf("an event costs %v allocations", n)
	}
	close(blocked)
	wg.Wait()
}

func TestNilLog(t *testing.T) {
	var l *Log
	l.Emit(control.Event{})
	l.EmitOnce(time.Second, control.Event{}, noAttrs)
}

func noAttrs() map[string]string { return nil }

func TestEmitOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(0)
		full := control.Event{Type: Daemon, Action: Full}
		calls := 0
		attrs := func() map[string]string { calls++; return Attrs("error", "no space") }
		for range 5 {
			l.EmitOnce(10*time.Second, full, attrs)
			l.EmitOnce(10*time.Second, control.Event{Type: Daemon, Action: Full, ID: "other"}, attrs)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		l.EmitOnce(10*time.Second, full, attrs)
		l.EmitOnce(10*time.Second, full, attrs)
		batch, _ := l.Read(0).Kept()
		var got []string
		for _, e := range batch {
			got = append(got, e.ID+e.Attributes["repeated"]+e.Attributes["error"])
		}
		if want := []string{"no space", "otherno space", "4no space"}; !slices.Equal(got, want) || calls != 3 {
			t.Errorf("kept %q, want %q; attributes were asked for %d times", got, want, calls)
		}
	})
}

func TestRepeatsAreBounded(t *testing.T) {
	l := New(0)
	for i := range 10 * repeats {
		for range 2 {
			l.EmitOnce(time.Hour, control.Event{ID: fmt.Sprint(i)}, noAttrs)
		}
	}
	if len(l.quiet) > repeats {
		t.Errorf("%d repeats are kept", len(l.quiet))
	}
}

func TestEventsAreBounded(t *testing.T) {
	l := New(1)
	huge := strings.Repeat("ä", 10_000)
	attrs := map[string]string{"error": huge}
	for i := range 100 {
		attrs[fmt.Sprint(i)] = "x"
	}
	l.Emit(control.Event{ID: huge, Attributes: attrs})
	e := l.ring[0]
	if len(e.ID) > maxText+3 || len(e.Attributes) > maxAttrs || len(e.Attributes["error"]) > maxText+3 {
		t.Errorf("ID of %d bytes, %d attributes", len(e.ID), len(e.Attributes))
	}
	if !strings.HasSuffix(e.ID, "ä…") {
		t.Errorf("ID is cut in a character: %q", e.ID[len(e.ID)-8:])
	}
	if len(attrs["error"]) != len(huge) {
		t.Error("the caller's attributes were changed")
	}
}

func TestFilter(t *testing.T) {
	pull := control.Event{Type: Image, Action: Pull, ID: "r:5000/debian:stable"}
	die := control.Event{Type: Container, Action: Die, ID: "cafe01", Attributes: Attrs("image", "debian:stable", "name", "web")}
	run := control.Event{Type: Image, Action: Run, ID: "debian:stable", Attributes: Attrs("container", "cafe01", "name", "web")}
	eio := control.Event{Type: Fetch, Action: EIO, ID: "sha256:1", Attributes: Attrs("image", "redis:8,debian:stable")}
	for _, test := range []struct {
		f    Filter
		want string // which of pull, die, run, eio
	}{
		{nil, "pdre"},
		{Filter{"type": {"image"}}, "pr"},
		{Filter{"type": {"image", "fetch"}}, "pre"},
		{Filter{"event": {"die"}}, "d"},
		{Filter{"type": {"image"}, "event": {"die"}}, ""},
		{Filter{"image": {"debian"}}, "dre"},
		{Filter{"image": {"debian:stable"}}, "dre"},
		{Filter{"image": {"debian:oldstable"}}, ""},
		{Filter{"image": {"r:5000/debian"}}, "p"},
		{Filter{"image": {"redis:8"}}, "e"},
		{Filter{"container": {"web"}}, "dr"},
		{Filter{"container": {"cafe"}}, "dr"},
		{Filter{"container": {""}}, ""},
	} {
		got := ""
		for _, e := range []struct {
			mark string
			e    control.Event
		}{{"p", pull}, {"d", die}, {"r", run}, {"e", eio}} {
			if test.f.Fits(&e.e) {
				got += e.mark
			}
		}
		if got != test.want {
			t.Errorf("%v passes %q, want %q", test.f, got, test.want)
		}
	}
	if (Filter{"colour": {"red"}}).Check() == nil || (Filter{"type": make([]string, maxFilters+1)}).Check() == nil {
		t.Error("a filter that is none was accepted")
	}
}

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(4)
		begin := time.Now()
		for i := range 6 {
			l.Emit(control.Event{Type: Image, Action: Pull, ID: fmt.Sprint(i)})
			time.Sleep(time.Second)
		}
		serve := func(a control.EventsArgs) (got []string, err error) {
			err = l.Serve(t.Context(), a, func(e control.Event) error {
				got = append(got, e.Action+e.ID+e.Attributes["count"])
				return nil
			})
			return got, err
		}
		for name, test := range map[string]struct {
			a    control.EventsArgs
			want []string
		}{
			"all":                {control.EventsArgs{}, []string{"pull2", "pull3", "pull4", "pull5"}},
			"since":              {control.EventsArgs{Since: begin.Add(4 * time.Second)}, []string{"pull4", "pull5"}},
			"since what is lost": {control.EventsArgs{Since: begin}, []string{"lost2", "pull2", "pull3", "pull4", "pull5"}},
			"after":              {control.EventsArgs{After: 5}, []string{"pull5"}},
			"after what is lost": {control.EventsArgs{After: 1}, []string{"lost1", "pull2", "pull3", "pull4", "pull5"}},
			"until":              {control.EventsArgs{Until: begin.Add(3 * time.Second)}, []string{"pull2", "pull3"}},
			"filter":             {control.EventsArgs{Filter: map[string][]string{"image": {"3"}}}, []string{"pull3"}},
		} {
			if got, err := serve(test.a); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("%s: %q, %v, want %q", name, got, err, test.want)
			}
		}
		if _, err := serve(control.EventsArgs{Filter: map[string][]string{"x": {"y"}}}); err == nil {
			t.Error("a filter that is none was accepted")
		}
		go func() {
			for i := range 3 {
				time.Sleep(time.Second)
				l.Emit(control.Event{Type: Image, Action: Pull, ID: fmt.Sprint("later", i)})
			}
		}()
		got, err := serve(control.EventsArgs{After: 6, Follow: true, Until: time.Now().Add(2500 * time.Millisecond)})
		if err != nil || !slices.Equal(got, []string{"pulllater0", "pulllater1"}) {
			t.Errorf("follow until: %q, %v", got, err)
		}
		time.Sleep(time.Minute)
	})
}

func TestFollowersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(4)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		follow := func() error {
			return l.Serve(ctx, control.EventsArgs{Follow: true}, func(control.Event) error { return nil })
		}
		for range maxFollowers {
			all.Go(func() { follow() })
		}
		synctest.Wait()
		if err := follow(); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("one more follower: %v", err)
		}
		cancel()
		all.Wait()
		if err := follow(); !errors.Is(err, context.Canceled) {
			t.Errorf("after they have left: %v", err)
		}
	})
}

func TestSendThatFailsEnds(t *testing.T) {
	l := New(4)
	emit(l, 3)
	gone, n := errors.New("gone"), 0
	err := l.Serve(t.Context(), control.EventsArgs{Follow: true}, func(control.Event) error { n++; return gone })
	if !errors.Is(err, gone) || n != 1 {
		t.Errorf("Serve = %v after %d", err, n)
	}
}

func BenchmarkEmit(b *testing.B) {
	l := New(0)
	e := control.Event{Type: Image, Action: Pull, ID: "debian:stable", Attributes: Attrs("digest", "sha256:00", "layers", 7)}
	for b.Loop() {
		l.Emit(e)
	}
}
