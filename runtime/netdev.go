package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A netDevice is a link of the host's that becomes the container's.
type netDevice struct{ host, name string }

func planNetDevices(l *specs.Linux, own uintptr) ([]netDevice, error) {
	if len(l.NetDevices) > 0 && own&unix.CLONE_NEWNET == 0 {
		return nil, errors.New("the container has the host's network")
	}
	var list []netDevice
	names := map[string]bool{}
	for _, host := range sortedKeys(l.NetDevices) {
		d := netDevice{host, l.NetDevices[host].Name}
		if d.name == "" {
			d.name = host
		}
		for _, s := range []string{d.host, d.name} {
			// dev_valid_name of net/core/dev.c, Linux 6.18; and "%d" would be a number of the kernel's choice.
			if s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." || strings.ContainsAny(s, "/:% \t\n\v\f\r\x00") {
				return nil, fmt.Errorf("%q is no name of a device", s)
			}
		}
		if names[d.name] {
			return nil, fmt.Errorf("two devices are to be called %s", d.name)
		}
		names[d.name] = true
		list = append(list, d)
	}
	return list, nil
}

// moveDevices gives the waiting child's network namespace the devices of the
// plan, with the addresses that somebody has given them, and brings them up
// (runtime specification 1.3, "Network Devices").
func (s *start) moveDevices(p *Process) error {
	if len(s.plan.netDevices) == 0 {
		return nil
	}
	dir, err := openProc(p.pid)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	ns, err := openAt(dir, "ns/net", unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	here, err := openNetlink()
	if err != nil {
		return err
	}
	defer here.close()
	there, err := openNetlinkIn(ns)
	if err != nil {
		return err
	}
	defer there.close()
	for _, d := range s.plan.netDevices {
		if err := d.move(here, there, ns); err != nil {
			return &StepError{"netDevices: " + d.host, err}
		}
	}
	return nil
}

func (d netDevice) move(here, there *netlink, ns int) error {
	link, err := net.InterfaceByName(d.host)
	if err != nil {
		return err
	}
	if link.Flags&net.FlagLoopback != 0 {
		return errors.New("it is the loopback device")
	}
	addresses, err := addressesOf(link.Index)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	// The kernel moves it before it finds out, and then it would be gone with the container.
	if _, err := there.linkIndex(d.name); err == nil {
		return fmt.Errorf("the container has a device %s: %w", d.name, unix.EEXIST)
	} else if !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%s in the container: %w", d.name, err)
	}
	// It may be renamed on the way only while it is down.
	if err := here.setLink(link.Index, 0); err != nil {
		return err
	}
	err = here.setLink(link.Index, 0, attribute{unix.IFLA_NET_NS_FD, native.AppendUint32(nil, uint32(ns))}, attribute{unix.IFLA_IFNAME, append([]byte(d.name), 0)})
	if err != nil {
		if link.Flags&net.FlagUp != 0 {
			_ = here.setLink(link.Index, unix.IFF_UP) // as it was, if it is still here
		}
		return fmt.Errorf("move it to the container as %s: %w", d.name, err)
	}
	index, err := there.linkIndex(d.name)
	if err != nil {
		return fmt.Errorf("%s in the container: %w", d.name, err)
	}
	for _, a := range addresses {
		if err := there.addAddress(index, a); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	return there.setLink(index, unix.IFF_UP)
}

// An address is of a device, as the kernel told it.
type address struct {
	family, bits, scope byte
	ip                  []byte // IFA_LOCAL, or IFA_ADDRESS
	attributes          []attribute
}

func (a address) String() string { return fmt.Sprintf("%v/%d", net.IP(a.ip), a.bits) }

type attribute struct {
	kind uint16
	data []byte
}

// addressesOf are the addresses of a device that somebody has given it, for good.
// Those of a link the kernel makes again by itself.
func addressesOf(index int) ([]address, error) {
	b, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, err
	}
	var list []address
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg || native.Uint32(m.Data[4:]) != uint32(index) {
			continue
		}
		a := address{family: m.Data[0], bits: m.Data[1], scope: m.Data[3]}
		if m.Data[2]&unix.IFA_F_PERMANENT == 0 || a.scope == unix.RT_SCOPE_LINK {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return nil, err
		}
		for _, r := range attributes {
			switch r.Attr.Type {
			case unix.IFA_LOCAL, unix.IFA_ADDRESS, unix.IFA_BROADCAST:
				a.attributes = append(a.attributes, attribute{r.Attr.Type, r.Value})
				if r.Attr.Type == unix.IFA_LOCAL || r.Attr.Type == unix.IFA_ADDRESS && a.ip == nil {
					a.ip = r.Value
				}
			}
		}
		list = append(list, a)
	}
	return list, nil
}

var native = binary.NativeEndian

// netlink is a socket to the kernel's routing of one network namespace
// (rtnetlink(7)): the few messages that it takes, as this program is to start fast.
type netlink struct {
	fd       int
	sequence uint32
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	t := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { unix.Close(n.fd) }

// openNetlinkIn opens a socket in another network namespace: it belongs to where it was made.
func openNetlinkIn(ns int) (n *netlink, err error) {
	goruntime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		goruntime.UnlockOSThread()
		return nil, err
	}
	defer unix.Close(own)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return nil, &StepError{"join the network namespace", err}
	}
	n, err = openNetlink()
	if berr := unix.Setns(own, unix.CLONE_NEWNET); berr != nil {
		// Unlocking such a thread would give its namespace to other goroutines.
		if n != nil {
			n.close()
		}
		return nil, errors.Join(err, &StepError{"leave the network namespace", berr})
	}
	goruntime.UnlockOSThread()
	return n, err
}

// request sends a message and returns the first answer that is no acknowledgement, if there is one.
func (n *netlink) request(kind, flags uint16, body []byte, attributes ...attribute) ([]byte, error) {
	n.sequence++
	b := make([]byte, unix.NLMSG_HDRLEN, 256)
	b = append(b, body...)
	for _, a := range attributes {
		b = native.AppendUint16(b, uint16(unix.SizeofRtAttr+len(a.data)))
		b = append(native.AppendUint16(b, a.kind), a.data...)
		for len(b)%unix.NLMSG_ALIGNTO != 0 {
			b = append(b, 0)
		}
	}
	native.PutUint32(b, uint32(len(b)))
	native.PutUint16(b[4:], kind)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	native.PutUint32(b[8:], n.sequence)
	if err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("send", err)
	}
	var answer []byte
	buf := make([]byte, 64<<10)
	for {
		size, _, err := unix.Recvfrom(n.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("receive", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:size])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Seq != n.sequence {
				continue
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				answer = bytes.Clone(m.Data)
				continue
			}
			if len(m.Data) < 4 {
				return nil, errors.New("netlink: an answer that is too short")
			}
			if errno := -int32(native.Uint32(m.Data)); errno != 0 {
				return nil, unix.Errno(errno)
			}
			return answer, nil
		}
	}
}

// ifinfomsg is struct ifinfomsg: of a device, whether it is to be up.
func ifinfomsg(index int, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], flags)
	native.PutUint32(b[12:], unix.IFF_UP) // what of the flags changes
	return b
}

// setLink changes a device.
func (n *netlink) setLink(index int, flags uint32, attributes ...attribute) error {
	_, err := n.request(unix.RTM_NEWLINK, 0, ifinfomsg(index, flags), attributes...)
	return err
}

func (n *netlink) linkIndex(name string) (int, error) {
	b, err := n.request(unix.RTM_GETLINK, 0, ifinfomsg(0, 0), attribute{unix.IFLA_IFNAME, append([]byte(name), 0)})
	if err == nil && len(b) < unix.SizeofIfInfomsg {
		err = errors.New("netlink: an answer that is too short")
	}
	if err != nil {
		return 0, err
	}
	return int(native.Uint32(b[4:])), nil
}

func (n *netlink) addAddress(index int, a address) error {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1], b[3] = a.family, a.bits, a.scope
	native.PutUint32(b[4:], uint32(index))
	_, err := n.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b, a.attributes...)
	return err
}
