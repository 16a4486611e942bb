package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	fsmounts "github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// reserve takes a name for id before anything else is done for it. It returns
// the configuration of a container that has the ID already.
func (s *Service) reserve(a *control.CreateArgs) (*monitor.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.admit(a)
	if c == nil && err == nil {
		s.names[a.Name] = a.ID
	}
	return c, err
}

// admit is reserve, but that it takes nothing. Service.mu is held, but for a moment.
func (s *Service) admit(a *control.CreateArgs) (*monitor.Config, error) {
	if !idOK.MatchString(a.ID) {
		return nil, invalid("container ID %q: want 64 hex digits", a.ID)
	}
	if a.Name != "" && !nameOK.MatchString(a.Name) {
		return nil, invalid("container name %q: only letters, digits, _ . and - are allowed, and a letter or digit first", a.Name)
	}
	if other := s.names[a.Name]; s.known[other] != nil { // it may have ended a moment ago, and not been forgotten
		s.mu.Unlock()
		s.removed(other)
		s.mu.Lock()
	}
	if c := s.known[a.ID]; c != nil {
		return c, nil
	}
	for _, id := range s.names {
		if id == a.ID {
			return nil, &control.Error{Code: control.CodeInUse, Message: "container " + a.ID[:12] + " is being made"}
		}
	}
	for id := range s.known {
		if id[:runName] == a.ID[:runName] {
			return nil, &control.Error{Code: control.CodeExists, Message: "container ID " + a.ID[:runName] + "… is in use"}
		}
	}
	if a.Name == "" {
		a.Name = randomName(func(n string) bool { return s.names[n] != "" })
	} else if other := s.names[a.Name]; other != "" && other != a.ID {
		return nil, &control.Error{Code: control.CodeExists, Message: fmt.Sprintf("container name %q is in use by container %s; remove that container, or choose another name", a.Name, other[:12])}
	}
	return nil, nil
}

func (s *Service) unreserve(a *control.CreateArgs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[a.ID] != nil {
		return
	}
	if s.names[a.Name] == a.ID {
		delete(s.names, a.Name)
	}
	delete(s.ranges.of, a.ID)
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
	start := s.Starts.Begin(starts.Run, familiar(a.Image))
	defer func() { start.Failed(err) }()
	done := start.Phase(starts.Image)
	image, release, err := s.Images.Use(ctx, control.PullArgs{Ref: a.Image, Platform: a.Platform, Policy: policy}, start.Watch(progress))
	if err != nil {
		return nil, err
	}
	defer release() // the container is known by then
	done()
	start.Image("", string(image.Desc.Digest), image.Layers)
	done = start.Phase("mount")
	rootfs, err := s.Images.Rootfs(ctx, image, a.Record || s.Images.Recordable(image))
	if err != nil {
		return nil, err
	}
	done()
	done = start.Phase("create")
	c, warnings, err := s.configure(ctx, &a, image, rootfs)
	if err != nil {
		return nil, err
	}
	var slot *monitor.Slot
	if a.Begin {
		slot = s.pool.takeFor(c)
		defer func() { s.pool.giveBack(slot) }()
	}
	if err := s.fill(c, &a); err != nil {
		return nil, errors.Join(fmt.Errorf("container %s: %w", a.Name, err), s.erase(a.ID))
	}
	alone, err := s.only(ctx, c.ID) // before others know it
	if err != nil {
		return nil, errors.Join(err, s.erase(a.ID))
	}
	defer alone()
	s.mu.Lock()
	s.known[c.ID] = c
	s.mu.Unlock()
	done()
	start.Container(c.ID, c.Name)
	done = start.Phase("monitor")
	s.Images.Prepare(c.ID, image)
	given := slot
	slot = nil
	if err := s.spawn(ctx, c, a.Begin, given); err != nil {
		s.Images.Ready(c.ID, false)
		s.forget(c.ID)
		return nil, errors.Join(err, s.erase(c.ID))
	}
	done()
	s.event(events.Create, c)
	return &control.Created{ID: c.ID, Name: c.Name, Socket: c.Socket, Warnings: warnings}, nil
}

func (s *Service) configure(ctx context.Context, a *control.CreateArgs, image *images.Known, rootfs control.Rootfs) (*monitor.Config, []string, error) {
	config, err := image.ImageConfig()
	if err != nil {
		return nil, nil, err
	}
	logs, err := logOptions(a)
	if err != nil {
		return nil, nil, err
	}
	if err := monitor.ParseReady(a.Ready); err != nil {
		return nil, nil, invalid("--ready %v", err)
	}
	health, warnings, err := healthcheck(a, image.Config)
	if err != nil {
		return nil, nil, err
	}
	net, w, err := s.network(a, config.Config.ExposedPorts)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, w...)
	signal, w, err := stopSignal(a.StopSignal, config.Config.StopSignal)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, w...)
	dir := s.dir(a.ID)
	sp, err := spec(a, config, dir, s.CgroupParent)
	if err != nil {
		return nil, nil, err
	}
	if err := checkSets(a); err != nil {
		return nil, nil, err
	}
	m, ids, err := s.users(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	if m != nil {
		mapUsers(sp, a, *m)
	}
	if err := devices(sp, a); err != nil {
		return nil, nil, err
	}
	bundle, w, err := s.described(sp, a, dir)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, w...)
	joins, err := s.joins(a)
	if err != nil {
		return nil, nil, err
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
		User: cmp.Or(a.User, config.Config.User), StopSignal: signal,
		TTY: a.TTY, OpenStdin: a.OpenStdin, Remove: a.Remove, Init: a.Init, Height: a.Height, Width: a.Width,
		CgroupParent: s.CgroupParent, Socket: s.socket(a.ID), SeccompCache: filepath.Join(s.Root, "seccomp"),
		Created: time.Now().UTC(), Labels: labels, Ready: a.Ready, Health: health, LogOptions: logs, Network: net,
		Joins: joins, IDs: ids, GroupAdd: a.GroupAdd, StopTimeout: a.StopTimeout, Bundle: bundle,
	}, warnings, nil
}

// stopSignal is the user's or, without that, the image's, if there is such a signal.
func stopSignal(own, image string) (signal string, warnings []string, err error) {
	if own != "" {
		if _, err := monitor.ParseSignal(own); err != nil {
			return "", nil, invalid("--stop-signal: %v; want a name or a number, such as SIGQUIT", err)
		}
		return own, nil, nil
	}
	if image != "" {
		if _, err := monitor.ParseSignal(image); err != nil {
			return "", []string{fmt.Sprintf("the image's config: stop %.100v; SIGTERM is used", err)}, nil
		}
	}
	return image, nil, nil
}

func logOptions(a *control.CreateArgs) (o monitor.LogOptions, err error) {
	switch {
	case a.LogDriver != "" && a.LogDriver != "json-file" && a.LogDriver != "none":
		return o, invalid("--log-driver %q: want json-file or none", a.LogDriver)
	case a.LogMaxSize < 0 || a.LogMaxFiles < 0 || a.LogMaxFiles > monitor.MaxLogFiles:
		return o, invalid("--log-opt: want a max-size of 0 or more, and a max-file of 1 to %d", monitor.MaxLogFiles)
	case a.LogDriver == "none" && (a.LogMaxSize != 0 || a.LogMaxFiles != 0):
		return o, invalid("--log-opt: there is no log with --log-driver none")
	case a.LogMaxFiles > 1 && a.LogMaxSize == 0:
		return o, invalid("--log-opt max-file=%d: wants a max-size, after which a further file is begun", a.LogMaxFiles)
	}
	return monitor.LogOptions{None: a.LogDriver == "none", MaxSize: a.LogMaxSize, MaxFiles: a.LogMaxFiles}, nil
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
	if err := makeUpper(c.Rootfs.Upper, c.Rootfs.Lower[0], mapOf(c)); err != nil {
		return err
	}
	if !a.Begin { // else they are made with the network
		if err := s.hostFiles(c, nil); err != nil {
			return err
		}
	}
	if err := fillBundle(c); err != nil {
		return err
	}
	for _, m := range a.Mounts {
		if err := findSource(m); err != nil {
			return err
		}
	}
	return c.Save(dir)
}

// findSource makes sure that what is to be bound is there: with -v a directory
// that is missing is made, as docker does it; anything else stays as it is.
func findSource(m control.MountSpec) error {
	missing, err := lookSource(m)
	if missing {
		if err = os.MkdirAll(m.Source, 0o755); err != nil {
			err = fmt.Errorf("--volume %s: make the directory: %w", m.Source, err)
		}
	}
	return err
}

// lookSource looks for what is to be bound; missing says that it is to be made.
func lookSource(m control.MountSpec) (missing bool, err error) {
	if m.Type != "bind" {
		return false, nil
	}
	_, err = os.Stat(m.Source)
	switch {
	case err == nil:
		return false, nil
	case m.Create && errors.Is(err, fs.ErrNotExist):
		return true, nil
	case m.Create:
		return false, fmt.Errorf("--volume %s: %w", m.Source, err)
	case errors.Is(err, fs.ErrNotExist):
		return false, invalid("--mount source=%s: there is no such file or directory on this machine; --volume makes one", m.Source)
	}
	return false, fmt.Errorf("--mount source=%s: %w", m.Source, err)
}

// makeUpper makes the writable layer's root look like the image's: an overlay's
// root has the attributes of its uppermost layer's. With users of the container's own
// that is as whom m shows it.
func makeUpper(upper, lower string, m *fsmounts.IDMap) error {
	if err := os.Mkdir(upper, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(lower)
	if err != nil {
		return err
	}
	uid, gid := owner(fi)
	if m != nil {
		u, g, ok := m.Shift(uint32(uid), uint32(gid))
		if uid, gid = int(u), int(g); !ok { // nobody's: writing there is root's business
			uid, gid = m.Root()
		}
	}
	if err := os.Lchown(upper, uid, gid); err != nil {
		return err
	}
	return os.Chmod(upper, fi.Mode())
}

// spawn gives a container a monitor, slot if that is not nil, and, if it is about to start, its network.
func (s *Service) spawn(ctx context.Context, c *monitor.Config, begin bool, slot *monitor.Slot) error {
	defer func() { s.pool.giveBack(slot) }()
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
	var join []monitor.Namespace
	if begin {
		var err error
		if join, err = s.namespaces(ctx, c); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		defer closeNamespaces(join)
	}
	given := slot
	slot = nil
	// Half a start cannot be taken back: who has gone meanwhile is noticed afterwards.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), spawnTime)
	defer cancel()
	err := s.startMonitor(starting, c, join, given)
	if err == nil && !monitor.Alive(dir) {
		err = errors.New(cmp.Or(lastLine(filepath.Join(dir, MonitorLog)), "it was killed before it answered"))
	}
	if err == nil && ctx.Err() != nil { // else it would wait for ever for somebody to start the container
		err = errors.Join(ctx.Err(), s.end(starting, control.Container{ID: c.ID, Socket: c.Socket}))
	}
	if err != nil {
		s.Networks.Release(c.ID, 0)
		if cerr := removeCgroup(c); cerr != nil { // of its sandbox, if it was to have one
			s.Log.Warn("cgroup", "container", c.ID, "err", cerr)
		}
		return fmt.Errorf("container %s: monitor: %w", c.Name, err)
	}
	s.follow(c)
	return nil
}

// spawnTime bounds how long a monitor may take to answer. It may have to wait for what an
// earlier one does at its end, hooks among it.
const spawnTime = 2 * time.Minute

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
	done, err := s.only(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	c := s.config(id) // as who was before us has left it
	if c == nil {
		return nil, notFound(name)
	}
	start := s.again(c)
	if !monitor.Alive(s.dir(id)) {
		err = s.revive(ctx, c, start)
	} else {
		err = s.join(ctx, c)
	}
	if err != nil {
		start.Failed(err)
		return nil, err
	}
	return &control.Created{ID: id, Name: c.Name, Socket: c.Socket}, nil
}

// only waits until nobody else starts the container, whose network it would take
// away, and keeps others from it until done is called.
func (s *Service) only(ctx context.Context, id string) (done func(), err error) {
	for {
		s.mu.Lock()
		other := s.starting[id]
		if other == nil {
			mine := make(chan struct{})
			s.starting[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.starting, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// revive gives a container without a monitor its root file system and a monitor.
func (s *Service) revive(ctx context.Context, c *monitor.Config, start *starts.Start) error {
	done := start.Phase("mount")
	image, err := s.Images.Get(c.Labels[labelManifest])
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	release, err := s.Images.Hold(image)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	defer release() // it has a monitor by then, and so is running
	if err := s.remount(ctx, c, image); err != nil {
		return err
	}
	done()
	done = start.Phase("monitor")
	if now := s.config(c.ID); now != nil { // with the root file system as it is now
		c = now
	}
	if err := s.spawn(ctx, c, true, s.pool.takeAgain()); err != nil {
		return err
	}
	done()
	return nil
}

// again begins the record of another start of a container; nil if it runs.
func (s *Service) again(c *monitor.Config) *starts.Start {
	if st, err := monitor.LoadState(s.dir(c.ID)); err != nil || st.Status == monitor.StatusRunning {
		return nil
	}
	start := s.Starts.Begin(starts.Again, familiar(c.Image))
	if image, err := s.Images.Get(c.Labels[labelManifest]); err == nil {
		start.Image("", string(image.Desc.Digest), image.Layers)
	}
	start.Container(c.ID, c.Name)
	return start
}

// remount sees to it that the container's metadata image is mounted: the
// machine may have been started anew. The image may have been sealed since.
func (s *Service) remount(ctx context.Context, c *monitor.Config, image *images.Known) error {
	rootfs, err := s.Images.Rootfs(ctx, image, false)
	if err != nil {
		return err
	}
	s.Images.Prepare(c.ID, image)
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
