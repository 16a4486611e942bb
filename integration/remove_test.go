package integration

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// used returns how many bytes of disk the daemon's root takes, without its database.
func (m *machine) used() (n int64) {
	m.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(m.root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || d.Name() == "snapfs.db" {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err == nil && !seen[st.Ino] {
			seen[st.Ino] = true // a barrier may move it to where the walk is still to come
			n += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		m.Fatal(err)
	}
	return n
}

func TestRemoveReleasesDisk(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]string{"tar": gzipTar, "stargz": eStargz} {
		t.Run(name, func(t *testing.T) {
			hub := newHub(t)
			m := startMachine(t, "")
			empty := m.used()
			common := someFiles(1000, "common", 40)
			one, two := newImage(t, format, common, someFiles(1001, "one", 40)), newImage(t, format, common, someFiles(1002, "two", 40))
			refOne, refTwo := hub.put(t, "one", one), hub.put(t, "two", two)
			m.pull(refTwo, true)
			alone := m.used()
			m.pull(refOne, true)
			top := m.mount(refOne, false)
			rmi := func(ref string) error {
				return m.call(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
			}
			checkError(t, rmi(refOne), control.CodeInUse, "one", top)
			one.check(t, top)
			m.unmount(top)
			if err := rmi(refOne); err != nil {
				t.Fatal(err)
			}
			if got := m.used(); got > alone+64<<10 {
				t.Errorf("%d bytes of disk after the removal, %d before the pull", got, alone)
			}
			checkError(t, rmi(refOne), control.CodeNotFound, "one")
			hub.Close()
			top = m.mount(refTwo, false)
			two.check(t, top)
			m.unmount(top)
			if err := rmi(refTwo); err != nil {
				t.Fatal(err)
			}
			m.nothingLeft()
			if got := m.used(); got > empty+64<<10 {
				t.Errorf("%d bytes of disk without an image, %d at the start", got, empty)
			}
		})
	}
}

// TestRemoveBetween tries to remove an image between the preparation of a mount
// and its record, when a client knows how to mount it and has not done so yet.
func TestRemoveBetween(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	im := newImage(t, eStargz, someFiles(1010, "data", 5))
	ref := hub.put(t, "between", im)
	rmi := func() error {
		return m.call(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}, Force: true}, nil)
	}
	a := control.MountArgs{Ref: ref, Target: filepath.Join(m.dir, "nowhere")}
	var mnt control.Mount
	m.must(control.OpMount, a, &mnt)
	checkError(t, rmi(), control.CodeInUse, "between", "begins to use it")
	m.must(control.OpMounted, mnt, nil)
	checkError(t, rmi(), control.CodeInUse, "between", a.Target)
	m.must(control.OpUmount, mnt, nil)
	m.must(control.OpMount, a, &mnt)
	checkError(t, m.call(control.OpUmount, mnt, nil), control.CodeNotFound, a.Target) // given up, without a record
	if err := rmi(); err != nil {
		t.Fatal(err)
	}
	checkError(t, m.call(control.OpMounted, mnt, nil), control.CodeNotFound, "between", "removed meanwhile")
	var list []control.Mount
	if m.must(control.OpMounts, nil, &list); len(list) != 0 {
		t.Errorf("mounts: %+v", list)
	}
	m.nothingLeft()
}

// TestUncleanBoot makes the daemon believe that the machine went down before an
// unpacked layer was safely on disk, and harms its bytes.
func TestUncleanBoot(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "pull.complete = false")
	lost, kept, lazily := newImage(t, gzipTar, someFiles(1100, "lost", 30)), newImage(t, zstdTar, someFiles(1101, "kept", 30)), newImage(t, eStargz, someFiles(1102, "lazy", 30))
	refLost, refKept, refLazy := hub.put(t, "lost", lost), hub.put(t, "kept", kept), hub.put(t, "lazily", lazily)
	m.pull(refKept, true)
	m.stop() // so that it is durable
	m.start()
	m.pull(refLazy, false)
	m.pull(refLost, true)
	top := m.mount(refKept, false)
	if err := unix.Unmount(top, 0); err != nil { // as a reboot does
		t.Fatal(err)
	}
	m.kill()
	powerCut(t, m, lost.layer(0).Encoded())

	m.start()
	var list []control.Mount
	if m.must(control.OpMounts, nil, &list); len(list) != 0 {
		t.Errorf("mounts of the boot before: %+v", list)
	}
	for _, im := range m.images() {
		if want := im.Ref == refKept; im.Complete != want {
			t.Errorf("%s: complete is %v, want %v", im.Ref, im.Complete, want)
		}
	}
	hub.misbehave("lost", status(everything, 403))
	top = m.mount(refLost, false) // needs no registry: what is lost is missed when it is read
	m.unmount(top)
	for ref, im := range map[string]*image{refKept: kept, refLazy: lazily} { // one bad image does not block others
		top := m.mount(ref, false)
		im.check(t, top)
		m.unmount(top)
	}
	hub.misbehave("lost", nil)
	top = m.mount(refLost, false)
	lost.check(t, top)
	m.unmount(top)
	if n := len(m.images()); n != 3 {
		t.Errorf("%d images, want the same 3", n)
	}
	m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{refLost, refKept, refLazy}}, nil)
	m.nothingLeft()
}

// powerCut makes the state below the root what it may be after a power cut: of
// another boot, the layer with the key not past a barrier, and bytes missing
// from all that no barrier has seen.
func powerCut(t *testing.T, m *machine, key string) {
	t.Helper()
	setMeta(t, m, "boot", map[string]any{"ID": "another boot", "Clean": false})
	db, err := bolt.Open(filepath.Join(m.root, "snapfs.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("layers"))
		var row map[string]any
		if err := json.Unmarshal(b.Get([]byte(key)), &row); err != nil {
			return err
		}
		row["Durable"] = false
		return b.Put([]byte(key), marshal(t, row))
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.root, "boot"), []byte("snapfs objects 1\nanother boot\nopen\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(filepath.Join(m.root, "fresh"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Truncate(p, 0)
		}
		return err
	})
	if err := os.RemoveAll(filepath.Join(m.run, "mounts")); err != nil {
		t.Fatal(err)
	}
}
