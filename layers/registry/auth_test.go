package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// A tokenServer gives out tokens of which only the latest generation is good.
type tokenServer struct {
	*httptest.Server
	gen    atomic.Int64
	issued atomic.Int64
	mu     sync.Mutex
	scopes []string
	status int // of all answers, if not 0
}

func newTokenServer(t *testing.T) *tokenServer {
	ts := new(tokenServer)
	ts.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		ts.mu.Lock()
		defer ts.mu.Unlock()
		ts.scopes = append(ts.scopes, r.Form["scope"]...)
		if ts.status != 0 {
			w.WriteHeader(ts.status)
			return
		}
		user, secret := r.Form.Get("username"), r.Form.Get("password")
		if rt := r.Form.Get("refresh_token"); rt != "" {
			user, secret = "token", rt
		}
		if user != "" && secret != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		ts.issued.Add(1)
		token := fmt.Sprintf("t%d-%s", ts.gen.Load(), user)
		json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token})
	}))
	t.Cleanup(ts.Close)
	return ts
}

// guard asks for the latest token; stale ones are answered with code.
func (ts *tokenServer) guard(user string, code int, extra string) func(w http.ResponseWriter, r *http.Request, n int) bool {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		token, has := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if token == fmt.Sprintf("t%d-%s", ts.gen.Load(), user) {
			return false
		}
		c := http.StatusUnauthorized
		if has {
			c = code
		}
		if c == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x",scope="repository:a/b:pull"%s`, ts.URL+"/token", extra))
		}
		w.WriteHeader(c)
		return true
	}
}

// always returns one credential, refused or not.
func always(user, secret string) func(context.Context, Ask) (Credential, error) {
	return func(context.Context, Ask) (Credential, error) { return Credential{User: user, Secret: secret}, nil }
}

// TestTokens: tokens that go stale in the life of a blob, answered in each way
// that registries do it, are replaced without anyone noticing.
func TestTokens(t *testing.T) {
	for _, c := range []struct {
		name, extra string
		code        int
		user        string
	}{
		{"401", "", 401, ""},
		{"401 with an error", `,error="invalid_token"`, 401, ""},
		{"403", "", 403, ""},
		{"401 with a user", "", 401, "me"},
		{"403 with an identity token", "", 403, "token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ts := newServer(t), newTokenServer(t)
			img := makeImage(t, "amd64", 300_000)
			ref := mustRef(t, s.put(t, "a/b", "v1", img))
			s.set(ts.guard(c.user, c.code, c.extra))
			stats := new(Stats)
			r := newRegistry(t, Options{Timeouts: quick, Stats: stats, Credentials: func(context.Context, Ask) (Credential, error) {
				switch c.user {
				case "":
					return Credential{}, nil
				case "token":
					return Credential{Secret: "secret"}, nil
				}
				return Credential{User: c.user, Secret: "secret"}, nil
			}})
			if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil {
				t.Fatal(err)
			}
			if ts.issued.Load() != 1 {
				t.Errorf("%d tokens for manifest and config, want 1", ts.issued.Load())
			}
			for range 3 {
				ts.gen.Add(1)
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						b, err := r.Blob(ref, img.layer(0))
						if err != nil {
							t.Error(err)
							return
						}
						p := make([]byte, 1000)
						if _, err := b.ReadAt(t.Context(), p, 1000); err != nil || !bytes.Equal(p, img.layers[0][1000:2000]) {
							t.Errorf("ReadAt = %v", err)
						}
					})
				}
				wg.Wait()
			}
			if n := ts.issued.Load(); n != 4 {
				t.Errorf("%d tokens in all, want 4: waiters share one", n)
			}
			if n := stats.Refreshes.Load(); n < 3 {
				t.Errorf("refreshes = %d, want 3", n)
			}
			for _, sc := range ts.scopes {
				if !strings.Contains(sc, "repository:a/b:pull") {
					t.Errorf("token for scope %q", sc)
				}
			}
		})
	}
}

func TestTokenFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		secret string
		want   error
	}{
		{"wrong password", 0, "guess", ErrDenied},
		{"denied", 403, "secret", ErrDenied},
		{"broken", 500, "secret", ErrUnavailable},
		{"busy", 429, "", ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ts := newServer(t), newTokenServer(t)
			ref := mustRef(t, s.put(t, "a/b", "v1", makeImage(t, "amd64", 10)))
			s.set(ts.guard("me", 401, ""))
			ts.status = c.status
			r := newRegistry(t, Options{Timeouts: quick, Credentials: always("me", c.secret)})
			_, err := r.Resolve(t.Context(), ref, "")
			compare(t, "Resolve", err, c.want, nil)
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the password is in the message: %v", err)
			}
			// What went wrong is not kept for ever.
			ts.mu.Lock()
			ts.status = 0
			ts.mu.Unlock()
			if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); c.secret == "secret" && err != nil {
				t.Errorf("Resolve when the token server is well again = %v", err)
			}
		})
	}
	t.Run("always refused", func(t *testing.T) {
		s, ts := newServer(t), newTokenServer(t)
		ref := mustRef(t, s.put(t, "a/b", "v1", makeImage(t, "amd64", 10)))
		s.set(ts.guard("somebody else", 401, ""))
		r := newRegistry(t, Options{Timeouts: quick})
		if _, err := r.Resolve(t.Context(), ref, ""); !errors.Is(err, ErrDenied) {
			t.Errorf("Resolve = %v, want ErrDenied", err)
		}
		if n := s.hits.Load(); n > 6 {
			t.Errorf("%d requests to be refused", n)
		}
	})
	t.Run("silent token server", func(t *testing.T) {
		s := newServer(t)
		ref := mustRef(t, s.put(t, "a/b", "v1", makeImage(t, "amd64", 10)))
		dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { wait(r) }))
		defer dead.Close()
		defer dead.CloseClientConnections()
		s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q`, dead.URL))
			w.WriteHeader(401)
			return true
		})
		r := newRegistry(t, Options{Timeouts: quick})
		if _, err := r.Resolve(t.Context(), ref, ""); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Resolve = %v, want ErrUnavailable", err)
		}
	})
	t.Run("token server in the clear", func(t *testing.T) {
		s := newServer(t)
		ref := mustRef(t, s.put(t, "a/b", "v1", makeImage(t, "amd64", 10)))
		s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://auth.example/token"`)
			w.WriteHeader(401)
			return true
		})
		r := newRegistry(t, Options{Timeouts: quick})
		if _, err := r.Resolve(t.Context(), ref, ""); err == nil || !strings.Contains(err.Error(), "not https") {
			t.Errorf("Resolve = %v, want a refusal to speak to http://auth.example", err)
		}
	})
}

// TestHTTP2: over TLS one connection serves all requests at once.
func TestHTTP2(t *testing.T) {
	img := makeImage(t, "amd64", 200_000)
	data := img.layers[0]
	var conns sync.Map
	var old atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conns.Store(r.RemoteAddr, true)
		if r.ProtoMajor != 2 {
			old.Add(1)
		}
		w.Write(begin(w, r, data))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	r := newRegistry(t, Options{Timeouts: quick})
	readBoth(t, r, mustRef(t, s.Listener.Addr().String()+"/a/b"), img.layer(0), data)
	if old.Load() != 0 {
		t.Errorf("%d requests with HTTP/1", old.Load())
	}
}

func TestDockerCredentials(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	helper := func(_ context.Context, name, arg string, stdin []byte) ([]byte, error) {
		switch {
		case arg != "get":
			return nil, errors.New("what?")
		case name == "docker-credential-broken":
			return nil, errors.New("exec: not found")
		case string(stdin) == "id.example":
			return []byte(`{"Username":"<token>","Secret":"idt"}`), nil
		case string(stdin) == "h.example":
			return []byte(`{"Username":"hu","Secret":"hs"}`), nil
		}
		return []byte("credentials not found in native keychain\n"), errors.New("exit status 1")
	}
	auths := fmt.Sprintf(`"auths":{"r.example:5000":{"auth":%q},"https://index.docker.io/v1/":{"auth":%q},"t.example":{"auth":"","identitytoken":"it"},
		"https://old.example/v1/":{"username":"u","password":"p"},"bad.example":{"auth":"!"},"h.example":{"auth":%q}}`, b64("u:p:q"), b64("hub:x\x00"), b64("f:f"))
	plain := file("{" + auths + "}")
	for _, c := range []struct {
		name, host   string
		paths        []string
		user, secret string
		fails        bool
	}{
		{"auth", "r.example:5000", []string{plain}, "u", "p:q", false},
		{"directory", "r.example:5000", []string{t.TempDir(), filepath.Dir(plain)}, "u", "p:q", false},
		{"another port", "r.example", []string{plain}, "", "", false},
		{"docker hub", "registry-1.docker.io", []string{plain}, "hub", "x", false},
		{"identity token", "t.example", []string{plain}, "", "it", false},
		{"URL key", "old.example", []string{plain}, "u", "p", false},
		{"bad base64", "bad.example", []string{plain}, "", "", true},
		{"unknown", "x.example", []string{plain}, "", "", false},
		{"missing file", "r.example:5000", []string{"/nonexistent/config.json", plain}, "u", "p:q", false},
		{"not JSON", "x", []string{file("{")}, "", "", true},
		{"store", "h.example", []string{file(`{"credsStore":"s",` + auths + "}")}, "hu", "hs", false},
		{"store without it", "r.example:5000", []string{file(`{"credsStore":"s",` + auths + "}")}, "u", "p:q", false},
		{"store with an identity token", "id.example", []string{file(`{"credsStore":"s"}`)}, "", "idt", false},
		{"helper", "h.example", []string{file(`{"credsStore":"broken","credHelpers":{"h.example":"s"}}`)}, "hu", "hs", false},
		{"broken helper", "h.example", []string{file(`{"credHelpers":{"h.example":"broken"}}`)}, "", "", true},
		{"broken store", "r.example:5000", []string{file(`{"credsStore":"broken",` + auths + "}")}, "u", "p:q", false},
		{"path as helper", "h.example", []string{file(`{"credHelpers":{"h.example":"../../x"}}`)}, "", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &DockerCredentials{Paths: c.paths, Exec: helper}
			user, secret, err := d.lookup(t.Context(), c.host)
			if user != c.user || secret != c.secret || (err != nil) != c.fails {
				t.Errorf("Lookup(%s) = %q, %q, %v, want %q, %q", c.host, user, secret, err, c.user, c.secret)
			}
		})
	}
	t.Run("program", func(t *testing.T) {
		dir := t.TempDir()
		prog := "#!/bin/sh\nread s\necho \"{\\\"Username\\\":\\\"$1\\\",\\\"Secret\\\":\\\"$s\\\"}\"\n"
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-sh"), []byte(prog), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		t.Setenv("DOCKER_CONFIG", filepath.Dir(file(`{"credsStore":"sh"}`)))
		user, secret, err := new(DockerCredentials).lookup(t.Context(), "x.example")
		if user != "get" || secret != "x.example" || err != nil {
			t.Errorf("Lookup = %q, %q, %v", user, secret, err)
		}
	})
}

func TestVerify(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"right", img.layers[0], nil},
		{"flipped", append(bytes.Clone(img.layers[0][:999]), img.layers[0][999]^1), &layers.DigestError{}},
		{"short", img.layers[0][:999], &SizeError{}},
		{"long", append(bytes.Clone(img.layers[0]), 1), &SizeError{}},
	} {
		got, err := io.ReadAll(Verify(io.NopCloser(bytes.NewReader(c.data)), img.layer(0)))
		compare(t, c.name, err, c.want, errors.New(""))
		if c.name == "flipped" && len(got) == 1000 {
			t.Error("all of the wrong bytes came before the error")
		}
	}
}
