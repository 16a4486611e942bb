package integration

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/peers"
)

// TestContainerdKilled: containers go on, and read right, while snapd's worker,
// snapd and containerd are killed, and are started again in any order; and new
// ones start when the registry is gone.
func TestContainerdKilled(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	c := m.containerd("c", kind{peer: peers.Containerd24})
	im := newImage(t, eStargz, base(t), someFiles(1500, "data", 60))
	ref := hub.put(t, "killed", im)
	c.pull(ref)
	name := c.stays(ref)
	reads := func(what string) {
		t.Helper()
		t.Logf("after %s", what)
		c.settle()
		im.checkSums(t, "data/", c.exec(name, "/inside", "sums", "/data"))
		im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
	}
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	m.waitNext(s.Supervisor, s.Worker)
	reads("kill -9 of the worker")
	m.kill()
	m.start()
	reads("kill -9 of snapd")
	c.kill()
	c.start()
	reads("kill -9 of containerd")
	m.pull(ref, true) // so that all of it is local
	hub.CloseClientConnections()
	hub.Close()
	m.kill()
	c.kill()
	c.start()
	m.start()
	reads("kill -9 of both, containerd first, without the registry")
	m.stop()
	c.stop()
	m.start()
	c.start()
	reads("a stop of both, snapd first")
	c.stop()
	m.stop()
	c.start()
	m.start()
	reads("a stop of both, containerd first")
	c.end(name)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
	c.empty()
	m.nothingLeftSoon()
}

// TestContainerdLostSnapshots: what a crash of one of the two leaves that the
// other does not know of is gone after a start.
func TestContainerdLostSnapshots(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	c := m.containerd("c", kind{peer: peers.Containerd24})
	ref := hub.put(t, "lost", newImage(t, gzipTar, base(t), someFiles(1510, "data", 10)))
	c.pull(ref)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c.command(t.Context(), "ctr", c.runArgs([]string{"--rm"}, ref, c.unique("lost"), "/inside", "exit", "0")...)
		})
	}
	m.kill()
	c.kill()
	wg.Wait()
	m.start()
	c.start()
	c.settle()
	c.run(ref, "/inside", "exit", "0")
	c.empty()
	m.nothingLeftSoon()
}

// TestContainerdNamespaces: an image that one namespace has pulled is pulled in
// another without the registry's blobs, and outlives its removal in the first.
func TestContainerdNamespaces(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	for _, k := range kinds[:2] {
		t.Run(k.String(), func(t *testing.T) {
			m := startServed(t, "")
			c := m.containerd("c", k)
			im := newImage(t, gzipTar, base(t), someFiles(1520, "data", 30))
			ref := hub.put(t, "spaces", im)
			one := append([]string{"-n", "one"}, c.pullArgs(ref)...)
			two := append([]string{"-n", "two"}, c.pullArgs(ref)...)
			c.ctr(one...)
			c.ctr(two...)
			for _, ns := range []string{"one", "two"} {
				out := c.ctr(append([]string{"-n", ns}, c.runArgs([]string{"--rm"}, ref, c.unique("reads"), "/inside", "sums", "/data")...)...)
				im.checkSums(t, "data/", out)
				c.ctr("-n", ns, "images", "rm", "--sync", ref)
			}
			for _, ns := range []string{"one", "two"} {
				c.within(ns).empty()
			}
			m.nothingLeftSoon()
		})
	}
}

// TestTwoContainerds: two of them share one snapd. Each has snapshots of its own,
// and objects are there once.
func TestTwoContainerds(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "", "b")
	a := m.containerd("c", kind{peer: peers.Containerd24})
	b := m.newContainerd("b", kind{peer: peers.Containerd23, serial: true})
	b.text = strings.ReplaceAll(b.text, m.run+"/containerd.sock", m.run+"/containerd-b.sock")
	b.start()
	im := newImage(t, gzipTar, base(t), someFiles(1530, "data", 30))
	ref := hub.put(t, "two", im)
	a.pull(ref)
	m.pull(ref, true)
	hub.sent()
	b.pull(ref)
	if n := hub.sent(); n > im.size()/4 {
		t.Errorf("the second containerd's pull took %d bytes of an image of %d", n, im.size())
	}
	for _, c := range []*ctrd{a, b} {
		im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
	}
	name := b.stays(ref)
	a.empty()
	forget(t)
	im.checkSums(t, "data/", b.exec(name, "/inside", "sums", "/data"))
	m.kill()
	m.start()
	b.settle()
	im.checkSums(t, "data/", b.run(ref, "/inside", "sums", "/data"))
	b.end(name)
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
	b.empty()
	m.nothingLeftSoon()
}

// private makes the hub want a password for an image.
func (h *hub) private(name, user, password string) {
	h.misbehave(name, func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

// TestContainerdAlone: an image that only containerd has a password for is
// pulled and unpacked by containerd, and runs like any other.
func TestContainerdAlone(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			m := startServed(t, "")
			c := m.containerd("c", k)
			im := newImage(t, gzipTar, append(changes(t), someFiles(1540, "data", 30))...)
			ref := hub.put(t, "alone", im)
			hub.private("alone", "user", "secret")
			args := c.pullArgs(ref)
			c.ctr(append(args[:len(args)-1], "--user", "user:secret", ref)...)
			im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
			public := newImage(t, gzipTar, append(changes(t), someFiles(1541, "more", 30))...)
			c.pull(hub.put(t, "public", public)) // its lower layers are containerd's own already
			public.checkSums(t, "more/", c.run(hub.ref("public"), "/inside", "sums", "/more"))
			c.empty()
			m.nothingLeftSoon()
		})
	}
}
