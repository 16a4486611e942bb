package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// Remove removes a container; with force a running one, too.
func (s *Service) Remove(ctx context.Context, name string, force bool) (control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return row, err
	}
	if row.Pid != 0 && !force {
		return row, &control.Error{Code: control.CodeInUse, Message: fmt.Sprintf("container %s is running: stop it before removing it, or use --force", row.Name)}
	}
	if err := s.end(ctx, row); err != nil {
		return row, fmt.Errorf("container %s: %w", row.Name, err)
	}
	s.Networks.Release(row.ID, 0)
	if c := s.config(row.ID); c != nil {
		s.event(events.Remove, c)
	}
	s.forget(row.ID)
	return row, s.erase(row.ID)
}

// end kills a running container and waits for its monitor to go.
func (s *Service) end(ctx context.Context, row control.Container) error {
	if row.Socket == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	op, args := monitor.OpRelease, any(nil)
	if row.Pid != 0 {
		op, args = monitor.OpStop, monitor.StopArgs{Signal: "KILL"}
	}
	if _, err := control.Call(ctx, row.Socket, op, args, nil, nil); err != nil && monitor.Alive(s.dir(row.ID)) {
		if _, reported := errors.AsType[*control.Error](err); reported {
			return err
		}
	}
	for monitor.Alive(s.dir(row.ID)) {
		select {
		case <-ctx.Done():
			return s.stuck(row.ID, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// stuck says what to do about a monitor that does not answer, such as one that was stopped.
func (s *Service) stuck(id string, err error) error {
	st, serr := monitor.LoadState(s.dir(id))
	if serr != nil || st.Monitor == 0 {
		return fmt.Errorf("its monitor does not end: %w", err)
	}
	return fmt.Errorf("its monitor, process %d, does not answer: kill -9 %d ends it and the container", st.Monitor, st.Monitor)
}

// endTimeout bounds how long the end of a killed container may take.
const endTimeout = 10 * time.Second

// OpenLog opens the directory that a container's log is in. With the directory
// and not the file, the client finds what comes after a rotation by itself.
func (s *Service) OpenLog(name string) (*os.File, control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return nil, row, err
	}
	if c := s.config(row.ID); c != nil && c.LogOptions.None {
		return nil, row, &control.Error{Code: control.CodeUnsupported, Message: fmt.Sprintf("container %s keeps no log: it was made with --log-driver none", row.Name)}
	}
	f, err := os.OpenFile(s.dir(row.ID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return f, row, err
}

// Inspect returns a container's configuration.
func (s *Service) Inspect(name string) (*monitor.Config, control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return nil, row, err
	}
	return s.config(row.ID), row, nil
}
