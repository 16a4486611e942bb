package registry

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	spareConns = 3                // connections made beside the first one
	spareFor   = 10 * time.Second // how long they wait to be used
)

// spares are connections that were made before anybody needed them. After the
// first answer of a cold registry several requests follow at once. Over HTTP/2
// they share the connection; over HTTP/1.1 all but one would have to connect
// first, which is a round trip, so their connections are made while the first
// request is under way.
type spares struct {
	mu    sync.Mutex
	conns map[string][]net.Conn // by address
	under map[string]int        // being made, by address
}

type spareKey struct{}

// withSpares says that more requests than this one are to come, if it is the
// first to its host.
func withSpares(ctx context.Context, yes bool) context.Context {
	return context.WithValue(ctx, spareKey{}, yes)
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer is dial with a timeout and with spares.
func (r *Registry) dialer(dial dialFunc) dialFunc {
	limited := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, r.opt.Timeouts.Connect)
		defer cancel()
		return dial(ctx, network, addr)
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c := r.spares.take(addr); c != nil {
			return c, nil
		}
		if more, _ := ctx.Value(spareKey{}).(bool); more && r.spares.reserve(addr) {
			for range spareConns {
				r.wg.Go(func() {
					c, err := limited(r.base, network, addr)
					r.spares.put(r.base, addr, c, err)
				})
			}
		}
		return limited(withSpares(ctx, false), network, addr) // it may be a dialer of ours too: see tune
	}
}

// reserve reports whether spares of an address are to be made.
func (s *spares) reserve(addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under[addr] > 0 || len(s.conns[addr]) > 0 {
		return false
	}
	if s.under == nil {
		s.under, s.conns = make(map[string]int), make(map[string][]net.Conn)
	}
	s.under[addr] = spareConns
	return true
}

// put keeps a connection until it is taken, is too old, or base ends.
func (s *spares) put(base context.Context, addr string, c net.Conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under[addr]--; s.under[addr] == 0 {
		delete(s.under, addr)
	}
	switch {
	case err != nil: // whoever needs one will see
	case base.Err() != nil:
		c.Close()
	default:
		s.conns[addr] = append(s.conns[addr], c)
		time.AfterFunc(spareFor, func() { s.drop(addr, c) })
	}
}

func (s *spares) drop(addr string, c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, have := range s.conns[addr] {
		if have == c {
			s.conns[addr] = append(s.conns[addr][:i:i], s.conns[addr][i+1:]...)
			c.Close()
			return
		}
	}
}

// take returns a living spare, or nil.
func (s *spares) take(addr string) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		list := s.conns[addr]
		if len(list) == 0 {
			delete(s.conns, addr)
			return nil
		}
		c := list[0]
		s.conns[addr] = list[1:]
		if silent(c) {
			return c
		}
		c.Close()
	}
}

// clear closes all.
func (s *spares) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.conns {
		for _, c := range list {
			c.Close()
		}
	}
	clear(s.conns)
}

// silent reports whether nothing has come from the other end, not even its end:
// net/http does not repeat a request on a connection that it takes for new.
func silent(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, peek = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && peek == unix.EAGAIN
}
