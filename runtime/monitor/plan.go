package monitor

import (
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/runtime"
)

// plan works out a start of the container by spec, which is the container's with the
// namespaces put in that exist. It completes spec by who the process is.
func (c *Config) plan(spec *specs.Spec, groups []uint32) (*runtime.Plan, error) {
	process := *spec.Process
	spec.Process = &process
	if c.User != "" {
		process.User.Username = c.User
	}
	if len(groups) > 0 {
		process.User.AdditionalGids = groups
	}
	if c.TTY {
		process.ConsoleSize = &specs.Box{Height: uint(c.Height), Width: uint(c.Width)}
	}
	return runtime.NewPlan(spec, runtime.Options{
		ID: c.ID, CgroupParent: c.CgroupParent, SeccompCache: c.SeccompCache, Init: c.Init, Bundle: c.Bundle,
	})
}

// Plan is what a start of the container will do, and the spec that it will be done by. Nothing
// is touched. joins are the paths of the namespaces that are not made for it, by kind, with
// [SharedMemory] that of a /dev/shm; groups are those of GroupAdd.
func (c *Config) Plan(joins map[string]string, groups []uint32) (*specs.Spec, *runtime.Plan, error) {
	spec := *c.Spec
	spec.Linux = joinedAt(spec.Linux, joins)
	if shm, ok := joins[SharedMemory]; ok {
		spec.Mounts = memoryAt(spec.Mounts, shm)
	}
	p, err := c.plan(&spec, groups)
	return &spec, p, err
}

// joinedAt is a spec's namespaces with those that exist put in.
func joinedAt(linux *specs.Linux, joins map[string]string) *specs.Linux {
	if linux == nil {
		return nil
	}
	changed := *linux
	changed.Namespaces = slices.Clone(linux.Namespaces)
	for _, name := range slices.Sorted(maps.Keys(joins)) {
		if name == SharedMemory {
			continue
		}
		path, kind := joins[name], specs.LinuxNamespaceType(name)
		i := slices.IndexFunc(changed.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		if i < 0 {
			changed.Namespaces = append(changed.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		} else {
			changed.Namespaces[i].Path = path
		}
	}
	return &changed
}

func isMemory(m specs.Mount) bool { return m.Destination == "/dev/shm" }

// memoryAt puts the /dev/shm at path in the place of the container's own.
func memoryAt(list []specs.Mount, path string) []specs.Mount {
	list = slices.Clone(list)
	if i := slices.IndexFunc(list, isMemory); i >= 0 {
		list[i] = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: path, Options: []string{"bind", "rprivate"}}
	}
	return list
}
