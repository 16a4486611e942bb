package containers

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/snapfs/snapfs/runtime/monitor"
)

// states remembers what the state files of containers said, so that a list of
// many is not read and decoded anew. A file is never changed, but replaced.
type states struct {
	settled time.Duration // see the constant

	mu    sync.Mutex
	known map[string]rememberedState // by ID
}

type rememberedState struct {
	file  fileVersion
	state monitor.State
}

// fileVersion is another one after a file was replaced, unless that was within a tick of the clock.
type fileVersion struct {
	ino           uint64
	size          int64
	mtime, change syscall.Timespec
}

// settled is how old a file has to be to be remembered: one that takes its place
// within a tick of the clock could have its number, size and times.
const settled = time.Second

// load is monitor.LoadState of the container id in dir.
func (s *states) load(id, dir string) (monitor.State, error) {
	fi, err := os.Stat(filepath.Join(dir, monitor.StateFile))
	if err != nil {
		return monitor.LoadState(dir)
	}
	st := fi.Sys().(*syscall.Stat_t)
	v := fileVersion{st.Ino, st.Size, st.Mtim, st.Ctim}
	s.mu.Lock()
	r, ok := s.known[id]
	s.mu.Unlock()
	if ok && r.file == v {
		return r.state, nil
	}
	state, err := monitor.LoadState(dir)
	if err == nil && time.Since(time.Unix(st.Ctim.Unix())) > s.settled && sameFile(fi, dir) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.known == nil {
			s.known = map[string]rememberedState{}
		}
		s.known[id] = rememberedState{v, state}
	}
	return state, err
}

// sameFile says whether what was read is what was looked at before.
func sameFile(fi os.FileInfo, dir string) bool {
	now, err := os.Stat(filepath.Join(dir, monitor.StateFile))
	return err == nil && os.SameFile(fi, now) && now.ModTime().Equal(fi.ModTime())
}

func (s *states) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}
