package link

import (
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is one direction of a connection in memory; its time is the bubble's.
type pipe struct {
	*io.PipeReader
	*io.PipeWriter
}

func newPipe() pipe {
	r, w := io.Pipe()
	return pipe{r, w}
}

func (p pipe) CloseWrite() error { return p.PipeWriter.Close() }
func (p pipe) CloseRead() error  { return p.PipeReader.Close() }
func (p pipe) Close() error      { return nil }

// carried returns how long n bytes take one way, from when they are offered
// until the last is read. Must be called in a bubble.
func (k *Link) carried(t *testing.T, n int) time.Duration {
	in, out := newPipe(), newPipe()
	var all sync.WaitGroup
	all.Go(func() { k.copy(t.Context(), out, in, direction{wire: &k.down, count: &k.Down}) })
	begin := time.Now()
	all.Go(func() {
		in.Write(make([]byte, n))
		in.CloseWrite()
	})
	got, err := io.Copy(io.Discard, out)
	took := time.Since(begin)
	all.Wait()
	if got != int64(n) || err != nil {
		t.Errorf("carried %d bytes, %v; want %d", got, err, n)
	}
	return took
}

// near tells whether got is want to within a part in a hundred.
func near(got, want time.Duration) bool {
	return math.Abs(float64(got-want)) <= float64(want)/100
}

func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, bits := range []int64{1e6, 80e6, 1e9} {
			const n = 1 << 20
			want := time.Duration(n * 8 * int64(time.Second) / bits)
			if got := (&Link{BitsPerSecond: bits}).carried(t, n); !near(got, want) {
				t.Errorf("%d bytes at %d bit/s took %v, want %v", n, bits, got, want)
			}
		}
	})
}

// TestBandwidthIsShared: two connections take as long as one with the bytes of both.
func TestBandwidthIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4 << 20
		alone := (&Link{BitsPerSecond: 80e6, RTT: 20 * time.Millisecond}).carried(t, 2*n)
		k := &Link{BitsPerSecond: 80e6, RTT: 20 * time.Millisecond}
		begin := time.Now()
		var both sync.WaitGroup
		both.Go(func() { k.carried(t, n) })
		both.Go(func() { k.carried(t, n) })
		both.Wait()
		// Two windows open twice as fast.
		if got := time.Since(begin); got > alone || got < alone*9/10 {
			t.Errorf("two times %d bytes took %v, %d alone %v", n, got, 2*n, alone)
		}
	})
}

// TestSlowStart: without a limit of bandwidth each round trip carries twice as
// much as the one before, beginning with ten segments.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 20 * time.Millisecond
		for _, c := range []struct{ bytes, trips int }{
			{1, 0},
			{firstWindow, 0},
			{firstWindow + 1, 1},
			{3 * firstWindow, 1},
			{3*firstWindow + 1, 2},
			{63 * firstWindow, 5},
		} {
			want := time.Duration(c.trips)*rtt + rtt/2
			if got := (&Link{RTT: rtt}).carried(t, c.bytes); !near(got, want) {
				t.Errorf("%d bytes took %v, want %v", c.bytes, got, want)
			}
		}
	})
}

// TestWindow: it grows while it is what limits, to its greatest size, and
// begins again after a pause.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := window{rtt: 10 * time.Millisecond, size: firstWindow, max: 1 << 20}
		send := func(n int) {
			for n > 0 {
				m := w.admit(t.Context(), n)
				w.sent(m, time.Now())
				n -= m
			}
		}
		for range 50 { // a small answer each round trip
			send(1000)
			time.Sleep(w.rtt)
		}
		w.settle(time.Now())
		if w.size != firstWindow {
			t.Errorf("small answers have made the window %d, want %d", w.size, firstWindow)
		}
		send(8 << 20)
		if w.size != w.max {
			t.Errorf("after 8 MiB the window is %d, want %d", w.size, w.max)
		}
		time.Sleep(idle / 2)
		send(1)
		if w.size != w.max {
			t.Errorf("after a short pause the window is %d, want %d", w.size, w.max)
		}
		time.Sleep(2 * idle)
		send(1)
		if w.size != firstWindow {
			t.Errorf("after a pause the window is %d, want %d", w.size, firstWindow)
		}
	})
}
