package decode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// text is n bytes that compress, different for each seed.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = "etaoin shrdlu\n"[r.IntN(14)]
	}
	return p
}

// pack compresses plain as one member or frame.
func pack(t testing.TB, c layers.Compression, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch c {
	case layers.None:
		return plain
	case layers.Gzip:
		z := gzip.NewWriter(&b)
		z.Write(plain)
		z.Close()
	case layers.Zstd:
		z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		z.Write(plain)
		z.Close()
	}
	return b.Bytes()
}

var all = map[string]layers.Compression{"none": layers.None, "gzip": layers.Gzip, "zstd": layers.Zstd}

func TestChunk(t *testing.T) {
	for name, c := range all {
		for _, n := range []int{1, 100, 128 << 10, 1<<20 + 1} {
			plain := text(n, 1)
			exact := pack(t, c, plain)
			more := pack(t, c, append(bytes.Clone(plain), text(700, 2)...))
			much := pack(t, c, append(bytes.Clone(plain), text(1<<20, 2)...))
			for what, stored := range map[string][]byte{
				"exact": exact, "with headers behind": more, "with much behind": much,
				"with another run behind": append(bytes.Clone(exact), more...),
				"with junk behind":        append(bytes.Clone(exact), "junk"...),
			} {
				got := make([]byte, n)
				err := Chunk(got, c, stored, layers.Chunk{Size: int64(n), BlobLen: int64(len(stored))})
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("Chunk(%s, %d bytes %s) = %v, want its bytes", name, n, what, err)
				}
			}
		}
	}
}

func TestChunkOverTwoRuns(t *testing.T) {
	plain := text(100_000, 1)
	for name, c := range all {
		stored := append(bytes.Clone(pack(t, c, plain[:40_000])), pack(t, c, plain[40_000:])...)
		got := make([]byte, 90_000)
		err := Chunk(got, c, stored, layers.Chunk{Size: 90_000, Inner: 5_000, BlobLen: int64(len(stored))})
		if err != nil || !bytes.Equal(got, plain[5_000:95_000]) {
			t.Errorf("Chunk(%s) over two members = %v, want its bytes", name, err)
		}
	}
}

func TestChunkZeros(t *testing.T) {
	got := text(1000, 1)
	if err := Chunk(got, layers.Zstd, nil, layers.Chunk{Size: 1000}); err != nil || !bytes.Equal(got, make([]byte, 1000)) {
		t.Errorf("Chunk of zeros = %v, want 1000 zeros", err)
	}
}

func TestChunkRefuses(t *testing.T) {
	plain := text(10_000, 1)
	for name, c := range all {
		good := pack(t, c, plain)
		for _, tc := range []struct {
			name   string
			stored []byte
			ck     layers.Chunk
			space  int
		}{
			{"empty run", nil, layers.Chunk{Size: 10, BlobLen: 10}, 10},
			{"cut run", good[:len(good)/2], layers.Chunk{Size: 10_000, BlobLen: 10}, 10_000},
			{"beyond the run", good, layers.Chunk{Size: 10_000, Inner: 1, BlobLen: 10}, 10_000},
			{"negative inner", good, layers.Chunk{Size: 10, Inner: -1, BlobLen: 10}, 10},
			{"far inner", good, layers.Chunk{Size: 10, Inner: MaxInner + 1, BlobLen: 10}, 10},
			{"no size", good, layers.Chunk{BlobLen: 10}, 0},
			{"wrong space", good, layers.Chunk{Size: 10, BlobLen: 10}, 11},
			{"too large", good, layers.Chunk{Size: layers.MaxChunk + 1, BlobLen: 10}, 10},
		} {
			if err := Chunk(make([]byte, tc.space), c, tc.stored, tc.ck); !errors.Is(err, layers.ErrBadLayer) {
				t.Errorf("Chunk(%s, %s) = %v, want ErrBadLayer", name, tc.name, err)
			}
		}
		if c == layers.None {
			continue
		}
		if err := Chunk(make([]byte, 10), c, text(500, 3), layers.Chunk{Size: 10, BlobLen: 500}); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Chunk(%s, not compressed) = %v, want ErrBadLayer", name, err)
		}
	}
	if err := Chunk(make([]byte, 1), 99, plain, layers.Chunk{Size: 1, BlobLen: 1}); !errors.Is(err, layers.ErrBadLayer) {
		t.Errorf("Chunk(unknown compression) = %v, want ErrBadLayer", err)
	}
}

// A run that inflates to far more than its chunk costs what the chunk costs.
func TestBomb(t *testing.T) {
	zeros := make([]byte, 64<<20)
	for name, c := range all {
		stored := pack(t, c, zeros)
		got := make([]byte, 100)
		ck := layers.Chunk{Size: 100, BlobLen: int64(len(stored))}
		if err := Chunk(got, c, stored, ck); err != nil { // fill the pools
			t.Errorf("Chunk(%s bomb) = %v", name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			Chunk(got, c, stored, ck)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 320<<20 { // the race detector empties pools at random
			t.Errorf("Chunk(%s bomb) ten times allocates %d bytes", name, n)
		}
	}
}

func TestRun(t *testing.T) {
	plain := text(300_000, 1)
	chunks := []layers.Chunk{
		{Inner: 0, Size: 10, BlobLen: 1}, {Inner: 10, Size: 100_000, BlobLen: 1}, {Inner: 150_000, Size: 150_000, BlobLen: 1},
	}
	for name, c := range all {
		for n := 1; n <= len(chunks); n++ {
			next := 0
			err := Run(c, pack(t, c, plain), chunks[:n], func(i int, p []byte) error {
				if ck := chunks[i]; i != next || !bytes.Equal(p, plain[ck.Inner:ck.Inner+ck.Size]) {
					t.Errorf("Run(%s) chunk %d as call %d has wrong bytes", name, i, next)
				}
				next++
				return nil
			})
			if err != nil || next != n {
				t.Errorf("Run(%s, %d chunks) = %v after %d chunks", name, n, err, next)
			}
		}
	}
}

func TestRunRefuses(t *testing.T) {
	stored := pack(t, layers.Gzip, text(1000, 1))
	ok := func(int, []byte) error { return nil }
	for name, chunks := range map[string][]layers.Chunk{
		"overlap":   {{Size: 10, BlobLen: 1}, {Inner: 9, Size: 10, BlobLen: 1}},
		"too short": {{Size: 10, BlobLen: 1}, {Inner: 990, Size: 11, BlobLen: 1}},
		"zeros":     {{Size: 10, BlobLen: 1}, {Inner: 990, Size: 10}},
		"single":    {{Size: -1, BlobLen: 1}},
	} {
		if err := Run(layers.Gzip, stored, chunks, ok); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Run(%s) = %v, want ErrBadLayer", name, err)
		}
	}
	stop := errors.New("stop")
	two := []layers.Chunk{{Size: 10, BlobLen: 1}, {Inner: 10, Size: 10, BlobLen: 1}}
	if err := Run(layers.Gzip, stored, two, func(int, []byte) error { return stop }); err != stop {
		t.Errorf("Run with a failing put = %v, want its error", err)
	}
}

func FuzzChunk(f *testing.F) {
	for _, c := range all {
		f.Add(uint8(c), pack(f, c, text(1000, 1)), int64(10), int64(100))
	}
	f.Fuzz(func(t *testing.T, c uint8, stored []byte, inner, size int64) {
		ck := layers.Chunk{Size: size, Inner: inner, BlobLen: int64(len(stored))}
		if size < 0 || size > 1<<20 || inner > 1<<22 {
			return
		}
		dst := make([]byte, size)
		if err := Chunk(dst, layers.Compression(c%4), stored, ck); err != nil {
			return
		}
		if len(stored) == 0 {
			return
		}
		err := Run(layers.Compression(c%4), stored, []layers.Chunk{ck}, func(_ int, p []byte) error {
			if !bytes.Equal(p, dst) {
				t.Errorf("Run and Chunk differ")
			}
			return nil
		})
		if err != nil {
			t.Errorf("Run = %v where Chunk succeeds", err)
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	for name, c := range all {
		for _, n := range []int{8 << 10, 4 << 20} {
			plain := text(n, 1)
			for what, stored := range map[string][]byte{
				"exact": pack(b, c, plain), "headers": pack(b, c, append(bytes.Clone(plain), text(1500, 2)...)),
			} {
				b.Run(name+"/"+what+"/"+map[bool]string{true: "8KiB", false: "4MiB"}[n == 8<<10], func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					dst := make([]byte, n)
					for b.Loop() {
						if err := Chunk(dst, c, stored, layers.Chunk{Size: int64(n), BlobLen: int64(len(stored))}); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// A frame with a large window is decoded, one that is too large costs no memory,
// and neither is called damaged.
func TestWindows(t *testing.T) {
	plain := text(2<<20, 8)
	for _, c := range []struct {
		window int
		want   error
	}{
		{1 << 20, nil}, {16 << 20, nil}, {128 << 20, nil}, {256 << 20, layers.ErrTooLarge},
	} {
		var stored bytes.Buffer
		z, err := zstd.NewWriter(&stored, zstd.WithWindowSize(c.window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		z.Write(plain[:1<<20])
		z.Flush() // so that the frame does not know its size
		z.Write(plain[1<<20:])
		z.Close()
		for range 2 {
			dst := make([]byte, 1000)
			err := Chunk(dst, layers.Zstd, stored.Bytes(), layers.Chunk{Size: 1000, BlobLen: int64(stored.Len()), Inner: 1_000_000})
			if !errors.Is(err, c.want) || errors.Is(err, layers.ErrBadLayer) || err == nil && !bytes.Equal(dst, plain[1_000_000:][:1000]) {
				t.Errorf("window of %d: Chunk = %v, want %v", c.window, err, c.want)
			}
		}
		if len(largeToken) != 0 {
			t.Fatal("the token was not given back")
		}
	}
	// A single segment: the window is the content, here 30 GB.
	huge := binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 30<<30)
	huge = append(huge, 0x02, 0, 0x10, 'x') // 128 KiB of x, not the last block
	dst := make([]byte, 1000)
	if err := Chunk(dst, layers.Zstd, huge, layers.Chunk{Size: 1000, BlobLen: int64(len(huge))}); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Chunk of a huge segment = %v, want ErrTooLarge", err)
	}
}
