package tarindex

import (
	"fmt"
	"iter"

	"github.com/snapfs/snapfs/layers"
)

// A Member is a member of an archive of which somebody else read the headers:
// what archive/tar's Header says.
type Member struct {
	Type         byte // POSIX's type flag, '0' to '6'
	Name, Link   string
	Mode         int64
	UID, GID     int64
	Size         int64
	Sec          int64
	Nsec         uint32
	Major, Minor int64
	Records      []Record   // of its PAX header
	Object       layers.Sum // of regular files
}

// A Record is one of a PAX header.
type Record struct{ Key, Value string }

// Entries makes of all members of an archive, in order, the entries that
// [Unpack] makes of the archive, so that those of other tables of contents can
// be compared with what a layer turns out to hold. The errors of the sequence are
// returned as they are; others wrap layers.ErrBadLayer or ErrTooLarge.
func Entries(members iter.Seq2[*Member, error]) ([]layers.Entry, error) {
	var u unpacker
	for m, err := range members {
		if err != nil {
			return nil, err
		}
		h := header{typ: m.Type, name: []byte(m.Name), link: []byte(m.Link), mode: m.Mode, uid: m.UID, gid: m.GID,
			size: m.Size, real: m.Size, sec: m.Sec, nsec: m.Nsec, major: m.Major, minor: m.Minor}
		if m.Type < typeReg || m.Type > typeFifo || m.Size < 0 {
			return nil, fmt.Errorf("%.80q: type %q, %d bytes: %w", m.Name, m.Type, m.Size, layers.ErrBadLayer)
		}
		for _, r := range m.Records {
			h.pax = append(h.pax, paxRecord{[]byte(r.Key), []byte(r.Value)})
		}
		e, skip, err := h.entry()
		if err != nil {
			return nil, u.at(err)
		}
		if skip {
			continue
		}
		if e.Kind == layers.Reg && e.Size > 0 {
			e.Object = m.Object
		}
		if err := u.add(e); err != nil {
			return nil, u.at(err)
		}
	}
	return settle(u.entries)
}
