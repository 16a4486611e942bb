package inflate

import "math/bits"

// A table entry says what the code at the low end of the bit buffer means:
//
//	bits  0-5   bits to consume: the code and its extra bits
//	bits  8-11  bits of the code alone
//	bit  12     a literal
//	bit  13     look again, in the subtable at value
//	bit  14     end of block
//	bit  15     no such code
//	bits 16-31  value: literal, base length or distance, subtable
type entry = uint32

const (
	isLiteral entry = 1 << (12 + iota)
	isSub
	isEnd
	isBad
)

// Sizes of the tables, in bits of code looked at first and then. Longer first
// lookups miss the L1 cache, shorter ones need the second more often.
const (
	maxCode  = 15
	litBits  = 11
	distBits = 9
	litSub   = maxCode - litBits
	distSub  = maxCode - distBits

	maxLit  = 288
	maxDist = 32
	// A subtable holds two codes or more, so half as many as codes are enough.
	litSize  = 1<<litBits + maxLit/2<<litSub
	distSize = 1<<distBits + maxDist/2<<distSub
)

// noCode is where no code leads: known only when as many bits as any code has
// are there.
const noCode = isBad | maxCode

// litEntries and distEntries are the entries of the symbols (RFC 1951, 3.2.5),
// without their codes' lengths.
var litEntries, distEntries = symbols()

func symbols() (lit [maxLit]entry, dist [maxDist]entry) {
	for i := range 256 {
		lit[i] = entry(i)<<16 | isLiteral
	}
	lit[256] = isEnd
	base := 3
	for i := 257; i < 285; i++ {
		extra := max(0, (i-261)>>2)
		lit[i] = entry(base)<<16 | entry(extra)
		base += 1 << extra
	}
	lit[285] = 258 << 16
	lit[286], lit[287] = isBad, isBad
	base = 1
	for i := range 30 {
		extra := max(0, (i-2)>>1)
		dist[i] = entry(base)<<16 | entry(extra)
		base += 1 << extra
	}
	dist[30], dist[31] = isBad, isBad
	return lit, dist
}

// build fills a table for codes of the given lengths. It reports whether they
// are a complete code, or none, or a single one of one bit (as compress/flate
// and zlib allow for distances).
func build(table []entry, first int, lengths []uint8, syms []entry) bool {
	var count, next [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	code, top := 0, 0
	for n := 1; n <= maxCode; n++ {
		code <<= 1
		next[n] = code
		code += count[n]
		if count[n] > 0 {
			top = n
		}
		if code > 1<<n {
			return false
		}
	}
	main := table[:1<<first]
	if complete := code == 1<<maxCode; !complete {
		if top > 1 || top == 1 && count[1] != 1 {
			return false
		}
		for i := range main {
			main[i] = noCode
		}
	}
	if top > first {
		clear(main) // of old subtables
	}
	subs := len(main)
	for sym, n := range lengths {
		if n == 0 {
			continue
		}
		c := next[n]
		next[n]++
		rev := int(bits.Reverse16(uint16(c)) >> (16 - n))
		e := syms[sym] + entry(n) | entry(n)<<8
		if int(n) <= first {
			for i := rev; i < len(main); i += 1 << n {
				main[i] = e
			}
			continue
		}
		// Of a complete code: what one long code leaves of a subtable, others fill.
		low := rev & (len(main) - 1)
		if main[low]&isSub == 0 {
			main[low] = entry(subs)<<16 | isSub | maxCode
			subs += 1 << (maxCode - first)
		}
		sub := table[main[low]>>16:][:1<<(maxCode-first)]
		for i := rev >> first; i < len(sub); i += 1 << (int(n) - first) {
			sub[i] = e
		}
	}
	return true
}
