package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// A follower makes a request whose events go on and on, and makes it again when
// another daemon, or another worker of it, has taken over.
type follower struct {
	env   *Env
	op    string
	args  func() any // of each request
	event func(json.RawMessage) error
	// next is told, before the request is made again, when the one that ended was made.
	next func(began time.Time)
	once bool // do not ask again
}

// patience is how long a follower waits for the next daemon, or the next worker.
const patience = 10 * time.Second

// run ends when the daemon has no more to say, event returns an error, or ctx
// ends (context.Canceled). A reader that is gone is an exit status.
func (f *follower) run(ctx context.Context) error {
	env := *f.env
	for {
		began := time.Now()
		call, cancel := context.WithCancel(ctx)
		var failed error
		_, err := env.request(call, f.op, f.args(), nil, func(raw json.RawMessage) {
			if failed == nil {
				failed = f.event(raw)
			}
			if failed != nil {
				cancel()
			}
		})
		cancel()
		switch {
		case errors.Is(failed, unix.EPIPE): // whoever read it does not want any more
			return &exitError{status: 128 + int(unix.SIGPIPE)}
		case failed != nil:
			return failed
		case ctx.Err() != nil:
			return ctx.Err()
		case f.once || !replaced(err):
			return err
		}
		env.NoAutostart = true // a daemon that was stopped is not to be started by who looks on
		if err := awaitDaemon(ctx, &env); err != nil {
			return err
		}
		f.next(began)
	}
}

// replaced tells whether another daemon, or worker, may soon go on in the place of one that ended.
func replaced(err error) bool {
	e, ok := errors.AsType[*control.Error](err)
	return errors.Is(err, errWentAway) || ok && e.Code == control.CodeUnavailable
}

// awaitDaemon waits for the next daemon.
func awaitDaemon(ctx context.Context, env *Env) error {
	deadline := time.Now().Add(patience)
	for {
		err := env.call(ctx, control.OpVersion, nil, nil)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon has stopped: %w", err)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
