package images

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/snapfs/snapfs/internal/control"
)

func TestFlightIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[int]
		var runs atomic.Int32
		release := make(chan struct{})
		work := func(ctx context.Context, progress func(control.Progress)) (int, error) {
			runs.Add(1)
			progress(control.Progress{ID: "a", Off: 1})
			<-release
			progress(control.Progress{ID: "a", Off: 2, Done: true})
			return 7, nil
		}
		var heard [3]atomic.Int32
		var wg sync.WaitGroup
		for i := range heard {
			wg.Go(func() {
				v, err := f.do(t.Context(), t.Context(), "k", func(control.Progress) { heard[i].Add(1) }, work)
				if v != 7 || err != nil {
					t.Errorf("do = %d, %v", v, err)
				}
			})
			synctest.Wait()
		}
		close(release)
		wg.Wait()
		for i := range heard {
			if n := heard[i].Load(); n != 2 {
				t.Errorf("waiter %d heard %d events, want 2", i, n)
			}
		}
		if runs.Load() != 1 {
			t.Errorf("%d runs", runs.Load())
		}
	})
}

func TestFlightEndsWithItsLastWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[int]
		var ended atomic.Bool
		work := func(ctx context.Context, _ func(control.Progress)) (int, error) {
			<-ctx.Done()
			ended.Store(true)
			return 0, ctx.Err()
		}
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, ctx := range []context.Context{ctx1, ctx2} {
			wg.Go(func() {
				if _, err := f.do(ctx, t.Context(), "k", nil, work); !errors.Is(err, context.Canceled) {
					t.Errorf("do: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel1()
		synctest.Wait()
		if ended.Load() {
			t.Error("the flight ended while someone waited")
		}
		cancel2()
		wg.Wait()
		if !ended.Load() {
			t.Error("the flight outlived its waiters")
		}
	})
}
