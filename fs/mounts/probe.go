package mounts

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Fact is something a kernel can or cannot do.
type Fact struct {
	Name string // stable, for tables: "erofs-file"
	Err  error  // why not; nil: it can
}

// String is "yes" or "no: " and the reason.
func (f Fact) String() string {
	if f.Err == nil {
		return "yes"
	}
	return "no: " + f.Err.Error()
}

// Kernel is what Probe found.
type Kernel struct {
	Release string // uname -r
	Facts   []Fact
}

// Names of the facts.
const (
	FactMountAPI  = "mount-api"   // fsopen, fsmount, move_mount (Linux 5.2)
	FactErofsFile = "erofs-file"  // EROFS from a file, without a loop device (6.12)
	FactOverlay   = "overlay"     // an overlay mount with layers given as descriptors (6.13), and its statfs
	FactDataOnly  = "data-only"   // data-only lower layers without metacopy=on (6.16)
	FactResend    = "fuse-resend" // requests of a dead worker are sent again (6.9)
	FactUserNS    = "userns"      // user namespaces
	FactPlain     = "directories" // an overlay mount of ordinary directories, however they are given
)

// Probe tries what this kernel can do, by detached mounts that nobody else sees.
// dir is a directory on the file system that will hold upper directories; what
// Probe makes in it, it removes.
func Probe(dir string) (*Kernel, error) {
	tmp, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	k := &Kernel{Release: unix.ByteSliceToString(u.Release[:])}
	for _, f := range []struct {
		name string
		try  func(tmp string) error
	}{
		{FactMountAPI, func(string) error { return tryMountAPI() }},
		{FactErofsFile, tryErofs},
		{FactOverlay, func(tmp string) error { return tryOverlay(filepath.Join(tmp, "plain"), Rootfs{strict: true}) }},
		{FactDataOnly, func(tmp string) error {
			return tryOverlay(filepath.Join(tmp, "data"), Rootfs{strict: true, Data: []string{""}})
		}},
		{FactPlain, func(tmp string) error {
			if len(k.lacks(Backend{Needs: []string{FactOverlay}})) == 0 {
				return nil // it has been tried
			}
			return tryOverlay(filepath.Join(tmp, "names"), Rootfs{})
		}},
		{FactResend, func(string) error { return resend() }},
		{FactUserNS, func(string) error { return tryUserNS() }},
	} {
		k.Facts = append(k.Facts, Fact{f.name, f.try(tmp)})
	}
	return k, nil
}

// A Backend is a way to show an image.
type Backend struct {
	Name  string   // "erofs" or "directories"
	Needs []string // names of facts
}

// Names of the backends.
const (
	// BackendErofs shows an image before it is local.
	BackendErofs = "erofs"
	// BackendDirectories unpacks all of an image before it is shown, as older kernels need it.
	BackendDirectories = "directories"
)

// Backends are all there are, best first.
func Backends() []Backend {
	return []Backend{
		{BackendErofs, []string{FactMountAPI, FactErofsFile, FactOverlay, FactDataOnly, FactResend}},
		{BackendDirectories, []string{FactMountAPI, FactPlain}},
	}
}

// ErrNoBackend says that the kernel cannot do what any backend needs.
var ErrNoBackend = errors.New("this kernel cannot mount images")

// Backend chooses the best backend that works here, or checks the one that is
// named. The error says what the kernel lacks; it is ErrNoBackend-wrapped.
func (k *Kernel) Backend(name string) (Backend, error) {
	var why []string
	for _, b := range Backends() {
		if name != "" && b.Name != name {
			continue
		}
		lacks := k.lacks(b)
		if len(lacks) == 0 {
			return b, nil
		}
		why = append(why, fmt.Sprintf("%s needs %s", b.Name, strings.Join(lacks, ", ")))
	}
	if len(why) == 0 {
		return Backend{}, fmt.Errorf("%w: there is no backend %q", ErrNoBackend, name)
	}
	return Backend{}, fmt.Errorf("%w (Linux %s): %s", ErrNoBackend, k.Release, strings.Join(why, "; "))
}

func (k *Kernel) lacks(b Backend) (lacks []string) {
	for _, need := range b.Needs {
		for _, f := range k.Facts {
			if f.Name == need && f.Err != nil {
				lacks = append(lacks, fmt.Sprintf("%s (%v)", need, f.Err))
			}
		}
	}
	return lacks
}

func tryMountAPI() error {
	m, err := detached("tmpfs", 0)
	if err != nil {
		return err
	}
	return m.Close()
}

func tryErofs(tmp string) error {
	file := filepath.Join(tmp, "probe.erofs")
	if err := os.WriteFile(file, emptyErofs(), 0o600); err != nil {
		return err
	}
	m, err := detached("erofs", unix.MOUNT_ATTR_RDONLY, setting{key: "source", value: file})
	if errors.Is(err, unix.ENOTBLK) {
		return errors.New("only from block devices (Linux 6.12)")
	}
	if err != nil {
		return err
	}
	return m.Close()
}

// tryOverlay mounts an overlay as containers have it below dir, reads a file
// through it and changes the file. If r has Data, the file's bytes are in a data-only layer.
func tryOverlay(dir string, r Rootfs) error {
	const text = "snapfs"
	data := len(r.Data) > 0
	r.Lower, r.Upper, r.Work = []string{filepath.Join(dir, "lower")}, filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	file, stored := filepath.Join(r.Lower[0], "file"), filepath.Join(r.Lower[0], "file")
	if data {
		r.Data = []string{filepath.Join(dir, "bytes")}
		stored = filepath.Join(r.Data[0], "ab", "cd")
	}
	for _, d := range []string{r.Lower[0], r.Upper, r.Work, filepath.Dir(stored)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(stored, []byte(text), 0o600); err != nil {
		return err
	}
	if data {
		err := os.WriteFile(file, nil, 0o600)
		err = errors.Join(err, os.Truncate(file, int64(len(text))),
			unix.Setxattr(file, "trusted.overlay.metacopy", nil, 0),
			unix.Setxattr(file, "trusted.overlay.redirect", []byte("/ab/cd"), 0))
		if err != nil {
			return err
		}
	}
	m, err := Overlay(r)
	if err != nil {
		return err
	}
	defer m.Close()
	return useOverlay(m, text)
}

func useOverlay(m *os.File, text string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(m.Fd()), &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("statfs: type %#x", st.Type)
	}
	fd, err := unix.Openat(int(m.Fd()), "file", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), "file")
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != text {
		return fmt.Errorf("read: %q, %w", got, err)
	}
	_, err = f.WriteAt([]byte("S"), 0)
	return err
}

// tryUserNS starts a program that does not exist in a user namespace: the
// kernel makes the namespace first, and then does not find the program.
func tryUserNS() error {
	_, err := os.StartProcess("/proc/self/fd/-", nil, &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOSPC):
		return errors.New("user.max_user_namespaces is reached")
	}
	return err
}
