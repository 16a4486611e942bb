package integration

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/internal/peers"
)

// TestContainerdExplained: an image that containerd pulls is explained, completed
// and sealed, its start becomes a boot profile, and it goes with its snapshots;
// one that snapd cannot have works, too, and users learn why it is slower.
func TestContainerdExplained(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "[pull]\ncomplete = true")
	c := m.containerd("c", kind{peer: peers.Containerd24})
	ref := hub.put(t, "explained", newImage(t, eStargz, base(t), someFiles(1601, "data", 60)))
	c.pull(ref)
	c.run(ref, "/inside", "sums", "/data")
	for _, part := range []string{"Image " + ref, "containerd has asked for it", "Last pull", "table of contents in the layer"} {
		if words := m.ok("explain", ref); !strings.Contains(words, part) {
			t.Errorf("explain does not say %q:\n%s", part, words)
		}
	}
	if words := m.ok("images", "-q"); words != "" {
		t.Errorf("images has what only containerd has a name for:\n%s", words)
	}
	m.eventually("the image is complete and its start known", func() bool {
		words := m.ok("explain", ref)
		return strings.Contains(words, "no read waits for the network") && strings.Contains(words, "Boot profile: of 1 start")
	})

	refused := hub.put(t, "refused", newImage(t, gzipTar, base(t), someFiles(1602, "data", 20)))
	hub.misbehave("refused", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if !strings.HasPrefix(r.UserAgent(), "snapfs") {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	c.pull(refused)
	c.run(refused, "/inside", "sums", "/data")
	if words := m.ok("explain", refused); !strings.Contains(words, "left to containerd") || !strings.Contains(words, "403") {
		t.Errorf("explain of an image that was left to containerd:\n%s", words)
	}
	if words := m.ok("events", "--filter", "event=left"); !strings.Contains(words, refused) {
		t.Errorf("no event says that it was left to containerd:\n%s", words)
	}
	for _, r := range []string{ref, refused} {
		c.ctr("images", "rm", "--sync", r)
	}
	m.nothingLeftSoon()
	if _, code := m.snapctl("explain", ref); code != 1 {
		t.Errorf("an image that is gone is explained with exit status %d", code)
	}
}
