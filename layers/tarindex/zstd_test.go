package tarindex

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// decodeZstd decodes p, which comes in buffers of run bytes, up to limit bytes.
func decodeZstd(t testing.TB, p []byte, run, limit int) (out []byte, m *layers.Map, err error) {
	t.Helper()
	r := &storedReader{ctx: t.Context(), pool: &pool{queue: make(chan *buffer, len(p)/run+1)}}
	in := make(chan *buffer, len(p)/run+1)
	for rest := p; len(rest) > 0; rest = rest[min(run, len(rest)):] {
		b := &buffer{b: rest, n: min(run, len(rest))}
		b.refs.Store(1)
		in <- b
	}
	close(in)
	r.in = in
	head, err := r.peek()
	if err != nil {
		t.Fatal(err)
	}
	d, err := newZstd(r, head)
	if err != nil {
		return nil, nil, err
	}
	defer d.(io.Closer).Close()
	buf := make([]byte, 10_000)
	for len(out) <= limit {
		n, err := d.Decode(buf, 0)
		out = append(out, buf[:n]...)
		if err == io.EOF {
			return out, d.Map(), nil
		}
		if err != nil {
			return out, nil, err
		}
	}
	return out, nil, layers.ErrTooLarge
}

// FuzzFrames decodes zstd frame by frame, and compares with a decoder that knows
// of no frames: the same bytes or an error from both, and the same from any point on.
func FuzzFrames(f *testing.F) {
	text := []byte(words(70_000))
	one, none := zstded(f, text), zstded(f, nil)
	skip := []byte{0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}
	f.Add(one, uint16(100))
	f.Add(bytes.Join([][]byte{skip, none, one, none, skip, one[:50]}, nil), uint16(3))
	f.Add(bytes.Join([][]byte{one, skip, one, none}, nil), uint16(1000))
	for _, o := range []zstd.EOption{zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(1 << 12), zstd.WithZeroFrames(true)} {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, o)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(text[:5000]); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes(), uint16(7))
	}
	const limit = 1 << 20
	reference := func(p []byte, window uint64) ([]byte, error) {
		z, err := zstd.NewReader(bytes.NewReader(p), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return io.ReadAll(io.LimitReader(z, limit+1))
	}
	f.Fuzz(func(t *testing.T, p []byte, run uint16) {
		window := uint64(middleWindow)
		if !isZstd(p) {
			return
		}
		if window0(p) > smallWindow {
			window = largeWindow
			if !bytes.HasPrefix(p, skip[:1]) {
				return // only memory
			}
		}
		got, m, err := decodeZstd(t, p, int(run)+1, limit)
		want, werr := reference(p, window)
		if len(want) > limit || len(got) > limit {
			return
		}
		if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; at once: %d bytes, %v", len(got), err, len(want), werr)
		}
		if err != nil {
			return
		}
		if err := m.Check(); err != nil || m.Plain != int64(len(got)) || m.Stored != int64(len(p)) {
			t.Fatalf("map %+v: %v", m, err)
		}
		for _, pt := range m.Points {
			if tail, err := reference(p[pt.Stored:], window); err != nil || !bytes.Equal(tail, got[pt.Plain:]) {
				t.Fatalf("from %+v: %d bytes, %v; want %d", pt, len(tail), err, len(got)-int(pt.Plain))
			}
		}
		for _, k := range m.Marks {
			if head, _ := reference(p[:k.Stored], window); int64(len(head)) < k.Plain {
				t.Fatalf("%d bytes before mark %+v", len(head), k)
			}
		}
	})
}
