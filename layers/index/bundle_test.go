package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// bundled makes a profile of chunks of the given sizes, and their bytes.
func bundled(sizes ...int) (*Profile, [][]byte) {
	p := &Profile{Starts: 1}
	var plain [][]byte
	for i, n := range sizes {
		b := randomBytes(n, i)
		plain = append(plain, b)
		p.Items = append(p.Items, Item{Object: sum(fmt.Sprint("o", i)), Size: int64(n), Sum: layers.SumOf(b), Weight: FullWeight})
	}
	return p, plain
}

func writeBundle(tb testing.TB, p *Profile, plain [][]byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	next := 0
	n, err := WriteBundle(tb.Context(), &b, p, func(_ context.Context, it Item) ([]byte, error) {
		if it != p.Items[next] {
			tb.Errorf("item %d is %+v, want %+v", next, it, p.Items[next])
		}
		next++
		return plain[next-1], nil
	})
	want := 0
	for _, b := range plain {
		if b != nil {
			want++
		}
	}
	if err != nil || n != want {
		tb.Fatalf("WriteBundle = %d, %v, want %d", n, err, want)
	}
	return b.Bytes()
}

// readBundle reads all of a bundle, and copies what it says.
func readBundle(p *Profile, r io.Reader) (its []Item, plain [][]byte, err error) {
	b, err := NewBundleReader(r, p)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	for {
		it, p, err := b.Next()
		if err == io.EOF {
			return its, plain, nil
		}
		if err != nil {
			if _, _, again := b.Next(); again != err {
				return its, plain, fmt.Errorf("the error was %w, then %v", err, again)
			}
			return its, plain, err
		}
		its, plain = append(its, it), append(plain, bytes.Clone(p))
	}
}

func TestBundle(t *testing.T) {
	p, plain := bundled(1, 128<<10, 100, 4<<20, 128<<10)
	for name, r := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "one byte at a time": iotest.OneByteReader, "with the end": iotest.DataErrReader,
	} {
		its, got, err := readBundle(p, r(bytes.NewReader(writeBundle(t, p, plain))))
		if err != nil || !slices.Equal(its, p.Items) || !slices.EqualFunc(got, plain, bytes.Equal) {
			t.Errorf("%s: %d items, %v, want %d", name, len(its), err, len(plain))
		}
	}
	plain[1], plain[4] = nil, nil // left out
	its, _, err := readBundle(p, bytes.NewReader(writeBundle(t, p, plain)))
	if err != nil || len(its) != 3 || its[2] != p.Items[3] {
		t.Errorf("without two: %v, %v", its, err)
	}
	none := &Profile{Starts: 1}
	if its, _, err := readBundle(none, bytes.NewReader(writeBundle(t, none, nil))); err != nil || len(its) > 0 {
		t.Errorf("nothing: %v, %v", its, err)
	}
}

// Items are there as soon as their bytes came in, not when the stream ends.
func TestBundleStreams(t *testing.T) {
	p, plain := bundled(128<<10, 128<<10, 128<<10, 128<<10)
	all := writeBundle(t, p, plain)
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { _, _ = pw.Write(all[:130<<10]) }() // ends when pr is closed
	b, err := NewBundleReader(pr, p)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, got, err := b.Next(); err != nil || !bytes.Equal(got, plain[0]) {
		t.Errorf("Next = %d bytes, %v", len(got), err)
	}
}

// compress makes a stream of records that may be anything.
func compressBundle(records ...[]byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	head := binary.LittleEndian.AppendUint32([]byte(bundleMagic), Version)
	return z.EncodeAll(append(head, bytes.Join(records, nil)...), nil)
}

func record(step, size uint64, plain []byte) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(nil, step), size), plain...)
}

// What is wrong is an error, and what came before it is kept.
func TestBadBundle(t *testing.T) {
	p, plain := bundled(1000, 2000, 3000)
	good := writeBundle(t, p, plain)
	r0, r1, r2 := record(1, 1000, plain[0]), record(1, 2000, plain[1]), record(1, 3000, plain[2])
	end := []byte{0}
	wrong := bytes.Clone(plain[1])
	wrong[7] ^= 1
	bomb := func() []byte {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = z.Write(append(binary.LittleEndian.AppendUint32([]byte(bundleMagic), Version), r0...))
		_, _ = z.Write(record(1, 1<<40, nil))
		for range 64 {
			_, _ = z.Write(make([]byte, 1<<20))
		}
		_ = z.Close()
		return b.Bytes()
	}()
	for _, tc := range []struct {
		name   string
		stream []byte
		items  int
		want   error
	}{
		{"nothing", nil, 0, ErrBadBundle},
		{"garbage", randomBytes(1000, 1), 0, ErrBadBundle},
		{"not a bundle", compress(t, []byte("hello, this is no bundle")), 0, ErrBadBundle},
		{"newer version", compress(t, append([]byte(bundleMagic), 2, 0, 0, 0, 0)), 0, ErrVersion},
		{"version 0", compress(t, append([]byte(bundleMagic), 0, 0, 0, 0, 0)), 0, ErrBadBundle},
		{"no end", compressBundle(r0, r1, r2), 3, ErrBadBundle},
		{"cut within a record", compressBundle(r0, r1[:500]), 1, ErrBadBundle},
		{"cut within a header", compressBundle(r0, []byte{1}), 1, ErrBadBundle},
		{"cut stream", good[:len(good)-3], 0, ErrBadBundle}, // all in one block,
		{"wrong bytes", compressBundle(r0, record(1, 2000, wrong), r2, end), 1, ErrBadBundle},
		{"wrong size", compressBundle(r0, record(1, 1999, plain[1][:1999]), r2, end), 1, ErrBadBundle},
		{"order", compressBundle(r0, r2, r1, end), 1, ErrBadBundle},
		{"twice", compressBundle(r0, r0, end), 1, ErrBadBundle},
		{"beyond the profile", compressBundle(r0, r1, r2, r2, end), 3, ErrBadBundle},
		{"far beyond", compressBundle(r0, record(1<<63, 1, nil)), 1, ErrBadBundle},
		{"long number", compressBundle(r0, bytes.Repeat([]byte{0xff}, 20)), 1, ErrBadBundle},
		{"behind the end", compressBundle(r0, r1, r2, end, end), 3, ErrBadBundle},
		{"another stream behind", append(bytes.Clone(good), good...), 3, ErrBadBundle},
		{"garbage behind", append(bytes.Clone(good), "garbage"...), 3, ErrBadBundle},
		{"bomb", bomb, 1, ErrBadBundle},
	} {
		its, got, err := readBundle(p, bytes.NewReader(tc.stream))
		if !errors.Is(err, tc.want) || len(its) != tc.items || !slices.Equal(its, p.Items[:tc.items]) || !slices.EqualFunc(got, plain[:tc.items], bytes.Equal) {
			t.Errorf("%s: %d items, %v, want %d, %v", tc.name, len(its), err, tc.items, tc.want)
		}
	}
	if _, _, err := readBundle(p, bytes.NewReader(compressBundle(r0, record(1, 2000, wrong)))); !isDigest(err) {
		t.Errorf("wrong bytes = %v, want a DigestError", err)
	}
}

func compress(tb testing.TB, p []byte) []byte {
	tb.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return z.EncodeAll(p, nil)
}

// An error of the stream is told from a bad bundle: one is worth trying again.
func TestBundleStreamFails(t *testing.T) {
	p, plain := bundled(128<<10, 128<<10)
	good := writeBundle(t, p, plain)
	broken := errors.New("connection lost")
	its, _, err := readBundle(p, io.MultiReader(bytes.NewReader(good[:len(good)-100]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || errors.Is(err, ErrBadBundle) || len(its) != 1 {
		t.Errorf("%d items, %v, want 1, %v", len(its), err, broken)
	}
}

func TestWriteBundleRefuses(t *testing.T) {
	p, plain := bundled(1000, 2000)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		read func(i int) ([]byte, error)
		want func(error) bool
	}{
		"wrong bytes": {func(i int) ([]byte, error) { return make([]byte, len(plain[i])), nil }, isDigest},
		"short":       {func(i int) ([]byte, error) { return plain[i][1:], nil }, func(err error) bool { return err != nil }},
		"error":       {func(int) ([]byte, error) { return nil, broken }, func(err error) bool { return errors.Is(err, broken) }},
	} {
		i := -1
		if _, err := WriteBundle(t.Context(), io.Discard, p, func(context.Context, Item) ([]byte, error) { i++; return tc.read(i) }); !tc.want(err) {
			t.Errorf("%s: WriteBundle = %v", name, err)
		}
	}
	if _, err := WriteBundle(t.Context(), iotest.TruncateWriter(io.Discard, 1<<30), &Profile{}, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("WriteBundle of no profile = %v, want ErrCorrupt", err)
	}
	if _, err := NewBundleReader(nil, &Profile{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("NewBundleReader of no profile = %v, want ErrCorrupt", err)
	}
}

func FuzzBundle(f *testing.F) {
	p, plain := bundled(10, 20, 30)
	f.Add(writeBundle(f, p, plain), false)
	f.Add(append(append(record(1, 10, plain[0]), record(2, 30, plain[2])...), 0), true)
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		if raw { // so that records change, not only the stream
			b = compressBundle(b)
		}
		its, got, err := readBundle(p, bytes.NewReader(b))
		if err != nil && !errors.Is(err, ErrBadBundle) {
			t.Errorf("Next = %v, want ErrBadBundle", err)
		}
		next := 0
		for i, it := range its {
			for next < len(p.Items) && p.Items[next] != it {
				next++
			}
			if next == len(p.Items) || !bytes.Equal(got[i], plain[next]) {
				t.Errorf("item %d is %+v with %d bytes", i, it, len(got[i]))
			}
			next++
		}
	})
}
