package monitor

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A procDir is a process's directory in /proc, held so that it stays that
// process's: once that has been reaped, lookups in it fail.
type procDir struct {
	dir *os.File
	pid int
}

// openProc opens the directory of the process pid that began at start.
func openProc(pid int, start uint64) (*procDir, error) {
	d, err := os.OpenFile(procFile(pid, ""), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if began, err := startTime(pid); err != nil || began != start {
		d.Close()
		return nil, unix.ESRCH
	}
	return &procDir{d, pid}, nil
}

func (p *procDir) close() { p.dir.Close() }

// exists says whether path is there, as the process's root has it. Links are
// followed inside of that root and nowhere else, and nothing is opened: a
// device, a pipe or a socket is as good as a file.
func (p *procDir) exists(path string) bool {
	root, err := unix.Openat(int(p.dir.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// listens says whether a process of the container listens at the TCP port, at
// whatever address of its network namespace. On the host's network there may be
// others who do: those do not count.
func (p *procDir) listens(port uint16) bool {
	found := map[string]bool{}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		fd, err := unix.Openat(int(p.dir.Fd()), table, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // no IPv6, or the process has gone
		}
		f := os.NewFile(uintptr(fd), table)
		for _, inode := range listeners(f, port) {
			found["socket:["+inode+"]"] = true
		}
		f.Close()
	}
	return len(found) > 0 && anyProcess(os.Getpid(), func(pid int) bool { return hasOpen(pid, found) })
}

// listeners returns the inodes of the sockets that listen at port, from a table
// of /proc/net/tcp's form:
//
//	sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//	 0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 …
//
// All that listen come first (net/ipv4/tcp_ipv4.c, tcp_seek_last_pos), so that
// the connections of a busy machine are not read.
func listeners(r io.Reader, port uint16) (inodes []string) {
	const listen = "0A" // TCP_LISTEN, include/net/tcp_states.h
	suffix := fmt.Sprintf(":%04X", port)
	s := bufio.NewScanner(r)
	s.Scan() // the heading
	for s.Scan() {
		f := bytes.Fields(s.Bytes())
		if len(f) < 10 || string(f[3]) != listen {
			break
		}
		if strings.HasSuffix(string(f[1]), suffix) {
			inodes = append(inodes, string(f[9]))
		}
	}
	return inodes
}

// anyProcess says whether yes says so of a process below pid. Those are the
// container's: its first process and what exec started are the monitor's children.
func anyProcess(pid int, yes func(int) bool) bool {
	for _, child := range children(pid) {
		if yes(child) || anyProcess(child, yes) {
			return true
		}
	}
	return false
}

// hasOpen says whether pid has one of the files open, named as the links in /proc/PID/fd are.
func hasOpen(pid int, files map[string]bool) bool {
	dir := procFile(pid, "fd")
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if _, nerr := strconv.Atoi(name); nerr != nil {
				continue
			}
			if link, err := os.Readlink(dir + "/" + name); err == nil && files[link] {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
}
