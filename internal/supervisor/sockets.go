package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxSockets bounds Options.Sockets: their descriptors have to fit into one
// message beside the others that a worker releases.
const MaxSockets = 8

// A socket is one that the supervisor holds for its workers, so that clients
// queue there while there is none.
type socket struct {
	path  string
	file  *os.File
	given bool // by the service manager, whose it stays
}

// paths are the sockets that there are to be: the control socket comes first.
func (o *Options) paths() []string { return append([]string{Socket(o.Run)}, o.Sockets...) }

// openSockets makes s.sockets those of s.o.paths: given by the service manager, found with
// an earlier worker, or new ones. What was found and is not wanted any more is removed.
func (s *supervisor) openSockets(ctx context.Context, found []socket) error {
	for _, path := range s.o.paths() {
		f, given := s.service.sockets[path]
		delete(s.service.sockets, path)
		if i := slices.IndexFunc(found, func(o socket) bool { return o.path == path }); f == nil && i >= 0 {
			f, found[i].file = found[i].file, nil
		}
		if f == nil {
			var err error
			if f, err = newSocket(ctx, path); err != nil {
				closeSockets(found)
				return err
			}
		}
		s.sockets = append(s.sockets, socket{path, f, given})
	}
	for path := range s.service.sockets {
		s.log.Warn("the service manager gave a socket that nothing here is configured to serve", "path", path)
	}
	closeSockets(found)
	for _, o := range found {
		if !slices.Contains(s.o.paths(), o.path) && dead(ctx, o.path) {
			os.Remove(o.path)
		}
	}
	return nil
}

func closeSockets(all []socket) {
	for _, o := range all {
		if o.file != nil {
			o.file.Close()
		}
	}
}

// newSocket binds the socket at path, in place of one that nobody listens on,
// and below directories that are made if they are not there.
func newSocket(ctx context.Context, path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("socket %s: something else has that name", path)
	case !dead(ctx, path):
		return nil, fmt.Errorf("socket %s: another program listens there", path)
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return descriptor(l)
}

// dead says whether the socket at path is one that nobody listens on.
func dead(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // a queue that is full keeps us waiting: somebody is there
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// listen binds a socket that only root can connect to, in place of what has its name.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The file gets the mode of the socket (net/unix/af_unix.c, unix_bind_bsd), so
	// that there is no moment in which others may connect.
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	l, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// listenerPath returns where the descriptor fd listens, if that is a unix stream
// socket with a name in the file system.
func listenerPath(fd int) (string, bool) {
	for option, want := range map[int]int{unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_TYPE: unix.SOCK_STREAM, unix.SO_ACCEPTCONN: 1} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil || got != want {
			return "", false
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", false
	}
	u, ok := name.(*unix.SockaddrUnix)
	if !ok || !filepath.IsAbs(u.Name) {
		return "", false
	}
	return filepath.Clean(u.Name), true
}
