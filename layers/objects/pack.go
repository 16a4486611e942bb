package objects

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// MaxPacked is the size, in bytes, of the largest object that goes into a pack.
// Three quarters of an image's files are not larger, with a tenth of its bytes;
// as files of their own they cost more to create than to fetch.
const MaxPacked = 16 << 10

// A pack is one file:
//
//	magic                       16 bytes
//	objects, one after another
//	index, sorted by sum        per object: sum 32, offset 8, size 4 bytes
//	footer                      magic 16, objects 8, index offset 8, SHA-256 of the index 32
//
// Numbers are little-endian.
const (
	packMagic  = "snapfs pack 1\n\x00\x00"
	packEntry  = 32 + 8 + 4
	packFooter = 16 + 8 + 8 + 32

	freshSuffix = ".fresh" // not yet durable
	claimSuffix = ".claim" // to be verified after an unclean boot
)

var errPack = fmt.Errorf("malformed pack: %w", fs.ErrInvalid)

// A Pack is being written. It is for one goroutine; there may be many packs.
// Its objects can be read after Commit.
type Pack struct {
	s     *Store
	name  string
	fd    int
	buf   []byte
	off   int64 // bytes before buf
	index []byte
	own   map[layers.Sum]struct{}
	err   error
}

// NewPack begins a pack for the small objects of one layer. The name is for
// whoever looks into the directory: letters, digits, "-" and "_".
func (s *Store) NewPack(name string) (*Pack, error) {
	if !isName(name) {
		return nil, fmt.Errorf("pack %q: %w", name, fs.ErrInvalid)
	}
	fd, err := s.tempFile()
	if err != nil {
		return nil, fmt.Errorf("create pack %s: %w", name, err)
	}
	s.filter.fill(s)
	p := &Pack{s: s, name: name, fd: fd, buf: make([]byte, 0, writeUnit), own: make(map[layers.Sum]struct{})}
	p.buf = append(p.buf, packMagic...)
	return p, nil
}

// Add adds an object of 1 to MaxPacked bytes and returns its sum. One that the
// store has is not added again.
func (p *Pack) Add(data []byte) (layers.Sum, error) {
	switch {
	case p.err != nil:
		return layers.Sum{}, p.err
	case len(data) == 0:
		return layers.Sum{}, ErrEmpty
	case len(data) > MaxPacked:
		return layers.Sum{}, fmt.Errorf("pack an object of %d bytes: %w", len(data), layers.ErrTooLarge)
	}
	sum := layers.SumOf(data)
	if _, ok := p.own[sum]; ok {
		return sum, nil
	}
	p.s.held.note(sum)
	if p.s.hasNow(sum) {
		return sum, nil
	}
	return sum, p.add(sum, data)
}

func (p *Pack) add(sum layers.Sum, data []byte) error {
	if len(p.buf)+len(data) > cap(p.buf) {
		p.flush()
	}
	if p.err != nil {
		return p.err
	}
	p.own[sum] = struct{}{}
	p.index = append(p.index, sum[:]...)
	p.index = binary.LittleEndian.AppendUint64(p.index, uint64(p.off)+uint64(len(p.buf)))
	p.index = binary.LittleEndian.AppendUint32(p.index, uint32(len(data)))
	p.buf = append(p.buf, data...)
	return nil
}

func (p *Pack) flush() {
	if err := pwrite(p.fd, p.buf, p.off); err != nil {
		p.err = fmt.Errorf("write pack %s: %w", p.name, err)
		return
	}
	p.off += int64(len(p.buf))
	p.buf = p.buf[:0]
}

// Commit makes the objects of the pack readable. On an error none is. A pack
// without objects leaves nothing.
func (p *Pack) Commit() error {
	if err := p.err; err != nil || len(p.index) == 0 {
		return errors.Join(err, p.Abort()) // not p.err: Abort sets it
	}
	if err := p.commit(); err != nil {
		return fmt.Errorf("store pack %s: %w", p.name, errors.Join(err, p.Abort()))
	}
	p.own, p.index, p.buf, p.err = nil, nil, nil, errPackClosed
	return nil
}

var errPackClosed = errors.New("pack is closed")

func (p *Pack) commit() error {
	if p.flush(); p.err != nil {
		return p.err
	}
	tail := sortIndex(p.index)
	sum := sha256.Sum256(tail)
	tail = append(tail, packMagic...)
	tail = binary.LittleEndian.AppendUint64(tail, uint64(len(p.index)/packEntry))
	tail = binary.LittleEndian.AppendUint64(tail, uint64(p.off))
	tail = append(tail, sum[:]...)
	if err := pwrite(p.fd, tail, p.off); err != nil {
		return err
	}
	var id [8]byte
	rand.Read(id[:]) // never fails: crypto/rand
	name := p.name + "." + hex.EncodeToString(id[:])
	done, err := openPack(p.fd, name, freshSuffix)
	if err != nil {
		return err
	}
	if err := p.s.link(p.fd, "packs/"+name+freshSuffix); err != nil {
		return errors.Join(err, done.unmap())
	}
	p.s.packs.add(done)
	p.s.dirty.Store(true)
	return nil
}

// sortIndex returns the entries of an index sorted by sum, with room for the footer.
func sortIndex(index []byte) []byte {
	order := make([]int32, len(index)/packEntry)
	for i := range order {
		order[i] = int32(i)
	}
	at := func(i int32) []byte { return index[int(i)*packEntry:][:packEntry] }
	slices.SortFunc(order, func(a, b int32) int { return bytes.Compare(at(a)[:32], at(b)[:32]) })
	out := make([]byte, 0, len(index)+packFooter)
	for _, i := range order {
		out = append(out, at(i)...)
	}
	return out
}

// Abort drops the pack. After Commit or Abort it does nothing.
func (p *Pack) Abort() error {
	if errors.Is(p.err, errPackClosed) {
		return nil
	}
	p.own, p.index, p.buf, p.err = nil, nil, nil, errPackClosed
	return os.NewSyscallError("close", unix.Close(p.fd))
}

// A pack is a committed one. Its index stays mapped; see Store.packs for who
// holds references.
type pack struct {
	name  string // without suffix
	fd    int
	n     int
	mem   []byte // mapped, ends with the footer
	index []byte // n entries, in mem
	base  uint32 // number of its first object in the table
	refs  atomic.Int32

	suffix atomic.Value // string: "", freshSuffix or claimSuffix
}

// packed is where one object of a pack is.
type packed struct {
	sum  layers.Sum
	off  int64
	size int64
}

// openPack maps the index of a pack and checks it. On success it owns fd.
func openPack(fd int, name, suffix string) (*pack, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	var foot [packFooter]byte
	if st.Size < int64(len(packMagic)+packFooter) {
		return nil, fmt.Errorf("%w: %d bytes", errPack, st.Size)
	}
	if _, err := pread(fd, foot[:], st.Size-packFooter); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(foot[16:])
	off := binary.LittleEndian.Uint64(foot[24:])
	// The bounds keep the sum below from overflowing.
	if string(foot[:16]) != packMagic || n == 0 || n > 1<<31 || off > 1<<60 || int64(off+n*packEntry)+packFooter != st.Size {
		return nil, fmt.Errorf("%w: bad footer", errPack)
	}
	skip := int64(off) % int64(os.Getpagesize())
	mem, err := unix.Mmap(fd, int64(off)-skip, int(st.Size-int64(off)+skip), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	p := &pack{name: name, fd: fd, n: int(n), mem: mem, index: mem[skip:][:n*packEntry]}
	p.suffix.Store(suffix)
	p.refs.Store(1)
	if err := p.check(foot[32:], int64(off)); err != nil {
		return nil, errors.Join(err, p.unmap())
	}
	return p, nil
}

// check compares the index with its sum, and each entry with the bounds of the file.
func (p *pack) check(sum []byte, end int64) error {
	if got := sha256.Sum256(p.index); !bytes.Equal(got[:], sum) {
		return fmt.Errorf("%w: index is damaged", errPack)
	}
	for i := range p.n {
		e := p.entry(i)
		if e.off < int64(len(packMagic)) || e.size < 1 || e.size > MaxPacked || e.off > end-e.size {
			return fmt.Errorf("%w: object %d is out of bounds", errPack, i)
		}
	}
	return nil
}

func (p *pack) entry(i int) packed {
	b := p.index[i*packEntry:][:packEntry]
	return packed{layers.Sum(b[:32]), int64(binary.LittleEndian.Uint64(b[32:])), int64(binary.LittleEndian.Uint32(b[40:]))}
}

func (p *pack) path() string  { return "packs/" + p.name + p.suffix.Load().(string) }
func (p *pack) claims() bool  { return p.suffix.Load() == claimSuffix }
func (p *pack) unmap() error  { return os.NewSyscallError("munmap", unix.Munmap(p.mem)) }
func (p *pack) acquire() bool { return p.refs.Add(1) > 1 }

func (p *pack) release() {
	if p.refs.Add(-1) == 0 {
		_ = errors.Join(p.unmap(), unix.Close(p.fd)) // read only, nothing to lose
	}
}

// readAt reads from one object like [io.ReaderAt].
func (p *pack) readAt(e packed, b []byte, off int64) (int, error) {
	if off >= e.size {
		return 0, io.EOF
	}
	short := int64(len(b)) > e.size-off
	if short {
		b = b[:e.size-off]
	}
	n, err := pread(p.fd, b, e.off+off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the pack was cut
	}
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// believe returns nil for an object that may be served: in a pack that is in
// doubt, it is verified every time.
func (p *pack) believe(e packed) error {
	if !p.claims() {
		return nil
	}
	return p.verifyOne(e)
}

func (p *pack) verifyOne(e packed) error {
	data := make([]byte, e.size)
	if _, err := pread(p.fd, data, e.off); err != nil {
		return err
	}
	if got := layers.SumOf(data); got != e.sum {
		return &layers.DigestError{Want: e.sum.Digest(), Got: got.Digest(), From: p.path()}
	}
	return nil
}

// verify verifies every object, from disk.
func (p *pack) verify(ctx context.Context) error {
	_ = unix.Fadvise(p.fd, 0, 0, unix.FADV_DONTNEED) // a hint
	for i := range p.n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.verifyOne(p.entry(i)); err != nil {
			return err
		}
	}
	return nil
}

// splitPack splits the name of a pack's file.
func splitPack(file string) (name, suffix string) {
	for _, suffix := range []string{freshSuffix, claimSuffix} {
		if name, ok := strings.CutSuffix(file, suffix); ok {
			return name, suffix
		}
	}
	return file, ""
}
