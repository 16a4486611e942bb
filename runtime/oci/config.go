package oci

import (
	"encoding/json"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// encoding/json works out every type that it might meet before it reads the
// first byte, in each process anew: for specs.Spec that is 0.6 ms, three times
// as long as it then takes to decode. So a config.json is decoded into types that
// leave out other systems, and put off what is rarely there.

// A later is a part whose type is looked at only if it is there.
type later[T any] struct{ v *T }

// UnmarshalJSON decodes as a pointer to T would be.
func (l *later[T]) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		l.v = nil
		return nil
	}
	if l.v == nil {
		l.v = new(T)
	}
	return json.Unmarshal(b, l.v)
}

// value is the zero value of what is not there.
func (l later[T]) value() (v T) {
	if l.v != nil {
		v = *l.v
	}
	return v
}

// A config is a specs.Spec.
type config struct {
	Version     string             `json:"ociVersion"`
	Process     *specs.Process     `json:"process"`
	Root        *specs.Root        `json:"root"`
	Hostname    string             `json:"hostname"`
	Domainname  string             `json:"domainname"`
	Mounts      []specs.Mount      `json:"mounts"`
	Hooks       later[specs.Hooks] `json:"hooks"`
	Annotations map[string]string  `json:"annotations"`
	Linux       *linux             `json:"linux"`
	VM          *struct{}          `json:"vm"` // to be refused by name
}

// A linux is a specs.Linux.
type linux struct {
	UIDMappings       []specs.LinuxIDMapping                  `json:"uidMappings"`
	GIDMappings       []specs.LinuxIDMapping                  `json:"gidMappings"`
	Sysctl            map[string]string                       `json:"sysctl"`
	Resources         *resources                              `json:"resources"`
	CgroupsPath       string                                  `json:"cgroupsPath"`
	Namespaces        []specs.LinuxNamespace                  `json:"namespaces"`
	Devices           later[[]specs.LinuxDevice]              `json:"devices"`
	NetDevices        later[map[string]specs.LinuxNetDevice]  `json:"netDevices"`
	Seccomp           *specs.LinuxSeccomp                     `json:"seccomp"`
	RootfsPropagation string                                  `json:"rootfsPropagation"`
	MaskedPaths       []string                                `json:"maskedPaths"`
	ReadonlyPaths     []string                                `json:"readonlyPaths"`
	MountLabel        string                                  `json:"mountLabel"`
	IntelRdt          later[specs.LinuxIntelRdt]              `json:"intelRdt"`
	MemoryPolicy      later[specs.LinuxMemoryPolicy]          `json:"memoryPolicy"`
	Personality       later[specs.LinuxPersonality]           `json:"personality"`
	TimeOffsets       later[map[string]specs.LinuxTimeOffset] `json:"timeOffsets"`
}

// A resources is a specs.LinuxResources.
type resources struct {
	Devices        []specs.LinuxDeviceCgroup         `json:"devices"`
	Memory         later[specs.LinuxMemory]          `json:"memory"`
	CPU            later[specs.LinuxCPU]             `json:"cpu"`
	Pids           later[specs.LinuxPids]            `json:"pids"`
	BlockIO        later[specs.LinuxBlockIO]         `json:"blockIO"`
	HugepageLimits later[[]specs.LinuxHugepageLimit] `json:"hugepageLimits"`
	Network        later[specs.LinuxNetwork]         `json:"network"`
	Rdma           later[map[string]specs.LinuxRdma] `json:"rdma"`
	Unified        map[string]string                 `json:"unified"`
}

// parseSpec decodes a config.json and checks the version it is of.
func parseSpec(b []byte) (*specs.Spec, error) {
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if major, rest, ok := strings.Cut(c.Version, "."); !ok || major != "1" || !strings.Contains(rest, ".") {
		return nil, fmt.Errorf("ociVersion %q: want 1.x.y", c.Version)
	}
	s := &specs.Spec{
		Version: c.Version, Process: c.Process, Root: c.Root, Hostname: c.Hostname, Domainname: c.Domainname,
		Mounts: c.Mounts, Hooks: c.Hooks.v, Annotations: c.Annotations, Linux: c.Linux.spec(),
	}
	if c.VM != nil {
		s.VM = new(specs.VM)
	}
	return s, nil
}

func (l *linux) spec() *specs.Linux {
	if l == nil {
		return nil
	}
	return &specs.Linux{
		UIDMappings: l.UIDMappings, GIDMappings: l.GIDMappings, Sysctl: l.Sysctl, Resources: l.Resources.spec(), CgroupsPath: l.CgroupsPath,
		Namespaces: l.Namespaces, Devices: l.Devices.value(), NetDevices: l.NetDevices.value(), Seccomp: l.Seccomp,
		RootfsPropagation: l.RootfsPropagation, MaskedPaths: l.MaskedPaths, ReadonlyPaths: l.ReadonlyPaths, MountLabel: l.MountLabel,
		IntelRdt: l.IntelRdt.v, MemoryPolicy: l.MemoryPolicy.v, Personality: l.Personality.v, TimeOffsets: l.TimeOffsets.value(),
	}
}

func (r *resources) spec() *specs.LinuxResources {
	if r == nil {
		return nil
	}
	return &specs.LinuxResources{
		Devices: r.Devices, Memory: r.Memory.v, CPU: r.CPU.v, Pids: r.Pids.v, BlockIO: r.BlockIO.v,
		HugepageLimits: r.HugepageLimits.value(), Network: r.Network.v, Rdma: r.Rdma.value(), Unified: r.Unified,
	}
}
