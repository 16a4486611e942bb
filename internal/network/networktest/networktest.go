// Package networktest gives tests network namespaces of their own, so that the
// machine's links, tables and switches stay as they are.
package networktest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const privateEnv = "SNAPFS_TEST_NETWORK"

// Main runs tests: for root, this program again, in a network namespace where
// there is nothing but lo. It returns the exit status.
func Main(run func() int) int {
	switch {
	case os.Geteuid() != 0:
		return run()
	case os.Getenv(privateEnv) == "":
		return again()
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lo of a new network namespace:", err)
		return 1
	}
	// A new namespace has what the machine's has: where that forwards, the tests would find a router.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "forwarding:", err)
		return 1
	}
	return run()
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "a network namespace for the tests:", err)
		return 1
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// A Machine is a network namespace with a link to the one of the tests.
type Machine struct {
	NS           netns.NsHandle
	Link         string // the tests' end
	Host, Self   string // addresses of the two ends
	Host6, Self6 string
}

var machines atomic.Int32

// NewMachine connects a machine by a link of its own. It has no routes but that.
func NewMachine(t testing.TB) *Machine {
	t.Helper()
	n := machines.Add(1)
	m := &Machine{
		NS: newNetns(t), Link: fmt.Sprintf("out%d", n),
		Host: fmt.Sprintf("198.51.%d.1", n), Self: fmt.Sprintf("198.51.%d.2", n),
		Host6: fmt.Sprintf("2001:db8:%d::1", n), Self6: fmt.Sprintf("2001:db8:%d::2", n),
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = m.Link
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.NS)}
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) })
	here, err := netlink.NewHandle()
	must(t, err)
	defer here.Close()
	up(t, here, m.Link, m.Host+"/24", m.Host6+"/64")
	there, err := netlink.NewHandleAt(m.NS)
	must(t, err)
	defer there.Close()
	up(t, there, "lo")
	up(t, there, "eth0", m.Self+"/24", m.Self6+"/64")
	for h, link := range map[*netlink.Handle]string{here: m.Link, there: "eth0"} {
		_, err := h.LinkByName(link) // makes the kernel know that it can be used
		must(t, err)
	}
	return m
}

func up(t testing.TB, h *netlink.Handle, link string, addrs ...string) {
	t.Helper()
	l, err := h.LinkByName(link)
	must(t, err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		addr.Flags = 0x02 // IFA_F_NODAD: it can be used at once
		must(t, h.AddrAdd(l, addr))
	}
	must(t, h.LinkSetUp(l))
}

// Route has the machine reach a network by the tests' end.
func (m *Machine) Route(t testing.TB, network string) {
	t.Helper()
	h, err := netlink.NewHandleAt(m.NS)
	must(t, err)
	defer h.Close()
	dst, err := netlink.ParseIPNet(network)
	must(t, err)
	gw := net.ParseIP(m.Host)
	if dst.IP.To4() == nil {
		gw = net.ParseIP(m.Host6)
	}
	must(t, h.RouteReplace(&netlink.Route{Dst: dst, Gw: gw}))
}

func newNetns(t testing.TB) netns.NsHandle {
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

// In does something in a network namespace, given by its descriptor. f must not leave its goroutine.
func In(fd int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never back
		if err := netns.Set(netns.NsHandle(fd)); err != nil {
			panic(err)
		}
		f()
	}()
	<-done
}

// Ask asks a server from the machine; see the function Ask.
func (m *Machine) Ask(kind, addr string) (text string, err error) {
	In(int(m.NS), func() { text, err = Ask(kind, addr) })
	return text, err
}

// Ask connects, sends a byte, and returns what comes back within a second.
func Ask(kind, addr string) (string, error) {
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

// Serve listens in a network namespace until the test ends, and answers NAME and
// the address that it sees. kind is tcp or udp.
func Serve(t testing.TB, fd int, name, kind, addr string) {
	t.Helper()
	var err error
	In(fd, func() {
		if kind == "udp" {
			var c net.PacketConn
			if c, err = net.ListenPacket(kind, addr); err == nil {
				t.Cleanup(func() { c.Close() })
				go serveUDP(c, name)
			}
			return
		}
		var l net.Listener
		if l, err = net.Listen(kind, addr); err == nil {
			t.Cleanup(func() { l.Close() })
			go serveTCP(l, name)
		}
	})
	must(t, err)
}

func serveUDP(c net.PacketConn, name string) {
	b := make([]byte, 100)
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo([]byte(name+" "+from.String()), from)
	}
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(c, name+" "+c.RemoteAddr().String())
		c.Close()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
