package objectfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
)

// The worker is another process, as it is in life: reader and server in one
// process would share Go's scheduler. TestMain plays it.
const benchEnv = "SNAPFS_OBJECTFS_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(benchEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := serveFolder(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveFolder(dir string) error {
	nodes, err := OpenNodes(filepath.Join(dir, "nodes"))
	if err != nil {
		return err
	}
	init, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		return err
	}
	return Serve(context.Background(), os.NewFile(3, "/dev/fuse"), init, true, New(&folder{dir: dir}, nodes, Options{}))
}

// folder is objects in files, which stay open.
type folder struct {
	dir string
	fds sync.Map // layers.Sum → int
}

func (f *folder) Size(s layers.Sum) (int64, bool) {
	st, err := os.Stat(filepath.Join(f.dir, s.Path()))
	if err != nil {
		return 0, false
	}
	return st.Size(), true
}

func (f *folder) ReadAt(_ context.Context, s layers.Sum, p []byte, off int64) (int, error) {
	fd, ok := f.fds.Load(s)
	if !ok {
		n, err := unix.Open(filepath.Join(f.dir, s.Path()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		fd, _ = f.fds.LoadOrStore(s, n)
	}
	return unix.Pread(fd.(int), p, off)
}

// served mounts count objects of size bytes, served by another process.
func served(b *testing.B, count, size, readAhead int) []string {
	b.Helper()
	dir, fd, init := mount(b)
	if err := mounts.SetReadAhead(dir, readAhead); err != nil {
		b.Fatal(err)
	}
	source := b.TempDir()
	if err := os.WriteFile(filepath.Join(source, "init"), init, 0o600); err != nil {
		b.Fatal(err)
	}
	var paths []string
	for i := range count {
		data := random(size)
		copy(data, fmt.Sprint(i))
		s := layers.SumOf(data)
		paths = append(paths, filepath.Join(dir, s.Path()))
		path := filepath.Join(source, s.Path())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args[:1], &os.ProcAttr{
		Env: append(os.Environ(), benchEnv+"="+source), Files: []*os.File{nil, nil, os.Stderr, fd},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Kill(); p.Wait() })
	return paths
}

// readCold reads a file whose pages are not cached, and leaves none behind.
func readCold(path string, buf []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		}
	}
}

func BenchmarkSmallFiles(b *testing.B) {
	paths := served(b, 200, 5000, 128)
	buf := make([]byte, 1<<20)
	b.SetBytes(5000)
	for i := 0; b.Loop(); i++ {
		if err := readCold(paths[i%len(paths)], buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmallFilesParallel(b *testing.B) {
	paths := served(b, 200, 5000, 128)
	b.SetBytes(5000)
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 1<<20)
		for i := 0; pb.Next(); i++ {
			if err := readCold(paths[i%len(paths)], buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// One long read, by how far the kernel reads ahead.
func BenchmarkSequential(b *testing.B) {
	for _, kib := range []int{128, 512, 1024, 4096} {
		b.Run(fmt.Sprintf("readahead=%dKiB", kib), func(b *testing.B) {
			const size = 64 << 20
			paths := served(b, 1, size, kib)
			buf := make([]byte, 1<<20)
			b.SetBytes(size)
			for b.Loop() {
				if err := readCold(paths[0], buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
