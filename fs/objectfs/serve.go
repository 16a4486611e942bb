package objectfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrGone says that the mount has ended: it was unmounted, or aborted.
var ErrGone = errors.New("FUSE connection is gone")

// Readers come and go with the number of requests that wait for the network.
const (
	// idleReaders are kept waiting for requests. On two processors 1, 2 and 4, and
	// readers blocked in poll(2) instead of Go's poller, could not be told apart
	// (BenchmarkSmallFiles: 45 to 60 µs for open, read, close of 5 KB).
	idleReaders = 2
	maxReaders  = 1024 // at most; the kernel queues what is beyond
)

// A server is one Serve: goroutines that each read a request, serve it, write
// the reply. One is always waiting for the next request unless maxReaders are
// busy, so an INTERRUPT reaches a read that waits for the network.
type server struct {
	fs   *FS
	ps   *gofuse.ProtocolServer
	file *os.File
	fd   int

	readers sync.WaitGroup
	replies buffers
	idle    atomic.Int32 // readers waiting for a request
	total   atomic.Int32

	mu   sync.Mutex
	busy map[*reader]struct{} // readers that are serving
	err  error                // why the first reader that ended by itself did
	end  chan struct{}        // closed with err set
}

type reader struct {
	in     []byte
	inv    [1][]byte
	outv   [1][]byte
	unique uint64 // of the request being served
	node   uint64 // that it reads; 0 if it is no READ
}

// Serve answers requests from fd, whose mount sent init, until ctx ends or the
// mount does (ErrGone). After ctx ended it finishes the reads that have their
// bytes at hand, and leaves those waiting for the network, and what the kernel
// has not yet sent, to the next worker. With resend it first asks the kernel
// for the requests that a dead worker left unanswered. The descriptor stays open.
func Serve(ctx context.Context, fd *os.File, init []byte, resendAll bool, fs *FS) error {
	ps, _, err := replay(init, fs, fs.log)
	if err != nil {
		return err
	}
	own, err := pollable(fd)
	if err != nil {
		return err
	}
	defer own.Close()
	s := &server{fs: fs, ps: ps, file: own, fd: int(own.Fd()), busy: map[*reader]struct{}{}, end: make(chan struct{})}
	fs.base = ctx
	if resendAll {
		if err := resend(s.fd); err != nil {
			return fmt.Errorf("FUSE resend: %w", gone(err))
		}
	}
	for range idleReaders {
		s.start()
	}
	var invalidator sync.WaitGroup
	enough := make(chan struct{})
	invalidator.Go(func() { s.invalidate(enough) })
	select {
	case <-ctx.Done():
	case <-s.end:
	}
	close(enough)
	invalidator.Wait() // while there are readers for the READ that it may wait for
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// gone gives the errors of a dead connection their name.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// stop wakes the readers that wait for requests, then, as long as there are
// others, those that wait for the network.
func (s *server) stop() {
	s.file.SetReadDeadline(time.Unix(1, 0))
	done := make(chan struct{})
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { s.readers.Wait(); close(done) })
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			s.interruptAll()
		}
	}
}

func (s *server) interruptAll() {
	s.mu.Lock()
	var all []uint64
	for r := range s.busy {
		all = append(all, r.unique)
	}
	s.mu.Unlock()
	out := make([]byte, 4096)
	for _, unique := range all {
		// go-fuse answers EAGAIN for a request that it does not have (any more).
		s.ps.HandleRequest([][]byte{interrupt(unique)}, [][]byte{out})
	}
}

func (s *server) start() {
	s.total.Add(1)
	s.idle.Add(1)
	s.readers.Go(func() {
		defer s.total.Add(-1)
		s.read()
	})
}

// read serves requests until the server ends or has readers enough.
func (s *server) read() {
	// Every page is touched: a fatal signal during a page fault in the kernel's
	// copy would end the request with EIO (fs/fuse/dev.c fuse_dev_do_read).
	r := &reader{in: make([]byte, minRequest)}
	for i := 0; i < len(r.in); i += 4096 {
		r.in[i] = 1
	}
	for {
		n, err := s.next(r.in)
		idle := s.idle.Add(-1)
		if err != nil {
			s.ended(err)
			return
		}
		if idle == 0 && s.total.Load() < maxReaders {
			s.start()
		}
		s.serve(r, r.in[:n])
		if s.idle.Add(1) > idleReaders {
			s.idle.Add(-1)
			return
		}
	}
}

// next reads one request. It asks the kernel first, without a turn in Go's poller:
// under load there is always one.
func (s *server) next(buf []byte) (int, error) {
	if s.fs.base.Err() == nil {
		if n, err := unix.Read(s.fd, buf); err == nil {
			return n, nil
		}
	}
	for {
		n, err := s.file.Read(buf)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		// The poller has words of its own for a connection that ended.
		n, err = unix.Read(s.fd, buf)
		if err == nil || !(errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)) {
			return n, err
		}
		// ENOENT: the request was taken back before we had it.
	}
}

// ended notes why a reader ended.
func (s *server) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	s.err = gone(err)
	close(s.end)
}

// serve answers the request in.
func (s *server) serve(r *reader, in []byte) {
	if len(in) < inHeader {
		s.fs.log.Error("short FUSE request", "n", len(in))
		return
	}
	s.fs.Stats.Requests.Add(1)
	s.mu.Lock()
	r.unique, r.node = binary.NativeEndian.Uint64(in[8:]), 0
	if binary.NativeEndian.Uint32(in[4:]) == opRead {
		r.node = binary.NativeEndian.Uint64(in[16:])
	}
	s.busy[r] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.busy, r)
		s.mu.Unlock()
		if r.node != 0 && !s.fs.stale.empty() {
			s.fs.stale.poke()
		}
	}()

	buf := s.replies.get(replySize(in))
	defer s.replies.put(buf)
	r.inv[0], r.outv[0] = in, buf
	n, status := s.ps.HandleRequest(r.inv[:], r.outv[:])
	out := buf[:n]
	if status != gofuse.OK {
		out = errorReply(buf, in, gofuse.ENOSYS) // wants a longer answer than anything we implement
	}
	if len(out) < outHeader || int32(binary.NativeEndian.Uint32(out[4:])) == -int32(leave) {
		return
	}
	if _, err := unix.Write(s.fd, out); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		// ENOENT: nobody waits for it any more.
		s.fs.log.Error("FUSE reply refused", "opcode", binary.NativeEndian.Uint32(in[4:]), "n", len(out), "err", err)
	}
}

// replySize is the room that the reply to in needs.
func replySize(in []byte) int {
	if binary.NativeEndian.Uint32(in[4:]) != opRead || len(in) < readSizeOff+4 {
		return smallReply
	}
	return outHeader + int(min(binary.NativeEndian.Uint32(in[readSizeOff:]), maxRead))
}

// panicked is called by go-fuse when a handler panics.
func (f *FS) panicked(v any) gofuse.Status {
	f.Stats.Panics.Add(1)
	stack := make([]byte, 16<<10)
	f.log.Error("panic in a FUSE handler", "err", v, "stack", string(stack[:goruntime.Stack(stack, false)]))
	return gofuse.EIO
}
