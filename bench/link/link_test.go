package link

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// through returns what a client sees of a server that sends n bytes, and how long it took.
func through(t *testing.T, k *Link, n int) time.Duration {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	want := bytes.Repeat([]byte("snapfs! "), n/8)
	go func() {
		if c, err := server.Accept(); err == nil {
			c.Write(want)
			c.Close()
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); k.Serve(t.Context(), l, server.Addr().String()) }()
	defer func() { l.Close(); <-done }()
	start := time.Now()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	took := time.Since(start)
	c.Close()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	if k.Down.Load() != int64(len(want)) || k.Connections.Load() != 1 {
		t.Errorf("counted %d bytes, %d connections", k.Down.Load(), k.Connections.Load())
	}
	return took
}

// The link may be slower than it says, when the machine is busy, but never faster.
func TestLinkIsNeverFasterThanStated(t *testing.T) {
	const size = 1 << 20
	for _, k := range []*Link{
		{},
		{BitsPerSecond: 80e6},
		{BitsPerSecond: 80e6, RTT: 10 * time.Millisecond},
	} {
		least := k.RTT * 2
		if k.BitsPerSecond > 0 {
			least += time.Duration(size * 8 * int64(time.Second) / k.BitsPerSecond)
		}
		if took := through(t, k, size); took < least {
			t.Errorf("%v bit/s, %v: took %v, want at least %v", k.BitsPerSecond, k.RTT, took, least)
		}
	}
}
