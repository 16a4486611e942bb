package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// repeatable are the requests that may be made a second time when the daemon's
// worker died while it was carrying out the first.
var repeatable = map[string]bool{
	control.OpVersion: true, control.OpInfo: true, control.OpStat: true, control.OpMetrics: true, control.OpExplain: true,
	control.OpPull: true, control.OpImages: true, control.OpInspect: true, control.OpTag: true,
	control.OpMount: true, control.OpMounted: true, control.OpMounts: true, control.OpUmount: true,
	control.OpCreate: true, // the client chose the ID
	control.OpPlan:   true,
	control.OpStart:  true, control.OpPs: true, control.OpResolve: true, control.OpCInsp: true, control.OpLogs: true,
}

// attempts is how often a repeatable request is made. A worker is replaced in
// well under a second; one that dies of this very request would do so for ever.
const attempts = 4

// call makes a request of the daemon, which is started if need be.
func (env *Env) call(ctx context.Context, op string, args, result any) error {
	_, err := env.request(ctx, op, args, result, nil)
	return err
}

// request is call with events, and descriptors as further result.
func (env *Env) request(ctx context.Context, op string, args, result any, event func(json.RawMessage)) ([]*os.File, error) {
	path, err := env.socket()
	if err != nil {
		return nil, err
	}
	started := false
	for n := 1; ; n++ {
		files, err := call(ctx, path, op, args, result, event)
		switch {
		case err == nil:
			return files, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case notListening(err) && !started && n == 1:
			if err := env.autostart(ctx, path, err); err != nil {
				return nil, err
			}
			started = true
		case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("%s: permission denied: only root may talk to the daemon", path)
		case (died(err) || notListening(err)) && repeatable[op] && n < attempts:
			if env.Debug {
				fmt.Fprintf(env.Stderr, "snapctl: %s: %v; asking again\n", op, err)
			}
			if err := sleep(ctx, time.Duration(n)*100*time.Millisecond); err != nil {
				return nil, err
			}
		case died(err):
			return nil, fmt.Errorf("%w during %s; whether it was done is not known", errWentAway, op)
		default:
			return nil, err
		}
	}
}

// call makes one request, and gives up when nobody is there to take it: a
// connection waits at the daemon's socket although its workers end before they serve.
func call(ctx context.Context, path, op string, args, result any, event func(json.RawMessage)) ([]*os.File, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	doubt := time.AfterFunc(doubtful, func() {
		for ctx.Err() == nil {
			var s control.Supervisor
			_, err := control.Call(ctx, filepath.Join(filepath.Dir(path), control.SupervisorSocket), control.OpSupervisor, nil, &s, nil)
			if err == nil && !s.Ready && s.Failed >= fruitless {
				cancel(fmt.Errorf("the daemon (process %d) runs, but does not serve: its worker has ended at once %d times; its log says why", s.Supervisor, s.Failed))
			}
			sleep(ctx, doubtful)
		}
	})
	defer doubt.Stop()
	files, err := control.Call(ctx, path, op, args, result, event)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return files, err
}

const (
	doubtful  = 2 * time.Second // until somebody who has no answer asks whether there is anybody
	fruitless = 6               // workers in a row that did not work: what killed them will kill the next
)

// errWentAway says that a daemon ended in the middle of a request.
var errWentAway = errors.New("the daemon went away")

func notListening(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

func died(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// explain is err for a user.
func explain(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	return err.Error()
}
