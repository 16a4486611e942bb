package objectfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The parts of the protocol that go-fuse keeps to itself (include/uapi/linux/fuse.h).
//
//	request  = fuse_in_header[40]: len, opcode, unique uint32 uint32 uint64 …, then the operation's struct
//	reply    = fuse_out_header[16]: len uint32, error int32 (-errno), unique uint64, then bytes
//	notify   = the same with error = code, unique = 0
const (
	inHeader         = int(unsafe.Sizeof(gofuse.InHeader{}))
	outHeader        = int(unsafe.Sizeof(gofuse.OutHeader{}))
	opRead           = 15
	opInit           = 26
	opInterrupt      = 36
	notifyResend     = 7
	notifyInvalInode = 2
	readSizeOff      = int(unsafe.Offsetof(gofuse.ReadIn{}.Size))
)

const (
	// maxRead is the largest READ. 1 MiB is what the kernel allows without
	// its sysctl fs.fuse.max_pages_limit raised.
	maxRead = 1 << 20
	// minRequest is FUSE_MIN_READ_BUFFER: with a max_write of 4 KiB no request
	// is longer. The mount is read-only, so larger writes would only make
	// every reader's buffer larger.
	minRequest = 8192
	maxWrite   = 4096
	// maxBackground is how many READs of read-ahead the kernel has under way at
	// once. Its default of 12 is for file systems that answer at once; ours wait for a network.
	maxBackground = 64
)

// leave is a Status that is not sent: the request stays with the kernel, which
// sends it again to the next worker. No errno is 512 (ERESTARTSYS never leaves the kernel).
const leave = gofuse.Status(512)

func options(log *slog.Logger) *gofuse.MountOptions {
	return &gofuse.MountOptions{
		MaxWrite:      maxRead, // go-fuse derives the kernel's max_pages from it
		MaxReadAhead:  maxRead,
		MaxBackground: maxBackground,
		DisableXAttrs: true,
		// Objects never change, so neither times nor sizes are asked to decide
		// whether cached pages are good.
		ExplicitDataCacheControl: true,
		DisableReadDirPlus:       true,
		ExtraCapabilities:        gofuse.CAP_HAS_RESEND | gofuse.CAP_NO_OPENDIR_SUPPORT,
		// Passthrough would raise the stacking depth of overlays above us from 1
		// to 2, and 2 is the kernel's limit.
		DisabledCapabilities: gofuse.CAP_PASSTHROUGH,
		Logger:               slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// ErrNoResend says that the kernel cannot send requests again (before Linux 6.9),
// so that a dead worker's requests would never be answered.
var ErrNoResend = errors.New("kernel lacks FUSE_HAS_RESEND (Linux 6.9)")

// Handshake answers the first request of a new mount, INIT, and returns that
// request, which every Serve of the mount needs. fd is /dev/fuse, opened with
// O_NONBLOCK, after the mount system call returned. It is ErrNoResend if the
// kernel cannot do without the worker that read a request.
func Handshake(fd *os.File) (init []byte, err error) {
	own, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := own.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, fmt.Errorf("FUSE handshake: %w", err)
	}
	in := make([]byte, minRequest+maxRead) // max_write is not agreed yet
	n, err := own.Read(in)
	if err != nil {
		return nil, fmt.Errorf("FUSE handshake: %w", err)
	}
	init = append([]byte(nil), in[:n]...)
	_, out, err := replay(init, gofuse.NewDefaultRawFileSystem(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	reply := (*gofuse.InitOut)(unsafe.Pointer(&out[outHeader]))
	reply.MaxWrite = maxWrite
	if reply.Flags64()&gofuse.CAP_HAS_RESEND == 0 {
		err = ErrNoResend
	}
	if _, werr := unix.Write(int(fd.Fd()), out); werr != nil {
		return nil, fmt.Errorf("FUSE handshake: %w", werr)
	}
	return init, err
}

// pollable returns a duplicate of fd that Go's poller watches. The one that was
// opened before the mount will not do: poll then said EPOLLERR, for good.
func pollable(fd *os.File) (*os.File, error) {
	flags, err := unix.FcntlInt(fd.Fd(), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK == 0 {
		err = errors.New("not opened with O_NONBLOCK")
	}
	dup := -1
	if err == nil {
		dup, err = unix.FcntlInt(fd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("FUSE descriptor: %w", err)
	}
	return os.NewFile(uintptr(dup), fd.Name()), nil
}

// replay tells a new protocol server what the kernel said in INIT, and returns
// what it would answer.
func replay(init []byte, fs gofuse.RawFileSystem, log *slog.Logger) (*gofuse.ProtocolServer, []byte, error) {
	if len(init) < inHeader || binary.NativeEndian.Uint32(init[4:]) != opInit {
		return nil, nil, fmt.Errorf("FUSE handshake: %d bytes that are not INIT", len(init))
	}
	o := options(log)
	if f, ok := fs.(*FS); ok {
		o.PanicHandler = f.panicked
	}
	ps := gofuse.NewProtocolServer(fs, o)
	out := make([]byte, 4096)
	n, status := ps.HandleRequest([][]byte{init}, [][]byte{out})
	if status == gofuse.OK && n >= outHeader {
		status = gofuse.Status(-int32(binary.NativeEndian.Uint32(out[4:])))
	}
	if status != gofuse.OK || n < outHeader+int(unsafe.Sizeof(gofuse.InitOut{})) {
		return nil, nil, fmt.Errorf("FUSE handshake: INIT: %v, %d bytes", status, n)
	}
	return ps, out[:n], nil
}

// errorReply is the reply to in that carries nothing but status.
func errorReply(out, in []byte, status gofuse.Status) []byte {
	binary.NativeEndian.PutUint32(out, uint32(outHeader))
	binary.NativeEndian.PutUint32(out[4:], uint32(-int32(status)))
	copy(out[8:16], in[8:16])
	return out[:outHeader]
}

// resend asks the kernel to send all requests again that were read and not answered.
func resend(fd int) error {
	var m [outHeader]byte
	binary.NativeEndian.PutUint32(m[:], uint32(len(m)))
	binary.NativeEndian.PutUint32(m[4:], notifyResend)
	_, err := unix.Write(fd, m[:])
	return err
}

// interrupt is the INTERRUPT request for the request unique.
func interrupt(unique uint64) []byte {
	m := make([]byte, inHeader+8)
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint32(m[4:], opInterrupt)
	binary.NativeEndian.PutUint64(m[8:], unique|1) // FUSE_INT_REQ_BIT
	binary.NativeEndian.PutUint64(m[inHeader:], unique)
	return m
}
