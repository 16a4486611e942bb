package network

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A relay carries connections that are made to [::1] on to a container. The
// kernel redirects all others, but takes no packets for ::1 that come by a link
// other than lo (rt6_need_strict in net/ipv6/route.c), as answers would, and has no
// route_localnet for IPv6. It listens on the sockets that reserve the ports.
type relay struct {
	to     []netip.Addr // the container's addresses, by preference
	log    *slog.Logger
	base   context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup

	listeners []net.Listener
}

// Bounds of a relay.
const (
	relayConns   = 512 // connections of one container at a time
	relayDial    = 5 * time.Second
	relayBacklog = 128
)

// newRelay begins to relay for those of an endpoint's TCP ports that are
// published at ::1; nil if there are none.
func newRelay(e *endpoint, log *slog.Logger) *relay {
	r := &relay{to: []netip.Addr{e.IPv6.Addr(), e.IPv4.Addr()}, log: log}
	r.base, r.cancel = context.WithCancel(context.Background())
	slots := make(chan struct{}, relayConns)
	for i, b := range e.Ports {
		if b.Proto != "tcp" || !relayed(b.HostIP) || i >= len(e.socks) || e.socks[i] == nil {
			continue
		}
		l, err := net.FileListener(e.socks[i])
		if err != nil {
			log.Warn("a port is not published at ::1", "container", e.ID, "port", b.String(), "err", err)
			continue
		}
		r.listeners = append(r.listeners, l)
		r.all.Go(func() { r.accept(l, b.Container, slots) })
	}
	if len(r.listeners) == 0 {
		r.cancel()
		return nil
	}
	return r
}

// relayed says at which addresses TCP has a relay.
func relayed(a netip.Addr) bool { return a.Is6() && (a.IsUnspecified() || a.IsLoopback()) }

func (r *relay) close() {
	if r == nil {
		return
	}
	r.cancel()
	for _, l := range r.listeners {
		l.Close()
	}
	r.all.Wait()
}

func (r *relay) accept(l net.Listener, port uint16, slots chan struct{}) {
	for {
		c, err := l.Accept()
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			select {
			case <-r.base.Done():
			case <-time.After(10 * time.Millisecond): // descriptors come back as connections end
			}
			continue
		}
		if err != nil {
			return // closed
		}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
			c.Close() // it came while there was no redirection
			continue
		}
		select {
		case slots <- struct{}{}:
			r.all.Go(func() {
				defer func() { <-slots }()
				r.carry(c.(*net.TCPConn), port)
			})
		default:
			c.Close()
		}
	}
}

// carry connects c with the container and copies until both directions have ended.
func (r *relay) carry(c *net.TCPConn, port uint16) {
	defer c.Close()
	d := net.Dialer{Timeout: relayDial}
	var far *net.TCPConn
	for _, a := range r.to {
		if !a.IsValid() {
			continue
		}
		n, err := d.DialContext(r.base, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		if err == nil {
			far = n.(*net.TCPConn)
			break
		}
	}
	if far == nil {
		c.SetLinger(0) // refused, as far as that can still be said
		return
	}
	defer far.Close()
	defer context.AfterFunc(r.base, func() { c.Close(); far.Close() })()
	var both sync.WaitGroup
	for _, p := range [][2]*net.TCPConn{{c, far}, {far, c}} {
		both.Go(func() {
			io.Copy(p[1], p[0]) //nolint:errcheck // the end of one direction is all there is to say
			p[1].CloseWrite()
			p[0].CloseRead()
		})
	}
	both.Wait()
}
