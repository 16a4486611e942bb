// Package keeper is the process that remembers a FUSE mount while no daemon
// runs. The kernel ends a mount when the last descriptor of its /dev/fuse is
// closed; the keeper has a duplicate, and the INIT request without which nobody
// can serve it. It does nothing else, so it has nothing to die of.
//
//	supervisor → keeper   hold {init} + descriptor    keep this from now on
//	             keeper   take {} → {init} + descriptor
//	             keeper   end {}                      close it and exit
//
// It talks package control on RUN/keeper.sock. Reads of missing objects block
// while only the keeper is left, and go on when a daemon has taken over.
//
// Invariant: at most one keeper per RUN; it holds RUN/keeper.lock.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

const (
	opHold = "keeper.hold" // held, one descriptor → who
	opTake = "keeper.take" // nil → held, one descriptor
	opEnd  = "keeper.end"
)

type held struct {
	Init []byte
	Pid  int `json:",omitempty"` // of the keeper, in results
}

// ErrNothing says that the keeper holds nothing, or that there is no keeper.
var ErrNothing = errors.New("no FUSE mount is kept")

// Socket returns where the keeper of run listens.
func Socket(run string) string { return filepath.Join(run, "keeper.sock") }

type keeper struct {
	end context.CancelFunc

	mu   sync.Mutex
	fuse *os.File
	init []byte
}

// Keep is the keeper of run, until it is told to end, ctx ends, or there is
// nothing left to keep. It returns nil if another keeper is at work already.
func Keep(ctx context.Context, run string) error {
	lock, err := os.OpenFile(filepath.Join(run, "keeper.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("%s: %w", lock.Name(), err)
	}
	path := Socket(run)
	os.Remove(path) // of a keeper that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &keeper{end: cancel}
	defer k.drop()
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() { k.watch(ctx, checkEvery) })
	defer cancel()
	server := control.Server{Handle: k.handle}
	if err := server.Serve(ctx, l); ctx.Err() == nil {
		return err
	}
	return nil
}

// checkEvery is how often the keeper looks whether what it holds still lives. A
// blocking poll would wake it for every request of the file system.
const checkEvery = time.Minute

// watch ends the keeper when it holds nothing that lives.
func (k *keeper) watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.mu.Lock()
			if k.fuse == nil || !Alive(k.fuse) {
				k.end()
			}
			k.mu.Unlock()
		}
	}
}

// Alive says whether the connection of the /dev/fuse descriptor f is: it was
// mounted, and not unmounted or aborted since.
func Alive(f *os.File) bool {
	p := []unix.PollFd{{Fd: int32(f.Fd())}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Fd >= 0 && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

func (k *keeper) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fuse != nil {
		k.fuse.Close()
	}
	k.fuse, k.init = nil, nil
}

func (k *keeper) handle(_ context.Context, r *control.Request) error {
	switch r.Op {
	case opHold:
		return k.hold(r)
	case opTake:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.fuse == nil {
			return &control.Error{Code: control.CodeNotFound, Message: ErrNothing.Error()}
		}
		return r.Reply(held{Init: k.init, Pid: os.Getpid()}, k.fuse)
	case opEnd:
		err := r.Reply(nil)
		k.end()
		return err
	}
	return &control.Error{Code: control.CodeInvalid, Message: "keeper: unknown operation " + r.Op}
}

func (k *keeper) hold(r *control.Request) error {
	var h held
	if err := r.Decode(&h); err != nil {
		return err
	}
	if len(r.Files) != 1 || len(h.Init) == 0 {
		return &control.Error{Code: control.CodeInvalid, Message: "keeper.hold: wants one descriptor and INIT"}
	}
	k.drop()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fuse, k.init, r.Files = r.Files[0], h.Init, nil
	return r.Reply(held{Pid: os.Getpid()})
}

// Hold gives the keeper of run the mount's descriptor and INIT request, and
// returns the keeper's process ID.
func Hold(ctx context.Context, run string, fuse *os.File, init []byte) (pid int, err error) {
	c, err := control.Dial(ctx, Socket(run))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Begin(opHold, held{Init: init}, fuse); err != nil {
		return 0, err
	}
	var h held
	if _, err := c.Finish(&h, nil); err != nil {
		return 0, err
	}
	return h.Pid, nil
}

// Take returns what the keeper of run holds, which keeps its duplicate. It is
// ErrNothing-wrapped if there is nothing to be had.
func Take(ctx context.Context, run string) (fuse *os.File, init []byte, err error) {
	var h held
	files, err := control.Call(ctx, Socket(run), opTake, nil, &h, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNothing, err)
	}
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, fmt.Errorf("%w: %d descriptors", ErrNothing, len(files))
	}
	return files[0], h.Init, nil
}

// End ends the keeper of run. It is no error if there is none.
func End(ctx context.Context, run string) error {
	_, err := control.Call(ctx, Socket(run), opEnd, nil, nil, nil)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // there is none, or it was about to end
	}
	return err
}
