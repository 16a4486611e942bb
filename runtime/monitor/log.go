package monitor

import (
	"bytes"
	"encoding/json"
	"sync"
	"time"
	"unicode/utf8"
)

// maxLine is where Docker's json-file log driver cuts a line (moby
// daemon/logger/copier.go, defaultBufSize): readers of such logs rely on it.
const maxLine = 16 << 10

// A logWriter writes Docker's json-file format:
//
//	{"log":"text\n","stream":"stdout","time":"2026-11-24T00:50:00.123456789Z"}
//
// A line longer than maxLine is cut into several without "\n" at their ends.
// Bytes that are not UTF-8 become U+FFFD, as Docker's do. A nil logWriter writes nothing.
type logWriter struct {
	mu   sync.Mutex
	f    *logFile
	buf  bytes.Buffer // lines of one write
	now  func() time.Time
	rest map[string][]byte // by stream: what has no newline yet
}

func openLog(path string, o LogOptions) (*logWriter, error) {
	if o.None {
		return nil, nil
	}
	f, err := openLogFile(path, o.MaxSize, max(o.MaxFiles, 1))
	if err != nil {
		return nil, err
	}
	return &logWriter{f: f, now: now, rest: map[string][]byte{}}, nil
}

// Write logs p. The last line is kept back until its newline comes. An error
// means that lines were lost (disk full): the container is not to suffer for it.
func (l *logWriter) Write(stream string, p []byte) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
	at := l.now()
	if rest := l.rest[stream]; len(rest) > 0 {
		p = append(rest, p...)
	}
	for {
		n := bytes.IndexByte(p[:min(len(p), maxLine)], '\n') + 1
		if n == 0 && len(p) > maxLine {
			n = cut(p)
		}
		if n == 0 {
			break
		}
		l.line(stream, p[:n], at)
		p = p[n:]
	}
	l.rest[stream] = append(l.rest[stream][:0], p...)
	return l.flush()
}

// cut returns where to divide p, which is longer than maxLine, so that no character is divided.
func cut(p []byte) int {
	for n := maxLine; n > maxLine-utf8.UTFMax; n-- {
		if utf8.RuneStart(p[n]) {
			return n
		}
	}
	return maxLine
}

func (l *logWriter) line(stream string, p []byte, at time.Time) {
	text, err := json.Marshal(string(p))
	if err != nil {
		return // a string always has a JSON form
	}
	l.buf.WriteString(`{"log":`)
	l.buf.Write(text)
	l.buf.WriteString(`,"stream":"`)
	l.buf.WriteString(stream)
	l.buf.WriteString(`","time":"`)
	l.buf.Write(at.AppendFormat(l.buf.AvailableBuffer(), time.RFC3339Nano))
	l.buf.WriteString("\"}\n")
}

func (l *logWriter) flush() error {
	return l.f.Write(l.buf.Bytes())
}

// End logs what a stream wrote after its last newline.
func (l *logWriter) End(stream string) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
	if rest := l.rest[stream]; len(rest) > 0 {
		l.line(stream, rest, l.now())
		delete(l.rest, stream)
	}
	return l.flush()
}

// Close closes the log.
func (l *logWriter) Close() error {
	if l == nil {
		return nil
	}
	return l.f.Close()
}
