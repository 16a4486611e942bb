package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	fsmounts "github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/userns"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// A UserNamespaces makes user namespaces in which nobody is: the supervisor, as it
// takes a process. With withNet comes a network namespace that belongs to it. The caller closes them.
type UserNamespaces interface {
	UserNamespace(ctx context.Context, m fsmounts.IDMap, withNet bool) (user, net *os.File, err error)
}

// UserOptions say which users containers have.
type UserOptions struct {
	Make    UserNamespaces // nil: there are none
	Default string         // of a container that says nothing, as --userns has it; "": the host's
	Pool    userns.Pool    // what ranges come from
	Range   uint32         // how many a container gets that says nothing
}

// ranges are those that containers have, by ID: from before a container's record is
// written until it is gone. Service.mu guards it.
type ranges struct {
	of    map[string]control.IDRange
	going map[string]going
	next  uint32 // offset in the pool after the last one
}

// going is the range of a container that was removed: until its cgroup has gone, too, some of its processes may still be there.
type going struct {
	ids    control.IDRange
	cgroup string
}

// enter has a container keep the range that its record says.
func (r *ranges) enter(c *monitor.Config) {
	if c.IDs != nil {
		r.of[c.ID] = *c.IDs
	}
}

// leave frees the range of a container that is forgotten. Service.mu is held.
func (r *ranges) leave(c *monitor.Config) {
	if c.IDs != nil {
		delete(r.of, c.ID)
		r.going[c.ID] = going{*c.IDs, c.Spec.Linux.CgroupsPath}
	}
}

// use are all that cannot be given to another container. Service.mu is held.
func (r *ranges) use(exists func(cgroup string) bool) (list []control.IDRange) {
	for _, ids := range r.of {
		list = append(list, ids)
	}
	for id, g := range r.going {
		if !exists(g.cgroup) {
			delete(r.going, id)
			continue
		}
		list = append(list, g.ids)
	}
	return list
}

// users is the user namespace of a container that is being made: its mappings, and
// the range that it has to itself, which unreserve gives back if nothing comes of it. Nil is the host's.
func (s *Service) users(ctx context.Context, a *control.CreateArgs) (*fsmounts.IDMap, *control.IDRange, error) {
	mode, from := a.UserNS, "--userns "
	if mode == "" {
		mode, from = s.IDs.Default, "userns.default = "
	}
	if mode == "" {
		mode = userns.Host
	}
	q, err := userns.Parse(mode)
	if err != nil {
		return nil, nil, invalid("--userns %v", err)
	}
	if !q.Auto && q.Of == "" {
		return nil, nil, checkUnmapped(a)
	}
	if s.IDs.Make == nil {
		return nil, nil, &control.Error{Code: control.CodeUnsupported, Message: "--userns auto: this daemon has no user namespaces"}
	}
	if err := s.checkMapped(a, from+mode, q.Of); err != nil {
		return nil, nil, err
	}
	if q.Of != "" {
		return s.sharedUsers(a)
	}
	pool := s.IDs.Pool
	for _, x := range []struct {
		key   string
		first uint32
		list  []fsmounts.Extent
	}{{"uidmapping", pool.UID, q.UID}, {"gidmapping", pool.GID, q.GID}} {
		if e, ok := pool.Touches(x.first, x.list); ok {
			return nil, nil, invalid("--userns auto: %s=%v: of the host's %d to %d other containers have their own (%s)", x.key, e, x.first, x.first+pool.Size-1, pool.From)
		}
	}
	size := q.Size
	if size == 0 {
		size = s.IDs.Range
	}
	ids, err := s.takeRange(ctx, a.ID, size)
	if err != nil {
		return nil, nil, err
	}
	m, err := q.Map(ids)
	if err != nil {
		return nil, nil, invalid("--userns auto: %v", err)
	}
	return &m, &ids, nil
}

// leaveTime is how long somebody waits for what is left of removed containers to go.
const leaveTime = 2 * time.Second

// takeRange gives a container that is being made a range of its own.
func (s *Service) takeRange(ctx context.Context, id string, size uint32) (control.IDRange, error) {
	ids, ok := s.tryRange(id, size)
	if !ok {
		s.List(true) // which notices containers that have removed themselves
		ids, ok = s.tryRange(id, size)
	}
	for deadline := time.Now().Add(leaveTime); !ok && s.leaving() && time.Now().Before(deadline); {
		select {
		case <-ctx.Done():
			return ids, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		ids, ok = s.tryRange(id, size)
	}
	if ok {
		return ids, nil
	}
	p := s.IDs.Pool
	if size > p.Size {
		return ids, invalid("--userns auto: a range of %d users and groups: all containers together have %d (%s; see userns.size in snapd's configuration)", size, p.Size, p.From)
	}
	return ids, &control.Error{Code: control.CodeUnavailable, Message: fmt.Sprintf(
		"--userns auto: no %d users and groups in a row are left of the %d from %d on (%s): remove containers, ask for fewer with --userns auto:size=N, or enlarge userns.size in snapd's configuration",
		size, p.Size, p.UID, p.From)}
}

// leaving says whether a range is only waiting for what is left of its container.
func (s *Service) leaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ranges.going) > 0
}

func (s *Service) tryRange(id string, size uint32) (control.IDRange, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids, ok := s.IDs.Pool.Take(s.ranges.use(cgroupExists), size, s.ranges.next)
	if ok {
		s.ranges.of[id] = ids
		s.ranges.next = s.IDs.Pool.End(ids)
	}
	return ids, ok
}

// sharedUsers are those of another container, in whose namespace one that is being
// made is to be. From here on a names that by its ID: the name may be another's soon.
func (s *Service) sharedUsers(a *control.CreateArgs) (*fsmounts.IDMap, *control.IDRange, error) {
	name, _ := control.OtherContainer(a.UserNS)
	other, err := s.find(name)
	if err != nil {
		return nil, nil, fmt.Errorf("--userns container:%s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.known[other]
	if c == nil {
		return nil, nil, notFound(name)
	}
	m := mapOf(c)
	if m == nil {
		return nil, nil, invalid("--userns container:%s: that container's users are the host's; use --userns host", name)
	}
	ids := *c.IDs
	s.ranges.of[a.ID] = ids // as long as one of the two is there
	a.UserNS = "container:" + other
	return m, &ids, nil
}

// checkMapped refuses what a container with users of its own cannot have, or with those
// of the container of. as says where it comes from.
func (s *Service) checkMapped(a *control.CreateArgs, as, of string) error {
	const instead = "add --userns host"
	if a.Privileged {
		return invalid("--privileged: with %s its root would be an ordinary user of this machine all the same; %s", as, instead)
	}
	for _, n := range []struct{ flag, mode string }{{"--pid", a.PID}, {"--ipc", a.IPC}, {"--network", a.Network}} {
		name, other := control.OtherContainer(n.mode)
		switch {
		case other && of != "" && s.same(name, of), n.mode == ofHost && n.flag == "--network":
		case other:
			return invalid("%s %s: that namespace belongs to other users than those of %s, so the kernel lets the container do nothing in it; add --userns container:%s, if that has users of its own, or --userns host", n.flag, n.mode, as, name)
		case n.mode == ofHost:
			return invalid("%s host: that namespace belongs to other users than those of %s, so the kernel lets the container do nothing in it; %s", n.flag, as, instead)
		case n.flag == "--network" && of != "" && n.mode != control.NetworkNone:
			return invalid("%s: the network has to belong to the same users: add --network container:%s, none or host", as, of)
		}
	}
	return nil
}

// same says whether two names are of one container.
func (s *Service) same(a, b string) bool {
	x, err := s.find(a)
	y, err2 := s.find(b)
	return err == nil && err2 == nil && x == y
}

// checkUnmapped refuses what wants users of its own.
func checkUnmapped(a *control.CreateArgs) error {
	for _, m := range a.Mounts {
		if m.Type == "bind" && slices.ContainsFunc(m.Options, isMapped) {
			return invalid("--volume %s:%s:idmap: the container's users are the host's; add --userns auto", m.Source, m.Target)
		}
	}
	return nil
}

// isMapped tells the options of a bind mount that has its owners shifted as the container's users are.
func isMapped(o string) bool { return o == "idmap" || o == "ridmap" }

// mapUsers gives a spec a user namespace.
func mapUsers(s *specs.Spec, a *control.CreateArgs, m fsmounts.IDMap) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = mappings(m.UID), mappings(m.GID)
	if s.Linux.Sysctl[pingGroups] == allGroups { // the kernel takes none that are not there
		s.Linux.Sysctl[pingGroups] = fmt.Sprintf("0 %d", lastOf(m.GID))
	}
	if a.Network != control.NetworkHost {
		return
	}
	// The kernel shows the sysfs of a network only to those whose network it is
	// (sysfs_init_fs_context in fs/sysfs/mount.c, Linux 6.18). Of the host's, what
	// is mounted below it stays away.
	for i, mount := range s.Mounts {
		if mount.Type == "sysfs" {
			s.Mounts[i] = specs.Mount{Destination: mount.Destination, Type: "bind", Source: "/sys", Options: []string{"bind", "rprivate", "ro", "nosuid", "noexec", "nodev"}}
		}
	}
}

func mappings(list []fsmounts.Extent) (all []specs.LinuxIDMapping) {
	for _, e := range list {
		all = append(all, specs.LinuxIDMapping{ContainerID: e.Container, HostID: e.Host, Size: e.Size})
	}
	return all
}

// lastOf is the last number of those that are mapped in one piece with 0.
func lastOf(list []fsmounts.Extent) uint32 {
	for _, e := range list {
		if e.Container == 0 {
			return min(e.Size-1, math.MaxInt32)
		}
	}
	return 0
}

// mapOf are the mappings of a container's user namespace; nil without one.
func mapOf(c *monitor.Config) *fsmounts.IDMap {
	if c.IDs == nil || c.Spec.Linux == nil {
		return nil
	}
	extents := func(list []specs.LinuxIDMapping) (all []fsmounts.Extent) {
		for _, x := range list {
			all = append(all, fsmounts.Extent{Container: x.ContainerID, Host: x.HostID, Size: x.Size})
		}
		return all
	}
	return &fsmounts.IDMap{UID: extents(c.Spec.Linux.UIDMappings), GID: extents(c.Spec.Linux.GIDMappings)}
}

// joinedUsers is the key of monitor.Config.Joins under which the container is whose user namespace it is in.
const joinedUsers = monitor.Users

// userNamespace makes the container's, for this start, with a network that belongs
// to it where that is ours to connect. Without one both are nil.
func (s *Service) userNamespace(ctx context.Context, c *monitor.Config) (user, net *os.File, err error) {
	m := mapOf(c)
	if m == nil || c.Joins[joinedUsers] != "" { // which is opened where other containers' are
		return nil, nil, nil
	}
	if s.IDs.Make == nil {
		return nil, nil, &control.Error{Code: control.CodeUnsupported, Message: "it has users of its own, and this daemon has no user namespaces"}
	}
	user, net, err = s.IDs.Make.UserNamespace(ctx, *m, c.Network.Mode == control.NetworkBridge || c.Network.Mode == control.NetworkPlugins)
	if err != nil {
		return nil, nil, fmt.Errorf("--userns auto: %w", err)
	}
	return user, net, nil
}

// cgroupExists says whether a container's cgroup is still there.
func cgroupExists(path string) bool {
	g, err := cgroups.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer g.Release()
	return len(g.Dirs()) > 0
}
