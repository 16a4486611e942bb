package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/cni"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network"
	"github.com/snapfs/snapfs/internal/ports"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// Networks connects containers to the bridge: internal/network's Service.
type Networks interface {
	// Attach makes a namespace for a container that is about to start. The caller closes it.
	Attach(context.Context, network.Request) (*control.Endpoint, *os.File, error)
	// Release undoes it, if the endpoint has that serial; 0 is any.
	Release(id string, serial uint64)
	// Endpoint is that of a container; nil if it has none.
	Endpoint(id string) *control.Endpoint
	// Reconcile releases what a daemon before us has left of containers that have ended.
	Reconcile(alive func(id string) bool) error
}

// Plugins connects containers by CNI: internal/cni's Service. What it has attached
// is released, and known, by way of Networks.
type Plugins interface {
	// Check says whether a container could be attached.
	Check(cni.Request) error
	// Attach makes a namespace for a container that is about to start. The caller closes it.
	Attach(context.Context, cni.Request) (*control.Endpoint, *os.File, error)
	// Publisher is the container that has a port, and the serial of its connection; "": none of these.
	Publisher(control.Port) (id string, serial uint64)
}

// noPlugins is a Plugins of a daemon that runs none.
type noPlugins struct{}

var errNoPlugins error = &control.Error{Code: control.CodeUnsupported, Message: "this daemon runs no plugins"}

func (noPlugins) Check(cni.Request) error { return errNoPlugins }
func (noPlugins) Attach(context.Context, cni.Request) (*control.Endpoint, *os.File, error) {
	return nil, nil, errNoPlugins
}
func (noPlugins) Publisher(control.Port) (string, uint64) { return "", 0 }

// plugged is what is asked of the plugins for a container.
func plugged(id string, c *control.NetworkConfig) cni.Request {
	return cni.Request{ID: id, Network: c.CNI, IPv4: c.IPv4, IPv6: c.IPv6, MAC: c.MAC, Ports: c.Ports}
}

// noNetworks is a Networks of a daemon that has no bridge.
type noNetworks struct{}

func (noNetworks) Attach(context.Context, network.Request) (*control.Endpoint, *os.File, error) {
	return nil, nil, &control.Error{Code: control.CodeUnsupported, Message: "--network bridge: this daemon has none"}
}
func (noNetworks) Release(string, uint64)            {}
func (noNetworks) Endpoint(string) *control.Endpoint { return nil }
func (noNetworks) Reconcile(func(string) bool) error { return nil }

// network works out how a container is to be connected, and completes a's
// network and host name.
func (s *Service) network(a *control.CreateArgs, exposed map[string]struct{}) (c control.NetworkConfig, warnings []string, err error) {
	if a.Network == "" || a.Network == control.NetworkDefault {
		a.Network = cmp.Or(s.Network, control.NetworkBridge)
	}
	c = control.NetworkConfig{
		Mode: a.Network, Ports: a.Publish, IPv4: a.IPv4, IPv6: a.IPv6, MAC: a.MAC,
		DNS: a.DNS, DNSSearch: a.DNSSearch, DNSOptions: a.DNSOptions, Hosts: a.Hosts,
	}
	if err := checkNetwork(&c); err != nil {
		return c, nil, err
	}
	if c.Exposed, warnings, err = exposedPorts(a, exposed); err != nil {
		return c, nil, err
	}
	if err := ports.Check(c.Ports); err != nil {
		return c, nil, invalid("--publish %v", err)
	}
	if a.PublishAll {
		for _, e := range c.Exposed {
			if !slices.ContainsFunc(c.Ports, func(p control.Port) bool { return p.Container == e.Container && p.Proto == e.Proto }) {
				c.Ports = append(c.Ports, e)
			}
		}
		if err := ports.Check(c.Ports); err != nil {
			return c, nil, invalid("--publish-all: %v", err)
		}
	}
	hostname := a.ID[:12]
	configured, byPlugins := control.OfPlugins(a.Network)
	switch name, shared := control.OtherContainer(a.Network); {
	case shared:
		id, err := s.find(name)
		if err != nil {
			return c, nil, fmt.Errorf("--network %s: %w", a.Network, err)
		}
		c.Mode, c.Container = control.NetworkShared, id
		if len(c.Ports) > 0 || len(a.Expose) > 0 {
			return c, nil, invalid("--publish: a container in the network of another one has that one's ports; publish them there")
		}
		if a.Hostname != "" {
			return c, nil, invalid("--hostname: a container in the network of another one has that one's name")
		}
		if len(a.DNS)+len(a.DNSSearch)+len(a.DNSOptions)+len(a.Hosts) > 0 {
			return c, nil, invalid("--dns, --add-host: a container in the network of another one has that one's; give them there")
		}
		if other := s.config(id); other != nil {
			hostname = other.Network.Hostname
		}
	case a.Network == control.NetworkHost:
		if hostname, err = os.Hostname(); err != nil {
			return c, nil, err
		}
		if len(a.Publish) > 0 {
			warnings = append(warnings, "--publish has no effect on the host's network: the container's ports are the host's")
		}
		c.Ports = nil
	case a.Network == control.NetworkNone:
		if len(a.Publish) > 0 {
			warnings = append(warnings, "--publish has no effect without a network")
		}
		c.Ports = nil
	case byPlugins:
		c.Mode, c.CNI = control.NetworkPlugins, configured
		if err := s.Plugins.Check(plugged(a.ID, &c)); err != nil {
			return c, nil, fmt.Errorf("--network %s: %w", a.Network, err)
		}
	case a.Network != control.NetworkBridge:
		return c, nil, &control.Error{Code: control.CodeUnsupported, Message: fmt.Sprintf("--network %q: want bridge, host, none, container:NAME or cni:NAME", a.Network)}
	}
	if a.UTS == ofHost {
		if a.Hostname != "" {
			return c, nil, invalid("--hostname: with --uts host it would be this machine's name")
		}
		if hostname, err = os.Hostname(); err != nil {
			return c, nil, err
		}
	}
	if err := checkHostname(a.Hostname); err != nil {
		return c, nil, err
	}
	a.Hostname = cmp.Or(a.Hostname, hostname)
	c.Hostname = a.Hostname
	return c, warnings, nil
}

// checkHostname keeps a name one word of the files that it is written to, and
// within what the kernel takes (__NEW_UTS_LEN).
func checkHostname(name string) error {
	if len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return unfit(r) || r == '/' || r > '~' }) || strings.HasPrefix(name, "-") {
		return invalid("--hostname %q: want at most 64 letters, digits, dots and hyphens", name)
	}
	return nil
}

// checkNetwork says what cannot be of how a container wants to be connected.
func checkNetwork(c *control.NetworkConfig) error {
	_, byPlugins := control.OfPlugins(c.Mode)
	if c.Mode != control.NetworkBridge && !byPlugins && (c.IPv4.IsValid() || c.IPv6.IsValid() || c.MAC != "") {
		return invalid("--ip, --ip6, --mac-address: only a container on the bridge, or on a network of CNI, has an address of its own")
	}
	if c.IPv4.IsValid() && !c.IPv4.Is4() {
		return invalid("--ip %s: want an IPv4 address", c.IPv4)
	}
	if c.IPv6.IsValid() && (!c.IPv6.Is6() || c.IPv6.Is4In6() || c.IPv6.Zone() != "") {
		return invalid("--ip6 %s: want an IPv6 address", c.IPv6)
	}
	if c.MAC != "" {
		if mac, err := net.ParseMAC(c.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("--mac-address %q: want six bytes, of which the first is even, such as 02:00:00:00:00:01", c.MAC)
		}
	}
	for _, s := range c.DNS {
		if a, err := netip.ParseAddr(s); err != nil || a.IsUnspecified() || a.IsMulticast() {
			return invalid("--dns %q: want the address of a server", s)
		}
	}
	for flag, list := range map[string][]string{"--dns-search": c.DNSSearch, "--dns-option": c.DNSOptions} {
		for _, s := range list {
			if s == "" || len(s) > 255 || strings.ContainsFunc(s, unfit) {
				return invalid("%s %q: want one word", flag, s)
			}
		}
	}
	for _, s := range c.Hosts {
		if _, _, err := parseHost(s); err != nil {
			return invalid("--add-host %v", err)
		}
	}
	return nil
}

// unfit says of which characters no word of a host file is made.
func unfit(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' || r == ';' }

// hostGateway is docker's name for the address at which a container reaches the host.
const hostGateway = "host-gateway"

// parseHost reads one --add-host: NAME:ADDRESS or NAME=ADDRESS. The address of host-gateway is not valid.
func parseHost(s string) (name string, a netip.Addr, err error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		name, value, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" || len(name) > 255 || strings.ContainsFunc(name, unfit) {
		return "", a, fmt.Errorf("%q: want NAME:ADDRESS", s)
	}
	if value == hostGateway {
		return name, a, nil
	}
	value = strings.TrimSuffix(strings.TrimPrefix(value, "["), "]")
	if a, err = netip.ParseAddr(value); err != nil || a.Zone() != "" {
		return "", a, fmt.Errorf("%q: %q is no address, and not %s", s, value, hostGateway)
	}
	return name, a, nil
}

// Bounds of what an image can say that it listens at. A name of a few bytes stands for up to ports.Max.
const (
	maxExposed  = 65536
	maxWarnings = 8
)

// exposedPorts are those of the image and of the user, in order.
func exposedPorts(a *control.CreateArgs, image map[string]struct{}) (list []control.Port, warnings []string, err error) {
	list = slices.Clone(a.Expose)
	for _, name := range slices.Sorted(maps.Keys(image)) {
		p, err := ports.Expose(name)
		if err != nil {
			if len(warnings) < maxWarnings {
				warnings = append(warnings, fmt.Sprintf("the image's config: exposed port %.200v", err))
			}
			continue
		}
		if list = append(list, p...); len(list) > maxExposed {
			return nil, nil, invalid("the image's config: more than %d exposed ports", maxExposed)
		}
	}
	for i := range list {
		list[i] = control.Port{Container: list[i].Container, Proto: list[i].Proto}
	}
	for i := range list {
		if err := ports.Check(list[i : i+1]); err != nil {
			return nil, nil, invalid("--expose %v", err)
		}
	}
	slices.SortFunc(list, func(a, b control.Port) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), strings.Compare(a.Proto, b.Proto))
	})
	return slices.Compact(list), warnings, nil
}

// networkMode is a container's mode as it is shown.
func networkMode(c *monitor.Config) string {
	switch c.Network.Mode {
	case control.NetworkShared:
		return "container:" + c.Network.Container
	case control.NetworkPlugins:
		return "cni:" + c.Network.CNI
	}
	return c.Network.Mode
}

// namespaces are those that exist, or are made here, in which a container is
// about to be started. The caller closes them.
func (s *Service) namespaces(ctx context.Context, c *monitor.Config) (list []monitor.Namespace, err error) {
	defer func() {
		if err != nil {
			closeNamespaces(list)
			list = nil
		}
	}()
	user, inner, err := s.userNamespace(ctx, c)
	if err != nil {
		return nil, err
	}
	if user != nil {
		list = append(list, monitor.Namespace{Kind: monitor.Users, File: user})
	}
	if inner != nil {
		defer inner.Close()
	}
	var e *control.Endpoint
	switch c.Network.Mode {
	case control.NetworkBridge:
		s.Networks.Release(c.ID, 0) // of an earlier start
		var ns *os.File
		if e, ns, err = s.attach(ctx, c, inner); err != nil {
			return list, err
		}
		list = append(list, monitor.Namespace{Kind: "network", File: ns})
	case control.NetworkPlugins: // which release that of an earlier start
		var ns *os.File
		if e, ns, err = s.attach(ctx, c, inner); err != nil {
			return list, err
		}
		list = append(list, monitor.Namespace{Kind: "network", File: ns})
	case control.NetworkShared:
		ns, err := s.namespaceOf(c.Network.Container, "net")
		if err != nil {
			return list, fmt.Errorf("--network container: %w", err)
		}
		list = append(list, monitor.Namespace{Kind: "network", File: ns})
	}
	for kind, id := range c.Joins {
		ns, err := s.namespaceOf(id, kind)
		if err == nil {
			list = append(list, monitor.Namespace{Kind: kind, File: ns})
			if kind == "ipc" { // with its /dev/shm
				if ns, err = s.namespaceOf(id, "mnt"); err == nil {
					list = append(list, monitor.Namespace{Kind: monitor.SharedMemory, File: ns})
				}
			}
		}
		if err != nil {
			s.Networks.Release(c.ID, 0)
			return list, fmt.Errorf("--%s container: %w", joinFlags[kind], err)
		}
	}
	if err := s.hostFiles(c, e); err != nil {
		s.Networks.Release(c.ID, 0)
		return list, err
	}
	return list, nil
}

func closeNamespaces(list []monitor.Namespace) {
	for _, n := range list {
		n.File.Close()
	}
}

// attach connects a container to the bridge, or has plugins connect it. A port whose holder has ended a
// moment ago, of which we are about to hear, is free.
func (s *Service) attach(ctx context.Context, c *monitor.Config, inner *os.File) (*control.Endpoint, *os.File, error) {
	r := network.Request{ID: c.ID, Ports: c.Network.Ports, IPv4: c.Network.IPv4, IPv6: c.Network.IPv6, MAC: c.Network.MAC, Namespace: inner}
	last := uint64(0) // that was released, which plugins may not manage
	for {
		e, ns, err := s.attachOnce(ctx, c, r)
		taken, ok := errors.AsType[*network.TakenError](err)
		switch {
		case !ok && err != nil:
			return nil, nil, err
		case !ok:
			return e, ns, nil
		}
		id, serial := s.publisher(taken)
		taken.By = cmp.Or(id, taken.By)
		if id == "" || serial == last || s.inUse(id) {
			return nil, nil, &control.Error{Code: control.CodeInUse, Message: s.explainTaken(taken)}
		}
		last = serial
		s.Networks.Release(id, serial)
	}
}

func (s *Service) attachOnce(ctx context.Context, c *monitor.Config, r network.Request) (e *control.Endpoint, ns *os.File, err error) {
	if c.Network.Mode == control.NetworkPlugins {
		q := plugged(c.ID, &c.Network)
		q.Namespace = r.Namespace
		if e, ns, err = s.Plugins.Attach(ctx, q); err != nil {
			err = fmt.Errorf("--network cni:%s: %w", c.Network.CNI, err)
		}
		return e, ns, err
	}
	if e, ns, err = s.Networks.Attach(ctx, r); err != nil {
		err = fmt.Errorf("--network bridge: %w (without a bridge: --network host or none)", err)
	}
	return e, ns, err
}

// publisher is the container that has a port which was found to be taken, and the
// serial of its connection; "" if it is another program.
func (s *Service) publisher(t *network.TakenError) (id string, serial uint64) {
	if e := s.Networks.Endpoint(t.By); e != nil {
		return t.By, e.Serial
	}
	return s.Plugins.Publisher(t.Port)
}

func (s *Service) explainTaken(e *network.TakenError) string {
	if c := s.config(e.By); c != nil {
		e.By = c.Name
	}
	return e.Error()
}

// inUse says whether the container has a monitor, or is being given one.
func (s *Service) inUse(id string) bool {
	s.mu.Lock()
	spawning := s.spawning[id]
	s.mu.Unlock()
	return spawning || monitor.Alive(s.dir(id))
}

// join connects a container that was created, but not started, so that it can be.
//
// An endpoint on record says that the monitor has its namespace, unless the monitor says
// that it has none: whoever made the endpoint was killed before it handed it over. That
// stays true because the monitor has given up an earlier one by the time another is made.
func (s *Service) join(ctx context.Context, c *monitor.Config) error {
	st, err := monitor.LoadState(s.dir(c.ID))
	if err != nil || st.Status == monitor.StatusRunning {
		return err
	}
	if c.Network.Mode == control.NetworkBridge || c.Network.Mode == control.NetworkPlugins {
		if s.Networks.Endpoint(c.ID) != nil {
			if has, err := s.joined(ctx, c); err != nil || has {
				return err
			}
		}
		switch err := monitor.Join(ctx, c.Socket, monitor.JoinArgs{}, nil); {
		case isStarted(err):
			return nil
		case err != nil:
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	list, err := s.namespaces(ctx, c)
	if err != nil || len(list) == 0 {
		return err
	}
	defer closeNamespaces(list)
	var a monitor.JoinArgs
	var files []*os.File
	for _, n := range list {
		a.Kinds, files = append(a.Kinds, n.Kind), append(files, n.File)
	}
	e := s.Networks.Endpoint(c.ID)
	if err := monitor.Join(ctx, c.Socket, a, files); err != nil {
		if e != nil {
			s.Networks.Release(c.ID, e.Serial)
		}
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	return nil
}

// joined says whether the container's monitor has been given a network. Of one that
// cannot tell, being of a version before OpJoined, it is taken for granted.
func (s *Service) joined(ctx context.Context, c *monitor.Config) (bool, error) {
	kinds, err := monitor.Joined(ctx, c.Socket)
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeUnsupported {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return slices.Contains(kinds, "network"), nil
}

// isStarted says of a monitor's answer that somebody else has started the container meanwhile.
func isStarted(err error) bool {
	e, ok := errors.AsType[*control.Error](err)
	return ok && e.Code == monitor.CodeRunning
}

// namespaceOf opens a namespace of a running container, by what /proc calls it.
func (s *Service) namespaceOf(id, kind string) (*os.File, error) {
	row, ok := s.row(id)
	if !ok {
		return nil, notFound(id[:12])
	}
	st, err := monitor.LoadState(s.dir(id))
	if err != nil {
		return nil, err
	}
	if row.Pid == 0 || st.Pid != row.Pid {
		return nil, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("container %s does not run: start it first", row.Name)}
	}
	fd, err := unix.PidfdOpen(st.Pid, 0)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", row.Name, err)
	}
	defer unix.Close(fd)
	f, err := os.Open("/proc/" + strconv.Itoa(st.Pid) + "/ns/" + kind)
	if err == nil && !monitor.IsProcess(st.Pid, st.PidStart) { // the pid may be somebody else's by now
		f.Close()
		err = unix.ESRCH
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", row.Name, err)
	}
	return f, nil
}

// disconnect releases the network of a container that has ended. Another start
// may have given it a new one meanwhile.
func (s *Service) disconnect(c *monitor.Config) {
	if e := s.Networks.Endpoint(c.ID); e != nil && !s.inUse(c.ID) {
		s.Networks.Release(c.ID, e.Serial)
	}
}

// reconcileNetworks runs once, beside everything else: networks are not what a daemon that takes over is waited for.
func (s *Service) reconcileNetworks() {
	if err := s.Networks.Reconcile(s.inUse); err != nil {
		s.Log.Error("the containers' network cannot be put in order", "err", err)
	}
}
