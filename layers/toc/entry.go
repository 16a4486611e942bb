package toc

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// An entry is one element of the document as it is written there. It is read
// into again and again: its slices belong to it, except those of xattrs.
type entry struct {
	name, link, kind, zeros []byte
	mode, uid, gid          int64
	major, minor            int64
	size                    int64
	sec                     int64
	nsec                    uint32
	off, end, inner         int64 // of stored bytes, in the blob; of the plain bytes, in their run
	chunkOff, chunkSize     int64
	digest, chunkDigest     layers.Sum
	hasDigest, hasChunk     bool // whether those are given
	lost                    bool // the writer could not keep a name
	xattrs                  []layers.Xattr
	value                   []byte
}

// read reads one entry. Fields that say nothing about files are passed over.
func (e *entry) read(c *cursor) error {
	*e = entry{name: e.name[:0], link: e.link[:0], kind: e.kind[:0], zeros: e.zeros[:0], value: e.value[:0]}
	ch, err := c.peek()
	if err == nil && ch != '{' {
		err = c.bad(fmt.Sprintf("%q where an entry belongs", ch))
	}
	if err != nil {
		return err
	}
	c.pos++
	for first := true; ; first = false {
		key, more, err := c.member(first)
		if err != nil || !more {
			return err
		}
		if err := e.field(c, key); err != nil {
			return err
		}
	}
}

func (e *entry) field(c *cursor, key []byte) (err error) {
	switch string(key) {
	case "name":
		err = e.text(c, &e.name)
	case "linkName":
		err = e.text(c, &e.link)
	case "type":
		err = e.text(c, &e.kind)
	case "chunkType":
		err = e.text(c, &e.zeros)
	case "mode":
		e.mode, err = c.integer()
	case "uid":
		e.uid, err = c.integer()
	case "gid":
		e.gid, err = c.integer()
	case "devMajor":
		e.major, err = c.integer()
	case "devMinor":
		e.minor, err = c.integer()
	case "size":
		e.size, err = c.integer()
	case "modtime":
		e.sec, e.nsec, err = modtime(c)
	case "offset":
		e.off, err = c.integer()
	case "endOffset":
		e.end, err = c.integer()
	case "innerOffset":
		e.inner, err = c.integer()
	case "chunkOffset":
		e.chunkOff, err = c.integer()
	case "chunkSize":
		e.chunkSize, err = c.integer()
	case "digest":
		e.hasDigest, err = sum(c, &e.digest)
	case "chunkDigest":
		e.hasChunk, err = sum(c, &e.chunkDigest)
	case "xattrs":
		err = e.readXattrs(c)
	default:
		err = c.skip()
	}
	return err
}

func (e *entry) text(c *cursor, to *[]byte) error {
	s, lost, err := c.text()
	*to = append((*to)[:0], s...)
	e.lost = e.lost || lost
	return err
}

// sum reads a digest; "" is none. Other algorithms than sha256 are refused: an
// object could not be keyed by them.
func sum(c *cursor, to *layers.Sum) (given bool, err error) {
	s, _, err := c.text()
	if err != nil || len(s) == 0 {
		return false, err
	}
	const prefix = "sha256:"
	if len(s) != len(prefix)+2*len(to) || string(s[:len(prefix)]) != prefix {
		return false, c.bad("digest that is not sha256")
	}
	s = s[len(prefix):]
	for i := range to {
		hi, lo := nibble[s[2*i]], nibble[s[2*i+1]]
		if hi|lo > 15 {
			return false, c.bad("digest that is not hexadecimal")
		}
		to[i] = hi<<4 | lo
	}
	return true, nil
}

// readXattrs reads an object of base64 values. The kernel's limits are kept
// (xattr(7): names of 255 bytes, values of 64 KiB), because nothing beyond them
// could be shown.
func (e *entry) readXattrs(c *cursor) error {
	if len(e.xattrs) > 0 {
		return c.bad("xattrs twice")
	}
	some, err := c.start()
	if err != nil || !some {
		return err
	}
	total := 0
	for first := true; ; first = false {
		key, more, err := c.member(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		x, err := e.xattr(c, key)
		if err != nil {
			return err
		}
		if total += len(x.Name) + len(x.Value); total > layers.MaxXattrs {
			return fmt.Errorf("%w: %d bytes of extended attributes", layers.ErrTooLarge, total)
		}
		e.xattrs = append(e.xattrs, x)
	}
	slices.SortFunc(e.xattrs, func(a, b layers.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(e.xattrs); i++ {
		if e.xattrs[i].Name == e.xattrs[i-1].Name {
			return c.bad(fmt.Sprintf("xattr %q twice", e.xattrs[i].Name))
		}
	}
	return nil
}

func (e *entry) xattr(c *cursor, key []byte) (x layers.Xattr, err error) {
	if len(key) == 0 || len(key) > 255 || slices.Contains(key, 0) {
		return x, c.bad("xattr without a proper name")
	}
	x.Name, e.lost = string(key), e.lost || c.keyLost
	s, _, err := c.text()
	if err != nil {
		return x, err
	}
	e.value, err = base64.StdEncoding.AppendDecode(e.value[:0], s)
	if err != nil || len(e.value) > 64<<10 {
		return x, c.bad(fmt.Sprintf("xattr %q: not base64 of at most 64 KiB", x.Name))
	}
	x.Value = string(e.value)
	return x, nil
}
