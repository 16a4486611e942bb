package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// logOptions say which lines of a log are shown, and how.
type logOptions struct {
	follow, times bool
	tail          int // -1: all
	since, until  time.Time
}

func logs(ctx context.Context, env *Env, args []string) error {
	o := logOptions{tail: -1}
	f := &flagSet{
		usage:   "logs [OPTIONS] CONTAINER",
		about:   "Show what a container has written: its standard output on ours, its errors on ours.",
		example: "snapctl logs -f --tail 20 web",
	}
	f.flag(&o.follow, "f,follow", "go on until the container ends")
	f.add("n,tail", "N", "begin N lines before the end", func(s string) (err error) {
		if s == "all" {
			o.tail = -1
			return nil
		}
		if o.tail, err = strconv.Atoi(s); err != nil || o.tail < 0 {
			err = fmt.Errorf("%q: want a number or all", s)
		}
		return err
	})
	f.add("since", "TIME", "leave out what is older than a time (RFC 3339) or a while (10m)", func(s string) (err error) { o.since, err = parseTime(s, time.Now()); return err })
	f.add("until", "TIME", "leave out what is newer", func(s string) (err error) { o.until, err = parseTime(s, time.Now()); return err })
	f.flag(&o.times, "t,timestamps", "show when each line was written")
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	var c control.Container
	files, err := env.request(ctx, control.OpLogs, control.ContainerArgs{ID: rest[0]}, &c, nil)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return errors.New("logs: the daemon sent no log")
	}
	defer files[0].Close()
	l := &logReader{o: o, dir: files[0], out: env.Stdout, err: env.Stderr}
	defer l.close()
	return l.run(ctx, c)
}

// parseTime reads a point in time: RFC 3339 with parts left out at its end,
// seconds since 1970, or how long ago.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 0 && n < 1e11 {
		return time.Unix(0, int64(n*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: want a time such as 2026-11-24T10:00:00Z, or a while such as 10m", s)
}

// A logReader prints a log in the json-file format, which may have several
// files (see monitor.RotatedLog).
type logReader struct {
	o        logOptions
	dir      *os.File   // where they are
	files    []*os.File // to be read, oldest first; the last is the one that is written to, or was
	out, err io.Writer
	rest     []byte // of a line that is not complete yet
}

func (l *logReader) run(ctx context.Context, c control.Container) error {
	var ended <-chan struct{}
	if l.o.follow {
		ended = watchEnd(ctx, c)
	}
	files, err := l.open()
	if err != nil {
		return err
	}
	l.files = files
	if err := l.tail(); err != nil {
		return err
	}
	changes, err := newWatch()
	if err != nil {
		return err
	}
	defer changes.Close()
	for {
		last := ended == nil
		if !last {
			select {
			case <-ended:
				last = true // what was written before the end is there now
			default:
			}
			if err := changes.watch(l.current()); err != nil {
				return err
			}
		}
		if err := l.drain(); err != nil {
			return err
		}
		more, err := l.next()
		switch {
		case err != nil:
			return err
		case more && l.o.follow:
		case last:
			return nil
		default:
			if err := changes.sleep(ctx, ended); err != nil {
				return err
			}
		}
	}
}

func (l *logReader) close() {
	for _, f := range l.files {
		f.Close()
	}
}

// current is the file that is written to, as far as we know; nil if there is none.
func (l *logReader) current() *os.File {
	if len(l.files) == 0 {
		return nil
	}
	return l.files[len(l.files)-1]
}

// open opens all files of the log, oldest first. It begins with the newest: a
// file that gets its next name meanwhile is then met twice, and not missed.
func (l *logReader) open() (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	for n := range monitor.MaxLogFiles {
		f, err := l.openat(monitor.RotatedLog(monitor.LogFile, n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return files, err
		}
		if len(files) > 0 && same(f, files[len(files)-1]) {
			f.Close()
			continue
		}
		files = append(files, f)
	}
	slices.Reverse(files)
	return files, nil
}

func (l *logReader) openat(name string) (*os.File, error) {
	fd, err := unix.Openat(int(l.dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func same(f, g *os.File) bool {
	x, xerr := f.Stat()
	y, yerr := g.Stat()
	return xerr == nil && yerr == nil && os.SameFile(x, y)
}

// next looks for files that have come after the current one, which has been
// read. If there are any, nothing is written to that any more.
func (l *logReader) next() (more bool, err error) {
	newest, err := l.openat(monitor.LogFile)
	if errors.Is(err, fs.ErrNotExist) { // the container has been removed
		return false, nil
	}
	if err != nil {
		return false, err
	}
	cur := l.current()
	moved := cur == nil || !same(newest, cur)
	newest.Close()
	if !moved {
		return false, nil
	}
	files, err := l.open()
	if err != nil {
		return false, err
	}
	keep := l.files[:0]
	if cur != nil {
		keep = append(keep, cur) // its last lines may not have been read
	}
	if i := slices.IndexFunc(files, func(f *os.File) bool { return cur != nil && same(f, cur) }); i >= 0 {
		for _, f := range files[:i+1] {
			f.Close()
		}
		files = files[i+1:]
	}
	l.files = append(keep, files...)
	return true, nil
}

// tail goes to the place where the lines asked for begin.
func (l *logReader) tail() error {
	if l.o.tail < 0 {
		return nil
	}
	n := l.o.tail
	for i := len(l.files) - 1; i >= 0; i-- {
		off, found, err := tailOffset(l.files[i], n)
		if err != nil {
			return err
		}
		if _, err := l.files[i].Seek(off, io.SeekStart); err != nil {
			return err
		}
		n -= found
	}
	return nil
}

// drain prints the lines that are there, and lets go of all files but the current one.
func (l *logReader) drain() error {
	for i, f := range l.files {
		if i > 0 {
			l.files[i-1].Close()
			l.rest = l.rest[:0] // no line goes on in the next file
		}
		if err := l.read(f); err != nil {
			l.files = l.files[i:]
			return err
		}
	}
	if n := len(l.files); n > 1 {
		l.files = l.files[n-1:]
	}
	return nil
}

// A watch tells when a file is written to, or gets another name.
type watch struct {
	*os.File
	of *os.File
	id int // of the kernel's watch
}

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &watch{File: os.NewFile(uintptr(fd), "inotify")}, nil
}

// watch watches f, and nothing else.
func (w *watch) watch(f *os.File) error {
	if f == nil || f == w.of {
		return nil
	}
	raw, err := w.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		if w.of != nil {
			unix.InotifyRmWatch(int(fd), uint32(w.id)) // it has gone by itself, if the file has
		}
		w.id, err = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_MOVE_SELF)
	})
	if err := errors.Join(cerr, os.NewSyscallError("inotify_add_watch", err)); err != nil {
		return err
	}
	w.of = f
	return nil
}

// sleep waits for a change, the container's end, or ctx.
func (w *watch) sleep(ctx context.Context, ended <-chan struct{}) error {
	woken := make(chan struct{})
	defer func() { w.SetReadDeadline(time.Time{}) }()
	go func() {
		defer close(woken)
		w.Read(make([]byte, 4096))
	}()
	select {
	case <-woken:
		return nil
	case <-ended:
	case <-ctx.Done():
	}
	w.SetReadDeadline(time.Unix(1, 0))
	<-woken
	if err := ctx.Err(); err != nil {
		return &exitError{status: 128 + int(unix.SIGINT)}
	}
	return nil
}

// watchEnd returns a channel that is closed when the container does not run any more.
func watchEnd(ctx context.Context, c control.Container) <-chan struct{} {
	ended := make(chan struct{})
	if c.Socket == "" {
		close(ended)
		return ended
	}
	go func() { // ends with the process, or the container
		defer close(ended)
		monitor.Call(ctx, c.Socket, monitor.OpWait, nil, nil)
	}()
	return ended
}

// read prints the lines that f has, from where it was left.
func (l *logReader) read(f *os.File) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		l.rest = append(l.rest, buf[:n]...)
		for {
			i := bytes.IndexByte(l.rest, '\n')
			if i < 0 {
				break
			}
			if err := l.line(l.rest[:i]); err != nil {
				return err
			}
			l.rest = l.rest[i+1:]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// line prints one line. One that is no JSON is left out: a crash of the machine may have torn it.
func (l *logReader) line(b []byte) error {
	var x struct {
		Log, Stream string
		Time        time.Time
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return nil
	}
	if x.Time.Before(l.o.since) || !l.o.until.IsZero() && x.Time.After(l.o.until) {
		return nil
	}
	to := l.out
	if x.Stream == "stderr" {
		to = l.err
	}
	if l.o.times {
		x.Log = x.Time.Format("2006-01-02T15:04:05.000000000Z07:00") + " " + x.Log
	}
	_, err := io.WriteString(to, x.Log)
	return err
}

// tailOffset returns where the last n lines of f begin, and how many there are
// from there. A line that was cut counts once for each piece, as docker counts.
func tailOffset(f *os.File, n int) (off int64, found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 64<<10)
	for off = end; off > 0; {
		size := min(int64(len(buf)), off)
		off -= size
		if _, err := io.ReadFull(io.NewSectionReader(f, off, size), buf[:size]); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if found == n {
				return off + i + 1, found, nil
			}
			found++
		}
	}
	return 0, found, nil
}
