package objects

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

func TestUncleanBoot(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	durable, whole, torn, empty := random(9000), random(9000), random(9000), random(9000)
	packed, lost := many(5, 100), many(5, 100)
	put := func(data ...[]byte) {
		for _, d := range data {
			if err := s.Put(layers.SumOf(d), d); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(durable)
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(whole, torn, empty)
	putPack(t, s, packed...)
	goodPack, _ := filepath.Glob(filepath.Join(dir, "packs/*"))
	putPack(t, s, lost...)
	parts, data := partial(t, s, 50_000, 10_000, 0, 1, 4)
	crash(s)

	damage := func(name string, b []byte, off int64) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if b == nil {
			err = f.Truncate(0)
		} else {
			_, err = f.WriteAt(b, off)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	damage("fresh/"+layers.SumOf(torn).Path(), make([]byte, 4096), 0)
	damage("fresh/"+layers.SumOf(empty).Path(), nil, 0)
	damage(parts.name, make([]byte, 100), 10_000)
	all, _ := filepath.Glob(filepath.Join(dir, "packs/*"))
	for _, p := range all {
		if p != goodPack[0] {
			rel, _ := filepath.Rel(dir, p)
			damage(rel, make([]byte, 50), 100)
		}
	}

	s = open(t, dir, "b")
	if !s.Unclean() {
		t.Error("Unclean = false")
	}
	if f, err := s.fresh(); err != nil || len(f) > 0 {
		t.Fatalf("fresh/ shows %d objects that were not verified", len(f))
	}
	verify := func() {
		t.Helper()
		check(t, s, durable)
		check(t, s, whole) // before Recover: verified because it is asked for
		for _, d := range [][]byte{torn, empty} {
			if s.Has(layers.SumOf(d)) {
				t.Error("a damaged object is believed")
			}
		}
		for _, d := range packed {
			check(t, s, d)
		}
		if s.Has(layers.SumOf(lost[0])) {
			t.Error("a damaged object in a pack is believed")
		}
	}
	verify()
	p := fill(t, s, data, 10_000)
	for i, want := range []bool{true, false, false, false, true} {
		if p.Has(i) != want {
			t.Errorf("chunk %d: Has = %v, want %v", i, p.Has(i), want)
		}
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify()
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	crash(s)
	s = open(t, dir, "c") // again unclean: what was verified is durable by now
	check(t, s, whole)
	verify()
	if left, _ := os.ReadDir(filepath.Join(dir, "packs")); len(left) != 1 {
		t.Errorf("packs/ has %v", left)
	}
	// The chunk that was verified under "b" is a claim again, and so verified again.
	if p := fill(t, s, data, 10_000); !p.Has(0) || p.Has(1) || !p.Has(4) {
		t.Error("claims of two boots were not merged")
	}
}

func TestCleanStop(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	data := random(5000)
	if err := s.Put(layers.SumOf(data), data); err != nil {
		t.Fatal(err)
	}
	_, part := partial(t, s, 50_000, 10_000, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.root = -1
	s = open(t, dir, "b")
	if s.Unclean() {
		t.Error("Unclean after Close")
	}
	check(t, s, data)
	if p := fill(t, s, part, 10_000); !p.Has(2) || p.claim != nil {
		t.Error("a chunk of a clean stop is in doubt")
	}
}

// While a new worker has the store open, the old one's Close is no clean stop.
func TestHandOverIsNoCleanStop(t *testing.T) {
	dir := t.TempDir()
	old := open(t, dir, "a")
	s := open(t, dir, "a")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	old.root = -1
	data := random(5000)
	if err := s.Put(layers.SumOf(data), data); err != nil {
		t.Fatal(err)
	}
	crash(s)
	if s = open(t, dir, "b"); !s.Unclean() {
		t.Error("Unclean = false")
	}
}

// TestKilled kills a process that writes, again and again, and looks at what it left.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("OBJECTS_TEST_DIR"); dir != "" {
		writeUntilKilled(dir)
	}
	dir := t.TempDir()
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "OBJECTS_TEST_DIR="+dir, fmt.Sprint("OBJECTS_TEST_SEED=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It writes a byte for each object; so many, then it dies.
		for range 50 + 30*round {
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		s := open(t, dir, "a")
		n := 0
		err = s.Walk(func(sum layers.Sum, size int64) error {
			n++
			b := make([]byte, size)
			if _, err := s.ReadAt(sum, b, 0); err != nil {
				return err
			}
			if layers.SumOf(b) != sum {
				return fmt.Errorf("object %s is torn", sum)
			}
			return nil
		})
		if err != nil || n < 50 {
			t.Fatalf("after kill %d: %d objects, %v", round, n, err)
		}
		verifyPartial(t, s, round)
		crash(s)
		if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 2 { // the locks
			t.Errorf("tmp/ has %v", left)
		}
	}
}

// seeded returns n bytes that seed determines.
func seeded(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

const partSize, partChunk = 1 << 20, 4 << 10

// verifyPartial compares every chunk that a killed process left of its partial object.
func verifyPartial(t *testing.T, s *Store, round int) {
	t.Helper()
	data := seeded(uint64(round), partSize)
	if s.Has(layers.SumOf(data)) {
		return
	}
	p := fill(t, s, data, partChunk)
	n := 0
	for i, c := range cut(data, partChunk) {
		if !p.Has(i) {
			continue
		}
		n++
		b := make([]byte, c.Size)
		if _, err := p.ReadAt(b, c.Off); err != nil || !bytes.Equal(b, data[c.Off:c.Off+c.Size]) {
			t.Fatalf("chunk %d is not what it was: %v", i, err)
		}
	}
	if n == 0 {
		t.Error("no chunk survived the kill")
	}
}

func writeUntilKilled(dir string) {
	s, err := Open(dir, Options{Boot: "a"})
	if err != nil {
		panic(err)
	}
	var seed int
	fmt.Sscan(os.Getenv("OBJECTS_TEST_SEED"), &seed)
	data := seeded(uint64(seed), partSize)
	chunks := cut(data, partChunk)
	p, err := s.Partial(layers.SumOf(data), partSize, chunks)
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		small := random(1 + rand.IntN(MaxPacked))
		if i%3 == 0 {
			pack, err := s.NewPack("p")
			if err == nil {
				_, err = pack.Add(small)
			}
			if err = errors.Join(err, pack.Commit()); err != nil {
				panic(err)
			}
		} else if err := s.Put(layers.SumOf(small), small); err != nil {
			panic(err)
		}
		if i < len(chunks) {
			if _, err := p.Put(i, data[i*partChunk:][:partChunk]); err != nil {
				panic(err)
			}
		}
		os.Stdout.Write([]byte{'.'})
	}
}

// ext4 mounts a new ext4 file system of so many MiB. power cuts its power; back
// brings it up again.
func ext4(t *testing.T, mib int64) (dir string, power, back func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	img := filepath.Join(t.TempDir(), "img")
	dir = t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, mib<<20); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-m", "0", img)
	back = func() { t.Helper(); run("mount", "-o", "loop", img, dir) }
	back()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func() {
		t.Helper()
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h
		if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}, back
}

func TestPowerCut(t *testing.T) {
	dir, power, back := ext4(t, 64)
	root := filepath.Join(dir, "root")
	s, err := Open(root, Options{Boot: "a"})
	if err != nil {
		t.Fatal(err)
	}
	before, after := many(100, 20_000), many(100, 20_000)
	smallBefore, smallAfter := many(100, 500), many(100, 500)
	add := func(files, small [][]byte) {
		for _, d := range files {
			if err := s.Put(layers.SumOf(d), d); err != nil {
				t.Fatal(err)
			}
		}
		putPack(t, s, small...)
	}
	add(before, smallBefore)
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(after, smallAfter)
	// Names get to disk before the bytes, as they do now and then.
	if err := s.syncRoot(); err != nil {
		t.Fatal(err)
	}
	part := random(100_000)
	p, err := s.Partial(layers.SumOf(part), int64(len(part)), cut(part, 10_000))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := p.Put(i, part[i*10_000:][:10_000]); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	crash(s)
	power()
	back()

	torn := 0
	for _, d := range after {
		if st, err := os.Stat(filepath.Join(root, "fresh", layers.SumOf(d).Path())); err == nil && st.Size() != int64(len(d)) {
			torn++
		}
	}
	t.Logf("the power cut tore %d of %d objects", torn, len(after))
	s, err = Open(root, Options{Boot: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, recovered := range []bool{false, true} {
		for _, d := range append(before, smallBefore...) {
			check(t, s, d)
		}
		for _, d := range append(after, smallAfter...) {
			if s.Has(layers.SumOf(d)) {
				check(t, s, d)
			}
		}
		if !recovered {
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if p, err = s.Partial(layers.SumOf(part), int64(len(part)), cut(part, 10_000)); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 10 {
		b := make([]byte, 10_000)
		if _, err := p.ReadAt(b, int64(i)*10_000); err == nil && !bytes.Equal(b, part[i*10_000:][:10_000]) {
			t.Errorf("chunk %d is torn and believed", i)
		}
	}
}

func TestDiskFull(t *testing.T) {
	dir, _, _ := ext4(t, 8)
	s, err := Open(filepath.Join(dir, "root"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var kept [][]byte
	for { // fill it
		d := random(300_000)
		if err = s.Put(layers.SumOf(d), d); err != nil {
			break
		}
		kept = append(kept, d)
	}
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s = %v, want ENOSPC", what, err)
		}
	}
	full("Put", err)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err = w.Write(random(writeUnit)); err != nil {
			break
		}
	}
	full("Write", err)
	_, err = w.Commit(nil)
	full("Commit", err)
	p, err := s.NewPack("p")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err = p.Add(random(MaxPacked)); err != nil {
			break
		}
	}
	full("Add", err)
	full("Commit", p.Commit())
	data := random(10 << 20)
	part, err := s.Partial(layers.SumOf(data), 10<<20, cut(data, 1<<20))
	if err == nil {
		defer part.Close()
		for i := range 10 {
			if _, err = part.Put(i, data[i<<20:][:1<<20]); err != nil {
				break
			}
		}
		if part.Complete() {
			t.Error("10 MiB in a file system of 8")
		}
	}
	full("Partial", err)
	for _, d := range kept {
		check(t, s, d)
	}
	var u unix.Statfs_t
	if err := unix.Statfs(dir, &u); err != nil {
		t.Fatal(err)
	}
	free := u.Bavail
	if err := s.Remove(layers.SumOf(data)); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Sweep(func(layers.Sum) bool { return false }); err != nil || freed < int64(len(kept))*300_000 {
		t.Errorf("Sweep = %d, %v", freed, err)
	}
	if err := s.Put(layers.SumOf(kept[0]), kept[0]); err != nil {
		t.Errorf("Put after Sweep = %v (%d blocks were free before)", err, free)
	}
}

// A disk that does not take writes any more: errors, and nothing is called durable.
func TestDeadDisk(t *testing.T) {
	dir, power, back := ext4(t, 32)
	s, err := Open(filepath.Join(dir, "root"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := random(50_000)
	if err := s.Put(layers.SumOf(data), data); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := s.Barrier(t.Context()); err == nil {
		t.Error("Barrier on a dead disk = nil")
	}
	other := random(50_000)
	if err := s.Put(layers.SumOf(other), other); err == nil {
		t.Error("Put on a dead disk = nil")
	}
	if s.Has(layers.SumOf(other)) {
		t.Error("an object that was not written is there")
	}
	if err := s.Close(); err == nil {
		t.Error("Close on a dead disk = nil")
	}
	power()
	back()
}
