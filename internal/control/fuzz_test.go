package control

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzFrame: whatever comes over a socket, Recv returns frames that were sent, or an error.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}\x00\x00\x00\x04null"))
	f.Add([]byte("\x00\x00\x00\x05{"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 || len(b) >= 4 && binary.BigEndian.Uint32(b) > 1<<20 && binary.BigEndian.Uint32(b) <= MaxFrame {
			return // what is sent has to fit into the socket, and memory for promised frames is not what is tested
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		conn := func(fd int) *net.UnixConn {
			file := os.NewFile(uintptr(fd), "socket")
			defer file.Close()
			c, err := net.FileConn(file)
			if err != nil {
				t.Fatal(err)
			}
			return c.(*net.UnixConn)
		}
		theirs, ours := conn(fds[0]), NewConn(conn(fds[1]))
		defer ours.Close()
		if _, err := theirs.Write(b); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		for got := 0; ; {
			var v json.RawMessage
			files, err := ours.Recv(&v)
			if err != nil {
				return
			}
			if got += 4 + len(v); got > len(b) || len(files) != 0 {
				t.Fatalf("%q became frames of %d bytes and %d descriptors", b, got, len(files))
			}
		}
	})
}
