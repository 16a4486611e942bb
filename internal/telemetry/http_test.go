package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestCheckAddress(t *testing.T) {
	for _, test := range []struct {
		address string
		remote  bool
		ok      bool
	}{
		{"127.0.0.1:9464", false, true},
		{"127.1.2.3:1", false, true},
		{"localhost:9464", false, true},
		{"[::1]:9464", false, true},
		{"unix:/run/snapfs/metrics.sock", false, true},
		{"0.0.0.0:9464", false, false},
		{"[::]:9464", false, false},
		{":9464", false, false},
		{"10.0.0.7:9464", false, false},
		{"0.0.0.0:9464", true, true},
		{":9464", true, true},
		{"10.0.0.7:9464", true, true},
		{"metrics.example:9464", true, false},
		{"localhost.evil.example:9464", false, false},
		{"127.0.0.1", false, false},
		{"127.0.0.1:", false, false},
		{"127.0.0.1:65536", false, false},
		{"127.0.0.1:no", false, false},
		{"unix:metrics.sock", false, false},
		{"/run/metrics.sock", false, false},
		{"", false, false},
	} {
		if err := CheckAddress(test.address, test.remote); (err == nil) != test.ok {
			t.Errorf("CheckAddress(%q, %v) = %v", test.address, test.remote, err)
		}
	}
}

// serve serves metrics at address until the test's end.
func serve(t *testing.T, address string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		ServeMetrics(ctx, address, func(x *Text) { x.One("snapfs_things", Gauge, "Things.", 3) }, slog.New(slog.DiscardHandler))
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

// until asks again while nobody listens yet.
func until(t *testing.T, do func() (*http.Response, error)) *http.Response {
	t.Helper()
	for {
		resp, err := do()
		if err == nil {
			t.Cleanup(func() { resp.Body.Close() })
			return resp
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestServeMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	stop := serve(t, address)
	resp := until(t, func() (*http.Response, error) { return http.Get("http://" + address + "/metrics") })
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != ContentType {
		t.Fatalf("%s %v, %v", resp.Status, resp.Header, err)
	}
	if parse(t, string(body))["snapfs_things"].Metric[0].GetGauge().GetValue() != 3 {
		t.Errorf("%s", body)
	}
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/metrics", 405}, {"GET", "/nothing", 404}, {"HEAD", "/metrics", 200}, {"GET", "/", 200},
	} {
		r, err := http.NewRequest(test.method, "http://"+address+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != test.status {
			t.Errorf("%s %s: %s, want %d", test.method, test.path, resp.Status, test.status)
		}
	}
	stop()
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("it still listens")
	}
}

// A client that never finishes its request does not keep others from theirs, nor the server from ending.
func TestServeMetricsWithStuckClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	stop := serve(t, "unix:"+path)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	get := func() (*http.Response, error) { return client.Get("http://x/metrics") }
	until(t, get)
	for range maxConns / 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n")
	}
	resp, err := get()
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	stop()
}

// The socket of a worker that was killed is taken over; another file, or a
// socket that somebody listens at, is not.
func TestListenAtASocket(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := listen(t.Context(), "unix:"+stale)
	if err != nil {
		t.Fatalf("a socket that is left over: %v", err)
	}
	defer again.Close()
	if fi, err := os.Stat(stale); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if _, err := listen(t.Context(), "unix:"+stale); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket that is served: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(t.Context(), "unix:"+file); err == nil {
		l.Close()
		t.Error("a file was taken for a socket")
	}
	if b, _ := os.ReadFile(file); string(b) != "mine" {
		t.Error("a file was removed")
	}
}
