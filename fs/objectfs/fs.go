package objectfs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// Objects is where the bytes come from; layers/fetch.Fetcher is one.
type Objects interface {
	// Size returns the bytes of s, false if s is not known now. It does not block on the network.
	Size(s layers.Sum) (int64, bool)
	// ReadAt fills p from off, and returns fewer bytes only with an error,
	// io.EOF at the end of the object. All bytes it returns are verified. It
	// may block on the network, and only then returns early when ctx ends.
	// It may be called from several goroutines at once.
	ReadAt(ctx context.Context, s layers.Sum, p []byte, off int64) (int, error)
}

// Options of an FS. The zero value works.
type Options struct {
	Log *slog.Logger // nil: discard
	// Failed is told of every READ that is answered with an error, other than
	// those that were interrupted, and of every object that is looked for and
	// not known. It must return at once; nil: nobody is.
	Failed func(s layers.Sum, off int64, err error)
}

// Stats counts what an FS did.
type Stats struct {
	Lookups, Missing, Attrs  atomic.Int64 // LOOKUPs, names and objects not found, GETATTRs
	Reads, Bytes             atomic.Int64
	Interrupted, Left, Fails atomic.Int64 // READs answered EINTR, not at all, with another error
	Panics                   atomic.Int64
	Invalidated              atomic.Int64 // objects of which the kernel was told to drop its pages
	Requests                 atomic.Int64 // of every kind
}

// FS is the file system. It serves one mount at a time, by Serve.
type FS struct {
	gofuse.RawFileSystem // answers ENOSYS, which the kernel remembers, or nothing

	Stats Stats

	objects Objects
	nodes   *Nodes
	tell    func(layers.Sum, int64, error) // Options.Failed
	stale   stale
	log     *slog.Logger
	base    context.Context // ends when the worker is told to stop; set by Serve
}

// New makes an FS of objects. Nodes must be the table of the mount that it will
// serve, and stays the caller's to close.
func New(objects Objects, nodes *Nodes, o Options) *FS {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &FS{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		objects:       objects,
		nodes:         nodes,
		tell:          o.Failed,
		stale:         stale{sums: map[layers.Sum]struct{}{}, wake: make(chan struct{}, 1)},
		log:           o.Log,
		base:          context.Background(),
	}
}

// String names the file system in the logs of go-fuse.
func (f *FS) String() string { return "snapfs" }

// forever is how long the kernel may believe an answer: objects do not change.
// fs/fuse/dir.c time_to_jiffies clamps it, and takes what overflows for "never expires".
const forever = time.Duration(math.MaxInt64)

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// parseName decodes lower-case hex digits into dst. Other spellings of a sum are
// not names here: each object has one.
func parseName(dst []byte, name string) bool {
	if len(name) != 2*len(dst) {
		return false
	}
	for i := range dst {
		hi, ok1 := unhex(name[2*i])
		lo, ok2 := unhex(name[2*i+1])
		if !ok1 || !ok2 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

// Lookup answers LOOKUP. A name that is not there is answered by an error, not
// by a negative entry: the next pull may bring it. See unknown for objects.
func (f *FS) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	f.Stats.Lookups.Add(1)
	var s layers.Sum
	switch {
	case in.NodeId == rootNode && parseName(s[:1], name):
		out.NodeId = dirNode + uint64(s[0])
		f.dirAttr(out.NodeId, &out.Attr)
	case in.NodeId >= dirNode && in.NodeId < dirNode+dirCount && parseName(s[1:], name):
		s[0] = byte(in.NodeId - dirNode)
		size, ok := f.objects.Size(s)
		if !ok {
			return f.unknown(s)
		}
		id, err := f.nodes.ID(s)
		if err != nil {
			f.Stats.Fails.Add(1)
			f.log.Error("no node for object", "object", s, "err", err)
			return gofuse.EIO
		}
		out.NodeId = id
		f.fileAttr(id, size, &out.Attr)
	default:
		f.Stats.Missing.Add(1)
		return gofuse.ENOENT
	}
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return gofuse.OK
}

// GetAttr answers GETATTR, which comes only for the root, and after the kernel
// dropped what it knew.
func (f *FS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	f.Stats.Attrs.Add(1)
	if in.NodeId >= rootNode && in.NodeId < dirNode+dirCount {
		f.dirAttr(in.NodeId, &out.Attr)
		out.SetTimeout(forever)
		return gofuse.OK
	}
	s, ok := f.nodes.Sum(in.NodeId)
	if !ok {
		return gofuse.Status(unix.ESTALE)
	}
	size, ok := f.objects.Size(s)
	if !ok {
		return f.unknown(s)
	}
	f.fileAttr(in.NodeId, size, &out.Attr)
	out.SetTimeout(forever)
	return gofuse.OK
}

// errUnknown says that no layer that is served has an object.
var errUnknown = errors.New("no layer has the object")

// unknown is the answer to who asks for an object that no source has. It is not
// ENOENT: overlayfs looks here when a file is opened whose name, size and mode are
// in the metadata image (fs/overlayfs/namei.c, ovl_maybe_lookup_lowerdata, Linux
// 6.18), and hands our answer on. A program that is told that there is no
// /etc/x.conf, which is there, goes on with its defaults; one that is told EIO stops.
func (f *FS) unknown(s layers.Sum) gofuse.Status {
	f.Stats.Missing.Add(1)
	f.log.Error("lookup failed", "object", s, "err", errUnknown)
	if f.tell != nil {
		f.tell(s, 0, errUnknown)
	}
	return gofuse.EIO
}

// dirAttr and fileAttr: nobody sees these modes and owners, overlay shows those
// of the metadata image.
func (f *FS) dirAttr(id uint64, a *gofuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Blksize = id, unix.S_IFDIR|0o555, 2, 4096
}

func (f *FS) fileAttr(id uint64, size int64, a *gofuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Blksize = id, unix.S_IFREG|0o444, 1, 4096
	a.Size, a.Blocks = uint64(size), uint64(size+511)/512
}

// Read answers READ.
func (f *FS) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	f.Stats.Reads.Add(1)
	s, ok := f.nodes.Sum(in.NodeId)
	if !ok {
		f.Stats.Fails.Add(1)
		return nil, gofuse.Status(unix.ESTALE)
	}
	if in.Offset > math.MaxInt64-uint64(len(buf)) {
		f.Stats.Fails.Add(1)
		return nil, gofuse.EINVAL
	}
	ctx := readCtx{f.base, cancel}
	n, err := f.objects.ReadAt(ctx, s, buf, int64(in.Offset))
	if err == nil || errors.Is(err, io.EOF) {
		f.Stats.Bytes.Add(int64(n))
		return gofuse.ReadResultData(buf[:n]), gofuse.OK
	}
	return nil, f.failed(ctx, s, int64(in.Offset), err)
}

// failed accounts for a READ that got no bytes and chooses its answer.
func (f *FS) failed(ctx readCtx, s layers.Sum, off int64, err error) gofuse.Status {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		if ctx.interrupted() {
			f.Stats.Interrupted.Add(1)
			return gofuse.EINTR
		}
		f.Stats.Left.Add(1)
		return leave
	}
	f.Stats.Fails.Add(1)
	f.log.Error("read failed", "object", s, "off", off, "err", err)
	if f.tell != nil {
		f.tell(s, off, err)
	}
	return gofuse.Status(errno(err))
}

// errno is the border between our errors and the kernel's. A reader in a
// container can do nothing about most of them, so EIO is what it usually sees.
func errno(err error) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return unix.ETIMEDOUT // the network did not answer; the next read may do better
	case errors.Is(err, unix.ENOMEM):
		return unix.ENOMEM
	}
	// Not ENOENT where the registry lacks a blob: the file is there, and open, and
	// read(2) knows no such error. *layers.DigestError, broken layers, a failing disk, a full disk (which is
	// ours, not the reader's), a registry that refuses.
	return unix.EIO
}

// OpenDir answers OPENDIR: see Open.
func (f *FS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

// Open answers OPEN by ENOSYS, after which the kernel opens files by itself, keeps
// their cached pages, and sends no RELEASE either (FUSE_NO_OPEN_SUPPORT, Linux 3.16).
func (f *FS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

// Flush answers FLUSH by ENOSYS, which the kernel remembers.
func (f *FS) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

// StatFs answers STATFS: overlay asks every layer when it is mounted.
func (f *FS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	return gofuse.OK
}

// readCtx is the context of one READ: it ends when the kernel interrupts the
// request or the worker stops. Making it allocates only what the interface
// conversion does, unlike context.WithCancel.
type readCtx struct {
	base   context.Context
	cancel <-chan struct{}
}

// Deadline, Done, Err and Value make readCtx a context. Serve closes cancel when
// base ends, so one channel speaks for both.
func (c readCtx) Deadline() (deadline time.Time, ok bool) { return }

func (c readCtx) Done() <-chan struct{} { return c.cancel }

func (c readCtx) Err() error {
	select {
	case <-c.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func (c readCtx) Value(any) any { return nil }

// interrupted says why the context ended: the kernel asked, not our stop.
func (c readCtx) interrupted() bool { return c.base.Err() == nil }
