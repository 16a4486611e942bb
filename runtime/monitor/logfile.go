package monitor

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// MaxLogFiles is how many files a container's log may have: more than anybody
// reads, and few enough to look for all of them.
const MaxLogFiles = 100

// RotatedLog is the name of the file that was name n rotations ago.
func RotatedLog(name string, n int) string {
	if n == 0 {
		return name
	}
	return name + "." + strconv.Itoa(n)
}

// A logFile is written in whole lines. With a limit, a file that is full gets
// the name path.1, what was path.1 gets path.2, and so on, as Docker's json-file
// driver does it; the last is removed. There is always a file at path, and a
// file that has been taken from there is never written again: who follows the
// log reads it to its end, and then goes on with the one that is at path.
type logFile struct {
	path  string
	max   int64 // bytes; 0: no limit. Only a single line that is longer goes beyond
	files int   // with a limit: how many, with the one at path

	f    *os.File
	size int64
	torn bool // the last line has no end: a write has failed, or whoever wrote was killed
}

func openLogFile(path string, max int64, files int) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	l := &logFile{path: path, max: max, files: files, f: f}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if fi.Mode().IsRegular() && fi.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], fi.Size()-1); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		l.size, l.torn = fi.Size(), last[0] != '\n'
	}
	return l, nil
}

// Write writes lines, each with its end. A file that cannot be replaced grows beyond its limit.
func (l *logFile) Write(lines []byte) error {
	if l.torn && len(lines) > 0 {
		if err := l.write([]byte{'\n'}); err != nil {
			return err
		}
	}
	var errs []error
	for len(lines) > 0 {
		n := l.fits(lines)
		if n == 0 {
			if err := l.rotate(); err != nil {
				errs = append(errs, err)
				n = len(lines)
			}
		}
		if err := l.write(lines[:n]); err != nil {
			return errors.Join(append(errs, err)...)
		}
		lines = lines[n:]
	}
	return errors.Join(errs...)
}

// fits returns how many bytes of whole lines the file takes before it is full.
func (l *logFile) fits(lines []byte) int {
	room := l.max - l.size
	if l.max == 0 || int64(len(lines)) <= room {
		return len(lines)
	}
	n := bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
	if n == 0 && l.size == 0 {
		n = bytes.IndexByte(lines, '\n') + 1
	}
	return n
}

func (l *logFile) write(b []byte) error {
	n, err := l.f.Write(b)
	l.size += int64(n)
	if n > 0 {
		l.torn = b[n-1] != '\n'
	}
	return err
}

// rotate puts an empty file in the place of the full one. Cut off at any point,
// it leaves a file at path, and perhaps one that has two names.
func (l *logFile) rotate() (err error) {
	name := filepath.Join(filepath.Dir(l.path), "."+filepath.Base(l.path)+".new")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	err = l.shift()
	if err == nil {
		err = os.Rename(name, l.path)
	}
	if err != nil {
		return errors.Join(err, next.Close(), os.Remove(name))
	}
	old := l.f
	l.f, l.size, l.torn = next, 0, false
	return old.Close()
}

// shift gives the older files their next names, and the one at path a second name.
func (l *logFile) shift() error {
	for n := l.files - 2; n >= 1; n-- {
		err := os.Rename(RotatedLog(l.path, n), RotatedLog(l.path, n+1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if l.files < 2 {
		return nil
	}
	if err := os.Remove(RotatedLog(l.path, 1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // there is one if there are two files at most
	}
	return os.Link(l.path, RotatedLog(l.path, 1))
}

// Close closes the file.
func (l *logFile) Close() error { return l.f.Close() }
