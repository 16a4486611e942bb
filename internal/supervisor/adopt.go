package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/fs/objectfs"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// adopt gets hold of the root's lock, the sockets and a living FUSE
// connection: from a worker without supervisor, from the keeper, or new ones.
func (s *supervisor) adopt(ctx context.Context) error {
	var found []socket
	if err := s.takeLock(ctx, &found); err != nil {
		closeSockets(found)
		return err
	}
	if err := s.openSockets(ctx, found); err != nil {
		return err
	}
	if err := s.dropMountPoints(); err != nil {
		s.log.Warn("mount points of before", "err", err)
	}
	if s.fuse == nil {
		fuse, init, err := keeper.Take(ctx, s.o.Run)
		if err == nil {
			s.fuse, s.init, s.resend = fuse, init, true
			s.log.Info("took the FUSE mount over from the keeper")
		}
	}
	if s.fuse == nil {
		if s.fuse, s.init = s.service.take(); s.fuse != nil {
			s.resend = true
			s.log.Info("took the FUSE mount over from the service manager's store")
		}
	}
	s.service.discard()
	if err := s.mountLazy(); err != nil {
		return err
	}
	return nil
}

// takeLock locks the root, for this process and its workers. If it is locked by a worker
// whose supervisor died, that worker gives up what it holds, the lock with it;
// its sockets are found.
func (s *supervisor) takeLock(ctx context.Context, found *[]socket) error {
	path := filepath.Join(s.o.Root, "lock")
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := os.ReadFile(path)
		lock.Close()
		return s.relieve(ctx, strings.TrimSpace(string(holder)), found)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), lock.Close())
	}
	s.lock = lock
	return s.sign()
}

// sign writes into the lock file who holds it, for the message of who comes second.
func (s *supervisor) sign() error {
	if err := s.lock.Truncate(0); err != nil {
		return err
	}
	_, err := s.lock.WriteAt(fmt.Appendf(nil, "pid %d, run directory %s\n", os.Getpid(), s.o.Run), 0)
	return err
}

// relieve takes over from a worker that has lost its supervisor. If there is a
// supervisor, or the worker is not one of this RUN, it is ErrRunning.
func (s *supervisor) relieve(ctx context.Context, holder string, found *[]socket) error {
	running := fmt.Errorf("%w on %s (%s)", ErrRunning, s.o.Root, holder)
	if c, err := control.Dial(ctx, supervisorSocket(s.o.Run)); err == nil {
		c.Close()
		return running
	}
	pid, err := s.release(ctx, found)
	if err != nil && pid == 0 {
		return running
	}
	if err != nil { // it lives and does not answer
		s.log.Warn("worker does not let go", "pid", pid, "err", err)
		kill(pid, unix.SIGKILL)
	}
	if err := waitPid(ctx, pid, s.o.Drain); err != nil {
		s.log.Warn("worker does not end", "pid", pid, "err", err)
		kill(pid, unix.SIGKILL)
		if err := waitPid(ctx, pid, s.o.Drain); err != nil {
			return fmt.Errorf("worker %d of an earlier daemon cannot be ended: %w", pid, err)
		}
	}
	if s.lock != nil {
		return s.sign()
	}
	return s.takeLock(ctx, found)
}

// release asks the worker at RUN/worker.sock for what it holds. pid is the
// worker's as soon as it was reached.
func (s *supervisor) release(ctx context.Context, found *[]socket) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, workerSocket(s.o.Run))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	peer, err := c.Peer()
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Begin(opRelease, nil); err != nil {
		return int(peer.Pid), err
	}
	var r released
	files, err := c.Finish(&r, nil)
	if err == nil && len(files) != 3+len(r.Sockets) {
		closeAll(files...)
		err = fmt.Errorf("worker released %d descriptors, want 3 and %d of sockets", len(files), len(r.Sockets))
	}
	if err != nil {
		return int(peer.Pid), err
	}
	s.fuse, s.lock = files[0], files[2]
	*found = []socket{{path: Socket(s.o.Run), file: files[1]}}
	for i, path := range r.Sockets {
		*found = append(*found, socket{path: path, file: files[3+i]})
	}
	s.init, s.resend = r.Init, true
	for name, state := range r.Memory {
		if err := s.memory.put(name, state); err != nil {
			s.log.Warn("what the worker remembered is lost", "err", err)
		}
	}
	s.log.Info("took over from the worker of an earlier supervisor", "pid", peer.Pid)
	return int(peer.Pid), nil
}

// waitPid waits until the process pid, no child of ours, has ended.
func waitPid(ctx context.Context, pid int, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return awaitEnd(ctx, pid)
}

func kill(pid int, sig unix.Signal) {
	if pid > 1 {
		unix.Kill(pid, sig)
	}
}

// mountLazy makes sure that s.fuse is a living connection mounted at RUN/lazy,
// by a new mount if it is not. A dead mount is detached: containers that use it
// keep what they have, and get errors for objects that they miss.
func (s *supervisor) mountLazy() error {
	dir := lazyDir(s.o.Run)
	mounted, err := mounts.IsMounted(dir)
	if err != nil {
		return err
	}
	if s.fuse != nil && mounted && keeper.Alive(s.fuse) {
		return nil
	}
	if mounted || s.fuse != nil {
		s.log.Warn("the FUSE mount is lost; making a new one", "mnt", dir)
	}
	closeAll(s.fuse)
	s.fuse, s.init, s.resend = nil, nil, false
	if err := mounts.Clear(dir); err != nil {
		return err
	}
	if err := os.Remove(nodeTable(s.o.Run)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // its numbers belong to the mount that is gone
	}
	fuse, err := mounts.OpenFuse()
	if err != nil {
		return err
	}
	if err := mounts.MountFuse(dir, fuse); err != nil {
		return errors.Join(err, fuse.Close())
	}
	init, err := objectfs.Handshake(fuse)
	if errors.Is(err, objectfs.ErrNoResend) && s.o.Backend == mounts.BackendDirectories {
		err = nil // nothing is read from it
	}
	if err != nil {
		return errors.Join(err, mounts.Unmount(dir, true), fuse.Close())
	}
	if err := mounts.SetReadAhead(dir, s.o.ReadAhead); err != nil {
		s.log.Warn("read-ahead stays at its default", "err", err)
	}
	s.fuse, s.init, s.fresh = fuse, init, true
	return nil
}

// unmountAll ends all mounts below RUN.
func (s *supervisor) unmountAll() error {
	var err error
	for _, dir := range []string{imageDir(s.o.Run, ""), mappedDir(s.o.Run), lazyDir(s.o.Run)} {
		all, lerr := mounts.List(dir)
		err = errors.Join(err, lerr)
		for _, m := range all {
			err = errors.Join(err, mounts.Unmount(m.Dir, true))
			if m.Dir != lazyDir(s.o.Run) {
				err = errors.Join(err, os.Remove(m.Dir))
			}
		}
	}
	return err
}

// unixListener makes a listener of a descriptor that was passed to us.
func unixListener(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("not a unix socket"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}
