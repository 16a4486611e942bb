package monitor

import (
	"bytes"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// A lineWatch looks for a line in what a container writes. Once it has been
// seen, looking costs one load. A nil lineWatch looks for nothing.
type lineWatch struct {
	re   *regexp.Regexp
	once sync.Once
	over atomic.Bool
	seen chan struct{} // closed when it has been seen
	at   time.Time     // when; valid after seen
}

func newLineWatch(re *regexp.Regexp) *lineWatch {
	if re == nil {
		return nil
	}
	return &lineWatch{re: re, seen: make(chan struct{})}
}

// hit says whether the line has been seen.
func (w *lineWatch) hit() bool {
	if w == nil {
		return false
	}
	select {
	case <-w.seen:
		return true
	default:
		return false
	}
}

func (w *lineWatch) look(line []byte) {
	if w.re.Match(bytes.TrimSuffix(line, []byte("\r"))) { // a terminal ends lines so
		w.once.Do(func() {
			w.at = now()
			w.over.Store(true)
			close(w.seen)
		})
	}
}

// A lineScan cuts one stream into lines for a lineWatch. Of a line longer than
// maxLine only the beginning is kept and looked at.
type lineScan struct {
	w    *lineWatch
	rest []byte // of a line that has no end yet
}

// write looks at p, which it does not keep.
func (s *lineScan) write(p []byte) {
	if s.w == nil || s.w.over.Load() {
		s.rest = nil
		return
	}
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.keep(p)
			return
		}
		if len(s.rest) == 0 {
			s.w.look(p[:min(i, maxLine)])
		} else {
			s.keep(p[:i])
			s.w.look(s.rest)
			s.rest = s.rest[:0]
		}
		p = p[i+1:]
	}
}

func (s *lineScan) keep(p []byte) { s.rest = append(s.rest, p[:min(len(p), maxLine-len(s.rest))]...) }

// end looks at what came after the last newline.
func (s *lineScan) end() {
	if len(s.rest) > 0 && !s.w.over.Load() {
		s.w.look(s.rest)
	}
	s.rest = nil
}
