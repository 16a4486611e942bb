package containers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// crowd makes directories of running containers; this process has the locks that their monitors would have.
func crowd(t testing.TB, root, run string, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("%064x", i+1)
		dir := filepath.Join(root, "containers", id)
		must(t, os.MkdirAll(dir, 0o700))
		c := &monitor.Config{
			ID: id, Name: fmt.Sprintf("c%d", i), Image: "docker.io/library/debian:stable", Socket: filepath.Join(run, "containers", id[:16], "sock"),
			Spec: &specs.Spec{Process: &specs.Process{Args: []string{"sleep", "1000"}}, Linux: &specs.Linux{CgroupsPath: "/x/" + id}}, Remove: true,
			Created: time.Unix(int64(i), 0), Labels: map[string]string{labelManifest: "sha256:" + id},
		}
		must(t, c.Save(dir))
		state(t, dir, monitor.State{Status: monitor.StatusRunning, Pid: i + 100, Started: time.Unix(int64(i), 1), Ready: time.Unix(int64(i), 2), ReadyBy: "quiet"})
		f, err := os.Create(filepath.Join(dir, "lock"))
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		t.Cleanup(func() { f.Close() })
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// state replaces the state of the container in dir, as its monitor does.
func state(t testing.TB, dir string, s monitor.State) {
	t.Helper()
	b, err := json.Marshal(s)
	must(t, err)
	name := filepath.Join(dir, monitor.StateFile)
	must(t, os.WriteFile(name+".new", b, 0o600))
	must(t, os.Rename(name+".new", name))
}

// TestListIsTrue: what is remembered of states is never shown when there is another.
func TestListIsTrue(t *testing.T) {
	root, run := t.TempDir(), t.TempDir()
	crowd(t, root, run, 20)
	s, err := Open(t.Context(), Options{Root: root, Run: run})
	must(t, err)
	defer s.Close()
	s.states.settled = 0
	list := func() map[string]control.Container {
		rows := map[string]control.Container{}
		for _, r := range s.List(false) {
			rows[r.Name] = r
		}
		return rows
	}
	for range 2 {
		if rows := list(); len(rows) != 20 || rows["c7"].Pid != 107 || rows["c7"].Socket == "" {
			t.Fatalf("List = %+v", rows)
		}
	}
	s.states.settled = settled
	dir := s.dir(fmt.Sprintf("%064x", 8))
	for i := range 50 { // of one length, and as fast as can be
		state(t, dir, monitor.State{Status: monitor.StatusRunning, Pid: 500 + i})
		if got := list()["c7"].Pid; got != 500+i {
			t.Fatalf("List has the state before the last: pid %d, want %d", got, 500+i)
		}
	}
	must(t, os.Rename(dir, dir+"-removed"))
	if rows := list(); len(rows) != 19 || rows["c7"].ID != "" {
		t.Errorf("List has %d containers, %+v, and one was removed", len(rows), rows["c7"])
	}
}

func BenchmarkList(b *testing.B) {
	root, run := b.TempDir(), b.TempDir()
	crowd(b, root, run, 500)
	s, err := Open(b.Context(), Options{Root: root, Run: run})
	must(b, err)
	defer s.Close()
	s.states.settled = 0
	for b.Loop() {
		if rows := s.List(false); len(rows) != 500 {
			b.Fatal(len(rows))
		}
	}
}

// TestForgotten: a container that its monitor has removed is forgotten without anybody asking for it, and its name is
// free even before that.
func TestForgotten(t *testing.T) {
	first := &monitor.Config{Name: "first"}
	_, s := followed(t, first, monitor.State{Status: monitor.StatusExited, Started: time.Now(), Finished: time.Now()})
	s.followers.Wait()
	c := &monitor.Config{ID: strings.Repeat("cd", 32), Name: "mine", Socket: first.Socket, Spec: first.Spec, Labels: first.Labels}
	know := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.known[c.ID], s.names[c.Name] = c, c.ID
	}
	know()
	s.follow(c)
	s.followers.Wait()
	if s.config(c.ID) != nil {
		t.Error("it has ended, and is still known")
	}
	know()
	a := control.CreateArgs{ID: strings.Repeat("ef", 32), Name: "mine"}
	if _, err := s.reserve(&a); err != nil {
		t.Error(err)
	}
	must(t, os.MkdirAll(s.dir(a.ID), 0o700))
	know()
	c.ID = a.ID
	know()
	if _, err := s.reserve(&control.CreateArgs{ID: strings.Repeat("12", 32), Name: "mine"}); err == nil {
		t.Error("the name of a container that is there was given away")
	}
}
