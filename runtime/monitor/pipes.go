package monitor

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A pipe's ends: ours, which the poller watches, and the process's, which
// blocks as programs expect.
type pipe struct{ ours, theirs *os.File }

// readPipe is a pipe that the process writes to.
func readPipe() (pipe, error) { return newPipe(0) }

// writePipe is a pipe that the process reads from.
func writePipe() (pipe, error) { return newPipe(1) }

func newPipe(ours int) (pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return pipe{}, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return pipe{}, os.NewSyscallError("fcntl", err)
	}
	return pipe{
		ours:   os.NewFile(uintptr(fds[ours]), "pipe"),
		theirs: os.NewFile(uintptr(fds[1-ours]), "pipe"),
	}, nil
}

// stdio is a process's pipes: their ends for it, and ours. Streams not asked for are nil.
type stdio struct {
	files        Files
	in, out, err *os.File
}

func newStdio(in, out, errs bool) (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var p pipe
	if in {
		if p, err = writePipe(); err != nil {
			return nil, err
		}
		s.in, s.files.Stdin = p.ours, p.theirs
	}
	if out {
		if p, err = readPipe(); err != nil {
			return nil, err
		}
		s.out, s.files.Stdout = p.ours, p.theirs
	}
	if errs {
		if p, err = readPipe(); err != nil {
			return nil, err
		}
		s.err, s.files.Stderr = p.ours, p.theirs
	}
	return s, nil
}

func (s *stdio) close() {
	s.files.close()
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

func procFd(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
