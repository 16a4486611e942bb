package images

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
)

// TestAliased: what was replaced stays known as long as somebody may have it.
func TestAliased(t *testing.T) {
	var row manifestRow
	for _, step := range []struct {
		was  manifestRow
		now  []string
		want *aliased
	}{
		{manifestRow{Layers: []string{"a", "b"}, Tree: "t0"}, []string{"a", "c"}, nil},
		{manifestRow{Layers: []string{"a", "b-soci-1"}, Tree: "t1"}, []string{"a", "b-soci-1"}, nil},
		{manifestRow{Layers: []string{"a-soci-1", "b-soci-1"}, Tree: "t1"}, []string{"a", "b-soci-1"}, &aliased{[]string{"a-soci-1"}, []string{"t1"}}},
		{manifestRow{Layers: []string{"a", "b-soci-1"}, Tree: "t2", Aliased: &aliased{[]string{"a-soci-1"}, []string{"t1"}}}, []string{"a", "b"},
			&aliased{[]string{"a-soci-1", "b-soci-1"}, []string{"t1", "t2"}}},
		{manifestRow{Layers: []string{"a", "b"}, Tree: "t3", Aliased: &aliased{[]string{"a-soci-1"}, []string{"t1"}}}, []string{"a", "b"},
			&aliased{[]string{"a-soci-1"}, []string{"t1"}}},
	} {
		row = manifestRow{Layers: step.now}
		row.keepAliased(&step.was)
		if d := cmp.Diff(step.want, row.Aliased); d != "" {
			t.Errorf("%v after %v (-want +got):\n%s", step.now, step.was.Layers, d)
		}
	}

	const id = "sha256:aaaa"
	d, err := openDB(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	users := map[digest.Digest][]User{}
	s := &Service{db: d, Options: Options{Users: func() map[digest.Digest][]User { return users }}}
	keeps := func(why string, want bool) {
		t.Helper()
		row.Aliased = &aliased{[]string{"a-soci-1"}, []string{"t1"}}
		if err := d.Update(func(tx *bolt.Tx) error { return put(tx, "manifests", id, &row) }); err != nil {
			t.Fatal(err)
		}
		if err := s.dropAliased(); err != nil {
			t.Fatal(err)
		}
		var got manifestRow
		if err := d.View(func(tx *bolt.Tx) error { return get(tx, "manifests", id, &got) }); err != nil {
			t.Fatal(err)
		}
		if got.Aliased != nil != want {
			t.Errorf("%s: kept %v, want %t", why, got.Aliased, want)
		}
	}
	mount := func(tree string) {
		t.Helper()
		m := control.Mount{Target: "/m", Rootfs: control.Rootfs{Image: tree}}
		if err := d.Update(func(tx *bolt.Tx) error { return put(tx, "mounts", m.Target, m) }); err != nil {
			t.Fatal(err)
		}
	}
	keeps("nobody", false)
	users[id] = []User{{Name: "stopped"}}
	keeps("a container", true)
	users = map[digest.Digest][]User{"sha256:bbbb": {{Name: "other"}}}
	keeps("another image's container", false)
	mount("t2")
	keeps("a mount of the new metadata image", false)
	mount("t1-sealed")
	keeps("a mount of the old one", true)
	mount("t2")
	release := s.uses.hold(id)
	keeps("somebody who begins to use it", true)
	release()
	keeps("nobody any more", false)
}
