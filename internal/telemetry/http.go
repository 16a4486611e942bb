package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Bounds of the listener: a scraper needs one connection, and asks every few seconds.
const (
	maxConns   = 16
	maxHeader  = 16 << 10
	idle       = 2 * time.Minute
	slow       = 10 * time.Second // for a client to ask, or to take the answer
	retryAfter = 5 * time.Second  // when the address is taken, as by a worker that is still ending
)

// CheckAddress says why address is none to serve metrics at: that is HOST:PORT,
// or unix: and an absolute path. There is no password, so a host that is not
// this machine's own is refused unless remote is set.
func CheckAddress(address string, remote bool) error {
	network, where := split(address)
	if network == "unix" {
		if !filepath.IsAbs(where) {
			return fmt.Errorf("want unix: and an absolute path")
		}
		return nil
	}
	host, port, err := net.SplitHostPort(where)
	if err != nil {
		return fmt.Errorf("want HOST:PORT or unix:/PATH: %w", err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("port %q: want a number from 1 to 65535", port)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "localhost", err == nil && ip.IsLoopback():
		return nil
	case remote && (host == "" || err == nil):
		return nil
	case err != nil && host != "":
		return fmt.Errorf("host %q: want an IP address or localhost", host)
	}
	return fmt.Errorf("others than this machine could read it, without a password: set remote = true if they may")
}

func split(address string) (network, where string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", address
}

// ServeMetrics answers GET /metrics at address with what write gives, until ctx
// ends. An address that is taken is tried again and again: metrics are no
// reason for a daemon to end.
func ServeMetrics(ctx context.Context, address string, write func(*Text), log *slog.Logger) {
	complained := false
	for {
		l, err := listen(ctx, address)
		if err == nil {
			log.Info("metrics", "address", address)
			serveHTTP(ctx, l, write, log)
			return
		}
		if ctx.Err() != nil {
			return
		}
		if !complained {
			log.Error("metrics are not served; trying again", "address", address, "err", err)
			complained = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
		}
	}
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	network, where := split(address)
	var lc net.ListenConfig
	if network == "tcp" {
		return lc.Listen(ctx, network, where)
	}
	// The socket of a worker that was killed is still there; nobody listens.
	if fi, err := os.Lstat(where); err == nil && fi.Mode()&fs.ModeSocket != 0 {
		c, err := net.DialTimeout("unix", where, time.Second)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("%s: %w", where, unix.EADDRINUSE)
		}
		if err := os.Remove(where); err != nil {
			return nil, err
		}
	}
	l, err := lc.Listen(ctx, network, where)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(where, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func serveHTTP(ctx context.Context, l net.Listener, write func(*Text), log *slog.Logger) {
	var one sync.Mutex // scrapes one after another
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		var t Text
		one.Lock()
		write(&t)
		one.Unlock()
		w.Header().Set("Content-Type", ContentType)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		t.WriteTo(w) // a client that is gone needs no answer
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "snapd: see /metrics\n")
	})
	s := &http.Server{
		Handler: mux, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: slow, ReadTimeout: slow, WriteTimeout: slow, IdleTimeout: idle,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(netutil.LimitListener(l, maxConns)); err != nil && ctx.Err() == nil {
		log.Error("metrics", "err", err)
	}
}
