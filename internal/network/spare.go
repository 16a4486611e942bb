package network

import (
	"context"
	"os"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// A spare is an endpoint without a container, made ahead: all of a connection but
// what is the container's own. It is on no record, and dies with this process, as nobody else has its namespace.
type spare struct {
	e  *endpoint
	ns *os.File
}

// restPause is how long after a container another spare is made: the container
// that has just been connected is about to start, and needs the CPU and the
// kernel's lock on links.
const restPause = 50 * time.Millisecond

// stock makes a spare, a moment after the last was used.
func (s *Service) stock(ctx context.Context) {
	if !s.Ahead {
		return
	}
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.used:
			timer.Reset(restPause)
		case <-timer.C:
			if err := s.makeSpare(); err != nil {
				s.Log.Debug("no connection was made ahead", "err", err)
			}
		}
	}
}

func (s *Service) restock() {
	select {
	case s.used <- struct{}{}:
	default:
	}
}

func (s *Service) makeSpare() error {
	s.setup.Lock() // so that nobody takes its link for a stray
	defer s.setup.Unlock()
	s.mu.Lock()
	have := s.spare != nil
	s.mu.Unlock()
	if have || !s.ready {
		return nil
	}
	e := &endpoint{Endpoint: control.Endpoint{Bridge: s.Bridge}}
	if err := s.tryTake(e, Request{}); err != nil {
		return err
	}
	ns, err := s.make(e)
	if err != nil {
		s.giveBack(e.IPv4.Addr(), e.IPv6.Addr())
		return err
	}
	s.putSpare(e, ns)
	return nil
}

// takeSpare returns the spare, if it fits the request and is still connected.
func (s *Service) takeSpare(r Request) (*endpoint, *os.File) {
	if r.MAC != "" || r.IPv4.IsValid() || r.IPv6.IsValid() {
		return nil, nil
	}
	s.mu.Lock()
	p, bridge := s.spare, s.index
	s.spare = nil
	s.mu.Unlock()
	if p == nil {
		return nil, nil
	}
	if l, err := s.h.LinkByName(p.e.Link); err != nil || l.Attrs().MasterIndex != bridge || l.Attrs().Index != p.e.index {
		s.drop(p)
		return nil, nil
	}
	return p.e, p.ns
}

func (s *Service) putSpare(e *endpoint, ns *os.File) {
	s.mu.Lock()
	old := s.spare
	s.spare = &spare{e, ns}
	s.mu.Unlock()
	if old != nil {
		s.drop(old)
	}
}

func (s *Service) dropSpare() {
	s.mu.Lock()
	p := s.spare
	s.spare = nil
	s.mu.Unlock()
	if p != nil {
		s.drop(p)
	}
}

// drop lets go of a spare. Its addresses are free when its link is gone.
func (s *Service) drop(p *spare) {
	p.ns.Close()
	s.mu.Lock()
	s.gone = append(s.gone, gone{entry{&p.e.Endpoint, 0}, time.Now()})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
