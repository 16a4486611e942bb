package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// version goes into every key: it changes with what Compile makes of a profile.
const version = "snapfs seccomp 2 "

// A file of the cache is the SHA-256 of what follows it: flags, then the
// instructions of 8 bytes each, all little-endian.
const (
	headerSize = sha256.Size + 4
	maxFile    = headerSize + 8*maxInsns
)

// Cached is Compile with a cache in a directory of the caller's, which is made
// with mode 0700. A file that is not exactly as it was written, or not ours
// alone, is compiled and written again. With no directory it is Compile.
func Cached(dir string, s *specs.LinuxSeccomp) (*Filter, error) {
	if dir == "" {
		return Compile(s)
	}
	name := filepath.Join(dir, hex.EncodeToString(key(s))+".bpf")
	if f, err := readFile(name); err == nil {
		return f, nil
	}
	f, err := Compile(s)
	if err != nil {
		return nil, err
	}
	// A cache that cannot be written costs a millisecond per start, no start.
	_ = writeFile(name, f)
	return f, nil
}

// key hashes everything Compile depends on. Each value is preceded by its
// length, so that no two profiles read the same.
func key(s *specs.LinuxSeccomp) []byte {
	b := make(blob, 0, 32<<10)
	b.strings(version+goruntime.GOARCH, string(s.DefaultAction), s.ListenerPath, s.ListenerMetadata)
	b.errno(s.DefaultErrnoRet)
	b.numbers(uint64(len(s.Architectures)))
	for _, a := range s.Architectures {
		b.strings(string(a))
	}
	b.numbers(uint64(len(s.Flags)))
	for _, f := range s.Flags {
		b.strings(string(f))
	}
	for _, c := range s.Syscalls {
		b.numbers(uint64(len(c.Names)))
		b.strings(c.Names...)
		b.strings(string(c.Action))
		b.errno(c.ErrnoRet)
		b.numbers(uint64(len(c.Args)))
		for _, a := range c.Args {
			b.strings(string(a.Op))
			b.numbers(uint64(a.Index), a.Value, a.ValueTwo)
		}
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// A blob is bytes to hash.
type blob []byte

func (b *blob) numbers(list ...uint64) {
	for _, n := range list {
		*b = binary.LittleEndian.AppendUint64(*b, n)
	}
}

func (b *blob) strings(list ...string) {
	for _, s := range list {
		b.numbers(uint64(len(s)))
		*b = append(*b, s...)
	}
}

func (b *blob) errno(n *uint) {
	if n == nil {
		b.numbers(0)
	} else {
		b.numbers(1, uint64(*n))
	}
}

var errDoubt = errors.New("the cached filter is not as it was written")

func readFile(name string) (*Filter, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Dir(name), &st); err != nil {
		return nil, err
	}
	if int(st.Uid) != unix.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 {
		return nil, errDoubt
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if int(st.Uid) != unix.Geteuid() || st.Mode != unix.S_IFREG|0o600 || st.Size > maxFile {
		return nil, errDoubt
	}
	b := make([]byte, st.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return decode(b)
}

func decode(b []byte) (*Filter, error) {
	if len(b) <= headerSize || len(b) > maxFile || (len(b)-headerSize)%8 != 0 {
		return nil, errDoubt
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, errDoubt
	}
	f := &Filter{Flags: binary.LittleEndian.Uint32(b[sha256.Size:]), Insns: make([]unix.SockFilter, 0, (len(b)-headerSize)/8)}
	for b = b[headerSize:]; len(b) > 0; b = b[8:] {
		f.Insns = append(f.Insns, unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])})
	}
	return f, nil
}

func encode(f *Filter) []byte {
	b := make([]byte, sha256.Size, headerSize+8*len(f.Insns))
	b = binary.LittleEndian.AppendUint32(b, f.Flags)
	for _, i := range f.Insns {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	sum := sha256.Sum256(b[sha256.Size:])
	copy(b, sum[:])
	return b
}

func writeFile(name string, f *Filter) (err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(encode(f))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cache a filter: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}
