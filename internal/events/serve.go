package events

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// maxFollowers bounds how many requests may follow a Log at once.
const maxFollowers = 64

// Serve answers one OpEvents: it gives send the events that a asks for until
// there are no more, a.Until has come, ctx ends or send fails. send may take as
// long as it likes.
func (l *Log) Serve(ctx context.Context, a control.EventsArgs, send func(control.Event) error) error {
	f := Filter(a.Filter)
	if err := f.Check(); err != nil {
		return err
	}
	if a.Follow {
		if l.followers.Add(1) > maxFollowers {
			l.followers.Add(-1)
			return &control.Error{Code: control.CodeUnavailable, Message: fmt.Sprintf("%d clients follow the events already", maxFollowers)}
		}
		defer l.followers.Add(-1)
	}
	if !a.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, a.Until, errUntil)
		defer cancel()
	}
	s := sending{a, f, send}
	r := l.Read(a.After)
	batch, lost := r.Kept()
	if a.After == 0 && a.Since.IsZero() {
		lost = 0 // all that is known was asked for
	}
	for {
		if err := s.batch(batch, lost); err != nil || !a.Follow {
			return err
		}
		var err error
		if batch, lost, err = r.Next(ctx); err != nil {
			if errors.Is(context.Cause(ctx), errUntil) {
				return nil
			}
			return err
		}
	}
}

var errUntil = errors.New("the time has come")

// A sending is what one client asked for.
type sending struct {
	a    control.EventsArgs
	f    Filter
	send func(control.Event) error
}

func (s *sending) batch(batch []control.Event, lost uint64) error {
	// What was lost before the first that is left is of no interest if that is older than what was asked for.
	if lost > 0 && (len(batch) == 0 || !batch[0].Time.Before(s.a.Since)) {
		e := control.Event{Time: time.Now().UTC(), Type: Events, Action: Lost, Attributes: Attrs("count", lost)}
		if len(batch) > 0 {
			e.Time = batch[0].Time
		}
		if err := s.send(e); err != nil {
			return err
		}
	}
	for i := range batch {
		e := &batch[i]
		if e.Time.Before(s.a.Since) || !s.a.Until.IsZero() && e.Time.After(s.a.Until) || !s.f.Fits(e) {
			continue
		}
		if err := s.send(*e); err != nil {
			return err
		}
	}
	return nil
}
