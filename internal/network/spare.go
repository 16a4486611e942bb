package network

import (
	"context"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// A spare is an endpoint without a container, made ahead: all of a connection but
// what is the container's own. It is on no record, and dies with this process, as nobody else has its namespace.
type spare struct {
	e  *endpoint
	ns *os.File
}

// MaxAhead is how many connections can be kept ready: a bridge has 1,023.
const MaxAhead = 256

// Of the refilling.
const (
	// restPause is how long after a container another spare is made: the container
	// that has just been connected is about to start, and needs the CPU and the
	// kernel's lock on links.
	restPause = 50 * time.Millisecond
	// maxPause is for how long, at most, while containers come all the time.
	maxPause = 250 * time.Millisecond
)

// Why a connection was not one that had been made ahead.
const (
	missEmpty  = "empty"  // there was none
	missAsked  = "asked"  // for an address of its own
	missUsers  = "users"  // it is a user namespace's
	missBroken = "broken" // somebody has removed its link, or the bridge
)

// stock makes spares until there are enough, a moment after one was used.
func (s *Service) stock(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	if !s.Eager {
		<-timer.C
	} else if err := s.prepare(); err != nil {
		s.Log.Warn("no connections are made ahead", "err", err)
	}
	var short time.Time // since when one has been missing; zero: none is
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.used:
			now := time.Now()
			if short.IsZero() {
				short = now
			}
			timer.Reset(min(restPause, max(0, short.Add(maxPause).Sub(now))))
			continue
		case <-timer.C:
		}
		switch made, err := s.makeSpare(); {
		case err != nil:
			s.Log.Debug("no connection was made ahead", "err", err)
			short = time.Time{}
		case made:
			short = time.Now()
			timer.Reset(0)
		default:
			short = time.Time{}
		}
	}
}

func (s *Service) restock() {
	select {
	case s.used <- struct{}{}:
	default:
	}
}

// makeSpare makes one, unless there are enough.
func (s *Service) makeSpare() (made bool, err error) {
	s.setup.Lock() // so that nobody takes its link for a stray
	defer s.setup.Unlock()
	s.mu.Lock()
	enough := len(s.spares) >= s.ahead || s.base.Err() != nil
	s.mu.Unlock()
	if enough || !s.ready.Load() {
		return false, nil
	}
	e := &endpoint{Endpoint: control.Endpoint{Bridge: s.Bridge}}
	if err := s.tryTake(e, Request{}); err != nil {
		return false, err
	}
	ns, err := s.make(e)
	if err != nil {
		s.giveBack(e.IPv4.Addr(), e.IPv6.Addr())
		return false, err
	}
	p := &spare{e, ns}
	s.mu.Lock()
	s.counts.Made++
	enough = len(s.spares) >= s.ahead // by now
	if !enough {
		s.spares = append(s.spares, p)
	}
	s.mu.Unlock()
	if enough {
		s.drop(p)
	}
	return !enough, nil
}

// takeSpare returns a spare, if one fits the request and is still connected.
func (s *Service) takeSpare(r Request) *spare {
	s.mu.Lock()
	if s.ahead == 0 {
		s.mu.Unlock()
		return nil
	}
	if r.MAC != "" || r.IPv4.IsValid() || r.IPv6.IsValid() {
		s.miss(missAsked)
		s.mu.Unlock()
		return nil
	}
	if len(s.spares) == 0 {
		s.miss(missEmpty)
		s.mu.Unlock()
		return nil
	}
	p, bridge := s.spares[0], s.index
	s.spares = slices.Delete(s.spares, 0, 1)
	s.mu.Unlock()
	broken := !s.isLink(p.e.index, p.e.Link) || !s.isLink(bridge, s.Bridge)
	s.mu.Lock()
	if broken {
		s.miss(missBroken)
	} else {
		s.counts.Hits++
	}
	s.mu.Unlock()
	if broken {
		s.drop(p)
		return nil
	}
	return p
}

// miss counts one. mu is held.
func (s *Service) miss(why string) {
	if s.counts.Misses == nil {
		s.counts.Misses = map[string]int64{}
	}
	s.counts.Misses[why]++
}

// isLink says whether a link is still the one of that name. This question waits
// for nobody, while one by netlink takes the lock on links (RTNL), which the kernel holds
// for milliseconds when the namespaces of containers that have ended go (dev_ifname in
// net/core/dev_ioctl.c, Linux 6.18).
func (s *Service) isLink(index int, name string) bool {
	r, err := unix.NewIfreq("x") // the name is for the answer
	if err != nil || s.asks < 0 {
		return false
	}
	r.SetUint32(uint32(index))
	return unix.IoctlIfreq(s.asks, unix.SIOCGIFNAME, r) == nil && r.Name() == name
}

// putSpare takes one back that was not used.
func (s *Service) putSpare(p *spare) {
	s.mu.Lock()
	s.counts.Hits--
	keep := len(s.spares) < s.ahead
	if keep {
		s.spares = slices.Insert(s.spares, 0, p)
	}
	s.mu.Unlock()
	if !keep {
		s.drop(p)
	}
}

// dropSpares lets go of all but n.
func (s *Service) dropSpares(n int) {
	s.mu.Lock()
	n = min(n, len(s.spares))
	list := slices.Clone(s.spares[n:])
	s.spares = s.spares[:n]
	s.mu.Unlock()
	for _, p := range list {
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

// Keep changes how many connections are kept ready, if any are.
func (s *Service) Keep(n int) {
	s.mu.Lock()
	if s.ahead == 0 && s.Ahead == 0 {
		s.mu.Unlock()
		return
	}
	s.ahead = min(max(n, 0), MaxAhead)
	n = s.ahead
	s.mu.Unlock()
	s.dropSpares(n)
	s.restock()
}

// Drain gives up the connections that are ready. Others are made after the next use.
func (s *Service) Drain() { s.dropSpares(0) }

// Spares shows what is kept ready.
func (s *Service) Spares() control.PoolBridge {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	c.Size, c.Ready, c.Misses = s.ahead, len(s.spares), maps.Clone(c.Misses)
	return c
}
