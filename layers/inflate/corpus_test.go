package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	kgzip "github.com/klauspost/compress/gzip"
)

// A sample is a stream that some writer made.
type sample struct {
	name          string
	plain, stored []byte
}

// mixed is n bytes that make writers use every kind of block: text, noise, runs.
func mixed(n int) []byte {
	t := texts(n)
	rnd := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 0, n)
	for len(p) < n {
		from := t[[]string{"noise", "words", "words", "runs", "zeros"}[rnd.IntN(5)]]
		m := min(n-len(p), 1+rnd.IntN(100_000))
		at := rnd.IntN(n - m + 1)
		p = append(p, from[at:at+m]...)
	}
	return p
}

// samples is a corpus made once.
func samples(t testing.TB) []sample {
	made.Do(func() { made.list = corpus(t, mixed(600_000)) })
	return made.list
}

var made struct {
	sync.Once
	list []sample
}

// corpus is what many writers make of the same bytes.
func corpus(t testing.TB, plain []byte) (list []sample) {
	add := func(name string, plain []byte, parts ...[]byte) {
		list = append(list, sample{name, plain, bytes.Join(parts, nil)})
	}
	for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
		add("go "+string(rune('a'+level+2)), plain, compress(t, plain, level))
	}
	for level := kgzip.StatelessCompression; level <= kgzip.BestCompression; level++ {
		var buf bytes.Buffer
		w, err := kgzip.NewWriterLevel(&buf, level)
		write(t, w, err, plain, len(plain)+1)
		add("klauspost "+string(rune('a'+level+3)), plain, buf.Bytes())
	}
	for _, every := range []int{1000, 40_000} { // sync flushes: empty stored blocks
		var buf bytes.Buffer
		w, err := gzip.NewWriterLevel(&buf, 6)
		write(t, w, err, plain, every)
		add("flushed", plain, buf.Bytes())
	}
	var small, large [][]byte
	for p := plain; len(p) > 0; p = p[min(len(p), 9999):] {
		small = append(small, compress(t, p[:min(len(p), 9999)], 6), compress(t, nil, 1))
	}
	for p := plain; len(p) > 0; p = p[min(len(p), 100_000):] {
		large = append(large, compress(t, nil, 0), compress(t, p[:min(len(p), 100_000)], 6))
	}
	add("members", plain, small...)
	add("large members, zeros behind", plain, append(large, make([]byte, 1000))...)
	add("nothing", nil, compress(t, nil, 6), compress(t, nil, 6))
	for flags := range byte(32) {
		add("header flags", plain[:1000], member(flags, deflate(t, plain[:1000]), plain[:1000]))
	}
	for seed := range uint64(8) {
		p, body := blocks(seed, 300_000)
		add("hand-made", p, member(0, body, p))
	}
	return append(list, programs(t, plain)...)
}

// write writes p and flushes after so many bytes.
func write(t testing.TB, w interface {
	io.WriteCloser
	Flush() error
}, err error, p []byte, every int) {
	for len(p) > 0 && err == nil {
		n := min(every, len(p))
		_, err = w.Write(p[:n])
		if p = p[n:]; len(p) > 0 && err == nil {
			err = w.Flush()
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// programs are other writers, where they are installed: Debian's gzip, pigz,
// zopfli, libdeflate-tools, isal, tabix and p7zip-full.
func programs(t testing.TB, plain []byte) (list []sample) {
	for _, line := range []string{
		"gzip -1", "gzip -6", "gzip -9", "gzip --rsyncable", "pigz -6 -p 2 -b 128", "pigz -9 -i -b 128", "pigz -11 -I 1 -p 2", "pigz -H -p 1",
		"pigz -U -p 1", "libdeflate-gzip -1", "libdeflate-gzip -6", "libdeflate-gzip -12", "igzip -0", "igzip -3", "bgzip -c", "7z a -an -tgzip -si -so -mx9",
	} {
		args := strings.Fields(line)
		path, err := exec.LookPath(args[0])
		if err != nil {
			t.Logf("%s is not installed", args[0])
			continue
		}
		cmd := exec.Command(path, args[1:]...)
		cmd.Stdin = bytes.NewReader(plain)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		list = append(list, sample{line, plain, out})
	}
	return list
}

func deflate(t testing.TB, p []byte) []byte {
	var buf bytes.Buffer
	w, err := kflate.NewWriter(&buf, flate.BestCompression)
	write(t, w, err, p, len(p)+1)
	return buf.Bytes()
}

// member puts a header with flags (RFC 1952, 2.3.1) before a DEFLATE stream.
func member(flags byte, body, plain []byte) []byte {
	p := []byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255}
	if flags&flagExtra != 0 {
		p = append(p, 5, 1)
		p = append(p, strings.Repeat("\x00", 0x105)...)
	}
	if flags&flagName != 0 {
		p = append(p, "n\xe4me\x00"...)
	}
	if flags&flagCmt != 0 {
		p = append(p, "\x00"...)
	}
	if flags&flagHdrCRC != 0 {
		p = binary.LittleEndian.AppendUint16(p, uint16(crc32.ChecksumIEEE(p)))
	}
	p = append(p, body...)
	p = binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(p, uint32(len(plain)))
}

// bitWriter writes what DEFLATE packs from the low bit on.
type bitWriter struct {
	p  []byte
	nb uint // bits used of the last byte; 0: all
}

func (w *bitWriter) bits(v, n uint) {
	for ; n > 0; n-- {
		if w.nb == 0 {
			w.p = append(w.p, 0)
		}
		w.p[len(w.p)-1] |= byte(v&1) << w.nb
		w.nb = (w.nb + 1) & 7
		v >>= 1
	}
}

// code writes a Huffman code, which goes from its high bit on.
func (w *bitWriter) code(v, n uint) {
	for i := n; i > 0; i-- {
		w.bits(v>>(i-1), 1)
	}
}

// literal and match write symbols of fixed codes (RFC 1951, 3.2.6).
func (w *bitWriter) literal(c byte) {
	if c < 144 {
		w.code(0x30+uint(c), 8)
	} else {
		w.code(0x190+uint(c)-144, 9)
	}
}

// match is of length 3 to 10, or 258, and distance 1 to 32768.
func (w *bitWriter) match(length, distance int) {
	if length == 258 {
		w.code(0xc0+285-280, 8)
	} else {
		w.code(uint(257+length-3-256), 7)
	}
	for i := range distEntries[:30] {
		base, extra := int(distEntries[i]>>16), uint(distEntries[i]&63)
		if distance < base+1<<extra {
			w.code(uint(i), 5)
			w.bits(uint(distance-base), extra)
			return
		}
	}
}

// blocks makes a DEFLATE stream of stored and fixed blocks of odd sizes, many
// empty, with matches as far back as can be.
func blocks(seed uint64, n int) (plain, stored []byte) {
	rnd := rand.New(rand.NewPCG(seed, 5))
	var w bitWriter
	for len(plain) < n {
		size := rnd.IntN(4) * rnd.IntN(20_000)
		if rnd.IntN(2) == 0 {
			w.bits(0, 3)
			w.nb = 0
			size = min(size, 65535)
			w.p = binary.LittleEndian.AppendUint16(w.p, uint16(size))
			w.p = binary.LittleEndian.AppendUint16(w.p, ^uint16(size))
			for range size {
				c := byte(rnd.Uint32())
				plain, w.p = append(plain, c), append(w.p, c)
			}
			continue
		}
		w.bits(0b010, 3)
		for end := len(plain) + size; len(plain) < end; {
			if rnd.IntN(3) > 0 || len(plain) == 0 {
				c := byte(rnd.Uint32())
				plain = append(plain, c)
				w.literal(c)
				continue
			}
			length, reach := 3+rnd.IntN(8), min(len(plain), Window)
			if rnd.IntN(9) == 0 {
				length = 258
			}
			distance := 1 + rnd.IntN(reach)
			if rnd.IntN(8) == 0 {
				distance = reach
			}
			for range length {
				plain = append(plain, plain[len(plain)-distance])
			}
			w.match(length, distance)
		}
		w.code(0, 7) // end of block
	}
	w.bits(0b011, 3) // the last one is empty
	w.code(0, 7)
	return plain, w.p
}
