package containers

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/userns"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// TestAdmit: who only looks takes no name.
func TestAdmit(t *testing.T) {
	id, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	s := &Service{names: map[string]string{"web": other}, known: map[string]*monitor.Config{}}
	for name, want := range map[string]string{"": "", "db": "", "web": "in use by container", "a b": "are allowed"} {
		a := control.CreateArgs{ID: id, Name: name}
		s.mu.Lock()
		_, err := s.admit(&a)
		s.mu.Unlock()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || err == nil && a.Name == "" || len(s.names) != 1 {
			t.Errorf("name %q: %v, names %v", name, err, s.names)
		}
	}
}

// TestKeepRanges: users that were given to look at are given again.
func TestKeepRanges(t *testing.T) {
	s := &Service{
		Options: Options{IDs: UserOptions{Pool: userns.Pool{IDRange: control.IDRange{UID: 100000, GID: 200000, Size: 4 * 1000}}}},
		ranges:  ranges{of: map[string]control.IDRange{}, going: map[string]going{}},
	}
	var seen []control.IDRange
	for range 3 {
		back := s.keepRanges("a")
		ids, ok := s.tryRange("a", 1000)
		if !ok {
			t.Fatal("none is left")
		}
		seen = append(seen, ids)
		back()
	}
	if seen[0] != seen[1] || seen[0] != seen[2] || len(s.ranges.of) != 0 {
		t.Errorf("%v, and left are %v", seen, s.ranges.of)
	}
	back := s.keepRanges("a")
	s.tryRange("a", 1000)
	b, _ := s.tryRange("b", 1000) // somebody else is given some meanwhile
	back()
	if c, ok := s.tryRange("c", 1000); !ok || c == b {
		t.Errorf("after %v comes %v", b, c)
	}
}

func TestBefore(t *testing.T) {
	c := &monitor.Config{
		IDs: &control.IDRange{UID: 1000, GID: 2000, Size: 10}, GroupAdd: []string{"audio", "a\nb"}, Rootfs: control.Rootfs{Upper: "/r/upper"},
		Network: control.NetworkConfig{
			Mode: "cni", CNI: "net", IPv4: netip.MustParseAddr("10.0.0.5"), MAC: "02:00:00:00:00:01",
			Ports: []control.Port{{Container: 80, Proto: "tcp"}, {HostIP: "127.0.0.1", Host: 8000, HostEnd: 8009, Container: 53, Proto: "udp"}},
		},
	}
	image := &images.Known{Ref: "docker.io/library/busybox:latest"}
	image.Layers, image.Platform = make([]string, 2), "linux/amd64\nexec nothing"
	got := before(c, image, false, []string{"/v"})
	want := `image busybox:latest  "linux/amd64\nexec nothing", 2 layers, to be fetched
writable layer /r/upper
make the directory "/v"
users 1000 to 1009, groups 2000 to 2009 of this machine
groups ["audio" "a\nb"], as the image's /etc/group has them
network cni:net, address 10.0.0.5, hardware address 02:00:00:00:00:01, publish any:80/tcp, publish 127.0.0.1:8000-8009:53/udp
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestLookSource: what -v would make is not made.
func TestLookSource(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "a/b")
	for _, row := range []struct {
		m       control.MountSpec
		missing bool
		want    string
	}{
		{control.MountSpec{Type: "tmpfs", Source: missing}, false, ""},
		{control.MountSpec{Type: "bind", Source: dir}, false, ""},
		{control.MountSpec{Type: "bind", Source: missing, Create: true}, true, ""},
		{control.MountSpec{Type: "bind", Source: missing}, false, "there is no such file"},
		{control.MountSpec{Type: "bind", Source: "/dev/null/x", Create: true}, false, "--volume /dev/null/x"},
	} {
		got, err := lookSource(row.m)
		if got != row.missing || (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, %v", row.m, got, err)
		}
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "*")); len(list) > 0 {
		t.Errorf("it made %q", list)
	}
}
