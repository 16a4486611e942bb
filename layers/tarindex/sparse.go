package tarindex

import (
	"bytes"
	"fmt"
	"math"
	"strconv"

	"github.com/snapfs/snapfs/layers"
)

// A span is a run of a sparse file that the archive has the bytes of.
type span struct{ off, n int64 }

// sparseFile fills h.sparse and h.real if the member is sparse in one of GNU
// tar's formats (GNU tar manual, "Storing Sparse Files"). What of the map lies
// in the member's data is read from s; h.size is what remains of the data.
func (s *scanner) sparseFile(h *header, b *[blockSize]byte) (err error) {
	h.real = h.size
	switch {
	case h.typ == typeGNUSpars:
		err = s.sparseGNU(h, b)
	default:
		err = s.sparsePAX(h)
	}
	if err != nil || h.sparse == nil {
		return err
	}
	if headerOnly(h.typ) {
		return badField("sparse file that is no file")
	}
	return h.checkSparse()
}

// checkSparse refuses maps that are not in order, overlap, go beyond the file,
// or name more or less bytes than the archive has.
func (h *header) checkSparse() error {
	var end, data int64
	for _, sp := range h.sparse {
		if sp.off < end || sp.n < 0 || sp.off > math.MaxInt64-sp.n || sp.off+sp.n > h.real {
			return badField("sparse map")
		}
		end = sp.off + sp.n
		data += sp.n
	}
	if h.real < 0 || data != h.size {
		return badField("sparse map")
	}
	return nil
}

// sparseGNU reads the map of the old GNU format: four entries in the header,
// the rest in extension blocks behind it.
func (s *scanner) sparseGNU(h *header, b *[blockSize]byte) (err error) {
	if h.format != formatGNU {
		return badField("sparse type")
	}
	var ok bool
	if h.real, ok = number(fGNUReal.of(b)); !ok {
		return badField("real size")
	}
	h.sparse = []span{}
	m := gnuSparse.of(b)
	for total := len(m); total < maxSpecial; total += len(m) {
		for e := m; len(e) >= 24 && e[0] != 0; e = e[24:] {
			off, ok1 := number(e[:12])
			n, ok2 := number(e[12:24])
			if !ok1 || !ok2 {
				return badField("sparse map")
			}
			h.sparse = append(h.sparse, span{off, n})
		}
		if m[len(m)/24*24] == 0 {
			return nil
		}
		if b, err = s.block(); err != nil {
			return noEOF(err)
		}
		m = b[:]
	}
	return fmt.Errorf("sparse map: %w", layers.ErrTooLarge)
}

// sparsePAX reads the map of the PAX formats 0.0 and 0.1, in records, and 1.0,
// at the start of the member's data.
func (s *scanner) sparsePAX(h *header) (err error) {
	rec := func(key string) string { return string(lookup(h.pax, "GNU.sparse."+key)) }
	var v1 bool
	switch version := rec("major") + "." + rec("minor"); version {
	case "0.0", "0.1":
	case "1.0":
		v1 = true
	case ".":
		if rec("map") == "" {
			return nil
		}
	default:
		return nil // an unknown version: archive/tar takes the data as it is
	}
	if name := lookup(h.pax, "GNU.sparse.name"); len(name) > 0 {
		h.name = name
	}
	size := rec("size")
	if size == "" {
		size = rec("realsize")
	}
	if size != "" {
		if h.real, err = strconv.ParseInt(size, 10, 64); err != nil {
			return badField("sparse size")
		}
	}
	if v1 {
		return s.sparseMap(h)
	}
	return h.sparseRecords(rec("numblocks"), lookup(h.pax, "GNU.sparse.map"))
}

// sparseRecords reads "OFF,N,OFF,N,…" of numblocks entries.
func (h *header) sparseRecords(numblocks string, list []byte) error {
	n, err := strconv.ParseInt(numblocks, 10, 64)
	var nums [][]byte
	if len(list) > 0 {
		nums = bytes.Split(list, []byte(","))
	}
	if err != nil || n < 0 || n > maxSpecial || int64(len(nums)) != 2*n {
		return badField("sparse map")
	}
	return h.addSpans(nums)
}

func (h *header) addSpans(nums [][]byte) error {
	h.sparse = make([]span, 0, len(nums)/2)
	for ; len(nums) > 0; nums = nums[2:] {
		off, err1 := strconv.ParseInt(string(nums[0]), 10, 64)
		n, err2 := strconv.ParseInt(string(nums[1]), 10, 64)
		if err1 != nil || err2 != nil {
			return badField("sparse map")
		}
		h.sparse = append(h.sparse, span{off, n})
	}
	return nil
}

// sparseMap reads the map of format 1.0 from the member's data: the number of
// entries and each entry's two numbers, in decimal, one a line, padded to a
// whole block.
func (s *scanner) sparseMap(h *header) error {
	var text []byte
	lines, want := int64(0), int64(1)
	for counted := false; lines < want || !counted; {
		if lines >= want {
			first, _, _ := bytes.Cut(text, []byte("\n"))
			n, err := strconv.ParseInt(string(first), 10, 64)
			if err != nil || n < 0 || n > maxSpecial {
				return badField("sparse map")
			}
			want, counted = 1+2*n, true
			continue
		}
		if len(text)+blockSize > maxSpecial {
			return fmt.Errorf("sparse map: %w", layers.ErrTooLarge)
		}
		if h.size < blockSize {
			return badField("sparse map")
		}
		b, err := s.block()
		if err != nil {
			return noEOF(err)
		}
		h.size -= blockSize
		text = append(text, b[:]...)
		lines += int64(bytes.Count(b[:], []byte("\n")))
	}
	return h.addSpans(bytes.Split(text, []byte("\n"))[1:want])
}
