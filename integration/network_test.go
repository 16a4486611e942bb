package integration

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// networkMachine is a containerMachine with a bridge of its own.
func networkMachine(t *testing.T, config ...string) *machine {
	t.Helper()
	return containerMachine(t, append(config, fmt.Sprintf("[network]\nbridge = 'sfb%d'", bridges.Add(1)))...)
}

var bridges atomic.Int32

// An outside machine is a network namespace with a link to this one, and a route through it.
type outside struct {
	ns         netns.NsHandle
	host, self string // addresses of IPv4
	host6      string
}

var outsides atomic.Int32

// newOutside connects a machine by a link of its own.
func newOutside(t *testing.T) *outside {
	t.Helper()
	n := int(outsides.Add(1))
	o := &outside{host: fmt.Sprintf("198.51.%d.1", n), self: fmt.Sprintf("198.51.%d.2", n), host6: fmt.Sprintf("2001:db8:%d::1", n)}
	o.ns = newNetns(t)
	name := fmt.Sprintf("out%d", n)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(o.ns)}
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) })
	up := func(h *netlink.Handle, link string, addrs ...string) {
		l, err := h.LinkByName(link)
		must(t, err)
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = 0x02 // IFA_F_NODAD
			must(t, h.AddrAdd(l, addr))
		}
		must(t, h.LinkSetUp(l))
	}
	here, err := netlink.NewHandle()
	must(t, err)
	defer here.Close()
	up(here, name, o.host+"/24", o.host6+"/64")
	there, err := netlink.NewHandleAt(o.ns)
	must(t, err)
	defer there.Close()
	up(there, "lo")
	up(there, "eth0", o.self+"/24", fmt.Sprintf("2001:db8:%d::2/64", n))
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNetns(t *testing.T) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never back: the thread ends here
		ns, err = netns.New()
	}()
	<-done
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// run does something in the outside machine.
func (o *outside) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never back
		if err := netns.Set(o.ns); err != nil {
			panic(err)
		}
		f()
	}()
	<-done
}

// ask asks a server from the outside.
func (o *outside) ask(kind, addr string) (text string, err error) {
	o.run(func() { text, err = ask(kind, addr) })
	return text, err
}

// ask returns what a server says, as "inside ask" does.
func ask(kind, addr string) (string, error) {
	c, err := net.DialTimeout(kind, addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	b := make([]byte, 1000)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// netImage is an image with the tests' program.
func netImage(t *testing.T, hub *hub, name string) string {
	t.Helper()
	return hub.put(t, name, newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("etc"), inside(t)}))
}

// serves waits until the program of "inside serve" listens.
func (m *machine) serves(names ...string) {
	m.Helper()
	for _, name := range names {
		for deadline := time.Now().Add(patience); !strings.Contains(m.ok("logs", name), "serving"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				m.Fatalf("%s does not serve", name)
			}
		}
	}
}

// TestNetwork publishes a server and asks it from everywhere.
func TestNetwork(t *testing.T) {
	t.Parallel()
	hub, m, out := newHub(t), networkMachine(t), newOutside(t)
	ref := netImage(t, hub, "network")
	m.ok("run", "-d", "--name", "web", "--ready", "line=serving", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8053:53/udp", "-p", out.host+":8082:80",
		ref, "/inside", "serve", "web", "tcp:80", "tcp:81", "udp:53")
	m.serves("web")
	for _, row := range []struct {
		from, kind, addr string
		works            bool
	}{
		{"host", "tcp", "127.0.0.1:8080", true},
		{"host", "tcp", "[::1]:8080", false},
		{"host", "tcp", out.host + ":8080", true},
		{"host", "tcp", "[" + out.host6 + "]:8080", true},
		{"host", "tcp", "127.0.0.1:8081", true},
		{"host", "tcp", out.host + ":8081", false},
		{"host", "udp", "127.0.0.1:8053", true},
		{"host", "udp", "[::1]:8053", false},
		{"outside", "tcp", out.host + ":8080", true},
		{"outside", "tcp", "[" + out.host6 + "]:8080", true},
		{"outside", "udp", out.host + ":8053", true},
		{"outside", "tcp", out.host + ":8081", false},
		{"outside", "tcp", out.host + ":8082", true},
		{"outside", "tcp", out.host + ":81", false},
	} {
		ask := ask
		if row.from == "outside" {
			ask = out.ask
		}
		text, err := ask(row.kind, row.addr)
		if works := err == nil && strings.HasPrefix(text, "web "); works != row.works {
			t.Errorf("%s asks %s %s: %q, %v; want an answer: %v", row.from, row.kind, row.addr, text, err, row.works)
		}
	}
	host := out.host + ":8080"
	if text := m.ok("run", "--rm", ref, "/inside", "ask", "tcp", host); !strings.HasPrefix(text, "web ") {
		t.Errorf("another container asks %s: %q", host, text)
	}
	if text := m.ok("exec", "web", "/inside", "ask", "tcp", host); !strings.HasPrefix(text, "web ") {
		t.Errorf("the container asks itself at %s: %q", host, text)
	}
	m.ok("rm", "-f", "web")
}
