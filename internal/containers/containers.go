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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// A Spawner starts the monitor of the container in dir and waits until it
// answers, or is dead. It is the supervisor: this process never forks.
type Spawner interface {
	SpawnMonitor(ctx context.Context, dir string) error
}

// Options of a Service. All but Log are needed.
type Options struct {
	Root, Run    string
	CgroupParent string
	Images       *images.Service
	Spawner      Spawner
	Log          *slog.Logger // nil: discard
}

// A Service is the book of containers of one daemon. It is safe for concurrent use.
type Service struct {
	Options

	mu       sync.Mutex
	names    map[string]string // name → ID
	known    map[string]*monitor.Config
	spawning map[string]bool // ID: its monitor is being started, and may not hold its lock yet
}

// Labels of ours in a container's configuration.
const labelManifest = "snapfs.manifest" // digest of the image's manifest

// Open reads the book, and makes the state of containers whose monitors were killed true again.
func Open(o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{Options: o, names: map[string]string{}, known: map[string]*monitor.Config{}, spawning: map[string]bool{}}
	for _, dir := range []string{s.dir(""), s.runDir("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(s.dir(""))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id := e.Name()
		c, err := monitor.LoadConfig(s.dir(id))
		if err != nil { // died between making the directory and filling it
			s.Log.Warn("container dropped: it was never finished", "container", id, "err", err)
			s.erase(id)
			continue
		}
		s.known[id], s.names[c.Name] = c, id
		s.reconcile(id, c)
	}
	return s, nil
}

// reconcile ends what is left of a container whose monitor was killed.
func (s *Service) reconcile(id string, c *monitor.Config) monitor.State {
	dir := s.dir(id)
	s.mu.Lock()
	spawning := s.spawning[id]
	s.mu.Unlock()
	if spawning || monitor.Alive(dir) {
		st, err := monitor.LoadState(dir)
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
		if err := removeCgroup(c.Spec.Linux.CgroupsPath); err != nil {
			s.Log.Warn("cgroup", "container", id, "err", err)
		}
	}
	if c.Remove && st.Status != monitor.StatusCreated {
		s.forget(id)
		s.erase(id)
	}
	return st
}

// removeCgroup takes away the cgroup of a container whose processes were killed.
func removeCgroup(path string) error {
	g, err := cgroups.Create(path, nil) // takes over the one that was left
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	return errors.Join(g.Kill(), g.Remove(ctx))
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
	return errors.Join(os.RemoveAll(s.dir(id)), os.RemoveAll(s.runDir(id)))
}

func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.known[id]; c != nil {
		delete(s.names, c.Name)
		delete(s.known, id)
	}
}

// reserve takes a name for id before anything else is done for it. It returns
// the configuration of a container that has the ID already.
func (s *Service) reserve(a *control.CreateArgs) (*monitor.Config, error) {
	if !idOK.MatchString(a.ID) {
		return nil, invalid("container ID %q: want 64 hex digits", a.ID)
	}
	if a.Name != "" && !nameOK.MatchString(a.Name) {
		return nil, invalid("container name %q: only letters, digits, _ . and - are allowed, and a letter or digit first", a.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.known[a.ID]; c != nil {
		return c, nil
	}
	for id := range s.known {
		if id[:runName] == a.ID[:runName] {
			return nil, &control.Error{Code: control.CodeExists, Message: "container ID " + a.ID[:runName] + "… is in use"}
		}
	}
	if a.Name == "" {
		a.Name = randomName(func(n string) bool { return s.names[n] != "" })
	} else if other := s.names[a.Name]; other != "" && other != a.ID {
		return nil, &control.Error{Code: control.CodeExists, Message: fmt.Sprintf("container name %q is in use by container %s; remove or rename that container to use the name again", a.Name, other[:12])}
	}
	s.names[a.Name] = a.ID
	return nil, nil
}

func (s *Service) unreserve(a *control.CreateArgs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[a.ID] == nil && s.names[a.Name] == a.ID {
		delete(s.names, a.Name)
	}
}

// Create makes a container and its monitor, which waits to be told to start
// it. The image is pulled if a.Pull asks for it. A repeated request for the
// same ID returns the same container.
func (s *Service) Create(ctx context.Context, a control.CreateArgs, progress func(control.Progress)) (created *control.Created, err error) {
	switch c, err := s.reserve(&a); {
	case err != nil:
		return nil, err
	case c != nil:
		return s.Start(ctx, c.ID)
	}
	defer s.unreserve(&a)
	policy := a.Pull
	if policy == "" {
		policy = images.PullMissing
	}
	image, err := s.Images.Pull(ctx, control.PullArgs{Ref: a.Image, Platform: a.Platform, Policy: policy}, progress)
	if err != nil {
		return nil, err
	}
	rootfs, err := s.Images.Rootfs(ctx, image)
	if err != nil {
		return nil, err
	}
	c, err := s.configure(&a, image, rootfs)
	if err != nil {
		return nil, err
	}
	if err := s.fill(c, &a); err != nil {
		return nil, errors.Join(fmt.Errorf("container %s: %w", a.Name, err), s.erase(a.ID))
	}
	s.mu.Lock()
	s.known[c.ID] = c
	s.mu.Unlock()
	if err := s.spawn(ctx, c); err != nil {
		s.forget(c.ID)
		return nil, errors.Join(err, s.erase(c.ID))
	}
	s.Images.Complete(image)
	return &control.Created{ID: c.ID, Name: c.Name, Socket: c.Socket}, nil
}

func (s *Service) configure(a *control.CreateArgs, image *images.Known, rootfs control.Rootfs) (*monitor.Config, error) {
	config, err := image.ImageConfig()
	if err != nil {
		return nil, err
	}
	if a.Hostname == "" {
		a.Hostname = a.ID[:12]
		if a.Network == "host" {
			a.Hostname, _ = os.Hostname()
		}
	}
	dir := s.dir(a.ID)
	sp, err := spec(a, config, dir, s.CgroupParent)
	if err != nil {
		return nil, err
	}
	rootfs.Upper, rootfs.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	rootfs.Volatile = a.Remove
	labels := map[string]string{}
	for k, v := range a.Labels {
		labels[k] = v
	}
	labels[labelManifest] = string(image.Desc.Digest)
	return &monitor.Config{
		ID: a.ID, Name: a.Name, Image: a.Image, Spec: sp, Rootfs: rootfs,
		User: cmp.Or(a.User, config.Config.User), StopSignal: cmp.Or(a.StopSignal, config.Config.StopSignal),
		TTY: a.TTY, OpenStdin: a.OpenStdin, Remove: a.Remove, Init: a.Init, Height: a.Height, Width: a.Width,
		CgroupParent: s.CgroupParent, Socket: s.socket(a.ID), SeccompCache: filepath.Join(s.Root, "seccomp"),
		Created: time.Now().UTC(), Labels: labels,
	}, nil
}

// fill makes the container's directory. The configuration comes last: without
// one, Open drops the rest.
func (s *Service) fill(c *monitor.Config, a *control.CreateArgs) error {
	dir := s.dir(c.ID)
	for _, d := range []string{dir, s.runDir(c.ID), c.Rootfs.Work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := makeUpper(c.Rootfs.Upper, c.Rootfs.Lower[0]); err != nil {
		return err
	}
	if err := writeHostFiles(dir, a.Hostname, a.Network); err != nil {
		return err
	}
	for _, m := range a.Mounts {
		if m.Type == "bind" && m.Create {
			if err := os.MkdirAll(m.Source, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return c.Save(dir)
}

// makeUpper makes the writable layer's root look like the image's: an overlay's
// root has the attributes of its uppermost layer's.
func makeUpper(upper, lower string) error {
	if err := os.Mkdir(upper, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(lower)
	if err != nil {
		return err
	}
	uid, gid := owner(fi)
	if err := os.Lchown(upper, uid, gid); err != nil {
		return err
	}
	return os.Chmod(upper, fi.Mode())
}

func (s *Service) spawn(ctx context.Context, c *monitor.Config) error {
	if err := os.MkdirAll(s.runDir(c.ID), 0o700); err != nil {
		return err
	}
	s.mu.Lock()
	s.spawning[c.ID] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.spawning, c.ID)
	}()
	dir := s.dir(c.ID)
	err := s.Spawner.SpawnMonitor(ctx, dir)
	if err == nil && !monitor.Alive(dir) {
		err = errors.New(cmp.Or(lastLine(filepath.Join(dir, MonitorLog)), "it died"))
	}
	if err != nil {
		return fmt.Errorf("container %s: monitor: %w", c.Name, err)
	}
	return nil
}

// MonitorLog is the file in a container's directory where its monitor complains.
const MonitorLog = "monitor.log"

// lastLine returns the last line of a small file.
func lastLine(name string) string {
	text := strings.TrimSpace(string(readSmall(name)))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// Start gives a container that has none a monitor.
func (s *Service) Start(ctx context.Context, name string) (*control.Created, error) {
	id, err := s.find(name)
	if err != nil {
		return nil, err
	}
	c := s.config(id)
	if c == nil {
		return nil, notFound(name)
	}
	if !monitor.Alive(s.dir(id)) {
		if err := s.remount(ctx, c); err != nil {
			return nil, err
		}
		if err := s.spawn(ctx, c); err != nil {
			return nil, err
		}
	}
	return &control.Created{ID: id, Name: c.Name, Socket: c.Socket}, nil
}

// remount sees to it that the container's metadata image is mounted: the
// machine may have been started anew. The image may have been sealed since.
func (s *Service) remount(ctx context.Context, c *monitor.Config) error {
	image, err := s.Images.Get(c.Labels[labelManifest])
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	rootfs, err := s.Images.Rootfs(ctx, image)
	if err != nil {
		return err
	}
	rootfs.Upper, rootfs.Work, rootfs.Volatile = c.Rootfs.Upper, c.Rootfs.Work, c.Rootfs.Volatile
	changed := *c
	changed.Rootfs = rootfs
	if err := changed.Save(s.dir(c.ID)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[c.ID] = &changed
	return nil
}

func (s *Service) config(id string) *monitor.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id]
}

func notFound(name string) error {
	return &control.Error{Code: control.CodeNotFound, Message: "no such container: " + name}
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
	c := s.config(id)
	if c == nil {
		return control.Container{}, false
	}
	if _, err := os.Stat(s.dir(id)); errors.Is(err, fs.ErrNotExist) { // its monitor has removed it
		s.forget(id)
		return control.Container{}, false
	}
	st := s.reconcile(id, c)
	if s.config(id) == nil {
		return control.Container{}, false
	}
	row := control.Container{
		ID: id, Name: c.Name, Image: c.Image, Command: c.Spec.Process.Args, Created: c.Created, Status: st.Status, Pid: st.Pid,
		Started: st.Started, Finished: st.Finished, ExitCode: st.ExitCode, OOMKilled: st.OOMKilled, Error: st.Error,
		TTY: c.TTY, Labels: c.Labels,
	}
	if st.Paused {
		row.Status = monitor.StatusPaused
	}
	if st.Status != monitor.StatusRunning {
		row.Pid = 0
	}
	if monitor.Alive(s.dir(id)) {
		row.Socket = c.Socket
	}
	return row, true
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
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b control.Container) int { return b.Created.Compare(a.Created) })
	return rows
}

// Users tells which containers use which images, for images.Options.
func (s *Service) Users() map[digest.Digest][]images.User {
	users := map[digest.Digest][]images.User{}
	for _, row := range s.List(true) {
		d := digest.Digest(row.Labels[labelManifest])
		users[d] = append(users[d], images.User{Name: row.Name, Running: row.Socket != ""})
	}
	return users
}

// Remove removes a container; with force a running one, too.
func (s *Service) Remove(ctx context.Context, name string, force bool) (control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return row, err
	}
	if row.Pid != 0 && !force {
		return row, &control.Error{Code: control.CodeInUse, Message: fmt.Sprintf("container %s is running: stop it before removing it, or use --force", row.Name)}
	}
	if err := s.end(ctx, row); err != nil {
		return row, fmt.Errorf("container %s: %w", row.Name, err)
	}
	s.forget(row.ID)
	return row, s.erase(row.ID)
}

// end kills a running container and waits for its monitor to go.
func (s *Service) end(ctx context.Context, row control.Container) error {
	if row.Socket == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	op, args := monitor.OpRelease, any(nil)
	if row.Pid != 0 {
		op, args = monitor.OpStop, monitor.StopArgs{Signal: "KILL"}
	}
	if _, err := control.Call(ctx, row.Socket, op, args, nil, nil); err != nil && monitor.Alive(s.dir(row.ID)) {
		if _, reported := errors.AsType[*control.Error](err); reported {
			return err
		}
	}
	for monitor.Alive(s.dir(row.ID)) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("its monitor does not end: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// endTimeout bounds how long the end of a killed container may take.
const endTimeout = 10 * time.Second

// OpenLog opens a container's log for reading.
func (s *Service) OpenLog(name string) (*os.File, control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return nil, row, err
	}
	f, err := os.Open(filepath.Join(s.dir(row.ID), monitor.LogFile))
	if errors.Is(err, fs.ErrNotExist) { // it has not been started
		f, err = os.Open(os.DevNull)
	}
	return f, row, err
}

// Inspect returns a container's configuration.
func (s *Service) Inspect(name string) (*monitor.Config, control.Container, error) {
	row, err := s.Resolve(name)
	if err != nil {
		return nil, row, err
	}
	return s.config(row.ID), row, nil
}
