package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/peers"
)

// A guard lets only those with a token read images, and gives tokens to users.
type guard struct {
	*httptest.Server

	mu     sync.Mutex
	users  map[string]string // passwords
	tokens []string          // that are good
	given  []string          // that ever were
	asked  []string          // users that came for a token
}

func newGuard(t *testing.T, hub *hub, users map[string]string, names ...string) *guard {
	g := &guard{users: users}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	for _, name := range names {
		hub.misbehave(name, func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			g.mu.Lock()
			defer g.mu.Unlock()
			if slices.Contains(g.tokens, token) {
				return false
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="hub",scope="repository:test/%s:pull"`, g.URL, name))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		})
	}
	return g
}

// ServeHTTP is the token server.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if r.ParseForm() == nil && r.Form.Get("grant_type") == "password" {
		user, password = r.Form.Get("username"), r.Form.Get("password")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, user)
	if p, ok := g.users[user]; !ok || p != password {
		w.WriteHeader(http.StatusUnauthorized)
		json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "UNAUTHORIZED", "message": "not with " + password}}})
		return
	}
	token := fmt.Sprintf("token-%d-of-%s", len(g.given), user)
	g.tokens, g.given = append(g.tokens, token), append(g.given, token)
	json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}

// expire makes all tokens worthless, earlier than was promised.
func (g *guard) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens = nil
}

// askedBy returns the users that came since the last call.
func (g *guard) askedBy() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.asked
	g.asked = nil
	return asked
}

// A pretendCRI is the image service of a containerd that believes all it is told.
type pretendCRI struct {
	runtime.UnimplementedImageServiceServer
}

func (pretendCRI) PullImage(_ context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	return &runtime.PullImageResponse{ImageRef: "sha256:" + r.Image.Image}, nil
}

func (pretendCRI) RemoveImage(context.Context, *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	return new(runtime.RemoveImageResponse), nil
}

// servePretendCRI serves one at path until the test ends.
func servePretendCRI(t *testing.T, path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterImageServiceServer(s, pretendCRI{})
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	t.Cleanup(func() { s.Stop(); served.Wait() })
}

// imageService is the kubelet's client of snapd.
func (m *machine) imageService() runtime.ImageServiceClient {
	m.Helper()
	c, err := grpc.NewClient("unix://"+filepath.Join(m.run, "containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { c.Close() })
	return runtime.NewImageServiceClient(c)
}

func (m *machine) criPull(ref, user, password string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := m.imageService().PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}, Auth: &runtime.AuthConfig{Username: user, Password: password}})
	if err != nil {
		m.Fatalf("PullImage: %v; the daemon said:\n%s", err, m.d.log.String())
	}
}

// TestCredentials: what the kubelet's pulls and plugins bring opens a private
// registry whose tokens do not last, also after worker and supervisor were
// replaced, until the images are removed. And no secret is where it can be read.
func TestCredentials(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	const right, wrong, fromPlugin = "pAssword-right-1", "pAssword-wrong-2", "pAssword-plugin-3"
	g := newGuard(t, hub, map[string]string{"user": right, "robot": fromPlugin}, "private", "other", "unknown")
	im := newImage(t, eStargz, someFiles(1600, "a", 40), someFiles(1601, "b", 40))
	ref := hub.put(t, "private", im)
	other := newImage(t, eStargz, someFiles(1602, "c", 20))
	otherRef := hub.put(t, "other", other)
	hub.put(t, "unknown", newImage(t, eStargz, someFiles(1603, "d", 5)))

	m := newMachine(t, "")
	plugins := t.TempDir()
	for name, text := range map[string]string{
		"provider": "#!/bin/sh\n" + `echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","cacheDuration":"1h",` +
			`"auth":{"` + hub.host() + `/test/other":{"username":"robot","password":"` + fromPlugin + `"}}}'` + "\n",
		"config.yaml": "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  matchImages: [\"" + hub.host() + "\"]\n" +
			"  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n",
	} {
		if err := os.WriteFile(filepath.Join(plugins, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	behind := filepath.Join(m.dir, "cri.sock")
	servePretendCRI(t, behind)
	m.config = fmt.Sprintf("[log]\nlevel = 'debug'\n[pull]\ncomplete = false\n[[containerd]]\naddress = %q\ncri = true\n[credentials]\nprovider_config = %q\nprovider_bin = %q\n[registry]\ndocker_configs = []\n",
		behind, filepath.Join(plugins, "config.yaml"), plugins)
	m.start()

	checkError(t, m.call(control.OpPull, control.PullArgs{Ref: ref}, nil), control.CodeDenied)
	checkError(t, m.call(control.OpPull, control.PullArgs{Ref: hub.ref("unknown")}, nil), control.CodeDenied)
	m.pull(otherRef, false) // with the plugin's
	other.check(t, m.mount(otherRef, false))

	m.criPull(ref, "user", right)
	m.criPull(ref, "user", wrong) // the newest is tried first
	g.askedBy()
	m.pull(ref, false)
	if asked := strings.Count(strings.Join(g.askedBy(), " "), "user"); asked < 2 {
		t.Errorf("tokens were asked for %d times, want a refusal and another try", asked)
	}
	top := m.mount(ref, false)

	// Each part is read after something was lost.
	read := func(name string) {
		t.Helper()
		m.evict()
		forget(t)
		g.expire()
		im.check(t, top)
		if err := m.call(control.OpPull, control.PullArgs{Ref: ref}, nil); err != nil {
			t.Errorf("%s: pull: %v; the daemon said:\n%s", name, err, m.d.log.String())
		}
	}
	read("tokens")
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	read("worker")
	m.d.cmd.Process.Kill()
	m.start()
	read("supervisor")

	m.secretFree(g, right, wrong, fromPlugin)

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := m.imageService().RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "sha256:" + ref}}); err != nil {
		t.Fatal(err)
	}
	s, err = m.status() // what was learnt is gone for the next worker
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	checkError(t, m.call(control.OpPull, control.PullArgs{Ref: ref}, nil), control.CodeDenied)
}

// secretFree looks for secrets in all that the daemon writes, tells and shows, and
// in what the Go runtime writes when a worker is made to dump its goroutines.
func (m *machine) secretFree(g *guard, passwords ...string) {
	m.Helper()
	g.mu.Lock()
	secrets := slices.Concat(passwords, g.given)
	g.mu.Unlock()
	for _, p := range passwords {
		for _, user := range []string{"user:", "robot:"} {
			secrets = append(secrets, base64.StdEncoding.EncodeToString([]byte(user+p)))
		}
	}
	look := func(where, text string) {
		m.Helper()
		text = strings.ToLower(text)
		for _, s := range secrets {
			if i := strings.Index(text, strings.ToLower(s)); i >= 0 {
				m.Errorf("%s: %q in …%q", where, s, text[max(0, i-100):min(len(text), i+100)])
			}
		}
	}
	for _, args := range [][]string{{"images"}, {"info"}, {"stat"}, {"stat", "--prometheus"}, {"ps"}} {
		out, _ := m.snapctl(args...)
		look("snapctl "+strings.Join(args, " "), out)
	}
	for _, im := range m.images() {
		out, code := m.snapctl("explain", im.Ref)
		if code != 0 {
			m.Errorf("snapctl explain %s: exit status %d", im.Ref, code)
		}
		look("snapctl explain", out)
	}
	for _, e := range m.events(control.EventsArgs{}) {
		look("event", string(marshal(m, e)))
	}
	s, err := m.status()
	if err != nil {
		m.Fatal(err)
	}
	for _, pid := range []int{s.Supervisor, s.Worker, s.Keeper} {
		for _, file := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil {
				m.Error(err)
			}
			look(fmt.Sprintf("/proc/%d/%s", pid, file), string(b))
		}
	}
	unix.Kill(s.Worker, unix.SIGQUIT) // Go's crash dump
	m.waitNext(s.Supervisor, s.Worker)
	if !strings.Contains(m.d.log.String(), "goroutine ") {
		m.Error("the worker has not dumped its goroutines")
	}
	look("log", m.d.log.String())
	files := 0
	err = filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if d.IsDir() && (path == filepath.Join(m.run, "lazy") || path == filepath.Join(m.run, "images") || strings.HasPrefix(filepath.Base(path), "mnt")) {
			return fs.SkipDir // the images themselves
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		look(path, string(b))
		return err
	})
	if err != nil || files < 5 {
		m.Errorf("%d files looked through, %v", files, err)
	}
}

// waitNext waits for a worker that is not the old one.
func (m *machine) waitNext(supervisor, old int) {
	m.Helper()
	deadline := time.Now().Add(patience)
	for {
		if s, err := m.status(); err == nil && s.Ready && s.Worker != old {
			return
		}
		if time.Now().After(deadline) {
			m.Fatalf("no new worker; the daemon said:\n%s", m.d.log.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// images runs crictl as a kubelet whose image service is snapd.
func (k *kubelet) images(args ...string) string {
	k.Helper()
	out, err := k.command(k.Context(), k.crictl, append([]string{"--config", "/dev/null", "-r", "unix://" + k.socket(), "-i", "unix://" + filepath.Join(k.machine.run, "containerd.sock"), "-t", "30s"}, args...)...)
	if err != nil {
		k.Fatalf("%v\ncontainerd said:\n%s", err, k.said())
	}
	return strings.TrimSpace(out)
}

// TestCRIProxy: a pod's image that needs a pull secret starts lazily in a real
// containerd, and is read when the tokens of its pull are long worthless.
func TestCRIProxy(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	pause := hub.put(t, "pause", pauseImage(t))
	for _, kind := range []kind{{peer: peers.Containerd24}, {peer: peers.Containerd22, serial: true}} {
		t.Run(kind.String(), func(t *testing.T) {
			const right = "pAssword-right-1"
			m := newMachine(t, "")
			m.config = fmt.Sprintf("[log]\nlevel = 'debug'\n[pull]\ncomplete = false\n[registry]\ndocker_configs = []\n[[containerd]]\naddress = %q\ncri = true\n", filepath.Join(m.dir, "c", "c.sock"))
			m.start()
			k := m.kubelet("c", kind, pause)
			im := newImage(t, eStargz, base(t), someFiles(1810, "data", 60))
			name := "private" + filepath.Base(m.dir)
			ref := hub.put(t, name, im)
			g := newGuard(t, hub, map[string]string{"user": right}, name)

			hub.sent()
			k.images("pull", "--creds", "user:"+right, ref)
			if n := hub.sent(); n >= im.size() {
				t.Errorf("the pull took %d bytes of an image of %d", n, im.size())
			}
			if direct, proxied := k.do("inspecti", ref), k.images("inspecti", ref); direct != proxied {
				t.Errorf("inspecti: %s\nwithout the proxy %s", proxied, direct)
			}
			p := k.pod(onHost)
			id := p.container(ref, onHost, "/inside", "wait")
			s, err := m.status()
			if err != nil {
				t.Fatal(err)
			}
			g.expire() // before: the next worker logs in as soon as somebody reads
			kill9(t, s.Worker)
			m.waitReady(s.Supervisor)
			im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))
			p.remove()
			m.secretFree(g, right)
			for _, id := range strings.Fields(k.images("images", "-q")) {
				k.images("rmi", id)
			}
			k.emptyCRI()
			m.nothingLeftSoon()
		})
	}
}
