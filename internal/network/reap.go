package network

import (
	"context"
	"time"
)

// linger is how long the kernel has to remove a link with its namespace, which
// it does for many at once and in the background. Doing it earlier would make
// starts wait, as links are made and removed under one lock.
const linger = time.Second

// reap sees to it that the links of released endpoints go, and gives their addresses back.
func (s *Service) reap(ctx context.Context) {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			timer.Reset(linger)
			continue
		case <-timer.C:
		}
		if s.reapNow(linger) > 0 {
			timer.Reset(linger)
		}
	}
}

// reapNow does it for those that were released before age, and returns how many are left.
func (s *Service) reapNow(age time.Duration) int {
	now := time.Now()
	s.mu.Lock()
	if s.t == nil { // nothing is known of the bridge yet
		defer s.mu.Unlock()
		return len(s.gone)
	}
	var due, later []gone
	for _, g := range s.gone {
		if now.Sub(g.since) >= age {
			due = append(due, g)
		} else {
			later = append(later, g)
		}
	}
	s.gone = later
	s.mu.Unlock()
	for _, g := range due {
		if err := s.bury(g.entry); err != nil {
			s.Log.Warn("what is left of a container's network", "container", g.ID, "err", err)
			s.mu.Lock()
			later = append(later, g)
			s.gone = append(s.gone, g)
			s.mu.Unlock()
		}
	}
	return len(later)
}

// bury removes a link, if it is still there: somebody else is in its namespace.
func (s *Service) bury(e entry) error {
	if err := s.deleteLink(e.Link); err != nil {
		return err
	}
	s.giveBack(e.IPv4.Addr(), e.IPv6.Addr())
	if err := s.tables().remove(e, isPort); err != nil && !s.damaged(err) {
		s.Log.Debug("tables", "container", e.ID, "err", err)
	}
	return nil
}
