// Package containers is the worker's book of containers: it makes their
// directories, asks for their monitors, and tells what became of them.
//
// A container is the directory ROOT/containers/ID (see runtime/monitor for the
// files in it); there is no other record, so the book is as true after a crash
// as the directories are. While it has a monitor, the monitor knows better than
// the book, and clients talk to it at RUN/containers/ID/sock, ID's first digits.
package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/cdi"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// A Spawner starts the monitor of the container in dir and waits until it
// answers, or is dead. It is the supervisor: this process never forks. join are
// namespaces that the container is to be started in; they stay the caller's.
type Spawner interface {
	SpawnMonitor(ctx context.Context, dir string, join []monitor.Namespace) error
	// SpawnSlot starts a monitor for a container to come, like that one; ps shows place meanwhile.
	SpawnSlot(ctx context.Context, place string, like *monitor.Config) (*monitor.Slot, error)
}

// Options of a Service. What is not marked as nil is needed.
type Options struct {
	Root, Run    string
	CgroupParent string
	Slots        int  // how many monitors are kept started ahead; at most MaxPool
	Eager        bool // from the beginning, and not only from the first start on
	Images       *images.Service
	Spawner      Spawner
	Networks     Networks // nil: there is no bridge
	Plugins      Plugins  // nil: nobody runs CNI's
	Network      string   // of a container that names none: one of control's constants
	Described    cdi.Dirs // where devices are described that are asked for by name
	IDs          UserOptions
	Events       *events.Log  // nil: nobody is told
	Starts       *starts.Book // nil: nobody remembers where the time went
	Boots        Boots        // nil: nobody hears of starts, and a container without another sign was ready at once
	Log          *slog.Logger // nil: discard
}

// A Service is the book of containers of one daemon. It is safe for concurrent use.
type Service struct {
	Options
	base      context.Context // lifetime of what follows the containers
	cancel    context.CancelFunc
	opened    time.Time
	quiet     quiet
	followers sync.WaitGroup
	states    states
	pool      *pool
	pooling   sync.WaitGroup // pool.run

	mu       sync.Mutex
	names    map[string]string // name → ID
	known    map[string]*monitor.Config
	spawning map[string]bool          // ID: its monitor is being started, and may not hold its lock yet
	starting map[string]chan struct{} // ID: closed when Start has ended
	lives    uint64                   // that were followed so far
	followed map[string]uint64        // ID: which of them is its monitor's
	ranges   ranges
}

// Labels of ours in a container's configuration.
const labelManifest = "snapfs.manifest" // digest of the image's manifest

// Open reads the book, and makes the state of containers whose monitors were killed true again. Close ends it.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Boots == nil {
		o.Boots = noBoots{}
	}
	if o.Plugins == nil {
		o.Plugins = noPlugins{}
	}
	if o.Networks == nil {
		o.Networks = noNetworks{}
	}
	s := &Service{
		Options: o, opened: time.Now(), quiet: defaultQuiet,
		names: map[string]string{}, known: map[string]*monitor.Config{}, spawning: map[string]bool{},
		starting: map[string]chan struct{}{}, followed: map[string]uint64{}, states: states{settled: settled}, ranges: ranges{of: map[string]control.IDRange{}, going: map[string]going{}},
	}
	for _, dir := range []string{s.dir(""), s.runDir("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(s.dir(""))
	if err != nil {
		return nil, err
	}
	if _, err := cgroups.RemoveEmpty(s.CgroupParent, sandboxPrefix); s.CgroupParent != "" && err != nil {
		o.Log.Warn("cgroups of monitors that were started ahead", "err", err)
	}
	s.base, s.cancel = context.WithCancel(ctx)
	s.pool = newPool(s.Slots, s.Eager, s.spawnSlot, s.Log)
	s.pooling.Go(func() { s.pool.run(s.base) })
	defer s.followers.Go(s.reconcileNetworks)
	var dead []*monitor.Config
	defer s.followers.Go(func() { s.sweep(dead...) })
	for _, e := range entries {
		id := e.Name()
		c, err := monitor.LoadConfig(s.dir(id))
		switch {
		case err != nil && s.unfinished(id): // died between making the directory and filling it
			if ended, trash := strings.CutPrefix(id, monitor.TrashPrefix); trash && idOK.MatchString(ended) {
				dead = append(dead, s.unknown(ended))
			} else {
				s.Log.Warn("container dropped: it was never finished", "container", id, "err", err)
			}
			s.erase(id)
			continue
		case err != nil:
			s.Log.Error("container cannot be read: it is left where it is", "dir", s.dir(id), "err", err)
			continue
		}
		s.mu.Lock()
		s.known[id], s.names[c.Name] = c, id
		s.ranges.enter(c)
		s.mu.Unlock()
		if s.reconcile(id, c, s.inUse(id)); monitor.Alive(s.dir(id)) {
			s.follow(c)
		} else {
			dead = append(dead, c)
		}
	}
	return s, nil
}

// unfinished says of a container whose configuration cannot be read that there
// is none, or that it never reached the disk, as after a power cut.
func (s *Service) unfinished(id string) bool {
	fi, err := os.Stat(filepath.Join(s.dir(id), monitor.ConfigFile))
	return errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() == 0
}

// unknown is a container whose configuration is gone. It is taken to be where most of them are.
func (s *Service) unknown(id string) *monitor.Config {
	return &monitor.Config{ID: id, Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: path.Join("/", s.CgroupParent, id)}}}
}

// reconcile ends what is left of a container whose monitor was killed; inUse says that it has one.
func (s *Service) reconcile(id string, c *monitor.Config, inUse bool) monitor.State {
	dir := s.dir(id)
	if inUse || s.inUse(id) { // it may have been given one since
		st, err := s.states.load(id, dir)
		if err != nil {
			s.Log.Warn("container state", "container", id, "err", err)
		}
		return st
	}
	before, _ := monitor.LoadState(dir)
	st, err := monitor.Recover(dir)
	if err != nil {
		s.Log.Error("container cannot be recovered", "container", id, "err", err)
		return st
	}
	os.RemoveAll(s.runDir(id))
	if before.Status == monitor.StatusRunning {
		s.Log.Warn("container ended: its monitor was killed", "container", id)
	}
	// One that was killed while it started the container has recorded nothing of that yet.
	if before.Status == monitor.StatusRunning || before.Status == monitor.StatusCreated && before.Monitor != 0 {
		if err := removeCgroup(c); err != nil {
			s.Log.Warn("cgroup", "container", id, "err", err)
		}
	}
	if c.Remove && st.Status != monitor.StatusCreated {
		s.forget(id)
		s.erase(id)
	}
	return st
}

// removeCgroup kills what is in a container's cgroup and takes that away, if it is there.
func removeCgroup(c *monitor.Config) error {
	if c.Spec == nil || c.Spec.Linux == nil || c.Spec.Linux.CgroupsPath == "" {
		return nil // a damaged configuration
	}
	g, err := cgroups.Open(c.Spec.Linux.CgroupsPath)
	if err != nil {
		return err
	}
	if len(g.Dirs()) == 0 {
		return g.Release()
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	return errors.Join(g.Kill(), g.Remove(ctx))
}

// sweep ends what is left of containers that have no monitor. One that was killed
// in the middle of a start has recorded no process, but may have made one.
func (s *Service) sweep(list ...*monitor.Config) {
	for _, c := range list {
		if s.base.Err() != nil {
			return
		}
		done, err := s.only(s.base, c.ID)
		if err != nil {
			return
		}
		if !s.inUse(c.ID) {
			if err := removeCgroup(c); err != nil {
				s.Log.Warn("cgroup", "container", c.ID, "err", err)
			}
		}
		done()
	}
}

func (s *Service) dir(id string) string { return filepath.Join(s.Root, "containers", id) }
func (s *Service) runDir(id string) string {
	return filepath.Join(s.Run, "containers", id[:min(len(id), runName)])
}
func (s *Service) socket(id string) string { return filepath.Join(s.runDir(id), "sock") }

// runName is how many digits of an ID name its directory in RUN: all 64 would
// leave little of the 107 bytes that a socket's path may have (unix(7)).
const runName = 16

// erase removes a container's directories.
func (s *Service) erase(id string) error {
	err := os.RemoveAll(s.dir(id))
	for i := 0; i < 3 && errors.Is(err, unix.ENOTEMPTY); i++ { // the record of its start came meanwhile
		err = os.RemoveAll(s.dir(id))
	}
	return errors.Join(err, os.RemoveAll(s.runDir(id)))
}

func (s *Service) forget(id string) {
	s.states.forget(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.known[id]; c != nil {
		if s.names[c.Name] == id {
			delete(s.names, c.Name)
		}
		delete(s.known, id)
		s.ranges.leave(c)
	}
}

// event tells that something has happened to a container; pairs are as in events.Attrs.
func (s *Service) event(action string, c *monitor.Config, pairs ...any) {
	e := control.Event{Type: events.Container, Action: action, ID: c.ID, Attributes: events.Attrs(pairs...)}
	e.Attributes["name"], e.Attributes["image"] = c.Name, familiar(c.Image)
	s.Events.Emit(e)
}

// familiar is the name of an image as it is listed, from what the user wrote.
func familiar(image string) string {
	ref, err := registry.ParseRef(image)
	if err != nil {
		return image // by its ID
	}
	return ref.Familiar()
}

func (s *Service) config(id string) *monitor.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id]
}

func notFound(name string) error {
	return &control.Error{Code: control.CodeNotFound, Message: "no such container: " + cmp.Or(name, `""`)}
}

// find returns the ID that a name, an ID or a unique prefix of one stands for.
func (s *Service) find(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[name] != nil {
		return name, nil
	}
	if id := s.names[name]; id != "" && s.known[id] != nil {
		return id, nil
	}
	found := ""
	for id := range s.known {
		if name == "" || !strings.HasPrefix(id, name) {
			continue
		}
		if found != "" {
			return "", &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("container %s: more than one ID begins so: write more of it", name)}
		}
		found = id
	}
	if found == "" {
		return "", notFound(name)
	}
	return found, nil
}

// Resolve returns the row of one container.
func (s *Service) Resolve(name string) (control.Container, error) {
	id, err := s.find(name)
	if err != nil {
		return control.Container{}, err
	}
	if row, ok := s.row(id); ok {
		return row, nil
	}
	return control.Container{}, notFound(name)
}

// row tells what became of a container; false if it is gone.
func (s *Service) row(id string) (control.Container, bool) {
	c, alive := s.config(id), s.inUse(id)
	if c == nil || !alive && s.removed(id) {
		return control.Container{}, false
	}
	st := s.reconcile(id, c, alive)
	if alive && st.Status != monitor.StatusRunning { // it may have ended, or be on its way, since we have looked
		alive = monitor.Alive(s.dir(id))
	}
	if st.Status == monitor.StatusCreated && s.removed(id) || s.config(id) == nil {
		return control.Container{}, false
	}
	row := control.Container{
		ID: id, Name: c.Name, Image: c.Image, Command: c.Spec.Process.Args, Created: c.Created, Status: st.Status, Pid: st.Pid,
		Started: st.Started, Finished: st.Finished, ExitCode: st.ExitCode, OOMKilled: st.OOMKilled, Error: st.Error,
		TTY: c.TTY, Labels: c.Labels, Ready: st.Ready, ReadyBy: st.ReadyBy, Health: st.Health,
	}
	if st.Paused {
		row.Status = monitor.StatusPaused
	}
	if st.Status != monitor.StatusRunning {
		row.Pid = 0
	}
	row.Network, row.Exposed, row.IDs = networkMode(c), c.Network.Exposed, c.IDs
	if alive {
		row.Socket, row.Endpoint = c.Socket, s.Networks.Endpoint(id)
	}
	return row, true
}

// removed says whether a container's monitor has removed it; then nobody knows it any more.
func (s *Service) removed(id string) bool {
	if _, err := os.Stat(s.dir(id)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	s.forget(id)
	return true
}

// List returns the containers, newest first: the running ones, or all.
func (s *Service) List(all bool) []control.Container {
	s.mu.Lock()
	ids := make([]string, 0, len(s.known))
	for id := range s.known {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	rows := []control.Container{}
	for _, id := range ids {
		if row, ok := s.row(id); ok && (all || row.Pid != 0) {
			brief(&row)
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b control.Container) int { return b.Created.Compare(a.Created) })
	return rows
}

// Bounds of what a row of a list repeats of an image, or of a network's plugins: all rows have to fit into
// one frame, and one container must not keep the others from being listed.
const (
	briefText  = 1 << 10 // bytes of a command line, or an error
	briefPorts = 64
)

// brief leaves out of a row what only Resolve and Inspect tell.
func brief(row *control.Container) {
	if row.Health != nil {
		row.Health = &control.Health{Status: row.Health.Status, FailingStreak: row.Health.FailingStreak}
	}
	room := briefText
	for i, arg := range row.Command {
		if len(arg) > room {
			row.Command = append(slices.Clone(row.Command[:i]), arg[:room]+"…")
			break
		}
		room -= len(arg) + 1
	}
	if len(row.Error) > briefText {
		row.Error = row.Error[:briefText] + "…"
	}
	row.Exposed = row.Exposed[:min(len(row.Exposed), briefPorts)]
	if row.Endpoint != nil {
		e := *row.Endpoint
		e.Routes, e.DNS = nil, nil
		row.Endpoint = &e
	}
}

// Manifest is the digest of the manifest of a container's image.
func Manifest(c control.Container) digest.Digest { return digest.Digest(c.Labels[labelManifest]) }

// Users tells which containers use which images, for images.Options.
func (s *Service) Users() map[digest.Digest][]images.User {
	users := map[digest.Digest][]images.User{}
	for _, row := range s.List(true) {
		d := Manifest(row)
		users[d] = append(users[d], images.User{Name: row.Name, Running: row.Socket != ""})
	}
	return users
}
