package objects

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// A Partial is an object of which some chunks are there. On disk:
//
//	partial/<sum>.<layout>         the bytes, sparse
//	partial/<sum>.<layout>.map     which chunks are verified and written
//	partial/<sum>.<layout>.claim   which chunks were, before an unclean boot
//
// The layout is a hash of how the object is cut: two layers may cut it in two
// ways, and one of them may lie. A map is a header and a bitmap. The header
// names the file it belongs to by inode number and time of birth: a map that
// was left by another file with the same name means nothing.
//
//	magic 16, inode 8, birth (ns) 8, chunks 8 bytes, then a bit per chunk
//
// A Partial may be used from several goroutines at once.
type Partial struct {
	s      *Store
	sum    layers.Sum
	size   int64
	chunks []layers.Chunk
	name   string
	fd     int
	mapFD  int

	mu     sync.Mutex
	have   []byte // bitmap
	claim  []byte // bitmap; nil without claims
	nhave  int
	nclaim int
}

const (
	mapMagic  = "snapfs chunks 1\n"
	mapHeader = 40
	mapSuffix = ".map"
)

// Layout identifies how an object is cut into chunks: their places and sums.
func Layout(chunks []layers.Chunk) [16]byte {
	h := sha256.New()
	var b [48]byte
	for i := range chunks {
		binary.LittleEndian.PutUint64(b[:], uint64(chunks[i].Off))
		binary.LittleEndian.PutUint64(b[8:], uint64(chunks[i].Size))
		copy(b[16:], chunks[i].Sum[:])
		h.Write(b[:])
	}
	return [16]byte(h.Sum(nil))
}

// Partial opens or creates the partial object sum of size bytes that is cut
// into chunks, which must cover it without gaps and are not changed by the
// caller any more. The caller closes it.
func (s *Store) Partial(sum layers.Sum, size int64, chunks []layers.Chunk) (*Partial, error) {
	if err := checkChunks(size, chunks); err != nil {
		return nil, fmt.Errorf("object %s: %w", sum, err)
	}
	layout := Layout(chunks)
	n := (len(chunks) + 7) / 8
	p := &Partial{s: s, sum: sum, size: size, chunks: chunks, fd: -1, mapFD: -1, have: make([]byte, n),
		name: fmt.Sprintf("partial/%x.%x", sum[:], layout[:])}
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("partial object %s: %w", sum, errors.Join(err, p.Close()))
	}
	return p, nil
}

func checkChunks(size int64, chunks []layers.Chunk) error {
	off := int64(0)
	for i := range chunks {
		c := &chunks[i]
		if c.Off != off || c.Size < 1 || c.Size > layers.MaxChunk {
			return fmt.Errorf("%w: chunk %d does not follow the one before", layers.ErrBadLayer, i)
		}
		off += c.Size
	}
	if off != size || size == 0 {
		return fmt.Errorf("%w: chunks have %d bytes of %d", layers.ErrBadLayer, off, size)
	}
	return nil
}

func (p *Partial) open() (err error) {
	if p.fd, err = p.s.openOrCreate(p.name, p.size, nil); err != nil {
		return err
	}
	head, err := p.header()
	if err != nil {
		return err
	}
	first := append(head, p.have...)
	if p.mapFD, err = p.s.openOrCreate(p.name+mapSuffix, int64(len(first)), first); err != nil {
		return err
	}
	if err := p.load(p.mapFD, head, p.have); err != nil {
		if !errors.Is(err, errMap) {
			return err
		}
		// Of another file: a power cut, or an object that was completed. Begin anew.
		if err := p.replaceMap(first); err != nil {
			return err
		}
		clear(p.have)
	}
	return p.loadClaim(head)
}

// openOrCreate opens a file, or makes one of the given size that begins with data.
func (s *Store) openOrCreate(name string, size int64, data []byte) (int, error) {
	for {
		fd, err := openAt(s.root, name, unix.O_RDWR, 0)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		if fd, err = s.tempFile(); err != nil {
			return -1, err
		}
		err = os.NewSyscallError("ftruncate", unix.Ftruncate(fd, size))
		if err == nil {
			err = pwrite(fd, data, 0)
		}
		if err == nil {
			err = s.link(fd, name)
		}
		if err == nil {
			return fd, nil
		}
		err = errors.Join(err, unix.Close(fd))
		if !errors.Is(err, fs.ErrExist) {
			return -1, err
		}
	}
}

var errMap = errors.New("not the map of this file")

func (p *Partial) header() ([]byte, error) {
	var st unix.Statx_t
	if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_SIZE|unix.STATX_BTIME, &st); err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	if st.Size != uint64(p.size) {
		return nil, fmt.Errorf("%w: file of %d bytes, want %d", layers.ErrBadLayer, st.Size, p.size)
	}
	b := append(make([]byte, 0, mapHeader+len(p.have)), mapMagic...)
	b = binary.LittleEndian.AppendUint64(b, st.Ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(st.Btime.Sec)*1e9+uint64(st.Btime.Nsec))
	return binary.LittleEndian.AppendUint64(b, uint64(len(p.chunks))), nil
}

// load reads a map into bits.
func (p *Partial) load(fd int, head, bits []byte) error {
	b := make([]byte, mapHeader+len(bits)+1)
	n, err := pread(fd, b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if n != mapHeader+len(bits) || string(b[:mapHeader]) != string(head) {
		return errMap
	}
	copy(bits, b[mapHeader:])
	p.nhave = 0
	for i := range p.chunks {
		if bit(p.have, i) {
			p.nhave++
		}
	}
	return nil
}

func (p *Partial) replaceMap(first []byte) error {
	if err := errors.Join(unix.Close(p.mapFD), p.s.unlink(p.name+mapSuffix)); err != nil {
		return err
	}
	var err error
	p.mapFD, err = p.s.openOrCreate(p.name+mapSuffix, int64(len(first)), first)
	return err
}

func (p *Partial) loadClaim(head []byte) error {
	fd, err := openAt(p.s.root, p.name+claimSuffix, unix.O_RDONLY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	claim := make([]byte, len(p.have))
	if err := p.load(fd, head, claim); err != nil {
		if errors.Is(err, errMap) {
			return p.s.unlink(p.name + claimSuffix)
		}
		return err
	}
	p.claim = claim
	for i := range p.chunks {
		if bit(claim, i) && !bit(p.have, i) {
			p.nclaim++
		}
	}
	return nil
}

// Close releases p; what it holds stays.
func (p *Partial) Close() error {
	var err error
	for _, fd := range []*int{&p.fd, &p.mapFD} {
		if *fd >= 0 {
			err = errors.Join(err, os.NewSyscallError("close", unix.Close(*fd)))
			*fd = -1
		}
	}
	return err
}

func bit(b []byte, i int) bool { return b[i/8]&(1<<(i%8)) != 0 }

// Has says whether chunk i is there. What was written before an unclean boot is verified first.
func (p *Partial) Has(i int) bool {
	p.mu.Lock()
	have, claimed := bit(p.have, i), p.nclaim > 0 && bit(p.claim, i)
	p.mu.Unlock()
	return have || claimed && p.verifyClaim(i)
}

// Complete says whether all chunks are there.
func (p *Partial) Complete() bool {
	p.mu.Lock()
	nhave, nclaim := p.nhave, p.nclaim
	p.mu.Unlock()
	if nhave < len(p.chunks) && nhave+nclaim >= len(p.chunks) {
		for i := range p.chunks {
			if !p.Has(i) {
				return false
			}
		}
		return true
	}
	return nhave == len(p.chunks)
}

// verifyClaim reads a chunk that was written before an unclean boot and believes it, or not.
func (p *Partial) verifyClaim(i int) bool {
	c := &p.chunks[i]
	data := make([]byte, c.Size)
	_, err := pread(p.fd, data, c.Off)
	good := err == nil && layers.SumOf(data) == c.Sum
	if good && p.set(i) == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if bit(p.claim, i) && !bit(p.have, i) {
		p.claim[i/8] &^= 1 << (i % 8)
		p.nclaim--
	}
	return bit(p.have, i)
}

// Put adds the bytes of chunk i. It is a *layers.DigestError if they are others;
// any other error says that they are right but could not be kept. When the
// last chunk is in, last is true for at least one caller, who calls Promote.
func (p *Partial) Put(i int, data []byte) (last bool, err error) {
	c := &p.chunks[i]
	if got := layers.SumOf(data); got != c.Sum || int64(len(data)) != c.Size {
		return false, &layers.DigestError{Want: c.Sum.Digest(), Got: got.Digest(),
			From: fmt.Sprintf("object %s: chunk %d", p.sum, i)}
	}
	if !isZero(data) || p.clear(c) != nil {
		err = pwrite(p.fd, data, c.Off)
	}
	if err == nil {
		err = p.set(i)
	}
	if err != nil {
		return false, fmt.Errorf("partial object %s: chunk %d: %w", p.sum, i, err)
	}
	return p.Complete(), nil
}

// clear makes a chunk a hole, where the file system can. It mostly is one
// already, but after a power cut there may be something else.
func (p *Partial) clear(c *layers.Chunk) error {
	return unix.Fallocate(p.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, c.Off, c.Size)
}

// set records that chunk i is there. The bit is written after the bytes, and
// bits of a byte that another process set meanwhile may be lost: then a chunk is fetched again.
func (p *Partial) set(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bit(p.have, i) {
		return nil
	}
	b := p.have[i/8] | 1<<(i%8)
	if err := pwrite(p.mapFD, []byte{b}, mapHeader+int64(i/8)); err != nil {
		return err
	}
	p.have[i/8] = b
	p.nhave++
	if p.claim != nil && bit(p.claim, i) {
		p.nclaim--
	}
	return nil
}

// Covering returns the chunks that hold bytes [off, off+n): from first up to, not including, end.
func Covering(chunks []layers.Chunk, off, n int64) (first, end int) {
	first = sort.Search(len(chunks), func(i int) bool { return chunks[i].Off+chunks[i].Size > off })
	end = first + sort.Search(len(chunks)-first, func(i int) bool { return chunks[first+i].Off >= off+n })
	return first, end
}

// ReadAt reads like [io.ReaderAt]. It is ErrNotCached if a chunk that it needs is not there.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) {
	first, end := Covering(p.chunks, off, int64(len(b)))
	for i := first; i < end; i++ {
		if !p.Has(i) {
			return 0, ErrNotCached
		}
	}
	return pread(p.fd, b, off)
}

// Promote makes an object of which all chunks are there a complete one. All
// its bytes are verified under its own sum: the chunks were vouched for by one
// image, the object may be used by another. If they differ it is dropped, and
// the error is a *layers.DigestError.
func (p *Partial) Promote() error {
	if !p.Complete() {
		return fmt.Errorf("partial object %s: %w", p.sum, ErrNotCached)
	}
	got, err := sumOfFile(p.fd)
	if err != nil {
		return fmt.Errorf("partial object %s: %w", p.sum, err)
	}
	if got != p.sum {
		err = &layers.DigestError{Want: p.sum.Digest(), Got: got.Digest(), From: "object " + p.sum.String() + " from its chunks"}
		return errors.Join(err, p.Drop())
	}
	p.s.held.note(p.sum)
	p.s.filter.add(p.sum)
	err = p.s.settle(p.name, "fresh/"+p.sum.Path())
	if err == nil && !p.s.Has(p.sum) {
		err = fmt.Errorf("partial object %s was removed: %w", p.sum, ErrNotCached)
	}
	p.s.dirty.Store(true)
	return errors.Join(err, p.s.unlink(p.name+mapSuffix), p.s.unlink(p.name+claimSuffix))
}

// Drop removes the object's chunks. The caller still closes p.
func (p *Partial) Drop() error {
	return errors.Join(p.s.unlink(p.name+mapSuffix), p.s.unlink(p.name+claimSuffix), p.s.unlink(p.name))
}

// Partials returns the sums of the objects of which there is a part.
func (s *Store) Partials() ([]layers.Sum, error) {
	names, err := s.list("partial")
	var sums []layers.Sum
	for _, name := range names {
		if sum, ok := partialSum(name); ok && strings.Count(name, ".") == 1 {
			sums = append(sums, sum)
		}
	}
	return sums, err
}

func partialSum(name string) (layers.Sum, bool) {
	if len(name) < 2*sha256.Size {
		return layers.Sum{}, false
	}
	return parseSum(name[:hex.EncodedLen(sha256.Size)])
}

// asidePartials turns the maps of partial objects into claims.
func (s *Store) asidePartials() error {
	names, err := s.list("partial")
	if err != nil {
		return err
	}
	for _, name := range names {
		base, ok := strings.CutSuffix(name, mapSuffix)
		if !ok {
			continue
		}
		from, to := "partial/"+name, "partial/"+base+claimSuffix
		err := s.rename(from, to)
		if errors.Is(err, fs.ErrExist) {
			err = s.mergeClaims(from, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mergeClaims adds the bits of the map from to the claims to. A torn result
// does no harm: claims are verified.
func (s *Store) mergeClaims(from, to string) error {
	var b [2][]byte
	for i, name := range []string{from, to} {
		fd, err := openAt(s.root, name, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		b[i], err = io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if len(b[0]) == len(b[1]) && len(b[0]) > mapHeader && string(b[0][:mapHeader]) == string(b[1][:mapHeader]) {
		for i := mapHeader; i < len(b[0]); i++ {
			b[0][i] |= b[1][i]
		}
	}
	fd, err := openAt(s.root, from, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = errors.Join(pwrite(fd, b[0], 0), unix.Close(fd))
	if err == nil {
		err = os.NewSyscallError("rename", unix.Renameat(s.root, from, s.root, to))
	}
	return err
}
