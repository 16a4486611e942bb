package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Network namespaces that have a name, RUN/netns/NAME: a file on which one is
// mounted, so that it is there as long as the name is. CNI's plugins ask for such
// a path, and for the same when they undo what they did, after the container's end.

type netnsArgs struct{ Name string }

func netnsDir(run string) string { return filepath.Join(run, "netns") }

// makeNetns names a namespace: the one whose descriptor comes with the request,
// or a new one with nothing but lo. That is up afterwards. One that has the name loses it.
func (s *supervisor) makeNetns(r *control.Request) error {
	var a netnsArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if err := checkID(a.Name); err != nil {
		return err
	}
	var ns *os.File
	if len(r.Files) > 0 {
		ns = r.Files[0]
	}
	s.netns.Lock()
	defer s.netns.Unlock()
	if err := os.Mkdir(netnsDir(s.o.Run), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	path := filepath.Join(netnsDir(s.o.Run), a.Name)
	if err := unmount(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := mountNetns(path, ns); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return r.Reply(mountResult{path})
}

func mountNetns(path string, given *os.File) error {
	ns, err := openNetns(given)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount a network namespace", Path: path, Err: err}
	}
	return nil
}

// dropNetns takes a name away. The namespace goes with its last process.
func (s *supervisor) dropNetns(r *control.Request) error {
	var a netnsArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if err := checkID(a.Name); err != nil {
		return err
	}
	s.netns.Lock()
	defer s.netns.Unlock()
	return unmount(filepath.Join(netnsDir(s.o.Run), a.Name))
}

// dropAllNetns takes all names away.
func (s *supervisor) dropAllNetns() error {
	entries, err := os.ReadDir(netnsDir(s.o.Run))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, unmount(filepath.Join(netnsDir(s.o.Run), e.Name())))
	}
	return errors.Join(err, os.Remove(netnsDir(s.o.Run)))
}

// openNetns opens a namespace, or makes one if given is nil, by taking a thread there and back.
func openNetns(given *os.File) (ns *os.File, err error) {
	done := make(chan struct{})
	go func() { // ends with the result
		defer close(done)
		goruntime.LockOSThread()
		var back error
		if ns, back, err = enterNetns(given); back == nil {
			goruntime.UnlockOSThread() // else the thread, which is lost somewhere, ends with us
		}
		err = errors.Join(err, back)
	}()
	<-done
	if err != nil && ns != nil {
		ns.Close()
	}
	return ns, err
}

// enterNetns is openNetns on its thread. back is why that did not come home.
func enterNetns(given *os.File) (ns *os.File, back, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, nil, err
	}
	defer home.Close()
	if given != nil {
		err = os.NewSyscallError("setns", unix.Setns(int(given.Fd()), unix.CLONE_NEWNET))
	} else {
		err = os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
	}
	if err != nil {
		return nil, nil, err
	}
	if err = loopbackUp(); err == nil {
		ns, err = os.Open("/proc/thread-self/ns/net")
	}
	return ns, os.NewSyscallError("setns", unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)), err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// MakeNetns gives a network namespace a name, a new one with nothing but lo if ns is
// nil, and returns its path, which is there until DropNetns. lo is up.
func (w *Worker) MakeNetns(ctx context.Context, name string, ns *os.File) (path string, err error) {
	var files []*os.File
	if ns != nil {
		files = append(files, ns)
	}
	var m mountResult
	_, err = w.ask(ctx, opNetns, netnsArgs{name}, &m, files...)
	return m.Dir, err
}

// DropNetns takes the path away that MakeNetns has made, if there is one. The
// namespace goes with its last process.
func (w *Worker) DropNetns(ctx context.Context, name string) error {
	_, err := w.ask(ctx, opNoNetns, netnsArgs{name}, nil)
	return err
}
