package network

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A watched is something of ours that others can remove.
type watched struct {
	what      string
	subscribe func() (*os.File, error)
	concerns  func(messages []byte) bool // whether they may tell of its removal
	gone      func() bool
}

// watchedTables are removed by a service that flushes the whole ruleset before it
// loads its own: then nothing is published, nobody is kept out, and 127.0.0.0/8
// is open to containers.
func (s *Service) watchedTables() watched {
	return watched{"tables", subscribe, tableDeleted, func() bool { return !s.haveTables() }}
}

// watchedBridge is what the links of containers lead to: without it, nowhere.
func (s *Service) watchedBridge() watched {
	return watched{"bridge", subscribeLinks, func(b []byte) bool { return linkDeleted(b, s.bridgeInUse()) }, s.bridgeGone}
}

// watch makes w anew when somebody removes it, until ctx ends.
func (s *Service) watch(ctx context.Context, w watched) {
	log := s.Log.With("what", w.what, "bridge", s.Bridge)
	f, err := w.subscribe()
	if err != nil {
		log.Warn("nobody will notice if it is removed", "err", err)
		return
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	b := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some messages were lost
		case err != nil:
			if ctx.Err() == nil {
				log.Warn("nobody will notice any more if it is removed", "err", err)
			}
			return
		case !w.concerns(b[:n]):
			continue
		}
		if !w.gone() {
			continue
		}
		log.Warn("what containers need was removed; making it anew")
		if err := s.repair(); err != nil {
			log.Error("it cannot be made anew", "err", err)
		}
	}
}

// bridgeInUse is the index of the bridge that containers are on; 0 if there are
// none: then it may go, as the next one makes it anew.
func (s *Service) bridgeInUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.endpoints) == 0 {
		return 0
	}
	return s.index
}

func (s *Service) bridgeGone() bool {
	index := s.bridgeInUse()
	if index == 0 {
		return false
	}
	_, err := s.h.LinkByIndex(index)
	_, none := errors.AsType[netlink.LinkNotFoundError](err)
	return none
}

// subscribeLinks returns a socket at which the kernel tells of links that are
// removed. It tells of all else, too, with each start of a container: a filter keeps that away.
func subscribeLinks() (_ *os.File, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	// nlmsg_type is in the machine's order, and the filter loads in that of the network.
	var kind [2]byte
	binary.NativeEndian.PutUint16(kind[:], unix.RTM_DELLINK)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(binary.BigEndian.Uint16(kind[:]))},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return nil, os.NewSyscallError("SO_ATTACH_FILTER", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "links"), nil
}

// linkDeleted says whether one of the messages in b (rtnetlink(7)) is that the link was deleted.
func linkDeleted(b []byte, index int) bool {
	found := false
	messages(b, func(kind uint16, body []byte) {
		if kind == unix.RTM_DELLINK && len(body) >= unix.SizeofIfInfomsg && index > 0 {
			found = found || int(int32(binary.NativeEndian.Uint32(body[4:]))) == index
		}
	})
	return found
}

// subscribe returns a socket at which the kernel tells what happens to tables.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "nftables"), nil
}

// tableDeleted says whether one of the messages in b (netlink(7)) is about a table that was deleted.
func tableDeleted(b []byte) bool {
	found := false
	messages(b, func(kind uint16, _ []byte) {
		found = found || kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE
	})
	return found
}

// messages calls f with the type and the body of each message (netlink(7)), as far as they are whole.
func messages(b []byte, f func(kind uint16, body []byte)) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := uint64(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > uint64(len(b)) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:n])
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), uint64(len(b))):]
	}
}

// haveTables says whether our tables are there. Ours are replaced in one
// transaction, so there is no moment at which they are not.
func (s *Service) haveTables() bool {
	t := s.tables()
	if t == nil {
		return true // there are none to be missed
	}
	c, err := nftables.New()
	if err != nil {
		return true
	}
	for _, table := range t.layout().tables() {
		list, err := c.ListTablesOfFamily(table.Family)
		if err != nil {
			s.Log.Warn("tables", "err", err)
			return true
		}
		found := false
		for _, l := range list {
			found = found || l.Name == table.Name
		}
		if !found {
			return false
		}
	}
	return true
}
