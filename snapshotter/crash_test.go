package snapshotter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// kinds are all snapshots.
func kinds(t testing.TB, s *Snapshotter) map[string]snapshots.Kind {
	t.Helper()
	all := map[string]snapshots.Kind{}
	err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		all[info.Name] = info.Kind
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// consistent says that database and directories agree, after a Cleanup.
func consistent(t testing.TB, s *Snapshotter) {
	t.Helper()
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]bool{}
	paths, err := list(s.dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		dirs[filepath.Base(p)] = true
	}
	err = s.store.view(t.Context(), func(ctx context.Context, tx *bolt.Tx) error {
		rows, err := allRows(tx)
		if err != nil {
			return err
		}
		ids := map[string]bool{}
		err = storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			r, held := rows[id]
			ids[id] = true
			needs := info.Kind == snapshots.KindActive || info.Kind == snapshots.KindCommitted && !held || info.Parent == ""
			if held && info.Kind == snapshots.KindCommitted {
				needs = false
				if r.Parent != "" {
					t.Errorf("%q is committed and staged: %+v", info.Name, r)
				}
			}
			if dirs[id] != needs {
				t.Errorf("%q (%s, %v): directory: %t", info.Name, id, info.Kind, dirs[id])
			}
			delete(dirs, id)
			return err
		})
		for id := range rows {
			if !ids[id] {
				t.Errorf("snapshot %s is held and does not exist", id)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for d := range dirs {
		t.Errorf("directory %s belongs to nothing", d)
	}
}

// TestKilled kills a process that makes, commits and removes snapshots, again and
// again, and looks whether all that it has said was done is there.
func TestKilled(t *testing.T) {
	needsRoot(t)
	if root := os.Getenv("SNAPFS_KILL_ME"); root != "" {
		killMe(root)
		return
	}
	root := t.TempDir()
	said := map[string]snapshots.Kind{} // what must be there
	for round := range 40 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "SNAPFS_KILL_ME="+root)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		maybe := map[string]bool{} // what the last line has begun
		for n := 0; lines.Scan(); n++ {
			var verb, name, kind string
			fmt.Sscan(lines.Text(), &verb, &name, &kind)
			switch verb {
			case "begin":
				maybe[name] = true
			case "have":
				said[name] = snapshots.ParseKind(kind)
				delete(maybe, name)
			case "gone":
				delete(said, name)
				delete(maybe, name)
			}
			if n == 20+7*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait()
		s, err := New(Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run"), Layers: noLayers{}})
		if err != nil {
			t.Fatalf("after kill %d: %v", round, err)
		}
		got := kinds(t, s)
		for name, kind := range said {
			if got[name] != kind && !maybe[name] {
				t.Errorf("after kill %d: %s is %v, and was %v", round, name, got[name], kind)
			}
		}
		for name := range got {
			if _, ok := said[name]; !ok && !maybe[name] {
				t.Errorf("after kill %d: nobody knows of %s", round, name)
			}
		}
		consistent(t, s)
		said = got
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	if len(said) == 0 {
		t.Error("nothing was there in the end")
	}
}

// killMe says on standard output what it does, until somebody kills it.
func killMe(root string) {
	s, err := New(Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run"), Layers: noLayers{}})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	do := func(name, after string, err error) {
		if err != nil {
			panic(fmt.Errorf("%s: %w", name, err))
		}
		fmt.Println(after)
	}
	for i := 0; ; i++ {
		n := fmt.Sprintf("%d-%d", os.Getpid(), i)
		fmt.Println("begin", n)
		_, err := s.Prepare(ctx, n, "")
		do(n, "have "+n+" active", err)
		c := "c" + n
		fmt.Println("begin", c)
		fmt.Println("begin", n)
		err = s.Commit(ctx, c, n)
		do(n, "have "+c+" committed", err)
		fmt.Println("gone", n)
		target := digest.FromString(n)
		fmt.Println("begin", target)
		if err := s.commitHeld(ctx, snapshots.Info{Name: "tmp" + n}, row{Target: target}); !errdefs.IsAlreadyExists(err) {
			panic(err)
		}
		fmt.Println("have", target, "committed")
		v := "v" + n
		fmt.Println("begin", v)
		_, err = s.View(ctx, v, c)
		do(v, "have "+v+" view", err)
		fmt.Println("begin", v)
		err = s.Remove(ctx, v)
		do(v, "gone "+v, err)
		if i%3 != 0 {
			fmt.Println("begin", c)
			err = s.Remove(ctx, c)
			do(c, "gone "+c, err)
		}
	}
}

// noLayers is a book without images.
type noLayers struct{}

func (noLayers) Layer(context.Context, Image, digest.Digest, digest.Digest) (Layer, func(), error) {
	return Layer{}, nil, ErrNotOurs
}
func (noLayers) Mount(context.Context, Stack) (Mounted, error) {
	return Mounted{}, errors.New("nothing to mount")
}
func (noLayers) Usage(context.Context, Layer) (snapshots.Usage, error) { return snapshots.Usage{}, nil }
func (noLayers) Leave(Image, error)                                    {}
func (noLayers) Collect()                                              {}

// filled makes snapshots of all kinds: committed "a" and "b" on it, active "c" on b with
// a file, view "v", staged "s", and held ones.
func filled(t testing.TB, root string) (want map[string]snapshots.Kind) {
	t.Helper()
	s := newSnapshotter(t, Options{Root: root, Layers: noLayers{}})
	ctx := t.Context()
	held := digest.FromString("held")
	staged := row{Target: digest.FromString("staged"), Parent: held}
	_, err := s.create(ctx, snapshots.Info{Kind: snapshots.KindActive, Name: "s", Labels: map[string]string{snapshots.LabelSnapshotRef: staged.Target.String()}}, &staged)
	err = errors.Join(err,
		second(s.Prepare(ctx, "x", "")), writeInto(s, "x", "in a"), s.Commit(ctx, "a", "x"),
		second(s.Prepare(ctx, "y", "a")), writeInto(s, "y", "in b"), s.Commit(ctx, "b", "y"),
		second(s.Prepare(ctx, "c", "b")), writeInto(s, "c", "in c"),
		second(s.View(ctx, "v", "b")), second(s.View(ctx, "empty", "")))
	if herr := s.commitHeld(ctx, snapshots.Info{Name: "z"}, row{Target: held}); !errdefs.IsAlreadyExists(herr) {
		err = errors.Join(err, herr)
	}
	if err != nil {
		t.Fatal(err)
	}
	want = kinds(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return want
}

// writeInto puts a file into an active snapshot, past its mounts.
func writeInto(s *Snapshotter, key, text string) error {
	var id string
	err := s.store.view(context.Background(), func(ctx context.Context, _ *bolt.Tx) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.upper(id), "file"), []byte(text), 0o644)
}

// TestRecover opens what crashes and power cuts may leave.
func TestRecover(t *testing.T) {
	id := func(root, key string) string {
		s := newSnapshotter(t, Options{Root: root})
		defer s.Close()
		var id string
		err := s.store.view(t.Context(), func(ctx context.Context, _ *bolt.Tx) (err error) {
			id, _, _, err = storage.GetInfo(ctx, key)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(root, "snapshots", id)
	}
	for _, tt := range []struct {
		name   string
		damage func(root string) error
		remade int64
		lost   string // a committed snapshot whose directory is gone: an error in the log
	}{
		{"nothing", func(string) error { return nil }, 0, ""},
		{"directories of nobody", func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "snapshots/999/fs/etc"), 0o755), os.MkdirAll(filepath.Join(root, "snapshots/1000"), 0o755),
				os.MkdirAll(filepath.Join(root, "snapshots", orphanPrefix+"7/fs"), 0o755))
		}, 0, ""},
		{"an active one without its directory", func(root string) error { return os.RemoveAll(id(root, "c")) }, 1, ""},
		{"an active one without a work directory", func(root string) error { return os.Remove(filepath.Join(id(root, "c"), "work")) }, 1, ""},
		{"an active one without an upper directory", func(root string) error { return os.RemoveAll(filepath.Join(id(root, "c"), "fs")) }, 1, ""},
		{"a staged one without its directory", func(root string) error { return os.RemoveAll(id(root, "s")) }, 1, ""},
		{"an empty view without its directory", func(root string) error { return os.RemoveAll(id(root, "empty")) }, 1, ""},
		{"a committed one without its directory", func(root string) error { return os.RemoveAll(id(root, "a")) }, 0, "a"},
		{"a held one with a directory", func(root string) error {
			return os.MkdirAll(id(root, digest.FromString("held").String())+"/fs/x", 0o755)
		}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			want := filled(t, root)
			if err := tt.damage(root); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			s := newSnapshotter(t, Options{Root: root, Layers: noLayers{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if got := kinds(t, s); !maps.Equal(got, want) {
				t.Errorf("snapshots %v, want %v", got, want)
			}
			if n := s.Stats.Remade.Load(); n != tt.remade {
				t.Errorf("%d directories made again, want %d", n, tt.remade)
			}
			if lost := strings.Contains(log.String(), "level=ERROR"); lost != (tt.lost != "") {
				t.Errorf("log:\n%s", log.String())
			}
			if tt.lost == "" {
				consistent(t, s)
			}
			// The others can be used.
			if _, err := s.Prepare(t.Context(), "new", ""); err != nil {
				t.Error(err)
			}
			b, err := os.ReadFile(filepath.Join(dirOf(t, s, "b"), "fs/file"))
			if err != nil || string(b) != "in b" {
				t.Errorf("b has %q, %v", b, err)
			}
		})
	}
}

func dirOf(t testing.TB, s *Snapshotter, key string) (dir string) {
	t.Helper()
	err := s.store.view(t.Context(), func(ctx context.Context, _ *bolt.Tx) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		dir = s.dir(id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestTorn opens damaged databases. None may be believed, end the process, hold
// up the next one, or cost a directory.
func TestTorn(t *testing.T) {
	page := int64(os.Getpagesize())
	garbage := func(off, n int64) func(string) error {
		return func(db string) error {
			f, err := os.OpenFile(db, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(n)), off)
			return err
		}
	}
	for name, damage := range map[string]func(db string) error{
		"gone":            os.Remove,
		"empty":           func(db string) error { return os.Truncate(db, 0) },
		"short":           func(db string) error { return os.Truncate(db, 100) },
		"a page":          func(db string) error { return os.Truncate(db, page) },
		"half":            func(db string) error { return os.Truncate(db, 4*page) },
		"both meta pages": garbage(0, 2*page),
		"all but them":    garbage(2*page, 6*page),
		"something else":  func(db string) error { return os.WriteFile(db, bytes.Repeat([]byte("x"), 65536), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			filled(t, root)
			db := filepath.Join(root, "metadata.db")
			copied, err := os.ReadFile(db)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(db); err != nil {
				t.Fatal(err)
			}
			before := listing(t, filepath.Join(root, "snapshots"))
			for range 2 {
				s, err := New(Options{Root: root, Run: t.TempDir()})
				if err == nil {
					s.Close()
				}
				if !errors.Is(err, ErrTorn) {
					t.Fatalf("New: %v, want ErrTorn", err)
				}
				if !strings.Contains(err.Error(), db) {
					t.Errorf("%v does not name %s", err, db)
				}
			}
			if after := listing(t, filepath.Join(root, "snapshots")); after != before {
				t.Errorf("directories:\n%s\nbefore:\n%s", after, before)
			}
			// Put back, it works again.
			if err := os.WriteFile(db, copied, 0o600); err != nil {
				t.Fatal(err)
			}
			newSnapshotter(t, Options{Root: root, Layers: noLayers{}})
		})
	}
}

// TestFlips changes single pages of a database: it is torn, or it works.
func TestFlips(t *testing.T) {
	root := t.TempDir()
	want := filled(t, root)
	db := filepath.Join(root, "metadata.db")
	whole, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	torn := 0
	for off := 0; off < len(whole); off += 509 {
		b := bytes.Clone(whole)
		b[off] ^= 0xff
		if err := os.WriteFile(db, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{Root: root, Run: t.TempDir(), Layers: noLayers{}})
		switch {
		case errors.Is(err, ErrTorn):
			torn++
			continue
		case err != nil:
			t.Errorf("byte %d: %v, want ErrTorn or none", off, err)
			continue
		}
		if len(kinds(t, s)) < len(want)-1 { // a name may have become another one
			t.Errorf("byte %d: snapshots %v, want %v", off, kinds(t, s), want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if torn == 0 {
		t.Error("no change was found")
	}
}

// TestFull fills the disk before each step of a small file system.
func TestFull(t *testing.T) {
	needsRoot(t)
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	s, err := New(Options{Root: filepath.Join(mnt, "root"), Run: t.TempDir(), Layers: noLayers{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	if _, err := s.Prepare(ctx, "first", ""); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(mnt, "fill")
	for os.WriteFile(fill+fmt.Sprint(len(mnt)), make([]byte, 1<<20), 0o600) == nil {
		t.Fatal("a file system of 1 MiB has room for more")
	}
	// What needs no more pages may succeed; what fails says why and leaves nothing.
	failed := 0
	have := map[string]bool{"first": true}
	labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot/x": strings.Repeat("x", 4000)})
	for i := range 40 {
		key := fmt.Sprint("more", i)
		if _, err := s.Prepare(ctx, key, "", labels); err == nil {
			have[key] = true
		} else if failed++; !errdefs.IsResourceExhausted(err) {
			t.Fatalf("Prepare on a full disk: %v", err)
		}
	}
	if failed == 0 {
		t.Error("the disk was not full")
	}
	committed := 0
	for key := range maps.Clone(have) {
		err := s.Commit(ctx, "c"+key, key, labels, snapshots.WithLabels(map[string]string{"containerd.io/snapshot/y": strings.Repeat("y", 8000)}))
		switch {
		case err == nil:
			committed++
			delete(have, key)
			have["c"+key] = true
		case !errdefs.IsResourceExhausted(err):
			t.Errorf("Commit on a full disk: %v", err)
		}
	}
	if committed == len(have) {
		t.Error("everything could be committed on a full disk")
	}
	check := func() {
		t.Helper()
		got := kinds(t, s)
		for name := range have {
			if _, ok := got[name]; !ok {
				t.Errorf("%s is lost", name)
			}
			delete(got, name)
		}
		for name := range got {
			t.Errorf("%s was refused, and is there", name)
		}
	}
	check()
	if err := os.Remove(fill + fmt.Sprint(len(mnt))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(ctx, "again", "", labels); err != nil {
		t.Error(err)
	}
	have["again"] = true
	check()
	consistent(t, s)
}
