package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// TestLimiter: over time both classes keep to the rate together, readers first,
// and a reader that wants little does not wait.
func TestLimiter(t *testing.T) {
	const rate = 1 << 20
	read := func(ctx context.Context, l *limiter, n int) {
		for n > 0 {
			k, err := l.take(ctx, n)
			if err != nil {
				t.Error(err)
				return
			}
			n -= k
		}
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(rate)
		start := time.Now()
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { read(layers.Background(t.Context(), nil), l, 2*rate) })
		}
		for range 5 { // in steady state, a small read now and then
			time.Sleep(time.Second)
			before := time.Now()
			read(t.Context(), l, minBurst/4)
			if d := time.Since(before); d != 0 {
				t.Errorf("a small read waited for %v", d)
			}
		}
		all.Wait()
		moved := 8*rate + 5*minBurst/4
		if d := time.Since(start).Seconds(); d < float64(moved-minBurst)/rate || d > float64(moved+minBurst)/rate {
			t.Errorf("%d bytes took %v s at %d bytes/s", moved, d, rate)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(rate)
		ctx, cancel := context.WithCancel(t.Context())
		var taken int
		var background sync.WaitGroup
		background.Go(func() {
			for {
				k, err := l.take(layers.Background(ctx, nil), rate)
				if err != nil {
					return
				}
				taken += k
			}
		})
		start := time.Now()
		read(t.Context(), l, 10*rate)
		if d := time.Since(start).Seconds(); d > 10.1 {
			t.Errorf("a reader took %v s for what takes 10 alone", d)
		}
		cancel()
		background.Wait()
		if taken > minBurst {
			t.Errorf("the background got %d bytes while a reader wanted all", taken)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(rate)
		for range 100 { // what does not come is not paid for
			n, err := l.take(t.Context(), rate)
			if err != nil {
				t.Fatal(err)
			}
			l.back(n)
		}
		if l.tokens != l.burst {
			t.Errorf("%v bytes are left, want %v", l.tokens, l.burst)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l.tokens = -rate
		if _, err := l.take(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("take = %v, want Canceled", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // somebody wants what the background is reading
		l := newLimiter(rate)
		hurry := make(chan struct{})
		l.tokens = 1
		start := time.Now()
		time.AfterFunc(time.Millisecond, func() { close(hurry) })
		read(layers.Background(t.Context(), hurry), l, 1000)
		if d := time.Since(start); d != time.Millisecond {
			t.Errorf("it waited for %v, want 1ms, until somebody was in a hurry", d)
		}
	})
	if n, err := newLimiter(0).take(t.Context(), 1<<30); n != 1<<30 || err != nil {
		t.Errorf("take without a limit = %d, %v", n, err)
	}
}

// TestLimit: the limit holds for all downloads of a Registry together, and a
// reader is as fast beside the background as without it.
func TestLimit(t *testing.T) {
	img := makeImage(t, "amd64", 4<<20, 100_000)
	const limit = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		var net network
		s := net.serve("example.com:80", false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for i, data := range img.layers {
				if r.URL.Path == "/v2/a/b/blobs/"+string(img.layer(i).Digest) {
					w.Write(begin(w, r, data))
				}
			}
		}))
		r := New(Options{HostDirs: []string{t.TempDir()}, PlainHTTP: []string{"example.com"}, Limit: limit})
		r.dial = net.dial
		defer net.wires.Wait()
		defer s.Close()
		defer r.Close()
		ref := mustRef(t, "example.com/a/b:v1")
		start := time.Now()
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				rc, err := r.Stream(layers.Background(t.Context(), nil), ref, img.layer(0))
				if err != nil {
					t.Error(err)
					return
				}
				defer rc.Close()
				if n, err := io.Copy(io.Discard, rc); n != 4<<20 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		time.Sleep(4 * time.Second) // in the middle of it
		b, err := r.Blob(ref, img.layer(1))
		if err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		if _, err := b.ReadAt(t.Context(), make([]byte, 100_000), 0); err != nil {
			t.Error(err)
		}
		if got := trips(before); got != 2 { // connect, request
			t.Errorf("a reader beside the background took %v round trips, want 2", got)
		}
		all.Wait()
		if d := time.Since(start); d < 7*time.Second || d > 11*time.Second {
			t.Errorf("8 MiB took %v at 1 MiB/s", d)
		}
	})
}
