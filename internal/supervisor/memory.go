package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/snapfs/snapfs/internal/control"
)

// Memories are what must survive a worker and must not be on disk: secrets. The
// supervisor has it for the next worker, and a worker for the next supervisor. With
// both it is gone.
type memories struct {
	mu    sync.Mutex
	state map[string][]byte
}

// Bounds of memories.
const (
	maxMemories = 4
	MaxMemory   = 4 << 20 // bytes of one
)

// All of them, in base64, have to fit into one frame, or no worker could start.
const _ = uint(control.MaxFrame - maxMemories*MaxMemory/3*4 - 1<<20)

func (m *memories) put(name string, state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(state) == 0 {
		delete(m.state, name)
		return nil
	}
	if _, known := m.state[name]; len(state) > MaxMemory || len(name) > 100 || !known && len(m.state) >= maxMemories {
		return invalid("%d bytes to remember as %.100q, beside %d others: beyond the limit", len(state), name, len(m.state))
	}
	if m.state == nil {
		m.state = map[string][]byte{}
	}
	m.state[name] = state
	return nil
}

func (m *memories) all() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.state)
}

func (s *supervisor) remember(r *control.Request) error {
	var all map[string][]byte
	if err := r.Decode(&all); err != nil {
		return err
	}
	for name, state := range all {
		if err := s.memory.put(name, state); err != nil {
			return err
		}
	}
	return nil
}

// Remember keeps state, at most 4 MiB, in memory for the worker after this one,
// in place of what was kept under that name. Empty state is forgotten. Without a supervisor
// it is kept for the next one.
func (w *Worker) Remember(ctx context.Context, name string, state []byte) error {
	w.remembering.Lock() // so that the supervisor gets them in this order
	defer w.remembering.Unlock()
	if err := w.memory.put(name, state); err != nil {
		return err
	}
	if _, err := w.ask(ctx, opStore, map[string][]byte{name: state}, nil); err != nil && !errors.Is(err, ErrNoSupervisor) {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	return nil
}

// Recall returns what this worker or an earlier one has kept under a name; nil for nothing.
func (w *Worker) Recall(name string) []byte { return w.memory.all()[name] }

// recall takes over what earlier workers have kept.
func (w *Worker) recall(ctx context.Context) error {
	var all map[string][]byte
	if _, err := w.ask(ctx, opRecall, nil, &all); err != nil && !errors.Is(err, ErrNoSupervisor) {
		return fmt.Errorf("recall: %w", err)
	}
	for name, state := range all {
		if err := w.memory.put(name, state); err != nil {
			return err
		}
	}
	return nil
}
