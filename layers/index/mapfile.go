package index

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

// What a node keeps of a mapped layer is two files beside the layer's index: PATH
// has the map and the table of the windows, and never changes; PATH.windows has
// the windows themselves as they are stored, those that are there already, and
// holes for the others. Nothing says which are there but their sums: one that was
// torn by a sudden death is one that is not there.
//
//	 0  8  magic "snapfsmp"
//	 8  4  version
//	12  4  points
//	16  8  bytes of the columns, plain
//	24  8  offset of the first window in the index blob
//	32  8  bytes of the index blob, 0 if the map was made here
//	40  4  CRC-32C of all behind the header
//	44  4  CRC-32C of the header before this
//	48  .  digest of the index blob: length (uvarint) and text
//	    .  the columns of a map section, the last two empty
//
// It is trusted as far as its directory is, like an index file.
const (
	mapMagic    = "snapfsmp"
	mapVersion  = 1
	mapFileHead = 48

	windowsSuffix = ".windows"
	// maxMapFile bounds what is read: MaxPoints and MaxMarks at their longest.
	maxMapFile = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Source fetches n bytes at off of the index blob that a layer's windows are
// in. It returns all of them or an error.
type Source func(ctx context.Context, off, n int64) ([]byte, error)

// MakeMap keeps m and all of its windows at path, for a node that made them
// itself. Both are durable when it returns.
func MakeMap(ctx context.Context, path string, m *layers.Map, w layers.Windows) error {
	if err := m.Check(); err != nil {
		return err
	}
	var table []Window
	if err := create(path+windowsSuffix, func(f *os.File) (err error) {
		table, err = sealed(ctx, newEncoder(), m, w, func(p []byte) error {
			_, err := f.Write(p)
			return err
		})
		return err
	}); err != nil {
		return err
	}
	return writeMap(path, m, table, Blob{})
}

// WriteMap keeps the map of a layer that came from the index blob from, at path.
// Its windows are there when they were fetched. Windows that an earlier map of
// the same path had are dropped.
func WriteMap(path string, l *Layer, from Blob) error {
	if err := l.Map.Check(); err != nil {
		return err
	}
	// Were it there after a sudden death, no window of it would have the right sum.
	if err := os.Remove(path + windowsSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeMap(path, l.Map, l.Table, from)
}

// RemoveMap removes what MakeMap or WriteMap made. Nothing there is no error.
func RemoveMap(path string) error {
	err := os.Remove(path) // first: windows without a map are nothing
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err2 := os.Remove(path + windowsSuffix); !errors.Is(err2, fs.ErrNotExist) {
		err = errors.Join(err, err2)
	}
	return err
}

func writeMap(path string, m *layers.Map, table []Window, from Blob) error {
	var cols [mapColumns][]byte
	encodeMap(cols[:], m, table)
	body, plain := pack(nil, 1<<mapColumns-1, cols[:]...) // as they are: it is written while a container waits
	body = append(appendText(nil, from.Digest), body...)
	h := append(make([]byte, 0, mapFileHead), mapMagic...)
	h = le.AppendUint32(h, mapVersion)
	h = le.AppendUint32(h, uint32(len(m.Points)))
	h = le.AppendUint64(h, uint64(plain))
	h = le.AppendUint64(h, uint64(firstWindow(table)))
	h = le.AppendUint64(h, uint64(from.Size))
	h = le.AppendUint32(h, crc32.Checksum(body, castagnoli))
	h = le.AppendUint32(h, crc32.Checksum(h, castagnoli))
	return create(path, func(f *os.File) error {
		_, err := f.Write(append(h, body...))
		return err
	})
}

func firstWindow(table []Window) int64 {
	for _, w := range table {
		if w.Off > 0 || w.Len > 0 {
			return w.Off
		}
	}
	return 0
}

// A MapFile is a map that is kept on disk, and its windows. It is safe for use by
// several goroutines.
type MapFile struct {
	base   context.Context // lifetime of fetches: ends with Close
	stop   context.CancelFunc
	source Source
	m      *layers.Map
	table  []Window
	from   Blob
	first  int64 // Off of the first window: where PATH.windows begins
	file   *os.File

	fetches sync.WaitGroup
	mu      sync.Mutex // guards what follows, not the file
	flights map[int]*flight
	closed  bool
}

// A flight is a fetch that is under way.
type flight struct {
	done chan struct{}
	p    []byte // when done is closed
	err  error
}

var _ layers.Windows = (*MapFile)(nil)

// OpenMap opens the map at path. Windows that are not there are fetched from
// source, if it is not nil, under base. Its error wraps ErrCorrupt, ErrVersion or
// one of the file system; the first two say that the map has to be made again.
// The caller closes the file, when nobody uses it any more.
func OpenMap(base context.Context, path string, source Source) (*MapFile, error) {
	p, err := readSome(path, maxMapFile)
	if err != nil {
		return nil, err
	}
	f := &MapFile{source: source, flights: make(map[int]*flight)}
	if err := f.decode(p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Missing windows, and a missing file of them, only have to be fetched.
	if f.file, err = os.OpenFile(path+windowsSuffix, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	f.base, f.stop = context.WithCancel(base)
	return f, nil
}

func readSome(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes", path, ErrCorrupt, info.Size())
	}
	return os.ReadFile(path)
}

func (f *MapFile) decode(p []byte) error {
	if len(p) < mapFileHead || string(p[:8]) != mapMagic {
		return fmt.Errorf("%w: no map", ErrCorrupt)
	}
	if v := le.Uint32(p[8:]); v > mapVersion {
		return fmt.Errorf("map: %w: %d", ErrVersion, v)
	}
	head, body := p[:mapFileHead], p[mapFileHead:]
	if le.Uint32(p[8:]) != mapVersion || crc32.Checksum(head[:44], castagnoli) != le.Uint32(head[44:]) || crc32.Checksum(body, castagnoli) != le.Uint32(head[40:]) {
		return fmt.Errorf("%w: map with a wrong checksum", ErrCorrupt)
	}
	points, plain := le.Uint32(head[12:]), le.Uint64(head[16:])
	first, size := le.Uint64(head[24:]), le.Uint64(head[32:])
	c := cursor{p: body}
	f.from = Blob{digest.Digest(c.text(MaxReason)), int64(size)}
	if c.bad || plain > maxMapFile || first > layers.MaxFile || size > layers.MaxFile {
		return fmt.Errorf("%w: map of %d bytes, windows at %d of %d", ErrCorrupt, plain, first, size)
	}
	var cols [mapColumns]cursor
	total, err := unpack(c.p, int64(plain), cols[:])
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	if f.first = int64(first); total != int64(plain) {
		return fmt.Errorf("%w: map of %d bytes, want %d", ErrCorrupt, total, plain)
	}
	if f.m, f.table, err = decodeMap(cols[:], f.first); err != nil {
		return err
	}
	if len(f.m.Points) != int(points) {
		return fmt.Errorf("%w: map of %d points, want %d", ErrCorrupt, len(f.m.Points), points)
	}
	return ended(cols[:])
}

// Close ends the fetches that are under way, waits for them and closes the file.
// Windows are os.ErrClosed then; the map and the table stay.
func (f *MapFile) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.fetches.Wait()
	return f.file.Close()
}

// Map is the map. The caller must not change it.
func (f *MapFile) Map() *layers.Map { return f.m }

// Table is where the windows are in the index blob that From names.
func (f *MapFile) Table() []Window { return f.table }

// From is the index blob that the map came with; zero if it was made here.
func (f *MapFile) From() Blob { return f.from }

// Window returns the window of point i: from the file, or from the source.
func (f *MapFile) Window(ctx context.Context, i int) ([]byte, error) {
	stored, err := f.Stored(ctx, i)
	if err != nil {
		return nil, err
	}
	return f.table[i].open(i, f.m.Points[i].Window, stored)
}

// Stored returns the window of point i as it is stored, of which the sum is right.
func (f *MapFile) Stored(ctx context.Context, i int) ([]byte, error) {
	if p := f.kept(i); p != nil {
		return p, nil
	}
	fl, err := f.join(i)
	if err != nil {
		return nil, err
	}
	select {
	case <-fl.done:
		return fl.p, fl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// join returns the flight of window i. It runs under base: who comes second waits
// for the first, and nobody's end is another's.
func (f *MapFile) join(i int) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("window %d: %w", i, os.ErrClosed)
	}
	if f.source == nil {
		return nil, fmt.Errorf("%w %d: it is not kept, and there is nowhere to get it from", ErrNoWindow, i)
	}
	if fl, ok := f.flights[i]; ok {
		return fl, nil
	}
	fl := &flight{done: make(chan struct{})}
	f.flights[i] = fl
	f.fetches.Go(func() {
		fl.p, fl.err = f.fetch(f.base, i)
		f.mu.Lock()
		delete(f.flights, i)
		f.mu.Unlock()
		close(fl.done)
	})
	return fl, nil
}

// kept returns the stored window i if it is in the file, nil if not.
func (f *MapFile) kept(i int) []byte {
	w := f.table[i]
	p := make([]byte, w.Len)
	if _, err := f.file.ReadAt(p, w.Off-f.first); err != nil && w.Len > 0 || w.check(i, p) != nil {
		return nil
	}
	return p
}

// run is how many bytes of windows are asked for at once: what a link of 100
// Mbit/s and 20 ms carries in half a round trip.
const run = 128 << 10

// fetch gets window i and those behind it that are missing, which will be wanted
// soon and cost no request of their own.
func (f *MapFile) fetch(ctx context.Context, i int) ([]byte, error) {
	if p := f.kept(i); p != nil { // another flight got it meanwhile
		return p, nil
	}
	off := f.table[i].Off
	end := off + int64(f.table[i].Len)
	last := i
	for j := i + 1; j < len(f.table); j++ {
		w := f.table[j]
		if w.Len == 0 {
			continue
		}
		if w.Off+int64(w.Len)-off > run || f.kept(j) != nil {
			break
		}
		end, last = w.Off+int64(w.Len), j
	}
	p, err := f.source(ctx, off, end-off)
	if err != nil {
		return nil, fmt.Errorf("window %d: %w", i, err)
	}
	if int64(len(p)) != end-off {
		return nil, fmt.Errorf("%w: window %d: source gave %d bytes of %d", ErrCorrupt, i, len(p), end-off)
	}
	for j := i; j <= last; j++ {
		w := f.table[j]
		if w.Len == 0 {
			continue
		}
		stored := p[w.Off-off:][:w.Len]
		if err := w.check(j, stored); err != nil {
			if j == i {
				return nil, err
			}
			continue // whoever wants it will hear of it
		}
		// A full disk is no reason not to answer: it is fetched again.
		_, _ = f.file.WriteAt(stored, w.Off-f.first)
	}
	return p[:f.table[i].Len:f.table[i].Len], nil
}

// Fill gets all windows that are missing.
func (f *MapFile) Fill(ctx context.Context) error {
	for i, w := range f.table {
		if w.Len == 0 {
			continue
		}
		if _, err := f.Stored(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// Missing is how many windows are not in the file, and their bytes on the link.
func (f *MapFile) Missing() (n int, bytes int64) {
	for i, w := range f.table {
		if w.Len > 0 && f.kept(i) == nil {
			n++
			bytes += int64(w.Len)
		}
	}
	return n, bytes
}
