// Package network connects containers to a bridge of the daemon's own, as
// Docker's default network does: addresses, a way out by network address
// translation, and published ports.
//
//	container's namespace     host
//	  eth0 ───────────── sv3.0002 ┐
//	  eth0 ───────────── sv3.0003 ┴ snapfs0 10.201.0.1/16, fd…::1/64   nftables: tables inet and bridge snapfs0
//
// The worker does it, by system calls alone: netlink, nftables, and a thread
// that goes into a new namespace and comes back. It forks nothing, and package
// network never looks at a file system but /proc and its own records.
//
// A connected container is an endpoint, of which RUN/network/ID.json is the
// record, written before anything is made; everything else can be worked out from
// the records and the kernel. So after a crash, Reconcile drops the records of
// containers that have ended meanwhile, and replaces the tables. The namespace
// itself is a descriptor that is handed to the container's monitor: when the last
// who has it ends, the kernel removes the namespace and both ends of its link.
//
// Nothing is made before the first container asks: a daemon that only serves
// containerd leaves the host's network alone.
//
// Invariants:
//   - An address is given out again only when its link is gone.
//   - Tables, links and sysctls that are not ours stay as they are, with the
//     exception of forwarding (type forwarding).
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Options of a Service.
type Options struct {
	Run    string       // directory of the records, on a file system that dies with the machine
	Root   string       // directory of network.json, which keeps the choice of subnets
	Bridge string       // name of the bridge and of the tables
	IPv4   netip.Prefix // its subnets; one that is not valid is chosen so that it overlaps no route
	IPv6   netip.Prefix
	NoIPv6 bool
	MTU    int          // 0: that of the default route's link, at most 1500
	Ahead  int          // how many connections are kept ready for containers to come, at most MaxAhead
	Eager  bool         // from the beginning, and not only from the first container on
	Log    *slog.Logger // nil: discard
}

// A Service is the bridge of one daemon. It is safe for concurrent use.
type Service struct {
	Options
	base    context.Context // lifetime of what goes on in the background
	cancel  context.CancelFunc
	reaping sync.WaitGroup
	serial  atomic.Uint64 // of the newest endpoint
	wake    chan struct{} // something was released
	used    chan struct{} // a spare may have been taken

	setup sync.Mutex  // held while the bridge is being looked after; before mu
	ready atomic.Bool // what setup looks after is there, as far as we know
	asks  int         // a socket for isLink
	h     *netlink.Handle
	fwd   *forwarding

	mu        sync.Mutex
	t         *tables
	index     int // of the bridge
	mtu       int
	pool4     *pool
	pool6     *pool // nil without IPv6
	endpoints map[string]*endpoint
	gone      []gone   // released, but their links may still be there
	ahead     int      // how many spares there are to be
	spares    []*spare // made ahead, the oldest first
	counts    control.PoolBridge
}

type endpoint struct {
	control.Endpoint
	index int        // of its link on the host; 0 before it is made
	socks []*os.File // reserve its ports, in their order; nil where that failed
	relay *relay     // for ::1; nil if there is none
	inner *os.File   // the namespace that it is to be in, while it is being made; nil: a new one

	released chan struct{} // closed when Release has; nil before it begins
}

// gone is an endpoint that was released.
type gone struct {
	entry
	since time.Time
}

// MaxBridge is the length of the longest name that a bridge can have.
const MaxBridge = unix.IFNAMSIZ - 1

// Open reads the records. It changes nothing; see Reconcile. Close ends it.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Run, 0o700); err != nil {
		return nil, err
	}
	s := &Service{Options: o, endpoints: map[string]*endpoint{}, wake: make(chan struct{}, 1), used: make(chan struct{}, 1)}
	s.serial.Store(uint64(time.Now().UnixNano())) // above those of a daemon before
	entries, err := os.ReadDir(o.Run)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || len(id) != idLen {
			continue
		}
		ep, err := readRecord(filepath.Join(o.Run, e.Name()), id)
		if err != nil {
			o.Log.Warn("record of a container's network dropped", "container", id, "err", err)
			os.Remove(filepath.Join(o.Run, e.Name()))
			continue
		}
		s.endpoints[id] = &endpoint{Endpoint: *ep}
	}
	if s.fwd, err = openForwarding(o.Run); err != nil {
		return nil, err
	}
	s.ahead = min(o.Ahead, MaxAhead)
	if s.asks, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.base = ctx
	s.reaping.Go(func() { s.reap(ctx) })
	s.reaping.Go(func() { s.stock(ctx) })
	return s, nil
}

const (
	recordSuffix = ".json"
	idLen        = 64
)

func readRecord(path, id string) (*control.Endpoint, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	e := new(control.Endpoint)
	if err := json.Unmarshal(b, e); err != nil {
		return nil, err
	}
	if _, err := net.ParseMAC(e.MAC); err != nil {
		return nil, err
	}
	if e.ID != id || !e.IPv4.IsValid() || e.Link == "" {
		return nil, errors.New("it is incomplete")
	}
	return e, nil
}

func (s *Service) record(id string) string { return filepath.Join(s.Run, id+recordSuffix) }

// Close ends the service. What it has made stays, as the containers do.
func (s *Service) Close() error {
	s.mu.Lock() // see attend
	s.cancel()
	s.mu.Unlock()
	s.reaping.Wait()
	s.dropSpares(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.endpoints {
		e.relay.close()
		closeAll(e.socks)
		e.relay, e.socks = nil, nil
	}
	if s.asks >= 0 {
		unix.Close(s.asks)
		s.asks = -1
	}
	if s.h != nil {
		s.h.Close()
	}
	if s.t != nil {
		return s.t.close()
	}
	return nil
}

// Reconcile makes true what the records say, after the death of a daemon:
// endpoints of which alive says that nobody can use them are released, ports are
// reserved again, and the tables are replaced. Without records it does nothing.
func (s *Service) Reconcile(alive func(id string) bool) error {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.endpoints))
	s.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	if err := s.prepare(); err != nil {
		return err
	}
	for _, id := range ids {
		if !alive(id) {
			s.Release(id, 0)
		}
	}
	return nil
}

func (s *Service) tables() *tables {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t
}

// Endpoint returns that of a container, nil if it has none.
func (s *Service) Endpoint(id string) *control.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endpoints[id]
	if e == nil {
		return nil
	}
	c := e.Endpoint
	return &c
}

// A Request asks for an endpoint.
type Request struct {
	ID         string     // of the container, 64 hex digits
	IPv4, IPv6 netip.Addr // zero: any
	MAC        string     // "": made of the IPv4 address
	Ports      []control.Port
	Namespace  *os.File // that it is to be in, such as one of a user namespace's; nil: a new one. It stays the caller's
}

// Attach connects a container that is about to start, and returns the namespace
// that it is to run in; the caller closes it. A port that somebody has is a *TakenError.
func (s *Service) Attach(ctx context.Context, r Request) (*control.Endpoint, *os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, nil, err
	}
	e, ns, err := s.begin(r)
	if err != nil {
		return nil, nil, err
	}
	e.inner = r.Namespace
	defer func() { e.inner = nil }()
	ns, err = s.connect(e, ns)
	if s.damaged(err) {
		s.Log.Warn("the containers' bridge or its tables are not as they were; making them anew", "err", err)
		// First the link: the new tables then know nothing of the old one's number.
		err = s.deleteLink(e.Link)
		s.mu.Lock()
		e.index = 0
		s.mu.Unlock()
		if err = errors.Join(err, s.repair()); err == nil {
			ns, err = s.connect(e, nil)
		}
	}
	if err != nil {
		s.Release(r.ID, e.Serial)
		return nil, nil, err
	}
	s.restock()
	c := e.Endpoint
	return &c, ns, nil
}

// begin gives an endpoint its addresses and ports, and records it. If it was made
// ahead, ns is its namespace.
func (s *Service) begin(r Request) (*endpoint, *os.File, error) {
	if r.Namespace != nil { // a spare has one of its own
		s.mu.Lock()
		s.miss(missUsers)
		s.mu.Unlock()
		e, err := s.allocate(r)
		return e, nil, err
	}
	if p := s.takeSpare(r); p != nil {
		if err := s.claim(p.e, r); err != nil {
			s.putSpare(p)
			return nil, nil, err
		}
		return p.e, p.ns, nil
	}
	e, err := s.allocate(r)
	return e, nil, err
}

// damaged says whether an error is that of somebody who has removed our bridge or tables.
func (s *Service) damaged(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// allocate is begin without what was made ahead.
func (s *Service) allocate(r Request) (*endpoint, error) {
	e := &endpoint{Endpoint: control.Endpoint{Bridge: s.Bridge}}
	if err := s.takeAddresses(e, r); err != nil {
		return nil, err
	}
	if err := s.claim(e, r); err != nil {
		s.giveBack(e.IPv4.Addr(), e.IPv6.Addr())
		return nil, err
	}
	return e, nil
}

// claim makes an endpoint that of a container: with its ports, and on record.
func (s *Service) claim(e *endpoint, r Request) (err error) {
	e.ID, e.Serial = r.ID, s.serial.Add(1)
	e.Ports, e.socks, err = reserve(r.Ports, e.IPv6.IsValid())
	if t, ok := errors.AsType[*TakenError](err); ok {
		t.By = s.owner(t.Port)
	}
	if err == nil {
		err = s.enter(e)
	}
	if err != nil {
		closeAll(e.socks)
		e.Ports, e.socks = nil, nil
	}
	return err
}

func (s *Service) takeAddresses(e *endpoint, r Request) error {
	err := s.tryTake(e, r)
	if errors.Is(err, errNoAddress) || err != nil && (r.IPv4.IsValid() || r.IPv6.IsValid()) {
		s.dropSpares(0) // some are only waiting, for a container or for their links to go
		s.reapNow(0)
		err = s.tryTake(e, r)
	}
	return err
}

func (s *Service) tryTake(e *endpoint, r Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.pool4.take(r.IPv4)
	if err != nil {
		return err
	}
	n, _ := s.pool4.index(a)
	e.IPv4, e.Gateway4 = netip.PrefixFrom(a, s.pool4.subnet.Bits()), s.pool4.gateway()
	e.Link = linkName(s.index, n)
	mac := hardware(a)
	e.MAC = net.HardwareAddr(mac[:]).String()
	if r.MAC != "" {
		e.MAC = r.MAC
	}
	switch {
	case s.pool6 != nil:
		if a, err = s.pool6.take(r.IPv6); err != nil {
			s.pool4.give(e.IPv4.Addr())
			return err
		}
		e.IPv6, e.Gateway6 = netip.PrefixFrom(a, s.pool6.subnet.Bits()), s.pool6.gateway()
	case r.IPv6.IsValid():
		s.pool4.give(e.IPv4.Addr())
		return fmt.Errorf("address %s: containers have no IPv6 addresses on this machine", r.IPv6)
	}
	return nil
}

func (s *Service) giveBack(addrs ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addrs {
		if a.Is4() {
			s.pool4.give(a)
		} else if a.Is6() && s.pool6 != nil {
			s.pool6.give(a)
		}
	}
}

// enter records an endpoint, before anything is made for it.
func (s *Service) enter(e *endpoint) error {
	b, err := json.Marshal(&e.Endpoint)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endpoints[e.ID] != nil {
		return fmt.Errorf("container %s is connected already", e.ID[:12])
	}
	if err := writeFile(s.record(e.ID), b); err != nil {
		return err
	}
	s.endpoints[e.ID] = e
	return nil
}

// owner is the container of ours at which a port is published, or "".
func (s *Service) owner(p control.Port) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ip, _ := netip.ParseAddr(p.HostIP)
	for id, e := range s.endpoints {
		for _, b := range e.Ports {
			if b.Proto == p.Proto && b.Host >= p.Host && b.Host <= max(p.Host, p.HostEnd) &&
				(!ip.IsValid() || b.HostIP == ip || b.HostIP.IsUnspecified()) {
				return id
			}
		}
	}
	return ""
}

// Release takes a container's connection away, if it is still the one with that
// serial; 0 is any. It may be called again, and returns when that is done. Errors
// are logged: what is left goes with the namespace, or with the next tables.
func (s *Service) Release(id string, serial uint64) {
	s.mu.Lock()
	e := s.endpoints[id]
	if e == nil || serial != 0 && e.Serial != serial {
		s.mu.Unlock()
		return
	}
	if done := e.released; done != nil {
		s.mu.Unlock()
		<-done
		return
	}
	e.released = make(chan struct{})
	defer close(e.released)
	s.mu.Unlock()
	s.silence(e)
	if err := os.Remove(s.record(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("record of a container's network", "container", id, "err", err)
	}
	s.mu.Lock()
	r := e.relay
	e.relay = nil
	s.mu.Unlock()
	r.close()
	s.mu.Lock()
	closeAll(e.socks)
	delete(s.endpoints, id)
	s.gone = append(s.gone, gone{entry{&e.Endpoint, e.index}, time.Now()})
	s.closeLoopback(e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// silence takes an endpoint that is being released out of the tables. It locks setup, if need be.
func (s *Service) silence(e *endpoint) {
	t := s.tables()
	var err error
	if t == nil { // those of a daemon before us are replaced first, by what leaves e out
		err = s.prepare()
	} else if err = t.remove(s.entryOf(e), says); err != nil {
		s.Log.Debug("tables", "container", e.ID, "err", err)
		err = s.repair()
	}
	if err != nil {
		s.Log.Warn("the containers' tables cannot be made anew", "err", err)
	}
}

// closeLoopback undoes openLoopback after the last endpoint that needs it. mu is held.
func (s *Service) closeLoopback(e *endpoint) {
	if !onLoopback(&e.Endpoint) {
		return
	}
	for _, other := range s.endpoints {
		if onLoopback(&other.Endpoint) {
			return
		}
	}
	if err := setSysctl("ipv4/conf/"+s.Bridge+"/route_localnet", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("route_localnet", "bridge", s.Bridge, "err", err)
	}
}
