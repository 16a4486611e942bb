package containers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// Plan tells what Create and, if a.Begin says so, a start of that container would do, or
// why they would fail. It makes nothing, and reserves nothing: neither the name, nor
// addresses, ports or users. What only the attempt can tell, such as whether a port is
// free or the program exists, it does not say.
func (s *Service) Plan(ctx context.Context, a control.CreateArgs, progress func(control.Progress)) (*control.Planned, error) {
	s.mu.Lock()
	c, err := s.admit(&a)
	s.mu.Unlock()
	if c != nil {
		err = &control.Error{Code: control.CodeExists, Message: "container " + a.ID[:12] + " exists"}
	}
	if err != nil {
		return nil, err
	}
	image, here, err := s.Images.Peek(ctx, control.PullArgs{Ref: a.Image, Platform: a.Platform, Policy: cmp.Or(a.Pull, images.PullMissing)}, progress)
	if err != nil {
		return nil, err
	}
	return s.plan(ctx, &a, image, here)
}

func (s *Service) plan(ctx context.Context, a *control.CreateArgs, image *images.Known, here bool) (*control.Planned, error) {
	defer s.keepRanges(a.ID)()
	c, warnings, err := s.configure(ctx, a, image, control.Rootfs{})
	if err != nil {
		return nil, err
	}
	var made []string // directories
	for _, m := range a.Mounts {
		missing, err := lookSource(m)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", a.Name, err)
		}
		if missing {
			made = append(made, m.Source)
		}
	}
	joins, err := s.joinedPaths(c, a.Begin)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", a.Name, err)
	}
	var groups []uint32
	for _, g := range c.GroupAdd {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	spec, p, err := c.Plan(joins, groups)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", a.Name, err)
	}
	text := before(c, image, here, made) + p.String()
	b, err := json.Marshal(spec)
	return &control.Planned{Text: text, Spec: b, Warnings: append(warnings, p.Warnings()...)}, err
}

// keepRanges returns a function that takes back the users that a container was given
// since, so that the next one gets the same.
func (s *Service) keepRanges(id string) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.ranges.next
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if ids, ok := s.ranges.of[id]; ok && s.ranges.next == s.IDs.Pool.End(ids) { // and nobody was given any after it
			s.ranges.next = next
		}
		delete(s.ranges.of, id)
	}
}

// joinedPaths are other containers' namespaces that a container is to be in, by kind. With
// running, those have to run; else they may by the time that it is started.
func (s *Service) joinedPaths(c *monitor.Config, running bool) (map[string]string, error) {
	paths := map[string]string{}
	add := func(flag, kind, id, file string) error {
		dir := "/proc/PID-OF-" + id[:12]
		ns, err := s.namespaceOf(id, file)
		switch {
		case err == nil:
			ns.Close()
			if st, err := monitor.LoadState(s.dir(id)); err == nil && st.Pid != 0 {
				dir = "/proc/" + strconv.Itoa(st.Pid)
			}
		case running:
			return fmt.Errorf("--%s container: %w", flag, err)
		}
		paths[kind] = path.Join(dir, "ns", file)
		if kind == "ipc" {
			paths[monitor.SharedMemory] = path.Join(dir, "root/dev/shm")
		}
		return nil
	}
	if c.Network.Mode == control.NetworkShared {
		if err := add("network", "network", c.Network.Container, "net"); err != nil {
			return nil, err
		}
	}
	for kind, id := range c.Joins {
		if err := add(joinFlags[kind], kind, id, kind); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// before are the steps of the daemon, which come before those of the container's monitor.
func before(c *monitor.Config, image *images.Known, here bool, made []string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	from := "here"
	if !here {
		from = "to be fetched"
	}
	line("image %s %s %q, %d layers, %s", familiar(image.Ref), image.Desc.Digest, image.Platform, len(image.Layers), from)
	line("writable layer %s", c.Rootfs.Upper)
	for _, dir := range made {
		line("make the directory %q", dir)
	}
	if c.IDs != nil {
		line("users %d to %d, groups %d to %d of this machine", c.IDs.UID, c.IDs.UID+c.IDs.Size-1, c.IDs.GID, c.IDs.GID+c.IDs.Size-1)
	}
	if len(c.GroupAdd) > 0 {
		line("groups %q, as the image's /etc/group has them", c.GroupAdd)
	}
	line("network %s%s", networkMode(c), wanted(&c.Network))
	return b.String()
}

// wanted is what is asked of a network.
func wanted(n *control.NetworkConfig) string {
	var b strings.Builder
	if n.IPv4.IsValid() {
		b.WriteString(", address " + n.IPv4.String())
	}
	if n.IPv6.IsValid() {
		b.WriteString(", address " + n.IPv6.String())
	}
	if n.MAC != "" {
		b.WriteString(", hardware address " + n.MAC)
	}
	for _, p := range n.Ports {
		b.WriteString(", publish " + portText(p))
	}
	return b.String()
}

// portText is a port to publish, as -p has it.
func portText(p control.Port) string {
	host := "any"
	if p.Host != 0 {
		host = strconv.Itoa(int(p.Host))
	}
	if p.HostEnd > p.Host {
		host += "-" + strconv.Itoa(int(p.HostEnd))
	}
	if p.HostIP != "" {
		host = p.HostIP + ":" + host
	}
	return fmt.Sprintf("%s:%d/%s", host, p.Container, p.Proto)
}
