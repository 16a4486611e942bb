package tarindex

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
)

// maxSpecial is the most a PAX header, GNU long name or sparse map may take, in
// bytes: the limit of libarchive and archive/tar.
const maxSpecial = 1 << 20

// A paxRecord is one "key=value" of a PAX extended header.
type paxRecord struct{ key, value []byte }

// parsePAX reads the records of an extended header: "LEN KEY=VALUE\n", where LEN
// counts itself. Of equal keys the last stands. The fields of GNU's sparse format
// 0.0, which repeat keys, become the one of format 0.1.
func parsePAX(p []byte) ([]paxRecord, error) {
	var recs []paxRecord
	var sparse []byte
	fields := 0
	for len(p) > 0 {
		r, rest, err := paxRecordOf(p)
		if err != nil {
			return nil, err
		}
		p = rest
		switch key := string(r.key); key {
		case "GNU.sparse.offset", "GNU.sparse.numbytes":
			if (fields%2 == 0) != (key == "GNU.sparse.offset") || bytes.IndexByte(r.value, ',') >= 0 {
				return nil, badField("GNU.sparse")
			}
			if fields++; fields > 1 {
				sparse = append(sparse, ',')
			}
			sparse = append(sparse, r.value...)
		default:
			recs = append(recs, r)
		}
	}
	if fields > 0 {
		recs = append(recs, paxRecord{[]byte("GNU.sparse.map"), sparse})
	}
	return recs, nil
}

// paxRecordOf cuts the first record off p.
func paxRecordOf(p []byte) (r paxRecord, rest []byte, err error) {
	sp := bytes.IndexByte(p, ' ')
	if sp < 0 {
		return r, nil, badField("PAX length")
	}
	n, err := strconv.ParseInt(string(p[:sp]), 10, 64)
	if err != nil || n < 5 || n > int64(len(p)) || n <= int64(sp)+1 || p[n-1] != '\n' {
		return r, nil, badField("PAX length")
	}
	key, value, ok := bytes.Cut(p[sp+1:n-1], []byte("="))
	if !ok || len(key) == 0 {
		return r, nil, badField("PAX key")
	}
	checked := key
	switch string(key) {
	case "path", "linkpath", "uname", "gname":
		checked = value
	}
	if bytes.IndexByte(checked, 0) >= 0 {
		return r, nil, badField("PAX record with NUL")
	}
	return paxRecord{key, value}, p[n:], nil
}

// lookup returns the value of key, nil if there is none.
func lookup(recs []paxRecord, key string) []byte {
	for i := len(recs) - 1; i >= 0; i-- {
		if string(recs[i].key) == key {
			return recs[i].value
		}
	}
	return nil
}

// applyPAX lets PAX records override the header block. An empty value keeps what
// the block says. Times that are not used are checked nevertheless, as
// archive/tar does, so that both refuse the same layers.
func (h *header) applyPAX(recs []paxRecord) error {
	h.pax = recs
	for _, key := range [...]string{"path", "linkpath", "uid", "gid", "size", "mtime", "atime", "ctime"} {
		v := lookup(recs, key)
		if len(v) == 0 {
			continue
		}
		if err := h.set(key, v); err != nil {
			return badField("PAX " + key)
		}
	}
	return nil
}

func (h *header) set(key string, v []byte) (err error) {
	switch key {
	case "path":
		h.name = v
	case "linkpath":
		h.link = v
	case "uid":
		h.uid, err = strconv.ParseInt(string(v), 10, 64)
	case "gid":
		h.gid, err = strconv.ParseInt(string(v), 10, 64)
	case "size":
		h.size, err = strconv.ParseInt(string(v), 10, 64)
	case "mtime":
		h.sec, h.nsec, err = paxTime(string(v))
	default:
		_, _, err = paxTime(string(v))
	}
	return err
}

// paxTime reads "[-]SECONDS[.FRACTION]"; digits past nanoseconds are cut off, and
// the fraction counts away from zero. The result has 0 ≤ nsec < 1e9.
func paxTime(s string) (sec int64, nsec uint32, err error) {
	whole, frac, _ := strings.Cut(s, ".")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return 0, 0, badField("time")
	}
	for i := range len(frac) {
		if frac[i] < '0' || frac[i] > '9' {
			return 0, 0, badField("time")
		}
	}
	for i := range 9 {
		nsec *= 10
		if i < len(frac) {
			nsec += uint32(frac[i] - '0')
		}
	}
	if whole[0] == '-' && nsec > 0 {
		sec, nsec = sec-1, 1e9-nsec
	}
	return sec, nsec, nil
}

// Prefixes of extended attributes in PAX keys: star's, with raw values, which
// all image tools use; and libarchive's, with the name URL-encoded and the value
// in base64 (libarchive tar(5)).
const (
	schilyXattr     = "SCHILY.xattr."
	libarchiveXattr = "LIBARCHIVE.xattr."
)

// xattrOf returns the attribute that a record with a key of that prefix holds.
func xattrOf(r paxRecord, prefix string) (name, value string, ok bool) {
	key, ok := bytes.CutPrefix(r.key, []byte(prefix))
	if !ok {
		return "", "", false
	}
	if prefix == schilyXattr {
		return string(key), string(r.value), true
	}
	name, err := url.PathUnescape(string(key))
	if err != nil {
		return "", "", false
	}
	v, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(string(r.value), "="))
	return name, string(v), err == nil
}
