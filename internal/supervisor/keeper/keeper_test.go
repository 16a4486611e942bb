package keeper

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// keep runs a keeper in a new folder until the test ends, or it does by itself.
func keep(t *testing.T) (run string, wait func() error) {
	t.Helper()
	run, err := os.MkdirTemp("", "keep") // short: it names a socket
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() { failed = Keep(ctx, run) })
	wait = func() error { wg.Wait(); return failed }
	t.Cleanup(func() { cancel(); wait(); os.RemoveAll(run) })
	for range 1000 {
		if c, err := control.Dial(t.Context(), Socket(run)); err == nil {
			c.Close()
			return run, wait
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the keeper does not listen")
	return
}

func pipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

func TestHoldTakeEnd(t *testing.T) {
	run, wait := keep(t)
	if _, _, err := Take(t.Context(), run); !errors.Is(err, ErrNothing) {
		t.Errorf("Take of nothing: %v, want ErrNothing", err)
	}
	for _, init := range []string{"first", "second"} {
		pid, err := Hold(t.Context(), run, pipe(t), []byte(init))
		if err != nil || pid != os.Getpid() {
			t.Fatalf("Hold = %d, %v", pid, err)
		}
		for range 2 { // it keeps its own
			f, got, err := Take(t.Context(), run)
			if err != nil || string(got) != init {
				t.Fatalf("Take = %q, %v, want %q", got, err, init)
			}
			if !Alive(f) {
				t.Error("what was taken is not alive")
			}
			f.Close()
		}
	}
	if err := End(t.Context(), run); err != nil {
		t.Errorf("End: %v", err)
	}
	if err := wait(); err != nil {
		t.Errorf("Keep: %v", err)
	}
	if err := End(t.Context(), run); err != nil {
		t.Errorf("End without a keeper: %v", err)
	}
	if _, _, err := Take(t.Context(), run); !errors.Is(err, ErrNothing) {
		t.Errorf("Take without a keeper: %v, want ErrNothing", err)
	}
}

func TestOneKeeper(t *testing.T) {
	run, _ := keep(t)
	if err := Keep(t.Context(), run); err != nil {
		t.Errorf("second Keep: %v, want nil at once", err)
	}
	if _, err := Hold(t.Context(), run, pipe(t), []byte("x")); err != nil {
		t.Errorf("the first keeper after that: %v", err)
	}
}

func TestMalformedRequests(t *testing.T) {
	run, _ := keep(t)
	for name, op := range map[string]string{"no descriptor": opHold, "unknown": "keeper.dance"} {
		_, err := control.Call(t.Context(), Socket(run), op, held{Init: []byte("x")}, nil, nil)
		if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeInvalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if _, err := Hold(t.Context(), run, pipe(t), nil); err == nil {
		t.Error("Hold without INIT: no error")
	}
}

// A keeper with nothing living to keep ends by itself.
func TestKeeperOfNothingEnds(t *testing.T) {
	for name, prepare := range map[string]func(k *keeper){
		"nothing held": func(*keeper) {},
		"dead": func(k *keeper) {
			k.fuse = pipe(t)
			k.fuse.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			k := &keeper{end: cancel}
			prepare(k)
			k.watch(ctx, time.Millisecond)
			if ctx.Err() == nil {
				t.Error("watch returned without an end")
			}
		})
	}
}
