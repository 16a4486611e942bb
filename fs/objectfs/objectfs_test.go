package objectfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
)

// memory holds objects in memory. Those in slow wait for release as if for a network.
type memory struct {
	mu      sync.Mutex
	data    map[layers.Sum][]byte
	slow    map[layers.Sum]bool
	fail    map[layers.Sum]error
	waiting chan layers.Sum // gets a sum when a read begins to wait
	release chan struct{}
}

func newMemory() *memory {
	return &memory{
		data: map[layers.Sum][]byte{}, slow: map[layers.Sum]bool{}, fail: map[layers.Sum]error{},
		waiting: make(chan layers.Sum, 1000), release: make(chan struct{}),
	}
}

func (m *memory) add(data []byte) layers.Sum {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := layers.SumOf(data)
	m.data[s] = data
	return s
}

func (m *memory) Size(s layers.Sum) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.data[s]
	return int64(len(d)), ok
}

func (m *memory) ReadAt(ctx context.Context, s layers.Sum, p []byte, off int64) (int, error) {
	m.mu.Lock()
	d, slow, err := m.data[s], m.slow[s], m.fail[s]
	m.mu.Unlock()
	if slow {
		m.waiting <- s
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-m.release:
		}
	}
	if err != nil {
		if err == errPanic {
			panic(err)
		}
		return 0, err
	}
	return bytes.NewReader(d).ReadAt(p, off)
}

var errPanic = errors.New("panic")

func needFuse(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting FUSE needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
}

// mount mounts an object file system and returns its directory, descriptor and INIT request.
func mount(t testing.TB) (dir string, fd *os.File, init []byte) {
	t.Helper()
	needFuse(t)
	dir = t.TempDir()
	fd, err := mounts.OpenFuse()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	if err := mounts.MountFuse(dir, fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mounts.Clear(dir); err != nil {
			t.Error(err)
		}
	})
	if init, err = Handshake(fd); err != nil {
		t.Fatal(err)
	}
	return dir, fd, init
}

// serve runs a worker until the test ends or stop is called, which waits for it.
func serve(t testing.TB, fd *os.File, init []byte, resend bool, f *FS) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Serve(ctx, fd, init, resend, f); err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("Serve: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// settle lets the kernel learn that POLL is not served. os.Open asks Go's poller
// to watch what it opens, and epoll_ctl would wait for our answer to POLL with the
// lock held that the poller of a worker in the same process needs.
func settle(t testing.TB, dir string, m *memory) {
	t.Helper()
	fd, err := unix.Open(filepath.Join(dir, m.add([]byte("settle")).Path()), unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}

func newNodes(t testing.TB, path string) *Nodes {
	t.Helper()
	n, err := OpenNodes(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func start(t testing.TB, m *memory) (dir string, f *FS) {
	t.Helper()
	dir, fd, init := mount(t)
	f = New(m, newNodes(t, filepath.Join(t.TempDir(), "nodes")), Options{})
	serve(t, fd, init, false, f)
	settle(t, dir, m)
	return dir, f
}

func random(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	r.Read(p)
	return p
}

func TestFiles(t *testing.T) {
	m := newMemory()
	dir, f := start(t, m)
	for _, n := range []int{1, 4095, 4096, 4097, 128 << 10, 1<<20 + 1, 5 << 20} {
		want := random(n)
		path := filepath.Join(dir, m.add(want).Path())
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: read %d, %v", n, len(got), err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Size() != int64(n) || !st.Mode().IsRegular() {
			t.Errorf("%d bytes: stat %v, %v", n, st, err)
		}
	}
	if f.Stats.Reads.Load() == 0 || f.Stats.Bytes.Load() < 6<<20 {
		t.Errorf("stats: %d reads, %d bytes", f.Stats.Reads.Load(), f.Stats.Bytes.Load())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Namelen != 255 {
		t.Errorf("statfs: %v, %v", st, err)
	}
	if _, err := unix.Getxattr(filepath.Join(dir, "ab"), "user.x", nil); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("getxattr: %v", err)
	}
	if _, err := os.ReadDir(dir); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("readdir: %v, want ENOSYS", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ab/x"), nil, 0o600); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("create: %v", err)
	}
}

func TestNamesThatAreNotObjects(t *testing.T) {
	m := newMemory()
	dir, _ := start(t, m)
	path := m.add([]byte("x")).Path()
	for _, name := range []string{
		"a", "abc", "AB", "0x", "ab/c", path + "0", path[:len(path)-1],
		path[:3] + "G" + path[4:], "zz/" + path[3:],
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stat %s: %v, want ErrNotExist", name, err)
		}
	}
}

// An object that was unknown is seen as soon as it is known: nothing caches its absence.
func TestObjectAppears(t *testing.T) {
	m := newMemory()
	dir, _ := start(t, m)
	data := []byte("later")
	path := filepath.Join(dir, layers.SumOf(data).Path())
	if _, err := os.Stat(path); !errors.Is(err, unix.EIO) {
		t.Fatalf("before: %v", err)
	}
	m.add(data)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after: %q, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	m := newMemory()
	dir, f := start(t, m)
	for _, tt := range []struct {
		err  error
		want error
	}{
		{&layers.DigestError{From: "chunk"}, unix.EIO},
		{context.DeadlineExceeded, unix.ETIMEDOUT},
		{unix.ENOMEM, unix.ENOMEM},
		{unix.ENOSPC, unix.EIO},
		{os.ErrNotExist, unix.EIO},
		{context.Canceled, unix.EIO}, // not of this request
		{layers.ErrTooLarge, unix.EIO},
		{io.ErrUnexpectedEOF, unix.EIO},
		{errPanic, unix.EIO},
	} {
		s := m.add([]byte(tt.err.Error()))
		m.mu.Lock()
		m.fail[s] = tt.err
		m.mu.Unlock()
		if _, err := os.ReadFile(filepath.Join(dir, s.Path())); !errors.Is(err, tt.want) {
			t.Errorf("%v: read gives %v, want %v", tt.err, err, tt.want)
		}
	}
	if f.Stats.Panics.Load() == 0 {
		t.Error("no panic was counted")
	}
}

func TestErrno(t *testing.T) {
	if got := errno(nil); got != 0 {
		t.Errorf("errno(nil) = %v", got)
	}
}

// readDirect reads without the page cache, so that the request is the reader's own.
func readDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 4096))
	return err
}

// A worker that is stopped leaves reads that wait for the network to the next one.
func TestHandOver(t *testing.T) {
	m := newMemory()
	dir, fd, init := mount(t)
	table := filepath.Join(t.TempDir(), "nodes")
	nodes := newNodes(t, table)
	first := New(m, nodes, Options{})
	stop := serve(t, fd, init, false, first)
	settle(t, dir, m)

	want := random(300 << 10)
	s := m.add(want)
	m.mu.Lock()
	m.slow[s] = true
	m.mu.Unlock()
	result := make(chan error, 1)
	go func() {
		got, err := os.ReadFile(filepath.Join(dir, s.Path()))
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("wrong bytes")
		}
		result <- err
	}()
	<-m.waiting
	stop()
	if first.Stats.Left.Load() == 0 {
		t.Error("the first worker left no request")
	}
	select {
	case err := <-result:
		t.Fatalf("read ended between workers: %v", err)
	default:
	}
	close(m.release)
	before := nodes.Len()
	if err := nodes.Close(); err != nil {
		t.Fatal(err)
	}
	again := newNodes(t, table)
	if again.Len() != before {
		t.Errorf("table has %d nodes, want %d", again.Len(), before)
	}
	serve(t, fd, init, true, New(m, again, Options{}))
	if err := <-result; err != nil {
		t.Errorf("read over two workers: %v", err)
	}
}

func TestServeUntilUnmount(t *testing.T) {
	dir, fd, init := mount(t)
	f := New(newMemory(), newNodes(t, filepath.Join(t.TempDir(), "nodes")), Options{})
	result := make(chan error, 1)
	go func() { result <- Serve(t.Context(), fd, init, false, f) }()
	if err := mounts.Unmount(dir, false); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrGone) {
		t.Errorf("Serve = %v, want ErrGone", err)
	}
	if err := Serve(t.Context(), fd, init, true, f); !errors.Is(err, ErrGone) {
		t.Errorf("Serve again = %v, want ErrGone", err)
	}
}

func TestServeRefusesForeignBytes(t *testing.T) {
	f := New(newMemory(), nil, Options{})
	for _, init := range [][]byte{nil, make([]byte, 20), make([]byte, 104)} {
		if err := Serve(t.Context(), os.Stdin, init, false, f); err == nil {
			t.Errorf("Serve took %d bytes for INIT", len(init))
		}
	}
}

// A read that waits for the network ends when its process gets a signal, and the
// file system goes on.
func TestInterrupt(t *testing.T) {
	m := newMemory()
	dir, f := start(t, m)
	s := m.add(random(100))
	m.mu.Lock()
	m.slow[s] = true
	m.mu.Unlock()
	pid := os.Getpid()
	tid := make(chan int, 1)
	result := make(chan error, 1)
	go func() {
		tid <- lockThread()
		result <- readDirect(filepath.Join(dir, s.Path()))
	}()
	id := <-tid
	<-m.waiting
	for {
		unix.Tgkill(pid, id, unix.SIGURG)
		select {
		case err := <-result:
			if !errors.Is(err, unix.EINTR) {
				t.Errorf("interrupted read: %v, want EINTR", err)
			}
			if f.Stats.Interrupted.Load() == 0 {
				t.Error("no interrupt was counted")
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
