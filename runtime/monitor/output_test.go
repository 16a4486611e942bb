package monitor

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Whatever kind of descriptor a client passes, its flags stay as they are, and
// Close wakes a Write that waits for the reader.
func TestSinks(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *os.File{
		"pipe":   func(t *testing.T) *os.File { return blockingPipe(t) },
		"socket": func(t *testing.T) *os.File { return blockingSocket(t) },
	} {
		t.Run(name, func(t *testing.T) {
			f := make(t)
			keep, err := unix.Dup(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(keep)
			s, err := newSink(f, func(error) {})
			if err != nil {
				t.Fatal(err)
			}
			var writing sync.WaitGroup
			var n int
			writing.Go(func() { n, err = s.Write(bytes.Repeat([]byte("x"), 16<<20)) }) // more than anything holds
			for {
				// Full: somebody else could not write without waiting.
				if r, _ := unix.Poll([]unix.PollFd{{Fd: int32(keep), Events: unix.POLLOUT}}, 0); r == 0 {
					break
				}
			}
			s.Close()
			writing.Wait()
			if err == nil || n >= 16<<20 {
				t.Errorf("Write = %d, %v", n, err)
			}
			if flags, err := unix.FcntlInt(uintptr(keep), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("flags %#x, %v: the client's descriptor was made non-blocking", flags, err)
			}
		})
	}
}

func blockingPipe(t *testing.T) *os.File {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return os.NewFile(uintptr(fds[1]), "pipe")
}

func blockingSocket(t *testing.T) *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return os.NewFile(uintptr(fds[1]), "socket")
}

func TestSinkIntoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("head ")
	s, err := newSink(f, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("tail")) // at the offset that is shared with the client
	s.Close()
	if b, _ := os.ReadFile(path); string(b) != "head tail" {
		t.Errorf("file holds %q", b)
	}
}

// Only pipes may be read by a monitor: it would take a terminal's keystrokes from the shell.
func TestStdinHasToBeAPipe(t *testing.T) {
	h := box(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := control.Dial(t.Context(), h.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Begin(OpAttach, AttachArgs{Streams: Streams{Stdin: true}}, null); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(nil, nil); !isCode(err, "invalid") {
		t.Errorf("attach with /dev/null for stdin: %v", err)
	}
}
