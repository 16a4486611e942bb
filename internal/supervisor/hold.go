package supervisor

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// hold gives the mount to the keeper, and starts one if there is none. When it
// ends, s.keeperGone gets a value.
func (s *supervisor) hold(ctx context.Context) error {
	if s.o.Keeper == nil || ctx.Err() != nil {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pid, err := keeper.Hold(limit, s.o.Run, s.fuse, s.init)
	if err != nil {
		if err := s.startKeeper(); err != nil {
			return fmt.Errorf("start keeper: %w", err)
		}
	}
	for err != nil && limit.Err() == nil {
		time.Sleep(2 * time.Millisecond) // until it listens
		pid, err = keeper.Hold(limit, s.o.Run, s.fuse, s.init)
	}
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	s.mu.Lock()
	known := s.keeper == pid
	s.keeper = pid
	s.mu.Unlock()
	if !known {
		s.watching.Go(func() { s.watchKeeper(ctx, pid) })
	}
	return nil
}

func (s *supervisor) startKeeper() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	argv := append(append([]string(nil), s.o.Keeper...), s.o.Run)
	_, _, err = s.kids.start(argv, environ(), "/", []*os.File{null, null, os.Stderr})
	return err
}

// watchKeeper waits until the keeper pid has ended, or ctx. A keeper that ends at
// once is not replaced more often than once a second.
func (s *supervisor) watchKeeper(ctx context.Context, pid int) {
	least := time.NewTimer(time.Second)
	defer least.Stop()
	if awaitEnd(ctx, pid) != nil {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-least.C:
	}
	s.mu.Lock()
	if s.keeper == pid {
		s.keeper = 0
	}
	s.mu.Unlock()
	select {
	case s.keeperGone <- struct{}{}:
	default:
	}
}

// awaitEnd waits, without a thread of its own, until the process pid has ended.
func awaitEnd(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}
