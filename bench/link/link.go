// Package link emulates a slow network path between a client and a server on
// this machine: a proxy with the bandwidth, the round-trip time and the slow
// start of TCP connections over such a path. The kernel need not know netem.
//
// All connections through one Link share its bandwidth, each direction by
// itself. A connection's handshake takes a round trip. Each direction of it has
// at most a window of bytes unacknowledged: ten segments at first (RFC 6928),
// larger by each acknowledged byte while the window is what limits it (slow
// start, RFC 5681), at most twice what the path holds, ten segments again after
// a pause (RFC 5681, 4.1). There is no loss.
package link

import (
	"context"
	"io"
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
	// Arrived, if not nil, is told of each n bytes when they reach the client.
	// It must not block; connections call it at the same time.
	Arrived func(n int)

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
	// What the kernel buffers here is not under way: a server must feel the window.
	server.SetReadBuffer(readSize)
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { k.copy(ctx, server, client, direction{wire: &k.up, count: &k.Up}) })
	both.Go(func() { k.copy(ctx, client, server, direction{wire: &k.down, count: &k.Down, arrived: k.Arrived}) })
	both.Wait()
}

// A direction is one way through a link.
type direction struct {
	wire    *wire
	count   *atomic.Int64
	arrived func(int)
}

// A sink is the far end of one direction; closing its writing half ends it.
type sink interface {
	io.Writer
	CloseWrite() error
}

// A source is the near end of one direction.
type source interface {
	io.Reader
	CloseRead() error
}

const readSize = 32 << 10

// piece is bytes under way and the time they arrive.
type piece struct {
	data []byte
	due  time.Time
}

// copy carries one direction of a connection until its source ends.
func (k *Link) copy(ctx context.Context, dst sink, src source, d direction) {
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
			if d.arrived != nil {
				d.arrived(len(p.data))
			}
		}
	})
	win := window{rtt: k.RTT, max: k.largestWindow(), size: firstWindow}
	for {
		buf := make([]byte, readSize)
		n, err := src.Read(buf)
		d.count.Add(int64(n))
		for data := buf[:n]; len(data) > 0; {
			m := win.admit(ctx, len(data))
			left := d.wire.send(m, k.BitsPerSecond)
			win.sent(m, left)
			under <- piece{data[:m], left.Add(k.RTT / 2)}
			// A full wire holds the sender back, but not so tightly that the
			// wire is idle when the sender wakes up late.
			sleep(ctx, time.Until(left)-queue)
			data = data[m:]
		}
		if err != nil {
			break
		}
	}
	close(under)
	far.Wait()
}

// queue is how long bytes may wait for the wire.
const queue = 5 * time.Millisecond

// largestWindow is twice what the path holds.
func (k *Link) largestWindow() int {
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
	segment     = 1460
	firstWindow = 10 * segment
	idle        = 200 * time.Millisecond // the least retransmission timeout of Linux (TCP_RTO_MIN)
)

// A window bounds the bytes that are sent and not acknowledged. A byte is
// acknowledged a round trip after it left.
type window struct {
	rtt       time.Duration
	size, max int
	flight    int // bytes not acknowledged
	peak      int // the most of them since peakAt
	peakAt    time.Time
	acks      []ack // in the order in which they come
	last      time.Time
}

type ack struct {
	n  int
	at time.Time
}

// admit returns how many of n bytes may be sent, once it is a segment or all of them.
func (w *window) admit(ctx context.Context, n int) int {
	if w.rtt == 0 {
		return n
	}
	w.settle(time.Now())
	if w.flight == 0 && time.Since(w.last) > max(idle, 2*w.rtt) {
		w.size = firstWindow
	}
	for w.size-w.flight < min(n, segment) && sleep(ctx, time.Until(w.acks[0].at)) {
		w.settle(time.Now())
	}
	return max(1, min(n, w.size-w.flight))
}

// settle takes the acknowledgements that have come.
func (w *window) settle(now time.Time) {
	for len(w.acks) > 0 && !w.acks[0].at.After(now) {
		if w.size < 2*w.peak { // it was in use (Linux, tcp_is_cwnd_limited)
			w.size = min(w.size+w.acks[0].n, max(w.max, firstWindow))
		}
		w.flight -= w.acks[0].n
		w.acks = w.acks[1:]
	}
}

// sent notes n bytes that have left, or will.
func (w *window) sent(n int, left time.Time) {
	if w.rtt == 0 {
		return
	}
	w.flight += n
	if left.Sub(w.peakAt) > w.rtt {
		w.peak, w.peakAt = 0, left
	}
	w.peak = max(w.peak, w.flight)
	w.acks = append(w.acks, ack{n, left.Add(w.rtt)})
	w.last = left
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
