package runtime

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestSendFD: bytes that do not fit into the socket at once arrive all the same,
// and who never reads them does not keep the sender.
func TestSendFD(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	large := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	sent := make(chan error, 1)
	go func() { sent <- SendFD(t.Context(), name, large, 0) }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if err = errors.Join(err, <-sent); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes of %d, %v", len(got), len(large), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() { sent <- SendFD(ctx, name, large, 0) }()
	silent, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cancel()
	if err := <-sent; !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.Canceled) {
		t.Errorf("to somebody who does not read: %v", err)
	}
}
