package network

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// watch makes our tables anew when somebody removes them, as a service that
// flushes the whole ruleset before it loads its own does: without them nothing
// is published, nobody is kept out, and 127.0.0.0/8 is open to containers.
func (s *Service) watch(ctx context.Context) {
	f, err := subscribe()
	if err != nil {
		s.Log.Warn("nobody will notice if the containers' tables are removed", "err", err)
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
				s.Log.Warn("nobody will notice any more if the containers' tables are removed", "err", err)
			}
			return
		case !tableDeleted(b[:n]):
			continue
		}
		if s.haveTables() {
			continue
		}
		s.Log.Warn("the containers' tables were removed; making them anew", "table", s.Bridge)
		if err := s.repair(); err != nil {
			s.Log.Error("the containers' tables cannot be made anew", "err", err)
		}
	}
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
	for len(b) >= unix.NLMSG_HDRLEN {
		n := binary.NativeEndian.Uint32(b)
		if binary.NativeEndian.Uint16(b[4:]) == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE {
			return true
		}
		n = (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		if n < unix.NLMSG_HDRLEN || uint64(n) > uint64(len(b)) {
			return false
		}
		b = b[n:]
	}
	return false
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
