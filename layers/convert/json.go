package convert

import (
	"encoding/base64"
	"slices"
	"strconv"
	"time"
)

// object builds one JSON object. encoding/json would turn names that are not
// UTF-8 into others; here their bytes stay as they are. Readers that decode
// strictly see what encoding/json would have written.
type object []byte

// str adds a field unless it is empty.
func (o *object) str(key, s string) {
	if s != "" {
		o.key(key)
		*o = appendString(*o, s)
	}
}

// num adds a field unless it is zero.
func (o *object) num(key string, n int64) {
	if n != 0 {
		o.key(key)
		*o = strconv.AppendInt(*o, n, 10)
	}
}

// time adds a time unless it is 1970, the default.
func (o *object) time(key string, t time.Time) {
	if !t.IsZero() && !t.Equal(time.Unix(0, 0)) {
		o.str(key, t.UTC().Format(time.RFC3339Nano))
	}
}

// xattrs adds extended attributes, in order, unless there are none.
func (o *object) xattrs(m map[string]string) {
	if len(m) == 0 {
		return
	}
	o.key("xattrs")
	*o = append(*o, '{')
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	for i, k := range names {
		if i > 0 {
			*o = append(*o, ',')
		}
		*o = append(appendString(*o, k), ':', '"')
		*o = append(base64.StdEncoding.AppendEncode(*o, []byte(m[k])), '"')
	}
	*o = append(*o, '}')
}

func (o *object) key(key string) {
	sep := byte(',')
	if last := (*o)[len(*o)-1]; last == '{' {
		sep = ' '
	}
	*o = append(*o, sep, '"')
	*o = append(append(*o, key...), '"', ':')
}

func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
