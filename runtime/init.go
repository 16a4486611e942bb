package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	goruntime "runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// With Options.Init a container's PID 1 is a program of a few hundred bytes in
// place of the container's own, which is its child. It reaps whatever is
// orphaned, passes signals on, and ends as its child does: the job of
// docker-init. It gets (name, paths to try..., "", arguments...) and, as
// descriptor 3, a pipe that ends when one of the paths has been executed, or
// tells the errno.
//
// Of the ways to have one this shows a container least of us. The program of
// system calls cannot stay: it runs on this process's memory, or on a copy of
// it. A file of ours could be read and, by the mount, found. This one is a
// sealed memfd, so that even /proc/1/exe opens nothing that can be written
// (CVE-2019-5736), made from the bytes of init_*.s.

// initMark ends the code in init_*.s.
const initMark = "snapinit"

// elf makes a static executable of the code at an address.
func elf(code unsafe.Pointer) ([]byte, error) {
	b := unsafe.Slice((*byte)(code), 1024)
	n := bytes.Index(b, []byte(initMark))
	if n < 0 {
		return nil, errors.New("the code of init has no mark")
	}
	machine := map[string]uint16{"amd64": 62, "arm64": 183}[goruntime.GOARCH] // EM_X86_64, EM_AARCH64
	const base, header = 0x400000, 64 + 56
	le := binary.LittleEndian
	h := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian, version 1
	h = le.AppendUint16(h, 2)                                          // ET_EXEC
	h = le.AppendUint16(h, machine)
	h = le.AppendUint32(h, 1)
	for _, v := range []uint64{base + header, 64, 0} { // entry, program headers, section headers
		h = le.AppendUint64(h, v)
	}
	h = le.AppendUint32(h, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} { // sizes and numbers of headers
		h = le.AppendUint16(h, v)
	}
	size := uint64(header + n)
	h = le.AppendUint32(h, 1)                                        // PT_LOAD
	h = le.AppendUint32(h, 5)                                        // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 0x10000} { // offset, addresses, sizes, alignment
		h = le.AppendUint64(h, v)
	}
	return append(h, b[:n]...), nil
}

// openInit makes a sealed file of the program.
func openInit() (int, error) {
	b, err := elf(initAddr())
	if err != nil {
		return -1, err
	}
	const flags, mfdExec = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING, 0x10 // MFD_EXEC, Linux 6.3
	low, err := unix.MemfdCreate("snapfs-init", flags|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		low, err = unix.MemfdCreate("snapfs-init", flags)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	defer unix.Close(low)
	if n, err := unix.Write(low, b); err != nil || n != len(b) {
		return -1, fmt.Errorf("memfd: wrote %d of %d bytes: %w", n, len(b), err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(low), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal: %w", err)
	}
	return dupHigh(low)
}

// execInit executes the program, which is in file, to execute the container's.
func (s *start) execInit(file int) {
	p, pr := s.prog, &s.proc
	argv := append([]string{"snapfs-init"}, pr.candidates()...)
	argv = append(append(argv, ""), pr.args...)
	p.step = "exec init"
	p.add(unix.SYS_EXECVEAT, uintptr(file), p.str(""), p.pointers(argv), p.pointers(pr.env), unix.AT_EMPTY_PATH)
}

// openReport makes the pipe that init reports through, and gives the child its end.
func (s *start) openReport() error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return &StepError{"init", err}
	}
	s.report, s.reportEnd = fds[0], fds[1]
	s.prog.step = "init"
	s.prog.add(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // it may not be PID 1
	s.prog.add(unix.SYS_DUP3, uintptr(s.reportEnd), reportFD, 0)
	return nil
}

const reportFD = 3

// awaitInit waits until init has executed the container's program.
func (s *start) awaitInit() error {
	unix.Close(s.reportEnd)
	s.reportEnd = -1
	var b [8]byte
	for {
		n, err := unix.Read(s.report, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return &StepError{"init", err}
		case n < len(b):
			return nil
		}
		return &ExecError{s.proc.name(), unix.Errno(-int64(binary.LittleEndian.Uint64(b[:])))}
	}
}

func (s *start) closeReport() {
	for _, fd := range []int{s.report, s.reportEnd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
