package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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
	return (&logReader{o: o, f: files[0], out: env.Stdout, err: env.Stderr}).run(ctx, c)
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

// A logReader prints a log in the json-file format.
type logReader struct {
	o        logOptions
	f        *os.File
	out, err io.Writer
	rest     []byte // of a line that is not complete yet
}

func (l *logReader) run(ctx context.Context, c control.Container) error {
	if l.o.tail >= 0 {
		off, err := tailOffset(l.f, l.o.tail)
		if err != nil {
			return err
		}
		if _, err := l.f.Seek(off, io.SeekStart); err != nil {
			return err
		}
	}
	var ended <-chan struct{}
	if l.o.follow {
		ended = watchEnd(ctx, c)
	}
	changes, err := l.watch()
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
		}
		if err := l.drain(); err != nil || last {
			return err
		}
		if err := l.sleep(ctx, changes, ended); err != nil {
			return err
		}
	}
}

// watch returns a descriptor that becomes readable when the log grows.
func (l *logReader) watch() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if !l.o.follow {
		return f, nil
	}
	if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", l.f.Fd()), unix.IN_MODIFY); err != nil {
		f.Close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	return f, nil
}

// sleep waits for the log to grow, the container to end, or ctx.
func (l *logReader) sleep(ctx context.Context, changes *os.File, ended <-chan struct{}) error {
	woken := make(chan struct{})
	defer func() { changes.SetReadDeadline(time.Time{}) }()
	go func() {
		defer close(woken)
		changes.Read(make([]byte, 4096))
	}()
	select {
	case <-woken:
		return nil
	case <-ended:
	case <-ctx.Done():
	}
	changes.SetReadDeadline(time.Unix(1, 0))
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

// drain prints the lines that are there.
func (l *logReader) drain() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.f.Read(buf)
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

// tailOffset returns where the last n lines of f begin. A line that was cut
// counts once for each piece, as docker counts.
func tailOffset(f *os.File, n int) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	lines := 0
	for off := end; off > 0; {
		size := min(int64(len(buf)), off)
		off -= size
		if _, err := io.ReadFull(io.NewSectionReader(f, off, size), buf[:size]); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if lines++; lines > n {
				return off + i + 1, nil
			}
		}
	}
	return 0, nil
}
