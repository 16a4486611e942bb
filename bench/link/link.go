// Package link emulates a slow network path between a client and a server on
// this machine: a proxy with the bandwidth, the round-trip time and the slow
// start of a TCP connection over such a path. The kernel need not know netem.
//
// All connections through one Link share its bandwidth, each direction by
// itself. A connection begins with a window of ten segments (RFC 6928), which
// doubles every round trip in which it was used up; after a pause it begins again.
package link

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Link is one emulated path. The zero value is as fast as the machine.
type Link struct {
	BitsPerSecond int64         // each way; 0: unlimited
	RTT           time.Duration // to the server and back

	// Down and Up count the bytes carried to and from the client.
	Down, Up atomic.Int64
	// Connections counts the connections made.
	Connections atomic.Int64

	down, up wire
}

// Serve carries every connection that l accepts to the TCP address target,
// until ctx ends. It closes l.
func (k *Link) Serve(ctx context.Context, l net.Listener, target string) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return context.Cause(ctx)
		}
		all.Go(func() { k.carry(ctx, c.(*net.TCPConn), target) })
	}
}

func (k *Link) carry(ctx context.Context, client *net.TCPConn, target string) {
	defer client.Close()
	k.Connections.Add(1)
	if !sleep(ctx, k.RTT) { // SYN and its answer
		return
	}
	s, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	server := s.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { k.copy(ctx, server, client, &k.up, &k.Up) })
	both.Go(func() { k.copy(ctx, client, server, &k.down, &k.Down) })
	both.Wait()
}

// piece is bytes under way and the time they arrive.
type piece struct {
	data []byte
	due  time.Time
}

// copy carries one direction of a connection until its source ends.
func (k *Link) copy(ctx context.Context, dst, src *net.TCPConn, w *wire, count *atomic.Int64) {
	under := make(chan piece, 1024)
	var far sync.WaitGroup
	far.Go(func() {
		defer dst.CloseWrite()
		for p := range under {
			sleep(ctx, time.Until(p.due))
			if _, err := dst.Write(p.data); err != nil {
				src.CloseRead()
				for range under { // the near end may be waiting
				}
				return
			}
		}
	})
	win := window{rtt: k.RTT, max: k.bandwidthDelay()}
	for {
		buf := make([]byte, 32<<10)
		n, err := src.Read(buf)
		count.Add(int64(n))
		for data := buf[:n]; len(data) > 0; {
			m := win.admit(ctx, len(data))
			sent := w.send(m, k.BitsPerSecond)
			sleep(ctx, time.Until(sent)) // a full wire holds the sender back
			under <- piece{data[:m], sent.Add(k.RTT / 2)}
			data = data[m:]
		}
		if err != nil {
			break
		}
	}
	close(under)
	far.Wait()
}

// bandwidthDelay is the largest useful window: twice what the path holds.
func (k *Link) bandwidthDelay() int {
	if k.BitsPerSecond == 0 {
		return 16 << 20
	}
	return max(64<<10, int(2*k.RTT.Seconds()*float64(k.BitsPerSecond)/8))
}

// A wire sends one byte after the other.
type wire struct {
	mu   sync.Mutex
	free time.Time // when it has sent all that it was given
}

// send returns when the last of n bytes will have left.
func (w *wire) send(n int, bits int64) time.Time {
	now := time.Now()
	if bits == 0 {
		return now
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) * 8e9 / float64(bits)))
	return w.free
}

const (
	segment   = 1460
	firstSize = 10 * segment
)

// A window bounds what a connection sends in one round trip.
type window struct {
	rtt   time.Duration
	max   int
	size  int
	used  int
	round time.Time // when the current round trip began
}

// admit returns how many of n bytes may leave, waiting for the next round trip
// if the window of this one is used up.
func (w *window) admit(ctx context.Context, n int) int {
	if w.rtt == 0 {
		return n
	}
	now := time.Now()
	if w.size == 0 || now.Sub(w.round) > 4*w.rtt { // new, or idle: begin again
		w.size, w.used, w.round = firstSize, 0, now
	}
	if w.used >= w.size {
		sleep(ctx, time.Until(w.round.Add(w.rtt)))
		w.size, w.used, w.round = min(2*w.size, max(w.max, firstSize)), 0, time.Now()
	} else if now.Sub(w.round) >= w.rtt {
		w.used, w.round = 0, now
	}
	n = min(n, w.size-w.used)
	w.used += n
	return n
}

// sleep waits for d and tells whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
