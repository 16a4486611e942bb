package toc

import (
	"time"
)

// modtime reads a time of RFC 3339; "" is 1970, and so is Go's zero time, which
// some writers put for it. The usual form is read by hand: it takes a fifth of
// time.Parse, once per entry.
func modtime(c *cursor) (sec int64, nsec uint32, err error) {
	s, _, err := c.text()
	if err != nil || len(s) == 0 {
		return 0, 0, err
	}
	if sec, ok := utc(s); ok {
		return sec, 0, nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(s))
	if err != nil {
		return 0, 0, c.bad("modtime is not of RFC 3339")
	}
	if t.IsZero() {
		return 0, 0, nil
	}
	return t.Unix(), uint32(t.Nanosecond()), nil
}

// utc reads "2006-01-02T15:04:05Z" with a year from 1970 to 9999.
func utc(s []byte) (sec int64, ok bool) {
	if len(s) != 20 || s[4] != '-' || s[7] != '-' || s[10] != 'T' || s[13] != ':' || s[16] != ':' || s[19] != 'Z' {
		return 0, false
	}
	y, m, d := digits(s[0:4]), digits(s[5:7]), digits(s[8:10])
	hh, mm, ss := digits(s[11:13]), digits(s[14:16]), digits(s[17:19])
	if y < 1970 || m < 1 || m > 12 || d < 1 || d > 28 || hh < 0 || hh > 23 || mm < 0 || mm > 59 || ss < 0 || ss > 59 {
		return 0, false // the last days of a month too: time.Parse knows their number
	}
	return days(y, m, d)*86400 + hh*3600 + mm*60 + ss, true
}

// digits returns the number that s spells, negative if it is none.
func digits(s []byte) (n int64) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return -1 << 32
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// days counts days since 1970-01-01 in years that begin in March, so that the
// leap day is the last (Howard Hinnant, chrono-compatible low-level date algorithms).
func days(y, m, d int64) int64 {
	if m <= 2 {
		y--
	}
	dayOfYear := (153*((m+9)%12)+2)/5 + d - 1
	return y*365 + y/4 - y/100 + y/400 + dayOfYear - 719468
}
