package inflate

import "encoding/binary"

// Slack of the fast loop: it takes at most three words of input a turn and makes
// two literals and a match, whose copy may go 16 bytes over its end.
const (
	fastIn  = 3 * 8
	fastOut = 2 + 258 + 16
)

// codes decodes symbols into b[n:] until the block ends or b is full.
func (g *Gzip) codes(b []byte, n int) (int, error) {
	base := n - int(min(g.made, int64(n))) // where the member begins in b, or b's start
	first := g.total - int64(n)            // what is b[0] in the stream
	if g.length > 0 {
		n = g.resume(b, n)
	}
	low, stop := base, len(b)
	for n < len(b) && g.length == 0 {
		var err error
		if g.rec != nil {
			next, cand := g.watch(first + int64(n))
			low, stop = max(base, int(cand-first)), int(min(next-first, int64(len(b))))
		}
		if len(g.in)-g.pos >= fastIn && len(b)-n >= fastOut {
			if n, err = g.fast(b, n, base, low, stop); err != nil || g.state != inCodes {
				return n, err
			}
			continue
		}
		if n, err = g.slow(b, n, base, low); err != nil || g.state != inCodes {
			return n, err
		}
	}
	return n, nil
}

// slow decodes one symbol near the end of the input or of b.
func (g *Gzip) slow(b []byte, n, base, low int) (int, error) {
	e, err := g.find(g.lit[:], litBits)
	if err != nil {
		return n, err
	}
	length := value(e, g.buf)
	g.buf >>= e & 63
	g.nb -= uint(e & 63)
	switch {
	case e&isLiteral != 0:
		b[n] = byte(e >> 16)
		return n + 1, nil
	case e&isEnd != 0:
		g.state = atBlock
		return n, nil
	case e&isBad != 0:
		return n, ErrCorrupt
	}
	if e, err = g.find(g.dist[:], distBits); err != nil {
		return n, err
	}
	distance := value(e, g.buf)
	g.buf >>= e & 63
	g.nb -= uint(e & 63)
	if e&isBad != 0 || distance > n-low && (low == base || !g.early(b, n, base, low, distance, length)) {
		return n, ErrCorrupt
	}
	g.length, g.distance = length, distance
	return g.resume(b, n), nil
}

// resume copies as much of a match as there is room for.
func (g *Gzip) resume(b []byte, n int) int {
	end := min(n+g.length, len(b))
	g.length -= end - n
	for ; n < end; n++ {
		b[n] = b[n-g.distance]
	}
	return n
}

// fast decodes up to stop, or a symbol more, while there is slack on both sides.
// Matches must not begin before base; of those before low it tells.
func (g *Gzip) fast(b []byte, n, base, low, stop int) (int, error) {
	in, pos := g.in, g.pos
	buf, nb := g.buf, g.nb
	lit, dist := &g.lit, &g.dist
	inMax, outMax := len(in)-fastIn, min(len(b)-fastOut, stop-1)
	var err error
	for pos <= inMax && n <= outMax {
		// Fill to 56 bits or more. Bits above nb are loaded again: the same ones.
		buf |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56
		e := lit[buf&(1<<litBits-1)]
		if e&isLiteral != 0 {
			b[n] = byte(e >> 16)
			n++
			buf >>= e & 63
			nb -= uint(e & 63)
			e = lit[buf&(1<<litBits-1)]
			if e&isLiteral != 0 {
				b[n] = byte(e >> 16)
				n++
				buf >>= e & 63
				nb -= uint(e & 63)
				e = lit[buf&(1<<litBits-1)]
			}
			buf |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
			pos += int((63 - nb) >> 3)
			nb |= 56
		}
		if e&(isLiteral|isSub|isEnd|isBad) != 0 {
			if e&isSub != 0 {
				e = lit[uint64(e>>16)+buf>>litBits&(1<<litSub-1)]
			}
			if e&(isLiteral|isEnd|isBad) != 0 {
				buf >>= e & 63
				nb -= uint(e & 63)
				if e&isLiteral != 0 {
					b[n] = byte(e >> 16)
					n++
					continue
				}
				if e&isEnd != 0 {
					g.state = atBlock
				} else {
					err = ErrCorrupt
				}
				break
			}
		}
		length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
		buf >>= e & 63
		nb -= uint(e & 63) // at most 20: 36 are left, a distance takes 28

		e = dist[buf&(1<<distBits-1)]
		if e&isSub != 0 {
			e = dist[uint64(e>>16)+buf>>distBits&(1<<distSub-1)]
		}
		distance := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
		buf >>= e & 63
		nb -= uint(e & 63)
		if e&isBad != 0 || distance > n-low {
			if e&isBad != 0 || low == base || !g.early(b, n, base, low, distance, length) {
				err = ErrCorrupt
				break
			}
		}
		end := n + length
		if distance >= 16 {
			src := n - distance
			for {
				*(*[16]byte)(b[n:]) = *(*[16]byte)(b[src:])
				if n += 16; n >= end {
					break
				}
				src += 16
			}
		} else {
			overlap(b, n, end, distance)
		}
		n = end
	}
	g.pos, g.nb, g.buf = pos, nb, buf&(1<<nb-1)
	return n, err
}

// overlap copies a match that repeats fewer than 16 bytes to b[n:end], and may
// write up to 8 bytes behind.
func overlap(b []byte, n, end, distance int) {
	if distance == 1 {
		v := uint64(b[n-1]) * 0x0101010101010101
		for ; n < end; n += 8 {
			binary.LittleEndian.PutUint64(b[n:], v)
		}
		return
	}
	// Until the pattern is eight bytes or more, its repetitions double it.
	for distance < 8 && n < end {
		for i := range distance {
			b[n+i] = b[n+i-distance]
		}
		n += distance
		distance *= 2
	}
	for ; n < end; n += 8 {
		binary.LittleEndian.PutUint64(b[n:], binary.LittleEndian.Uint64(b[n-distance:]))
	}
}
